//! Files for the tests.

use std::path::Path;

use block_types::ByteCount;
use tempfile::TempDir;

use crate::{CacheMode, HostFile};

/// A folder beside the test program: the build folder lies on a real file system, unlike many a
/// `/tmp`, whose O_DIRECT takes requests of any alignment.
pub(crate) fn folder() -> TempDir {
    let program = std::env::current_exe().unwrap();
    tempfile::tempdir_in(program.parent().unwrap()).unwrap()
}

/// A file of `size` bytes in `folder`.
pub(crate) fn file(folder: &Path, name: &str, size: u64, cache: CacheMode) -> HostFile {
    HostFile::create(&folder.join(name), ByteCount::new(size), cache).unwrap()
}

/// `len` bytes that differ by position and by `salt`.
pub(crate) fn pattern(len: usize, salt: u8) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ (i / 251) as u8 ^ salt).collect()
}
