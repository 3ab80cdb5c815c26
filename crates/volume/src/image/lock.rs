//! The lock of an image: one writer, or any number of readers, among Firn's processes and QEMU's.
//!
//! Who has a file open locks, together with others, one byte for each thing that he does with it,
//! and one for each that he does not bear from others; then he looks whether somebody else does
//! what he does not bear, or does not bear what he does. The bytes are QEMU's, and so QEMU, libvirt
//! and Firn keep each other out. The locks lie on the file itself, by whatever path it is reached.

use std::path::Path;

use block_io::ByteLocks;
use block_types::{ByteOffset, Error, ErrorKind, Result};

/// What one can do with a file, as QEMU numbers it.
const READ: u64 = 0;
const WRITE: u64 = 1;
const RESIZE: u64 = 3;
/// The byte that says that somebody reads; the others follow.
const DONE: u64 = 100;
/// The byte that says that somebody does not bear readers; the others follow.
const NOT_BORNE: u64 = 200;

/// What nobody bears, whether he reads or writes.
const REFUSED: [u64; 2] = [WRITE, RESIZE];

/// The lock, held until it is dropped; the kernel drops it for a process that is killed.
#[derive(Debug)]
pub(crate) struct ImageLock {
    _locks: ByteLocks,
}

impl ImageLock {
    /// Locks the image at `path`: alone, or with others who only read.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`], with the holder's name where it can be found out.
    pub(crate) fn take(path: &Path, shared: bool) -> Result<Self> {
        let locks = ByteLocks::open(path)?;
        let done: &[u64] = if shared { &[READ] } else { &[READ, WRITE, RESIZE] };
        let said = done.iter().map(|what| DONE + what).chain(REFUSED.map(|what| NOT_BORNE + what));
        for byte in said.map(ByteOffset::new) {
            if !locks.share(byte)? {
                return Err(busy(path, &locks, byte, shared));
            }
        }
        // Said before asked: of two who come at once one at least sees the other.
        let asked = done.iter().map(|what| NOT_BORNE + what).chain(REFUSED.map(|what| DONE + what));
        for byte in asked.map(ByteOffset::new) {
            if locks.is_locked_by_others(byte)? {
                return Err(busy(path, &locks, byte, shared));
            }
        }
        Ok(Self { _locks: locks })
    }
}

fn busy(path: &Path, locks: &ByteLocks, byte: ByteOffset, shared: bool) -> Error {
    let others = if shared { "written" } else { "used" };
    let holder = locks.holder(byte);
    let holder = match holder {
        Some(holder) if holder.pid == std::process::id() => "this very process".to_owned(),
        Some(holder) => format!("{} (pid {})", holder.command, holder.pid),
        None => "another process".to_owned(),
    };
    let problem = format!("is being {others} by {holder}");
    Error::new(ErrorKind::Busy, path.display().to_string(), problem)
        .advise("stop that process, or reach the image over its NBD socket")
}

#[cfg(test)]
mod tests {
    use super::ImageLock;
    use block_types::ErrorKind;

    #[test]
    fn one_writer_or_many_readers() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("image");
        std::fs::write(&path, "").expect("written");
        let writer = ImageLock::take(&path, false).expect("locked");
        for shared in [true, false] {
            let error = ImageLock::take(&path, shared).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Busy);
            assert!(error.to_string().contains("this very process"), "{error}");
        }
        drop(writer);
        let _readers = [true, true].map(|shared| ImageLock::take(&path, shared).expect("shared"));
        assert!(ImageLock::take(&path, false).is_err());
    }
}
