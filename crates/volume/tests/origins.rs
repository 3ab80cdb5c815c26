//! Volumes over external origins, by name: raw files, qcow2 images, VHDs and NBD exports; what
//! descends from them, what goes missing, and how they are freed and merged.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{CacheMode, MemoryDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind, Result};
use volume::{
    BackingPolicy, CreateImage, CreateOptions, DiskImage, ImageFormat, ImageOptions, ImageSettings,
    Message, NodeName, OpenOptions, OriginSource, PoolDirectory, SnapshotName, VolumeName,
    create_image,
};

const BLOCK: u64 = 64 << 10;
const SIZE: u64 = 6 * BLOCK + 4096 + 512;

struct Lab {
    folder: tempfile::TempDir,
}

fn volume(name: &str) -> VolumeName {
    VolumeName::parse(name).expect("a name")
}

fn snapshot(name: &str) -> SnapshotName {
    SnapshotName::parse(name).expect("a name")
}

/// Bytes that tell their place, with a block of zeros.
fn pattern() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..SIZE / 8).flat_map(|word| (word + 1).to_le_bytes()).collect();
    bytes[2 * BLOCK as usize..3 * BLOCK as usize].fill(0);
    bytes
}

impl Lab {
    fn new() -> Self {
        let lab = Self { folder: tempfile::tempdir().expect("a folder") };
        let options =
            CreateOptions { size: ByteCount::new(64 << 20), block_size: ByteCount::new(BLOCK) };
        PoolDirectory::create(&lab.path("lab"), &options).expect("made");
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self) -> Arc<PoolDirectory> {
        self.try_open().expect("opened")
    }

    fn try_open(&self) -> Result<Arc<PoolDirectory>> {
        let holder = "a test".to_owned();
        let options = OpenOptions { read_only: false, cache: CacheMode::Cached, holder };
        PoolDirectory::open(&self.path("lab"), &options)
    }

    /// An image of a format that holds the pattern.
    fn image(&self, name: &str, format: ImageFormat) -> PathBuf {
        let path = self.path(name);
        // A VHD has whole sectors, and so does the pattern.
        let create = CreateImage {
            format,
            size: Some(ByteCount::new(SIZE)),
            backing: None,
            settings: ImageSettings::default(),
            secret: None,
        };
        create_image(&path, &create).expect("made");
        let options =
            ImageOptions { format: Some(format), read_only: false, ..ImageOptions::reading() };
        let image = DiskImage::open(&path, &options).expect("opened");
        image.device().write_at(&pattern(), ByteOffset::ZERO).expect("written");
        image.close().expect("closed");
        path
    }
}

fn locate(path: &Path) -> OriginSource {
    let address = path.to_str().expect("text");
    OriginSource::locate(address, None, &BackingPolicy::SameFolder).expect("found")
}

fn read(pool: &PoolDirectory, node: &str) -> Result<Vec<u8>> {
    let device = pool.open_node(&NodeName::parse(node)?, true)?;
    let mut bytes = vec![0; device.size().as_usize()];
    device.read_at(&mut bytes, ByteOffset::ZERO)?;
    Ok(bytes)
}

fn write(pool: &PoolDirectory, node: &str, at: u64, bytes: &[u8]) {
    let device = pool.open_node(&NodeName::parse(node).expect("a node"), false).expect("opened");
    device.write_at(bytes, ByteOffset::new(at)).expect("written");
}

fn hydrate(pool: &Arc<PoolDirectory>, name: &str, family: bool) -> u64 {
    let mut hydration = pool.hydration(&volume(name), family).expect("begun");
    let mut copied = 0;
    while let Some(step) = hydration.step().expect("a step") {
        copied += step.copied.get();
    }
    copied
}

fn merge(pool: &Arc<PoolDirectory>, name: &str, force: bool) -> Result<()> {
    let mut merge = pool.merge(&volume(name), force)?;
    while merge.step()?.is_some() {}
    Ok(())
}

/// Every kind of origin, from making the volume to freeing it; the pool is opened anew in between.
#[test]
fn every_kind_of_origin_shows_and_is_done_without() {
    for format in [ImageFormat::Raw, ImageFormat::Qcow2, ImageFormat::Vhd] {
        let lab = Lab::new();
        let path = lab.image(&format!("base.{format}"), format);
        let pool = lab.open();
        let made = pool.create_volume_over(&volume("web"), None, &locate(&path)).expect("made");
        assert_eq!(made.size, SIZE);
        let origin = made.origin.expect("told");
        assert_eq!(origin.format, Some(format.to_string()));
        let mut content = pattern();
        assert!(read(&pool, "web").expect("read") == content, "{format}");
        write(&pool, "web", 512, &[9; 1024]);
        content[512..1536].fill(9);
        pool.create_snapshot(&volume("web"), &snapshot("s")).expect("made");
        pool.clone_snapshot(&volume("web"), &snapshot("s"), &volume("copy")).expect("made");
        pool.close().expect("closed");
        drop(pool);

        let pool = lab.open();
        for node in ["web", "web@s", "copy"] {
            assert!(read(&pool, node).expect("read") == content, "{format}, {node}");
        }
        assert_eq!(hydrate(&pool, "copy", true), 5 * BLOCK);
        assert_eq!(hydrate(&pool, "web", true), 0);
        for info in pool.volumes() {
            assert_eq!(info.origin, None, "{format}, {}", info.name);
        }
        fs::remove_file(&path).expect("removed");
        pool.close().expect("closed");
        drop(pool);
        let pool = lab.open();
        for node in ["web", "web@s", "copy"] {
            assert!(read(&pool, node).expect("read") == content, "{format}, {node}");
        }
        assert!(pool.check().expect("checked").errors.is_empty());
    }
}

/// An export is connected to when it is wanted, and again after its server was away.
#[test]
fn an_export_may_be_away_and_come_back() {
    let lab = Lab::new();
    let device = Arc::new(MemoryDevice::from_bytes("disk", pattern()));
    let socket = lab.path("nbd.sock");
    let serve = || {
        let export = nbd::Export::new("disk", device.clone()).expect("an export");
        let listener = nbd::Listener::unix(&socket).expect("listening");
        let source = Arc::new(nbd::ExportTable::single(export));
        nbd::Server::start(vec![listener], source, nbd::ServerOptions::default()).expect("up")
    };
    let uri = format!("nbd+unix:///disk?socket={}", socket.display());
    let origin = OriginSource::locate(&uri, None, &BackingPolicy::SameFolder).expect("found");
    let server = serve();
    let pool = lab.open();
    let size = Some(ByteCount::new(8 * BLOCK));
    pool.create_volume_over(&volume("web"), size, &origin).expect("made");
    let mut content = pattern();
    content.resize(8 * BLOCK as usize, 0);
    assert!(read(&pool, "web").expect("read") == content);
    drop(server);
    let error = read(&pool, "web").expect_err("the server is away");
    assert!(error.to_string().contains("external origin"), "{error}");
    pool.create_volume(&volume("other"), ByteCount::new(BLOCK)).expect("made");
    assert!(read(&pool, "other").is_ok(), "a volume without an origin is not affected");
    let _server = serve();
    assert!(read(&pool, "web").expect("read") == content);
    assert_eq!(hydrate(&pool, "web", false), 6 * BLOCK);
    assert!(read(&pool, "web").expect("read") == content);
}

#[test]
fn a_missing_origin_keeps_its_volumes_shut_and_nothing_else() {
    let lab = Lab::new();
    let path = lab.image("base.img", ImageFormat::Raw);
    let pool = lab.open();
    pool.create_volume_over(&volume("web"), None, &locate(&path)).expect("made");
    pool.create_snapshot(&volume("web"), &snapshot("s")).expect("made");
    pool.create_volume(&volume("other"), ByteCount::new(BLOCK)).expect("made");
    drop(pool);
    let away = lab.path("away");
    fs::rename(&path, &away).expect("moved");
    let pool = lab.open();
    for node in ["web", "web@s"] {
        let error = read(&pool, node).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let text = error.to_string();
        assert!(text.contains(node) && text.contains("base.img"), "{text}");
        assert!(error.advice().is_some());
    }
    assert!(read(&pool, "other").is_ok());
    assert_eq!(pool.volumes().len(), 2);
    fs::rename(&away, &path).expect("moved");
    assert!(read(&pool, "web@s").expect("read") == pattern());
    drop(pool);

    // One that has become shorter is refused as well.
    let cut = fs::OpenOptions::new().write(true).open(&path).expect("opened");
    cut.set_len(SIZE - 512).expect("cut");
    let pool = lab.open();
    assert_eq!(read(&pool, "web").expect_err("refused").kind(), ErrorKind::OutOfRange);
    pool.delete_volume(&volume("web"), true).expect("deleted without its origin");
}

#[test]
fn nobody_writes_an_origin_while_its_pool_is_open() {
    let lab = Lab::new();
    let path = lab.image("base.qcow2", ImageFormat::Qcow2);
    let options = ImageOptions { read_only: false, ..ImageOptions::reading() };
    let pool = lab.open();
    pool.create_volume_over(&volume("web"), None, &locate(&path)).expect("made");
    drop(pool);
    let writer = DiskImage::open(&path, &options).expect("nobody has it");
    let pool = lab.open();
    assert_eq!(read(&pool, "web").expect_err("refused").kind(), ErrorKind::Busy);
    writer.close().expect("closed");
    drop(writer);
    drop(pool);
    let pool = lab.open();
    let refused = || DiskImage::open(&path, &options).map(drop).map_err(|error| error.kind());
    assert_eq!(refused(), Err(ErrorKind::Busy), "no volume is open, but the pool is");
    hydrate(&pool, "web", false);
    assert_eq!(refused(), Ok(()), "nothing stands on it any more");
}

#[test]
fn what_lies_in_the_pool_is_no_origin() {
    let lab = Lab::new();
    let pool = lab.open();
    let data = OriginSource {
        address: lab.path("lab/data").canonicalize().expect("there").display().to_string(),
        format: Some("raw".into()),
        allow_backing: Vec::new(),
    };
    let error = pool.create_volume_over(&volume("web"), None, &data).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let guess = OriginSource { format: None, address: "/dev/null".into(), ..data };
    let error = pool.create_volume_over(&volume("web"), None, &guess).expect_err("refused");
    assert!(error.to_string().contains("format"), "{error}");
}

/// A backing file outside the folder of the origin is opened only where that was allowed, when the
/// volume was made, and then ever after.
#[test]
fn an_origin_names_no_file_that_was_not_allowed() {
    let lab = Lab::new();
    fs::create_dir(lab.path("far")).expect("made");
    lab.image("far/base.img", ImageFormat::Raw);
    let path = lab.path("top.qcow2");
    let far = lab.path("far");
    let create = CreateImage {
        format: ImageFormat::Qcow2,
        size: None,
        backing: Some((far.join("base.img").display().to_string(), ImageFormat::Raw)),
        settings: ImageSettings::default(),
        secret: None,
    };
    create_image(&path, &create).expect("made");
    fs::create_dir(lab.path("near")).expect("made");
    let moved = lab.path("near/top.qcow2");
    fs::rename(&path, &moved).expect("moved");
    let address = moved.to_str().expect("text");
    let denied = OriginSource::locate(address, None, &BackingPolicy::SameFolder);
    assert_eq!(denied.expect_err("refused").kind(), ErrorKind::Denied);
    let allowed = BackingPolicy::Folders(vec![far]);
    let origin = OriginSource::locate(address, None, &allowed).expect("found");
    let pool = lab.open();
    pool.create_volume_over(&volume("web"), None, &origin).expect("made");
    drop(pool);
    assert!(read(&lab.open(), "web").expect("read") == pattern());
}

/// What a message makes of a volume over an origin shows it, too, once it has a name.
#[test]
fn unnamed_snapshots_inherit_the_origin() {
    let lab = Lab::new();
    let path = lab.image("base.img", ImageFormat::Raw);
    let pool = lab.open();
    pool.create_volume_over(&volume("web"), None, &locate(&path)).expect("made");
    let send = |text: &str| pool.message(Message::parse(text).expect("a message"));
    send("create_snap 7 0").expect("made");
    send("create_snap 8 7").expect("made");
    send("create_snap 9 7").expect("made");
    send("delete 9").expect("deleted");
    send("create_thin 9").expect("made");
    pool.close().expect("closed");
    drop(pool);
    let pool = lab.open();
    for (id, name) in [(8, "grandchild"), (9, "empty")] {
        let id = volume::DeviceId::new(id).expect("24 bits");
        pool.name_device(id, &volume(name), ByteCount::new(SIZE)).expect("named");
    }
    assert!(read(&pool, "grandchild").expect("read") == pattern());
    assert!(read(&pool, "empty").expect("read").iter().all(|byte| *byte == 0));
    assert_eq!(hydrate(&pool, "web", true), 6 * BLOCK, "one copy, for the unnamed one as well");
    fs::remove_file(&path).expect("removed");
    let id = volume::DeviceId::new(7).expect("24 bits");
    pool.name_device(id, &volume("child"), ByteCount::new(SIZE)).expect("named");
    for name in ["web", "child", "grandchild"] {
        assert!(read(&pool, name).expect("read") == pattern(), "{name}");
    }
}

/// A volume that was freed goes back to a snapshot that was not, and stands on the origin again.
#[test]
fn a_rollback_brings_the_origin_back() {
    let lab = Lab::new();
    let path = lab.image("base.img", ImageFormat::Raw);
    let pool = lab.open();
    pool.create_volume_over(&volume("web"), None, &locate(&path)).expect("made");
    pool.create_snapshot(&volume("web"), &snapshot("s")).expect("made");
    let mut hydration = pool.hydration(&volume("web"), false).expect("begun");
    while hydration.step().expect("a step").is_some_and(|step| !step.covered.is_zero()) {
        // A rollback in the middle of it undoes what was copied.
        pool.rollback(&volume("web"), &snapshot("s")).expect("rolled back");
    }
    while hydration.step().expect("a step").is_some() {}
    write(&pool, "web", 0, &[1; 512]);
    let mut content = pattern();
    content[..512].fill(1);
    assert!(read(&pool, "web").expect("read") == content);
    let in_use = pool.open_node(&NodeName::parse("web").expect("a node"), true).expect("opened");
    let error = pool.rollback(&volume("web"), &snapshot("s")).expect_err("in use");
    assert_eq!(error.kind(), ErrorKind::Busy);
    drop(in_use);
    pool.rollback(&volume("web"), &snapshot("s")).expect("rolled back");
    assert!(read(&pool, "web").expect("read") == pattern());
    assert!(pool.volume(&volume("web")).expect("there").origin.is_some());
}

/// What differs below is told as well as what is mapped.
#[test]
fn a_difference_of_origins_is_a_difference() {
    let lab = Lab::new();
    let path = lab.image("base.img", ImageFormat::Raw);
    let pool = lab.open();
    pool.create_volume_over(&volume("web"), None, &locate(&path)).expect("made");
    pool.create_snapshot(&volume("web"), &snapshot("s")).expect("made");
    let node = |name| NodeName::parse(name).expect("a node");
    let diff = |from, to| {
        let mut found = Vec::new();
        let mut take = |range| {
            found.push(range);
            Ok(())
        };
        pool.diff(&node(from), &node(to), &mut take).expect("compared");
        found
    };
    assert_eq!(diff("web@s", "web"), []);
    pool.resize_volume(&volume("web"), ByteCount::new(4 * BLOCK)).expect("shrunk");
    pool.resize_volume(&volume("web"), ByteCount::new(SIZE)).expect("grown");
    let found = diff("web@s", "web");
    assert_eq!((found.len(), found[0].start, found[0].kind.as_str()), (1, 4 * BLOCK, "data"));
    assert_eq!(found[0].length, SIZE - 4 * BLOCK);
    assert!(read(&pool, "web").expect("read")[4 * BLOCK as usize..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_merged_origin_reads_like_the_volume() {
    for format in [ImageFormat::Raw, ImageFormat::Qcow2, ImageFormat::Vhd] {
        let lab = Lab::new();
        let path = lab.image(&format!("base.{format}"), format);
        let pool = lab.open();
        // Cut off and grown beyond the origin: it has zeros where the origin has data.
        pool.create_volume_over(&volume("web"), None, &locate(&path)).expect("made");
        pool.resize_volume(&volume("web"), ByteCount::new(5 * BLOCK + 512)).expect("shrunk");
        pool.resize_volume(&volume("web"), ByteCount::new(9 * BLOCK)).expect("grown");
        let mut content = pattern();
        content.truncate(5 * BLOCK as usize + 512);
        content.resize(9 * BLOCK as usize, 0);
        for (at, len) in [(100 * 512, 3000), (8 * BLOCK - 512, 1024), (5 * BLOCK + 4096, 512)] {
            let len = len / 512 * 512;
            write(&pool, "web", at, &vec![7; len]);
            content[at as usize..][..len].fill(7);
        }
        let device = pool.open_node(&NodeName::parse("web").expect("a node"), false);
        let zeros = ByteRange::new(ByteOffset::new(3 * BLOCK), ByteCount::new(BLOCK));
        device.expect("opened").zero(zeros, ZeroMode::default()).expect("zeroed");
        content[3 * BLOCK as usize..4 * BLOCK as usize].fill(0);

        pool.create_snapshot(&volume("web"), &snapshot("s")).expect("made");
        let error = merge(&pool, "web", false).expect_err("a snapshot stands on it");
        assert!(error.to_string().contains("web@s"), "{error}");
        pool.delete_snapshot(&volume("web"), &snapshot("s")).expect("deleted");
        merge(&pool, "web", false).unwrap_or_else(|error| panic!("{format}: {error}"));
        assert!(read(&pool, "web").expect("read") == content, "{format}: the volume");
        let info = pool.volume(&volume("web")).expect("there");
        assert_eq!(info.mapped, 0, "{format}: the volume is empty");
        drop(pool);
        let image = DiskImage::open(&path, &ImageOptions::reading()).expect("opened");
        let mut bytes = vec![0; content.len()];
        image.device().read_at(&mut bytes, ByteOffset::ZERO).expect("read");
        assert!(bytes == content, "{format}: the origin");
    }
}

/// What a snapshot holds behind the present end of its volume comes back with it.
#[test]
fn a_rollback_brings_back_what_was_cut_off() {
    let lab = Lab::new();
    let pool = lab.open();
    pool.create_volume(&volume("db"), ByteCount::new(SIZE)).expect("made");
    write(&pool, "db", 0, &pattern());
    pool.create_snapshot(&volume("db"), &snapshot("s")).expect("made");
    pool.resize_volume(&volume("db"), ByteCount::new(BLOCK)).expect("shrunk");
    pool.rollback(&volume("db"), &snapshot("s")).expect("rolled back");
    assert!(read(&pool, "db").expect("read") == pattern());
}
