//! A directory with a pool called `lab`, the command to work on it, and a server for it.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use block_io::BlockDevice;
use block_types::ByteOffset;
use nbd::{Client, Uri};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use testkit::peer::Peer;
use testkit::server::{Listens, Server};
use testkit::thin_tools;

pub(crate) const FIRN: &str = env!("CARGO_BIN_EXE_firn");

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// How long a server may live, and a run of the command may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Bytes that are read at once where a whole device is.
const STEP: usize = 1 << 20;

pub(crate) struct Lab {
    dir: TempDir,
}

/// A running server; killed when dropped, or when it has lived for too long.
pub(crate) struct Served {
    server: Option<Server>,
    /// Dropped before the server is, so that no signal goes to a process of another name.
    watchdog: Option<Sender<()>>,
}

impl Lab {
    /// A directory without a pool.
    pub(crate) fn empty() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    /// A pool of 4 GiB with these volumes, all of one size.
    pub(crate) fn new(volumes: &[&str], size: &str) -> Self {
        let lab = Self::empty();
        lab.ok("pool create lab --size 4G");
        for volume in volumes {
            lab.ok(&format!("volume create lab/{volume} --size {size}"));
        }
        lab
    }

    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command, with words that have no blanks in them.
    pub(crate) fn firn(&self, words: &str) -> Peer {
        Peer::at(FIRN).args(words.split_whitespace()).in_folder(self.folder()).limit(LIMIT)
    }

    /// Runs what has to succeed; what it printed.
    #[track_caller]
    pub(crate) fn ok(&self, words: &str) -> String {
        self.firn(words).ok()
    }

    /// Runs what has to succeed, and reads its JSON.
    #[track_caller]
    pub(crate) fn json(&self, words: &str) -> Value {
        let text = self.ok(&format!("{words} --json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("firn {words}: {error}: {text}"))
    }

    /// Runs what has to fail; what it complained about.
    #[track_caller]
    pub(crate) fn refused(&self, words: &str) -> String {
        let outcome = self.firn(words).run();
        assert_eq!(outcome.code(), Some(1), "{outcome}");
        outcome.stderr
    }

    /// Serves the pool with these words more; returns once clients can connect.
    #[track_caller]
    pub(crate) fn serve(&self, more: &str) -> Served {
        let pool = self.path("lab");
        let words = ["serve".as_ref(), pool.as_os_str()].into_iter();
        let words = words.chain(more.split_whitespace().map(AsRef::as_ref));
        let server = Server::start(FIRN, words, Listens::Unix(self.path("lab/nbd.sock")));
        Served::watch(server.unwrap_or_else(|error| panic!("{error}")))
    }

    /// The address of an export of the server.
    pub(crate) fn uri(&self, export: &str) -> String {
        Uri::unix(self.path("lab/nbd.sock"), export).to_string()
    }

    /// A client of an export of the server.
    #[track_caller]
    pub(crate) fn connect(&self, export: &str) -> Client {
        Client::connect(&self.uri(export).parse().unwrap()).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The whole content of an export of the server.
    #[track_caller]
    pub(crate) fn content(&self, export: &str) -> Vec<u8> {
        content(&self.connect(export))
    }

    /// Looks at the metadata of the pool, which nobody serves, with the peer's eyes and ours.
    #[track_caller]
    pub(crate) fn assert_sound(&self) {
        thin_tools::check(&self.path("lab/metadata"));
        assert!(self.ok("pool check lab").starts_with("lab: sound"));
    }
}

impl Served {
    pub(crate) fn watch(server: Server) -> Self {
        let (watchdog, called_off) = mpsc::channel();
        let pid = pid_of(&server);
        thread::spawn(move || {
            if called_off.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
                eprintln!("the server has lived for {LIMIT:?}: killed");
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        Self { server: Some(server), watchdog: Some(watchdog) }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.server.as_ref().unwrap().pid()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.server.as_mut().unwrap().is_running()
    }

    /// What it said so far.
    pub(crate) fn log(&self) -> String {
        self.server.as_ref().unwrap().log()
    }

    /// Asks it to end, and waits for that.
    pub(crate) fn stop(mut self) -> ExitStatus {
        drop(self.watchdog.take());
        self.server.take().unwrap().stop().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Asks it to end, and does not wait.
    pub(crate) fn terminate(&self) {
        kill_process(pid_of(self.server.as_ref().unwrap()), Signal::TERM).unwrap();
    }

    /// Waits for its end, for which it was asked. Asking again would end it at once.
    pub(crate) fn wait(mut self) -> ExitStatus {
        wait_for("the server's end", || !self.is_running());
        self.stop()
    }

    /// Ends it as a crash of the process would.
    pub(crate) fn kill(mut self) {
        drop(self.watchdog.take());
        self.server.take().unwrap().kill();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.watchdog.take());
        if let Some(server) = self.server.take()
            && thread::panicking()
        {
            eprintln!("the server said:\n{}", server.log());
        }
    }
}

fn pid_of(server: &Server) -> Pid {
    i32::try_from(server.pid()).ok().and_then(Pid::from_raw).unwrap()
}

/// The whole content of a device.
#[track_caller]
pub(crate) fn content(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.size().as_usize()];
    for (index, piece) in bytes.chunks_mut(STEP).enumerate() {
        device.read_at(piece, ByteOffset::new((index * STEP) as u64)).unwrap();
    }
    bytes
}

/// Waits until `done`, with a limit.
#[track_caller]
pub(crate) fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "{what} does not come");
        thread::sleep(Duration::from_millis(5));
    }
}
