//! Jobs on random chains of mixed formats, against plain bytes: broken off anywhere, begun again,
//! with a client that writes meanwhile, and with QEMU's check of every image afterwards.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use block_io::{BlockDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use jobs::{Monitor, run_chain_work};
use testkit::peer::peer;
use testkit::rng::Rng;
use volume::{
    ChainChange, CreateImage, DiskImage, ImageFormat, ImageOptions, ImageSettings, Work,
    create_image,
};

const SECTOR: u64 = 512;

/// An image of a chain, and what its disk holds.
#[derive(Clone)]
struct Level {
    path: PathBuf,
    format: ImageFormat,
    content: Vec<u8>,
}

/// A chain, the lowest first.
struct Chain {
    _folder: tempfile::TempDir,
    levels: Vec<Level>,
}

fn writing() -> ImageOptions {
    ImageOptions { read_only: false, ..ImageOptions::reading() }
}

fn open(level: &Level) -> Arc<DiskImage> {
    let options = ImageOptions { format: Some(level.format), ..writing() };
    Arc::new(open_as(&level.path, &options))
}

fn open_as(path: &Path, options: &ImageOptions) -> DiskImage {
    patiently(|| DiskImage::open(path, options)).unwrap()
}

/// Tries again as long as a file is busy: a process that another test is just starting holds for a
/// moment the locks of all files that are open here.
fn patiently<T>(attempt: impl Fn() -> Result<T>) -> Result<T> {
    for _ in 0..200 {
        match attempt() {
            Err(error) if error.kind() == ErrorKind::Busy => {}
            other => return other,
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    attempt()
}

/// Changes a disk at random, and what it is to hold.
fn scribble(device: &dyn BlockDevice, content: &mut [u8], rng: &mut Rng, format: ImageFormat) {
    let sectors = content.len() as u64 / SECTOR;
    for _ in 0..rng.within(1..12) {
        let first = rng.within(0..sectors);
        let count = rng.within(1..(sectors - first).min(600) + 1);
        let (start, len) = (first * SECTOR, count * SECTOR);
        let part = &mut content[start as usize..(start + len) as usize];
        let range = ByteRange::new(ByteOffset::new(start), ByteCount::new(len));
        if format != ImageFormat::Raw && rng.chance(1, 4) {
            part.fill(0);
            let mode = ZeroMode { may_unmap: rng.chance(1, 2), only_if_fast: false };
            device.zero(range, mode).unwrap();
        } else {
            if rng.chance(1, 8) {
                part.fill(0);
            } else {
                rng.fill(part);
            }
            device.write_at(part, range.start).unwrap();
        }
    }
}

impl Chain {
    /// A chain of `depth` images, each written at random over the one below it.
    fn new(depth: usize, rng: &mut Rng) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut levels: Vec<Level> = Vec::new();
        for number in 0..depth {
            let size = match levels.first() {
                // VHDs do not grow beyond their tables, so nothing larger can be committed to one.
                Some(lowest) if lowest.format == ImageFormat::Vhd => lowest.content.len() as u64,
                _ => rng.within(1500..6000) * SECTOR,
            };
            let level = Self::level(folder.path(), number, levels.last(), size, rng);
            levels.push(level);
        }
        Self { _folder: folder, levels }
    }

    fn level(
        folder: &Path,
        number: usize,
        below: Option<&Level>,
        size: u64,
        rng: &mut Rng,
    ) -> Level {
        let formats = [ImageFormat::Raw, ImageFormat::Vhd, ImageFormat::Qcow2];
        let format = if below.is_some() { ImageFormat::Qcow2 } else { *rng.pick(&formats) };
        let path = folder.join(format!("{number}.{}", format.qemu_name()));
        let options = match format {
            ImageFormat::Qcow2 => *rng.pick(&[
                "cluster_size=512",
                "cluster_size=4096",
                "cluster_size=65536",
                "cluster_size=65536,extended_l2=on",
                "compat=0.10,cluster_size=16384",
            ]),
            _ => "",
        };
        let settings = ImageSettings::parse(options);
        let name = |level: &Level| level.path.file_name().unwrap().to_str().unwrap().to_owned();
        let wanted = CreateImage {
            format,
            size: Some(ByteCount::new(size)),
            backing: below.map(|level| (name(level), level.format)),
            settings,
            secret: None,
        };
        create_image(&path, &wanted).unwrap();
        let mut content = below.map(|level| level.content.clone()).unwrap_or_default();
        content.resize(size as usize, 0);
        let mut level = Level { path, format, content };
        let image = open(&level);
        // A VHD may be larger than it was asked for, by its geometry.
        level.content.resize(image.size().as_usize(), 0);
        scribble(&*image.device(), &mut level.content, rng, format);
        image.close().unwrap();
        level
    }

    fn top(&self) -> &Level {
        self.levels.last().unwrap()
    }

    /// Every image holds what it is to hold, and QEMU finds it sound.
    #[track_caller]
    fn check(&self, from: usize, doing: &str) {
        for level in &self.levels[from..] {
            check(level, doing);
        }
    }
}

#[track_caller]
fn check(level: &Level, doing: &str) {
    let options = ImageOptions { format: Some(level.format), ..ImageOptions::reading() };
    let image = open_as(&level.path, &options);
    let name = level.path.display();
    compare(&*image.device(), &level.content, &format!("{doing}: {name}"));
    drop(image);
    if level.format == ImageFormat::Qcow2 {
        let path = level.path.to_str().unwrap();
        peer("qemu-img").args(["check", "-q", "-f", "qcow2", path]).run().expect_code(0);
    }
}

#[track_caller]
fn compare(device: &dyn BlockDevice, content: &[u8], doing: &str) {
    let mut bytes = vec![0; device.size().as_usize()];
    device.read_at(&mut bytes, ByteOffset::ZERO).unwrap();
    assert_eq!(bytes.len(), content.len(), "{doing}: sizes");
    if let Some(at) = bytes.iter().zip(content).position(|(one, other)| one != other) {
        panic!("{doing}: byte {at:#x} is {:#x}, not {:#x}", bytes[at], content[at]);
    }
}

/// Work whose process is killed after so many steps: nothing is put in order any more.
struct Dying {
    work: Box<dyn Work>,
    left: AtomicI64,
}

impl Dying {
    fn step(&self) -> Result<()> {
        if self.left.fetch_sub(1, Ordering::Relaxed) > 0 {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Io, "job", "is killed"))
    }
}

impl Work for Dying {
    fn size(&self) -> ByteCount {
        self.work.size()
    }

    fn pieces(&self, window: ByteRange) -> Result<Vec<ByteRange>> {
        self.step()?;
        // Small ones, so that there are many places to die at.
        let pieces = self.work.pieces(window)?;
        Ok(pieces.into_iter().flat_map(|range| range.pieces(ByteCount::new(65536))).collect())
    }

    fn copy(&self, piece: ByteRange, buffer: &mut [u8]) -> Result<()> {
        self.step()?;
        self.work.copy(piece, buffer)
    }

    fn finish(&self) -> Result<ChainChange> {
        self.step()?;
        self.work.finish()
    }
}

/// How a job on a chain is begun.
type Begin<'b> = dyn Fn(&Arc<DiskImage>, &Chain) -> Result<Box<dyn Work>> + 'b;

/// Begins a job on a chain, perhaps with a client that writes, and kills it after some steps, if
/// it gets so far. What the disk reads is checked either way.
fn run(chain: &mut Chain, steps: i64, live: bool, rng: &mut Rng, begin: &Begin<'_>) -> bool {
    let image = open(chain.top());
    let work = patiently(|| begin(&image, chain)).unwrap();
    let dying = Dying { work, left: AtomicI64::new(steps) };
    let monitor = Monitor::new(dying.size());
    let stop = AtomicBool::new(false);
    let device = image.device();
    let mut client = rng.fork();
    let top = chain.levels.last_mut().unwrap();
    let done = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            while live && !stop.load(Ordering::Relaxed) {
                scribble(&*device, &mut top.content, &mut client, ImageFormat::Qcow2);
            }
        });
        let done = run_chain_work(&dying, &monitor);
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        done
    });
    compare(&*device, &chain.top().content, "while it is open");
    match done {
        Ok(_) => {
            assert!(monitor.done() >= monitor.total(), "{monitor:?}");
            drop(dying);
            image.close().unwrap();
            true
        }
        Err(error) => {
            assert!(error.to_string().contains("is killed"), "{error}");
            if live {
                // What the client wrote is to be there; the rest of the process is gone.
                device.flush().unwrap();
            }
            false
        }
    }
}

/// Kills a job again and again, each time later, until it has ended.
fn run_to_the_end(chain: &mut Chain, live: bool, rng: &mut Rng, doing: &str, begin: &Begin<'_>) {
    let mut steps = 0;
    while !run(chain, steps, live, rng, begin) {
        let last = chain.levels.len() - 1;
        let level = chain.top().clone();
        let image = open_as(&level.path, &writing());
        compare(&*image.device(), &level.content, &format!("{doing}, killed after {steps}"));
        image.close().unwrap();
        assert!(last > 0 && steps < 10_000);
        steps = steps * 2 + 1 + rng.within(0..3) as i64;
    }
}

fn rounds() -> u64 {
    if std::env::var_os("FIRN_LONG").is_some() { 300 } else { 16 }
}

#[test]
fn a_stream_can_be_killed_anywhere() {
    for seed in 0..rounds() {
        let mut rng = Rng::new(seed);
        let depth = rng.within(2..6) as usize;
        let mut chain = Chain::new(depth, &mut rng);
        let base = rng.index(depth);
        let base = (base < depth - 1).then_some(base);
        let doing = format!("seed {seed}, depth {depth}, stream over {base:?}");
        run_to_the_end(&mut chain, seed % 2 == 1, &mut rng, &doing, &|image, chain| {
            image.stream(base.map(|base| &*chain.levels[base].path))
        });
        let image = open_as(&chain.top().path, &ImageOptions::reading());
        let below = image.chain().len() - 1;
        assert_eq!(below, base.map_or(0, |base| base + 1), "{doing}");
        drop(image);
        // What was pulled from stays as it was.
        chain.check(0, &doing);
    }
}

#[test]
fn a_commit_can_be_killed_anywhere() {
    for seed in 0..rounds() {
        let mut rng = Rng::new(1000 + seed);
        let depth = rng.within(2..6) as usize;
        let mut chain = Chain::new(depth, &mut rng);
        let top = rng.within(1..depth as u64) as usize;
        let base = rng.index(top);
        let live = top < depth - 1 && seed % 2 == 1;
        let doing = format!("seed {seed}, depth {depth}, commit {top} into {base}");
        run_to_the_end(&mut chain, live, &mut rng, &doing, &|image, chain| {
            let top = &chain.levels[top].path;
            image.commit(Some(top), Some(&chain.levels[base].path))
        });
        // The base is what the committed image was; a larger one keeps what lies behind.
        let committed = chain.levels[top].content.clone();
        let changed = &mut chain.levels[base].content;
        if changed.len() <= committed.len() {
            *changed = committed;
        } else {
            changed[..committed.len()].copy_from_slice(&committed);
        }
        check(&chain.levels[base], &doing);
        chain.check(top, &doing);
    }
}

#[test]
fn a_rebase_can_be_killed_anywhere() {
    for seed in 0..rounds() {
        let mut rng = Rng::new(2000 + seed);
        let depth = rng.within(2..5) as usize;
        let mut chain = Chain::new(depth, &mut rng);
        let folder = chain.top().path.parent().unwrap().to_owned();
        let size = rng.within(1500..6000) * SECTOR;
        let other = Chain::level(&folder, 9, None, size, &mut rng);
        let options = ImageOptions { format: Some(other.format), ..ImageOptions::reading() };
        let doing = format!("seed {seed}, depth {depth}, rebase");
        run_to_the_end(&mut chain, seed % 2 == 1, &mut rng, &doing, &|image, _| {
            image.rebase(&other.path, &options)
        });
        let image = open_as(&chain.top().path, &ImageOptions::reading());
        assert_eq!(image.chain().len(), 2, "{doing}");
        drop(image);
        chain.check(0, &doing);
        check(&other, &doing);
    }
}

#[test]
fn work_on_a_chain_is_done_by_one_at_a_time_and_can_be_cancelled() {
    let mut rng = Rng::new(7);
    let chain = Chain::new(3, &mut rng);
    let image = open(chain.top());
    let work = image.stream(None).unwrap();
    let error = image.commit(Some(&chain.levels[1].path), None).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let monitor = Monitor::new(work.size());
    monitor.cancel();
    let error = run_chain_work(&*work, &monitor).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    drop(work);
    // A commit that was cancelled gives the base back to those who read it.
    let commit = || image.commit(Some(&chain.levels[1].path), None);
    let work = patiently(commit).unwrap();
    let error = run_chain_work(&*work, &monitor).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    drop(work);
    let base = ImageOptions { format: Some(chain.levels[0].format), ..ImageOptions::reading() };
    open_as(&chain.levels[0].path, &base);
    compare(&*image.device(), &chain.top().content, "after both");

    let stranger = image.stream(Some(Path::new("/etc/passwd"))).err().unwrap();
    assert_eq!(stranger.kind(), ErrorKind::Invalid);
    let lowest = open(&Chain::new(1, &mut Rng::new(3)).levels[0]);
    assert!(lowest.stream(None).is_err());
}
