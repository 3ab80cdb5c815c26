//! What takes the place of what, and what a failure leaves.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, Error, ErrorKind, Result};

use super::{MetadataSource, MetadataTarget, MetadataUse, TargetOptions};
use crate::{CreateOptions, PoolDirectory};

/// What writes metadata, or fails to.
type Build = fn(Arc<dyn BlockDevice>) -> Result<()>;

const OPTIONS: TargetOptions<'_> =
    TargetOptions { holder: "a test", keep_as: "metadata.old", force: false };
const FORCE: TargetOptions<'_> = TargetOptions { force: true, ..OPTIONS };

fn pool(dir: &Path) {
    let options =
        CreateOptions { size: ByteCount::new(1 << 30), block_size: ByteCount::new(65536) };
    PoolDirectory::create(dir, &options).expect("a pool");
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    let name = |entry: std::io::Result<fs::DirEntry>| {
        entry.expect("read").file_name().into_string().expect("text")
    };
    let mut names: Vec<String> = entries.map(name).collect();
    names.sort_unstable();
    names
}

/// Copies metadata, as the simplest thing that makes some.
fn copy(from: &Path, to: &dyn BlockDevice) -> Result<()> {
    to.write_at(&fs::read(from).expect("read"), ByteOffset::ZERO)
}

#[test]
fn a_file_is_begun_again_until_the_metadata_fits() {
    let folder = tempfile::tempdir().expect("a folder");
    let name = folder.path().join("new");
    let mut sizes = Vec::new();
    let target = MetadataTarget::open(&name, &OPTIONS).expect("free");
    let build = |device: Arc<dyn BlockDevice>| {
        let mut byte = [1];
        device.read_at(&mut byte, ByteOffset::new(1 << 20))?;
        assert_eq!(byte, [0], "something is left of the attempt before");
        device.write_at(&[7], ByteOffset::new(1 << 20))?;
        sizes.push(device.size().get() >> 20);
        match device.size().get() >> 20 {
            0..40 => Err(Error::new(ErrorKind::OutOfSpace, device.name(), "is full")),
            _ => Ok(()),
        }
    };
    target.write(Some(ByteCount::new(1)), build).expect("written");
    assert_eq!(sizes, [16, 32, 64]);
    assert_eq!(names(folder.path()), ["new"]);
    assert_eq!(fs::metadata(&name).expect("there").len(), 64 << 20);

    assert!(MetadataTarget::open(&name, &OPTIONS).is_err());
    let target = MetadataTarget::open(&name, &FORCE).expect("replaced");
    // As large as the one that it replaces.
    let (size, kept) =
        target.write(Some(ByteCount::ZERO), |device| Ok(device.size())).expect("done");
    assert_eq!((size.get() >> 20, kept), (64, None));
}

#[test]
fn a_failure_leaves_everything_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("lab");
    pool(&dir);
    let before = (names(&dir), fs::read(dir.join("metadata")).expect("read"));
    let builds: [Build; 2] = [
        |device| Err(Error::new(ErrorKind::Invalid, device.name(), "is not what it was")),
        // That it is no metadata shows when it is checked.
        |device| device.write_at(&[1; 4096], ByteOffset::ZERO),
    ];
    for build in builds {
        let target = MetadataTarget::open(&dir, &OPTIONS).expect("a pool");
        target.write(Some(ByteCount::ZERO), build).expect_err("refused");
        assert_eq!((names(&dir), fs::read(dir.join("metadata")).expect("read")), before);
        let target = MetadataTarget::open(&folder.path().join("new"), &OPTIONS).expect("free");
        target
            .write(Some(ByteCount::ZERO), |_| -> Result<()> {
                Err(Error::new(ErrorKind::Io, "disk", "is broken"))
            })
            .expect_err("refused");
        assert_eq!(names(folder.path()), ["lab"]);
    }
}

#[test]
fn the_old_metadata_of_a_pool_is_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("lab");
    pool(&dir);
    let metadata = dir.join("metadata");
    let old = fs::read(&metadata).expect("read");
    let target = MetadataTarget::open(&metadata, &OPTIONS).expect("a pool, by its metadata");
    let error = MetadataSource::open(&dir, MetadataUse::Read, "another").err().expect("refused");
    assert!(error.to_string().contains("a test"), "{error}");
    let (_, kept) =
        target.write(Some(ByteCount::ZERO), |device| copy(&metadata, &*device)).expect("written");
    assert_eq!(kept.as_deref(), Some(&*dir.join("metadata.old")));
    assert!(fs::read(dir.join("metadata.old")).expect("read") == old);
    assert_eq!(names(&dir), ["data", "lock", "metadata", "metadata.old", "names"]);

    // What is kept is not lost by accident, and neither is what a crash left.
    assert!(MetadataTarget::open(&dir, &OPTIONS).is_err());
    fs::rename(dir.join("metadata.old"), dir.join("metadata.new")).expect("renamed");
    let error = MetadataTarget::open(&dir, &OPTIONS).err().expect("refused");
    assert!(error.to_string().contains("metadata.new"), "{error}");
    let target = MetadataTarget::open(&dir, &FORCE).expect("by force");
    target.write(Some(ByteCount::ZERO), |device| copy(&metadata, &*device)).expect("written");
    assert_eq!(names(&dir), ["data", "lock", "metadata", "metadata.old", "names"]);
}

#[test]
fn metadata_that_was_lost_is_made_anew() {
    let folder = tempfile::tempdir().expect("a folder");
    let dir = folder.path().join("lab");
    pool(&dir);
    let away = folder.path().join("away");
    fs::rename(dir.join("metadata"), &away).expect("renamed");
    assert!(MetadataSource::open(&dir, MetadataUse::Read, "a test").is_err());
    let target = MetadataTarget::open(&dir, &OPTIONS).expect("a pool");
    let (_, kept) =
        target.write(Some(ByteCount::ZERO), |device| copy(&away, &*device)).expect("written");
    assert_eq!(kept, None);
    assert_eq!(names(&dir), ["data", "lock", "metadata", "names"]);
}
