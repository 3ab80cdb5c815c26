//! Locks on single bytes of a file, shared with other programs that agree on what a byte means.
//!
//! They belong to the open file, not to the process (OFD locks): two opens in one process keep
//! each other out, and closing another descriptor of the file takes nothing away.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use block_types::{ByteOffset, Error, Result};
use rustix::fs::{Mode, OFlags, fstat};

use crate::open::check_path;

/// A file that is open to lock bytes of it. Dropping it gives the locks back, and the kernel does
/// so for a process that is killed.
#[derive(Debug)]
pub struct ByteLocks {
    fd: OwnedFd,
    name: String,
}

/// A process that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockHolder {
    /// Its number.
    pub pid: u32,
    /// What it runs, as `ps` shows it.
    pub command: String,
}

impl ByteLocks {
    /// Opens the file at `path` for reading; nothing is locked yet.
    ///
    /// # Errors
    /// As [`HostFile::open`](crate::HostFile::open).
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        check_path(&name, path)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| Error::io(&name, "cannot be opened", error.into()))?;
        Ok(Self { fd, name })
    }

    /// Locks the byte at `at` together with whoever has it like this; says whether that was to be
    /// had. It is not where somebody has locked the byte for himself.
    ///
    /// # Errors
    /// What the system says, for file systems without locks.
    pub fn share(&self, at: ByteOffset) -> Result<bool> {
        let mut lock = lock_of(libc::F_RDLCK, at);
        match fcntl_lock(self.fd.as_raw_fd(), libc::F_OFD_SETLK, &mut lock) {
            Ok(()) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EACCES) => Ok(false),
                _ => Err(Error::io(&self.name, "cannot be locked", error)
                    .advise("keep images on a file system that has locks")),
            },
        }
    }

    /// Whether another open file has locked the byte at `at`, in whatever way.
    ///
    /// # Errors
    /// What the system says.
    pub fn is_locked_by_others(&self, at: ByteOffset) -> Result<bool> {
        let mut lock = lock_of(libc::F_WRLCK, at);
        fcntl_lock(self.fd.as_raw_fd(), libc::F_OFD_GETLK, &mut lock)
            .map_err(|error| Error::io(&self.name, "cannot ask for its locks", error))?;
        Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
    }

    /// A process, this one or another, that has the byte at `at` locked by another open file, as
    /// far as this process may look. The kernel tells of such locks beside the descriptors of each
    /// process, and nowhere else.
    pub fn holder(&self, at: ByteOffset) -> Option<LockHolder> {
        let own = fstat(&self.fd).ok()?;
        let this = std::process::id();
        let own_fd = self.fd.as_raw_fd().to_string();
        let processes = fs::read_dir("/proc").ok()?.flatten();
        processes
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .find(|&pid| {
                descriptors(pid).any(|fd| {
                    let own_one = pid == this && fd == own_fd;
                    !own_one && holds(pid, &fd, at) && is_file(pid, &fd, own.st_dev, own.st_ino)
                })
            })
            .map(|pid| LockHolder { pid, command: command_of(pid) })
    }
}

/// A request for a lock on the byte at `at`.
fn lock_of(kind: libc::c_int, at: ByteOffset) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: at.get() as libc::off_t,
        l_len: 1,
        // The kernel demands it of locks that belong to an open file.
        l_pid: 0,
    }
}

fn fcntl_lock(fd: RawFd, command: libc::c_int, lock: &mut libc::flock) -> std::io::Result<()> {
    loop {
        // SAFETY: the descriptor is open for as long as its owner is borrowed by the caller, and
        // both commands take a pointer to one `flock`, which lives and is ours alone.
        let done = unsafe { libc::fcntl(fd, command, std::ptr::from_mut(lock)) };
        if done == 0 {
            return Ok(());
        }
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
}

/// The descriptors of a process; none if it is gone or somebody else's.
fn descriptors(pid: u32) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Whether a descriptor holds a lock over the byte at `at`.
fn holds(pid: u32, fd: &str, at: ByteOffset) -> bool {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap_or_default();
    info.lines().filter_map(locked_range).any(|(first, last)| (first..=last).contains(&at.get()))
}

/// The first and the last byte of a line that tells of a lock:
/// `lock: 1: OFDLCK ADVISORY READ -1 08:01:42 100 101`.
fn locked_range(line: &str) -> Option<(u64, u64)> {
    let fields: Vec<&str> = line.strip_prefix("lock:")?.split_whitespace().collect();
    let [_, "OFDLCK" | "POSIX", .., first, last] = fields[..] else { return None };
    Some((first.parse().ok()?, if last == "EOF" { u64::MAX } else { last.parse().ok()? }))
}

fn is_file(pid: u32, fd: &str, device: u64, inode: u64) -> bool {
    fs::metadata(format!("/proc/{pid}/fd/{fd}"))
        .is_ok_and(|found| found.dev() == device && found.ino() == inode)
}

fn command_of(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.is_empty() { "a process".to_owned() } else { name.trim_end().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::{ByteLocks, locked_range};
    use block_types::ByteOffset;

    #[test]
    fn locks_belong_to_the_open_file_and_name_their_process() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        std::fs::write(&path, "").expect("written");
        let open = || ByteLocks::open(&path).expect("opened");
        let (one, other) = (open(), open());
        let (here, there) = (ByteOffset::new(100), ByteOffset::new(101));
        assert!(one.share(here).expect("asked"));
        assert!(!one.is_locked_by_others(here).expect("asked"), "its own lock is no other's");
        assert!(other.is_locked_by_others(here).expect("asked"));
        assert!(!other.is_locked_by_others(there).expect("asked"));
        let holder = other.holder(here).expect("found");
        assert_eq!(holder.pid, std::process::id());
        assert!(!holder.command.is_empty());
        assert_eq!(other.holder(there), None);
        assert_eq!(one.holder(here), None, "it is nobody else's");
        assert!(other.share(here).expect("asked"), "both may have it");
        drop(one);
        assert!(!other.is_locked_by_others(here).expect("asked"), "closing gives it back");
    }

    #[test]
    fn the_kernel_s_lines_are_read() {
        let line = "lock:\t1: OFDLCK ADVISORY  READ -1 08:01:262 100 101";
        assert_eq!(locked_range(line), Some((100, 101)));
        let whole = "lock:\t2: POSIX  ADVISORY  WRITE 77 08:01:262 0 EOF";
        assert_eq!(locked_range(whole), Some((0, u64::MAX)));
        assert_eq!(locked_range("lock:\t1: FLOCK  ADVISORY  WRITE 7 08:01:262 0 EOF"), None);
        assert_eq!(locked_range("pos:\t0"), None);
    }
}
