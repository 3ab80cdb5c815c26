//! A serving process: started, waited for until its socket accepts, stopped, never left behind.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use block_types::{Error, ErrorKind, Result};
use rustix::process::Signal;
use tempfile::NamedTempFile;

use crate::peer::{kill_group, signal_group, wait};

/// How long a server may take to begin and to end.
const LIMIT: Duration = Duration::from_secs(20);

/// Where a server listens.
#[derive(Debug, Clone)]
pub enum Listens {
    /// At a unix socket.
    Unix(PathBuf),
    /// At a TCP address, as in `127.0.0.1:10809`.
    Tcp(String),
}

/// A running server; killed with its children when dropped.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
    listens: Listens,
    log: NamedTempFile,
}

impl Server {
    /// Starts `program` with `arguments`, and waits until it accepts connections.
    ///
    /// # Errors
    /// [`ErrorKind::Stopped`] if it ended instead, [`ErrorKind::Cancelled`] if it took too long,
    /// both with what it said.
    pub fn start<A: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = A>,
        listens: Listens,
    ) -> Result<Self> {
        let name = program.as_ref().to_string_lossy().into_owned();
        let failed = |error| Error::io(name.clone(), "cannot be started", error);
        let log = NamedTempFile::new().map_err(failed)?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(append(log.path()).map_err(failed)?)
            .stderr(append(log.path()).map_err(failed)?)
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let mut server = Self { name, child, listens, log };
        server.await_socket()?;
        Ok(server)
    }

    /// Waits until the socket accepts.
    fn await_socket(&mut self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        while !self.listens.accepts() {
            let ended = self.child.try_wait().expect("our own child can be waited for");
            if let Some(status) = ended {
                return Err(self.failure(ErrorKind::Stopped, &format!("ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(self.failure(ErrorKind::Cancelled, "does not accept connections"));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said so far, on standard output and standard error.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log.path()).unwrap_or_default()).into_owned()
    }

    /// Whether it has not ended by itself.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end (SIGTERM), and waits for it.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] if it goes on, with what it said.
    pub fn stop(mut self) -> Result<ExitStatus> {
        signal_group(&self.child, Signal::TERM);
        match wait(&mut self.child, LIMIT) {
            Some(status) => Ok(status),
            None => Err(self.failure(ErrorKind::Cancelled, "does not end")),
        }
    }

    /// Ends it at once (SIGKILL), as a crash of the process would.
    pub fn kill(mut self) {
        kill_group(&mut self.child);
    }

    fn failure(&self, kind: ErrorKind, problem: &str) -> Error {
        Error::new(kind, self.name.clone(), format!("{problem}; it said:\n{}", self.log()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        kill_group(&mut self.child);
    }
}

impl Listens {
    /// Whether somebody accepts connections there.
    fn accepts(&self) -> bool {
        match self {
            Self::Unix(path) => UnixStream::connect(path).is_ok(),
            Self::Tcp(address) => TcpStream::connect(address).is_ok(),
        }
    }
}

fn append(path: &Path) -> std::io::Result<File> {
    File::options().append(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::{Listens, Server};
    use crate::peer;
    use block_types::ErrorKind;
    use std::path::Path;

    fn nbdkit(socket: &Path) -> block_types::Result<Server> {
        let socket = socket.to_owned();
        let words = ["-f", "-U", socket.to_str().unwrap(), "null", "1M"].map(str::to_owned);
        Server::start(peer::find("nbdkit")?, words, Listens::Unix(socket))
    }

    #[test]
    fn serves_and_stops() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("sock");
        let mut server = nbdkit(&socket).unwrap();
        assert!(server.is_running());
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        assert_eq!(peer::peer("nbdinfo").args(["--size", &uri]).ok(), "1048576\n");
        let pid = server.pid();
        server.stop().unwrap();
        assert!(!Path::new(&format!("/proc/{pid}")).exists());

        let second = nbdkit(&folder.path().join("other")).unwrap();
        let pid = second.pid();
        drop(second);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_server_that_fails_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let error = nbdkit(&folder.path().join("no/such/folder")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Stopped);
        assert!(error.problem().contains("No such file"), "{error}");
    }
}
