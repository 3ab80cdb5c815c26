//! Descriptors that a process was started with.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use block_types::{Error, ErrorKind, Result};
use rustix::io::fcntl_dupfd_cloexec;

/// An owned copy of the descriptor `fd`, which this process was handed when it was started and
/// knows by number only, as with socket activation.
///
/// # Errors
/// [`ErrorKind::Invalid`] for a negative number, the system's answer where nothing is open there.
pub fn copy_inherited(fd: RawFd) -> Result<OwnedFd> {
    let object = || format!("inherited descriptor {fd}");
    if fd < 0 {
        return Err(Error::new(ErrorKind::Invalid, object(), "is no descriptor"));
    }
    // SAFETY: the number is not -1, and it is used for this one call only, in which the system
    // checks that it is open; nothing is closed or kept by it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl_dupfd_cloexec(borrowed, 0)
        .map_err(|error| Error::io(object(), "cannot be taken over", error.into()))
}

#[cfg(test)]
mod tests {
    use super::copy_inherited;
    use std::io::Read;
    use std::os::fd::AsRawFd;

    #[test]
    fn copies_what_is_open_and_nothing_else() {
        let file = std::fs::File::open("/dev/zero").expect("opened");
        let copy = copy_inherited(file.as_raw_fd()).expect("copied");
        drop(file);
        let mut byte = [1];
        std::fs::File::from(copy).read_exact(&mut byte).expect("read");
        assert_eq!(byte, [0]);
        assert!(copy_inherited(-1).is_err());
        assert!(copy_inherited(100_000).is_err());
    }
}
