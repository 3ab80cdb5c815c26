//! An empty directory in which the command is run.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// The longest that a server may take to begin or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Larger files are not looked into when states are compared: their length and space are.
const READ_UP_TO: u64 = 64 << 20;

pub(crate) struct Lab {
    dir: TempDir,
}

/// What a run of the command came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Lab {
    /// An empty directory.
    pub(crate) fn new() -> Self {
        Self { dir: TempDir::new().unwrap() }
    }

    /// A directory with a pool of 1 GiB called `lab`, and in it a volume `db` of 64 MiB.
    pub(crate) fn with_volume() -> Self {
        let lab = Self::new();
        lab.ok("pool create lab --size 1G");
        lab.ok("volume create lab/db --size 64M");
        lab
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command, with words that have no blanks in them.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_firn"));
        command.args(words.split_whitespace()).current_dir(self.dir.path());
        for variable in ["RUST_LOG", "COLUMNS", "CLICOLOR_FORCE"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, words: &str) -> Ran {
        run(&mut self.command(words))
    }

    /// Runs what has to succeed, silently on stderr; what it printed.
    pub(crate) fn ok(&self, words: &str) -> String {
        let ran = self.run(words);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "firn {words}: {ran:?}");
        ran.stdout
    }

    /// Runs what has to succeed, and reads its JSON.
    pub(crate) fn json(&self, words: &str) -> Value {
        let text = self.ok(&format!("{words} --json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("firn {words}: {error}: {text}"))
    }

    /// Runs what has to fail with `code`, one line, nothing on stdout and nothing changed; the line
    /// without its beginning.
    pub(crate) fn refused(&self, words: &str, code: i32) -> String {
        let before = self.state();
        let ran = self.run(words);
        let sentence = ran.sentence(code);
        assert_eq!(self.state(), before, "firn {words} changed something: {sentence}");
        sentence
    }

    /// Every file with its content, but for the lock, which says who came last.
    pub(crate) fn state(&self) -> BTreeMap<PathBuf, (u64, u64, Vec<u8>)> {
        let mut files = BTreeMap::new();
        look(self.dir.path(), &mut files);
        files
    }

    /// Writes a file of `size` zeros with `bytes` of noise at `at`.
    pub(crate) fn image(&self, name: &str, size: u64, at: u64, bytes: usize) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(size).unwrap()];
        let mut state = at ^ 0x9e37_79b9_7f4a_7c15;
        for byte in &mut content[usize::try_from(at).unwrap()..][..bytes] {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        fs::write(self.path(name), &content).unwrap();
        content
    }

    /// Starts `firn serve` with these words; returns once it is ready.
    pub(crate) fn serve(&self, words: &str) -> Server {
        let mut command = self.command(&format!("serve {words} --json"));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let Ok(ready) = serde_json::from_str(&line) else {
            let output = child.wait_with_output().unwrap();
            panic!("firn serve {words}: {line}{}", String::from_utf8_lossy(&output.stderr));
        };
        Server { child, ready }
    }
}

impl Ran {
    /// What it complained about, in one line.
    pub(crate) fn sentence(&self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let line = self.stderr.strip_suffix('\n').expect("a complaint ends with a line feed");
        assert!(!line.contains('\n'), "more than one line: {line}");
        line.strip_prefix("firn: ").expect("a complaint says who complains").to_owned()
    }
}

/// A running server; killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    /// What it said when it was ready.
    pub(crate) ready: Value,
}

impl Server {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it the orderly way.
    pub(crate) fn stop(mut self) -> ExitStatus {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the server does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn run(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().unwrap_or_else(|| panic!("killed: {:?}", output.status)),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn look(dir: &Path, files: &mut BTreeMap<PathBuf, (u64, u64, Vec<u8>)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let found = path.symlink_metadata().unwrap();
        if found.is_dir() {
            look(&path, files);
        } else if path.file_name().is_some_and(|name| name != "lock") {
            let small = found.is_file() && found.len() <= READ_UP_TO;
            let content = if small { fs::read(&path).unwrap() } else { Vec::new() };
            files.insert(path, (found.len(), found.blocks(), content));
        }
    }
}
