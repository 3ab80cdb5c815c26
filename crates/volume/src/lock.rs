//! The lock of a directory, a pool's or a repository's: one writer, whose name and process
//! everybody else is told.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use block_types::{Error, ErrorKind, Result};
use rustix::fs::{FlockOperation, flock};

/// The lock, held until it is dropped; the kernel drops it for a process that is killed.
#[derive(Debug)]
pub struct PoolLock {
    _file: File,
    shared: bool,
}

impl PoolLock {
    /// Locks what is in `dir` for `holder`: alone, or with others who only read.
    ///
    /// # Errors
    /// `Busy`, with name and pid of the holder.
    pub fn take(dir: &Path, holder: &str, shared: bool) -> Result<Self> {
        let path = dir.join("lock");
        let failed = |doing, error| Error::io(path.display().to_string(), doing, error);
        let mut options = OpenOptions::new();
        options.read(true);
        // A reader locks a pool on a read-only file system, too.
        if !shared {
            options.write(true).create(true).truncate(false);
        }
        let mut file =
            options.open(&path).map_err(|error| failed("cannot open the lock", error))?;
        let operation = if shared {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        if let Err(error) = flock(&file, operation) {
            if error == rustix::io::Errno::WOULDBLOCK {
                return Err(busy(dir, &mut file));
            }
            return Err(failed("cannot lock", error.into()));
        }
        if !shared {
            write_holder(&mut file, holder).map_err(|error| failed("cannot write", error))?;
        }
        Ok(Self { _file: file, shared })
    }

    /// Whether others may have it, too.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared
    }
}

fn write_holder(file: &mut File, holder: &str) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{holder} (pid {})", std::process::id())
}

fn busy(dir: &Path, file: &mut File) -> Error {
    let holder = match flock(&*file, FlockOperation::NonBlockingLockShared) {
        // Nobody has it for writing, so it is readers who refuse us; they leave no note.
        Ok(()) => reader(file),
        Err(_) => writer(file),
    };
    let holder = holder.unwrap_or_else(|| "another process".into());
    let problem = format!("is in use by {holder}");
    Error::new(ErrorKind::Busy, dir.display().to_string(), problem)
        .advise("stop that process, or let it do the work")
}

/// What the holder has written about itself.
fn writer(file: &mut File) -> Option<String> {
    let mut holder = String::new();
    // Whoever holds it may be about to write this; the answer is Busy all the same.
    file.read_to_string(&mut holder).ok()?;
    let holder = holder.trim();
    (!holder.is_empty()).then(|| holder.to_owned())
}

/// A process that has the file locked beside us, as the kernel's list of locks has it: number,
/// kind, strictness, mode, pid, device and inode.
fn reader(file: &File) -> Option<String> {
    let inode = file.metadata().ok()?.ino().to_string();
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let own = std::process::id().to_string();
    let pid = locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, place, ..] = fields[..] else { return None };
        (place.rsplit(':').next() == Some(&inode) && pid != own).then(|| pid.to_owned())
    })?;
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("{} (pid {pid}), which reads it", name.trim()))
}

#[cfg(test)]
mod tests {
    use super::PoolLock;

    #[test]
    fn one_writer_or_many_readers() {
        let dir = tempfile::tempdir().expect("a directory");
        let writer = PoolLock::take(dir.path(), "firn serve", false).expect("locked");
        let error = PoolLock::take(dir.path(), "firn", false).expect_err("refused");
        let text = error.to_string();
        assert!(text.contains("firn serve"), "{text}");
        assert!(text.contains(&format!("pid {}", std::process::id())), "{text}");
        assert!(PoolLock::take(dir.path(), "firn", true).is_err());
        drop(writer);
        let _one = PoolLock::take(dir.path(), "firn", true).expect("shared");
        let _two = PoolLock::take(dir.path(), "firn", true).expect("shared");
        let error = PoolLock::take(dir.path(), "firn", false).expect_err("refused");
        assert!(!error.to_string().contains("firn serve"), "{error}");
        let _three = PoolLock::take(dir.path(), "firn", true).expect("still shared");
    }

    #[test]
    fn a_reader_in_another_process_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(PoolLock::take(dir.path(), "firn serve", false).expect("locked"));
        let mut reader = std::process::Command::new("flock")
            .args(["--shared", "--no-fork"])
            .arg(dir.path().join("lock"))
            .args(["sleep", "30"])
            .spawn()
            .expect("flock of util-linux is there");
        let error = loop {
            match PoolLock::take(dir.path(), "firn", false) {
                Err(error) => break error.to_string(),
                Ok(lock) => drop(lock),
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        reader.kill().expect("it runs");
        reader.wait().expect("it ended");
        assert!(error.contains(&format!("pid {}", reader.id())), "{error}");
    }
}
