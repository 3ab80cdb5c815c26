//! What the repository leaves, read by libvhdi.

use std::path::Path;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset};
use jobs::Monitor;
use repository::{CollectOptions, OpenOptions, Repository};
use testkit::peer::peer;
use volume::SnapshotName;

use crate::common::name;

fn bytes(repository: &Repository, disk: &str) -> Vec<u8> {
    let disk = repository.open_disk(&name(disk), false).expect("opened");
    let mut bytes = vec![0; disk.size().as_usize()];
    disk.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
    bytes
}

/// What vhdimount makes of the chain whose top is `file`.
fn mounted(file: &Path) -> Vec<u8> {
    let mount = tempfile::tempdir().expect("a directory");
    peer("vhdimount").arg(file).arg(mount.path()).ok();
    let layers = std::fs::read_dir(mount.path()).expect("mounted").count();
    let bytes = std::fs::read(mount.path().join(format!("vhdi{layers}"))).expect("read");
    peer("fusermount3").arg("-u").arg(mount.path()).ok();
    bytes
}

/// Compares every disk with what the peer reads of its file.
fn compare(path: &Path, repository: &Repository) {
    repository.close_idle().expect("closed");
    for node in repository.report() {
        let Some(disk) = node.name else { continue };
        let file = path.join(&node.file);
        peer("vhdiinfo").arg(&file).ok();
        assert!(mounted(&file) == bytes(repository, &disk), "{disk}");
    }
}

#[test]
fn chains_are_read_by_libvhdi_before_and_after_merges() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("sr");
    Repository::create(&path).expect("created");
    let repository: Arc<Repository> =
        Repository::open(&path, &OpenOptions::new("test")).expect("opened");
    repository.create_disk(&name("db"), ByteCount::new(9 << 20)).expect("created");
    for number in 1..5u8 {
        let disk = repository.open_disk(&name("db"), false).expect("opened");
        let at = ByteOffset::new(u64::from(number) << 20);
        disk.write_at(&vec![number; 1536 << 10], at).expect("written");
        drop(disk);
        let snapshot = SnapshotName::parse(&format!("s{number}")).expect("a name");
        repository.snapshot(&name("db"), &snapshot).expect("taken");
    }
    repository.clone_disk(&name("db@s2"), &name("twin")).expect("cloned");
    compare(&path, &repository);
    for gone in ["db@s1", "db@s3"] {
        repository.delete(&name(gone)).expect("deleted");
    }
    let monitor = Monitor::new(ByteCount::ZERO);
    let done = repository.collect(&CollectOptions::default(), &monitor).expect("collected");
    assert!(done.merges > 0, "{done:?}");
    compare(&path, &repository);
    repository.close().expect("closed");
}
