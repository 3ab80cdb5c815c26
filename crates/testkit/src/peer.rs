//! The peers' programs: found, run under a time limit, with all they said in the message of a
//! failure.
//!
//! A peer that is not installed fails the test and names the Debian package; no test is ever
//! skipped because of it. `cargo xtask setup` installs what [`PACKAGES`] lists.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fmt, fs};

use block_types::{Error, ErrorKind, Result};

/// The programs that tests use, and the Debian package each comes from.
pub const PACKAGES: &[(&str, &str)] = &[
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("qemu-nbd", "qemu-utils"),
    // Debian 12 has it here, newer packages of QEMU in qemu-utils.
    ("qemu-storage-daemon", "qemu-system-common"),
    ("nbdkit", "nbdkit"),
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdsh", "python3-libnbd"),
    ("nbd-client", "nbd-client"),
    ("fio", "fio"),
    ("thin_check", "thin-provisioning-tools"),
    ("thin_dump", "thin-provisioning-tools"),
    ("thin_restore", "thin-provisioning-tools"),
    ("thin_delta", "thin-provisioning-tools"),
    ("thin_ls", "thin-provisioning-tools"),
    ("thin_rmap", "thin-provisioning-tools"),
    ("thin_repair", "thin-provisioning-tools"),
    ("vhdiinfo", "libvhdi-utils"),
    ("vhdimount", "libvhdi-utils"),
    ("fusermount3", "fuse3"),
    ("linux.uml", "user-mode-linux"),
    ("busybox", "busybox-static"),
    ("dmsetup", "dmsetup"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
    ("cc", "gcc"),
    ("c++", "g++"),
    ("valgrind", "valgrind"),
    ("time", "time"),
];

/// How long a peer may run unless the test says otherwise.
const LIMIT: Duration = Duration::from_secs(60);

/// How often a running peer is looked at.
const POLL: Duration = Duration::from_millis(2);

/// A peer's program with its arguments, ready to run.
pub struct Peer {
    program: String,
    command: Command,
    input: Vec<u8>,
    limit: Duration,
}

/// What a program said, and how it ended.
#[derive(Debug)]
pub struct Outcome {
    /// The command line, for messages.
    pub command: String,
    /// How it ended; `None` if the time limit ended it.
    pub status: Option<ExitStatus>,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error, as text.
    pub stderr: String,
}

/// The peer's program `program`.
///
/// # Panics
/// If it is not installed, with the package to install.
#[track_caller]
pub fn peer(program: &str) -> Peer {
    Peer::find(program).unwrap_or_else(|error| panic!("{error}"))
}

/// The path of `program`, from the search path or the system's own folders.
///
/// # Errors
/// [`ErrorKind::NotFound`] with the package to install.
pub fn find(program: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // A user's search path often lacks the folders of the administrator's programs.
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(program))
        .find(|candidate| fs::metadata(candidate).is_ok_and(|metadata| metadata.is_file()));
    found.ok_or_else(|| {
        let error = Error::new(ErrorKind::NotFound, program, "is not installed");
        match PACKAGES.iter().find(|(known, _)| *known == program) {
            Some((_, package)) => {
                error.advise(format!("install the Debian package {package} (cargo xtask setup)"))
            }
            None => error,
        }
    })
}

impl Peer {
    /// The peer's program `program`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] with the package to install.
    pub fn find(program: &str) -> Result<Self> {
        Ok(Self::at(find(program)?))
    }

    /// A program at a known place, run like a peer: the `firn` that was just built.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let program = path.display().to_string();
        Self { program, command: Command::new(path), input: Vec::new(), limit: LIMIT }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs it in `folder`.
    #[must_use]
    pub fn in_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.command.current_dir(folder.into());
        self
    }

    /// Gives it `input` on standard input, which is empty otherwise.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    /// Lets it run for at most `limit` (a minute otherwise).
    #[must_use]
    pub const fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it, however it ends.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn run(mut self) -> Outcome {
        let line = self.line();
        self.command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that the time limit ends its children, too.
            .process_group(0);
        let mut child =
            self.command.spawn().unwrap_or_else(|error| panic!("cannot start {line}: {error}"));
        let mut stdin = child.stdin.take().expect("standard input is a pipe");
        let input = std::mem::take(&mut self.input);
        // A program need not read its input: the write may fail, and nobody minds.
        thread::spawn(move || stdin.write_all(&input));
        let stdout = reader(child.stdout.take().expect("standard output is a pipe"));
        let stderr = reader(child.stderr.take().expect("standard error is a pipe"));
        let status = wait(&mut child, self.limit);
        if status.is_none() {
            kill_group(&mut child);
        }
        let stdout = stdout.join().expect("the reader does not panic");
        let stderr = stderr.join().expect("the reader does not panic");
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        Outcome { command: line, status, stdout, stderr }
    }

    /// Runs it, and returns what it wrote to standard output.
    ///
    /// # Panics
    /// Unless it ends with status 0, with all that it said.
    #[track_caller]
    pub fn ok(self) -> String {
        self.run().expect_code(0)
    }

    /// The command line, for messages.
    fn line(&self) -> String {
        let mut line = self.program.clone();
        for arg in self.command.get_args() {
            line.push(' ');
            line.push_str(&OsString::from(arg).to_string_lossy());
        }
        line
    }
}

impl Outcome {
    /// The exit status; `None` if a signal or the time limit ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as text.
    ///
    /// # Panics
    /// Unless it ended with status `code`, with all that it said.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> String {
        assert!(self.code() == Some(code), "expected status {code} of {self}");
        self.text()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ended = match self.status {
            None => "ended by the time limit".to_owned(),
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("status {code}"),
                (None, signal) => format!("signal {}", signal.unwrap_or(0)),
            },
        };
        write!(f, "{}: {ended}\nstdout:\n{}\nstderr:\n{}", self.command, self.text(), self.stderr)
    }
}

/// Waits for `child` until `limit` has passed.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("our own child can be waited for") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        thread::sleep(POLL);
    }
}

/// Kills `child` and everything in its process group, and reaps it.
pub(crate) fn kill_group(child: &mut Child) {
    signal_group(child, rustix::process::Signal::KILL);
    // It may have ended meanwhile: either way it is reaped.
    drop(child.wait());
}

/// Sends `signal` to the process group that `child` leads.
pub(crate) fn signal_group(child: &Child, signal: rustix::process::Signal) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        // A group that is gone needs no signal.
        let _ = rustix::process::kill_process_group(group, signal);
    }
}

/// Reads `from` to its end on a thread of its own.
fn reader(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A pipe that breaks keeps what came before.
        drop(from.read_to_end(&mut bytes));
        bytes
    })
}

#[cfg(test)]
mod tests {
    use super::{Peer, peer};
    use std::time::{Duration, Instant};

    #[test]
    fn returns_what_was_said() {
        let sh = |script: &str| peer("sh").args(["-c", script]);
        assert_eq!(sh("cat; echo there").input("hello ").ok(), "hello there\n");
        let outcome = sh("echo complaint >&2; exit 7").run();
        assert_eq!((outcome.code(), outcome.stderr.as_str()), (Some(7), "complaint\n"));
        assert_eq!(sh("kill -9 $$").run().code(), None);
    }

    #[test]
    #[should_panic(expected = "complaint")]
    fn a_failure_tells_everything() {
        peer("sh").args(["-c", "echo complaint >&2; exit 7"]).ok();
    }

    #[test]
    fn a_missing_peer_names_its_package() {
        let Err(error) = Peer::find("no-such-program") else { panic!("found a missing program") };
        assert_eq!(error.to_string(), "no-such-program: is not installed");
        assert!(super::PACKAGES.contains(&("nbdinfo", "libnbd-bin")));
    }

    #[test]
    fn the_time_limit_ends_the_children_too() {
        let begun = Instant::now();
        let limit = Duration::from_millis(100);
        // The background child holds the pipes open; were it left alive, the readers would wait.
        let outcome = peer("sh").args(["-c", "sleep 50 & sleep 50"]).limit(limit).run();
        assert!(outcome.status.is_none(), "{outcome}");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
