//! The lock of an image: one writer, or any number of readers, among Firn's processes.
//!
//! It lies on the file itself, so that it is the same one by whatever path the file is reached.

use std::fs::File;
use std::path::Path;

use block_types::{Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// The lock, held until it is dropped; the kernel drops it for a process that is killed.
#[derive(Debug)]
pub(super) struct ImageLock {
    _file: File,
}

impl ImageLock {
    /// Locks the image at `path`: alone, or with others who only read.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`].
    pub(super) fn take(path: &Path, shared: bool) -> Result<Self> {
        let name = || path.display().to_string();
        let file =
            File::open(path).map_err(|error| Error::io(name(), "cannot be opened", error))?;
        let (operation, others) = if shared {
            (FlockOperation::NonBlockingLockShared, "written")
        } else {
            (FlockOperation::NonBlockingLockExclusive, "used")
        };
        match flock(&file, operation) {
            Ok(()) => Ok(Self { _file: file }),
            Err(Errno::WOULDBLOCK) => {
                let problem = format!("is being {others} by another process");
                Err(Error::new(ErrorKind::Busy, name(), problem)
                    .advise("stop that process, or reach the image over its NBD socket"))
            }
            Err(error) => Err(Error::io(name(), "cannot be locked", error.into())),
        }
    }
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
        }
        drop(writer);
        let _readers = [true, true].map(|shared| ImageLock::take(&path, shared).expect("shared"));
        assert!(ImageLock::take(&path, false).is_err());
    }
}
