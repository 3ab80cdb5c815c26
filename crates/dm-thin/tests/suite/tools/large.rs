//! A large pool: times and memory beside those of the thin tools on the search path.
//!
//! `cargo nextest run --release -p dm-thin --run-ignored only large --no-capture`
//!
//! The pool has a device of ten million mappings in runs of eight, and a hundred snapshots, each
//! with a hundredth of its leaves changed since. Only thin-provisioning-tools 1.x are a peer here:
//! 0.9 would write each snapshot in full.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::ByteCount;
use dm_thin::delta::{Detail, Side};
use dm_thin::restore::{Builder, Overrides, PoolFields, Run, Shared};
use dm_thin::{
    BlockSize, DataBlock, DeviceState, GuestBlock, Time, delta, dump, ls, pack, restore, rmap,
};
use testkit::peer::peer;
use testkit::rng::Rng;

use crate::common::id;

/// Mappings in a leaf of the pool.
const LEAF: u64 = 240;
/// Leaves of each device.
const LEAVES: u64 = 42_000;
/// Snapshots.
const SNAPSHOTS: u32 = 100;
/// Leaves that each snapshot has to itself.
const CHANGED: u64 = LEAVES / 100;
/// Blocks that lie side by side.
const RUN: u64 = 8;
/// Room for the metadata.
const SIZE: ByteCount = ByteCount::new(1 << 30);

#[test]
#[ignore = "takes a gigabyte and minutes: a measurement"]
fn large_pools_take_no_longer_than_with_the_thin_tools() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let metadata = path("metadata");
    let mapped = generate(&metadata);
    let version = peer("thin_dump").arg("--version").ok();
    println!("{mapped} mappings written, {} thin tools", version.trim());
    let peers = !version.contains("0.9");
    let theirs = |tool: &str, args: &[&str], output: Option<PathBuf>| {
        if peers {
            timed_peer(tool, args, output.as_deref());
        }
    };
    let file = metadata.to_str().expect("text");

    let xml = path("ours.xml");
    ours("dump", || {
        let out = File::create(&xml).expect("created");
        dump::dump(open(&metadata), &dump::Options::default(), out).expect("dumped");
    });
    let their_xml = path("theirs.xml");
    theirs("thin_dump", &["-o", their_xml.to_str().expect("text"), file], None);
    if peers {
        let equal = fs::read(&xml).expect("read") == fs::read(&their_xml).expect("read");
        assert!(equal, "the dumps differ");
    }

    let restored = path("restored");
    ours("restore", || {
        let input = BufReader::with_capacity(1 << 20, File::open(&xml).expect("opened"));
        restore::restore(input, create(&restored), &Overrides::default()).expect("restored");
    });
    let their_restored = path("theirs");
    File::create(&their_restored).and_then(|file| file.set_len(SIZE.get())).expect("created");
    let from = xml.to_str().expect("text");
    let to = their_restored.to_str().expect("text");
    theirs("thin_restore", &["-q", "-i", from, "-o", to], None);

    let options = delta::Options {
        left: Side::Device(id(0)),
        right: Side::Device(id(50)),
        view: dump::View::Live,
        same: true,
    };
    ours("delta", || {
        let out = File::create(path("delta.xml")).expect("created");
        delta::write_delta(open(&metadata), &options, Detail::Simple, out).expect("compared");
    });
    let output = path("their-delta.xml");
    theirs("thin_delta", &["--snap1", "0", "--snap2", "50", file], Some(output));
    ours("delta, differing only", || {
        let options = delta::Options { same: false, ..options };
        delta::delta(open(&metadata), &options, &mut |_| Ok(())).expect("compared");
    });

    ours("ls", || {
        ls::list(open(&metadata), dump::View::Live, true).expect("listed");
    });
    let output = path("their-ls");
    theirs("thin_ls", &["-o", "DEV,EXCLUSIVE", file], Some(output));
    let regions = vec![DataBlock::new(1_000_000)..DataBlock::new(1_100_000)];
    ours("rmap", || {
        let (view, naming) = (dump::View::Live, rmap::Naming::First);
        let options = rmap::Options { regions: regions.clone(), view, naming };
        let out = File::create(path("rmap")).expect("created");
        rmap::write_rmap(open(&metadata), &options, out).expect("found");
    });
    let their_rmap = path("their-rmap");
    let args = ["--region", "1000000..1100000", file];
    theirs("thin_rmap", &args, Some(their_rmap.clone()));
    if peers {
        let equal = fs::read(path("rmap")).expect("read") == fs::read(&their_rmap).expect("read");
        assert!(equal, "the uses differ");
    }
    let packed = path("packed");
    ours("pack", || {
        let out = File::create(&packed).expect("created");
        pack::pack(&*open(&metadata), out).expect("packed");
    });
    let their_pack = path("their-pack");
    let (pack_name, unpacked) = (their_pack.to_str().expect("text"), path("unpacked"));
    theirs("thin_metadata_pack", &["-i", file, "-o", pack_name], None);
    ours("unpack", || {
        let input = if peers { &their_pack } else { &packed };
        let input = BufReader::new(File::open(input).expect("opened"));
        pack::unpack(input, &*create(&unpacked)).expect("unpacked");
    });
    let (input, output) = (packed.to_str().expect("text"), path("their-unpacked"));
    let args = ["-i", input, "-o", output.to_str().expect("text")];
    theirs("thin_metadata_unpack", &args, None);
    for file in [Some(&unpacked), peers.then_some(&output)].into_iter().flatten() {
        peer("cmp").arg(&metadata).arg(file).limit(Duration::from_secs(600)).ok();
    }
    println!("  packed to {} bytes", fs::metadata(&packed).expect("there").len());
    let report = dm_thin::check(open(&restored)).expect("checked");
    assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:?}");
    peer("thin_check").arg("-q").arg(&restored).limit(Duration::from_secs(600)).ok();
}

/// Makes the pool and returns how many mappings were written.
fn generate(path: &Path) -> u64 {
    let mut rng = Rng::new(1);
    let data_blocks = 2 * LEAVES * LEAF + u64::from(SNAPSHOTS) * CHANGED * LEAF;
    let mut builder = Builder::new(create(path), data_blocks).expect("begun");
    let mut next = 0;
    let mut leaf = |builder: &mut Builder, at: u64, time: u32, rng: &mut Rng| {
        for run in 0..LEAF / RUN {
            // Now and then a run does not follow the one before.
            next += if rng.chance(1, 50) { RUN } else { 0 };
            let (from, to) = (GuestBlock::new(at * LEAF + run * RUN), DataBlock::new(next));
            let run = Run { from, to, len: RUN, time: Time::new(time + (run % 2) as u32) };
            builder.run(run).expect("mapped");
            next += RUN;
        }
    };
    let mut shared: Vec<Shared> = Vec::new();
    for at in 0..LEAVES {
        builder.begin_shared().expect("begun");
        leaf(&mut builder, at, 0, &mut rng);
        shared.push(builder.end_shared().expect("ended"));
    }
    let mut written = LEAVES * LEAF;
    for device in 0..=SNAPSHOTS {
        let created = Time::new(device);
        let state = DeviceState { mapped: 0, transaction: 0, created, snapshotted: created };
        builder.begin_device(id(device), state).expect("begun");
        for (at, &part) in (0..).zip(&shared) {
            if device > 0 && rng.chance(CHANGED, LEAVES) {
                leaf(&mut builder, at, device, &mut rng);
                written += LEAF;
            } else {
                builder.share(part).expect("shared");
            }
        }
        builder.end_device().expect("ended");
    }
    let block_size = BlockSize::new(ByteCount::new(65_536)).expect("a block size");
    let fields = PoolFields { block_size, time: Time::new(SNAPSHOTS + 1), transaction: 0 };
    builder.finish(&fields).expect("finished");
    written
}

fn create(path: &Path) -> Arc<dyn BlockDevice> {
    Arc::new(HostFile::create(path, SIZE, CacheMode::Cached).expect("created"))
}

fn open(path: &Path) -> Arc<dyn BlockDevice> {
    let options = FileOptions { cache: CacheMode::Cached, read_only: true };
    Arc::new(HostFile::open(path, options).expect("opened"))
}

/// Runs `work` and prints how long it took and how much memory the process had at most.
fn ours(what: &str, work: impl FnOnce()) {
    // Resets the peak that is read below.
    fs::write("/proc/self/clear_refs", "5").expect("the peak can be reset");
    let begun = Instant::now();
    work();
    let took = begun.elapsed();
    let status = fs::read_to_string("/proc/self/status").expect("read");
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!("  {what:<24} {:>8.3} s {:>16}", took.as_secs_f64(), peak[6..].trim());
}

/// Runs one of the thin tools and prints how long it took.
fn timed_peer(tool: &str, args: &[&str], output: Option<&Path>) {
    let begun = Instant::now();
    let said = peer(tool).args(args).limit(Duration::from_secs(600)).ok();
    let took = begun.elapsed();
    if let Some(output) = output {
        fs::write(output, said).expect("written");
    }
    println!("  {tool:<24} {:>8.3} s", took.as_secs_f64());
}
