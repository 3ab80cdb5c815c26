//! Sockets that clients connect to.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use block_io::Event;
use block_types::{Error, ErrorKind, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_nodelay};
use rustix::net::{SocketFlags, accept_with, getpeername};

/// A socket that listens, by TCP or by a path.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    name: String,
    tcp: Option<SocketAddr>,
    /// The path to remove at the end.
    path: Option<PathBuf>,
}

/// A connection just made.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) socket: OwnedFd,
    pub(super) peer: String,
}

impl Listener {
    /// Listens at a path. A socket left there by a server that is gone is replaced; the path is
    /// removed when the listener is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if another server listens there, [`ErrorKind::Exists`] if the path is
    /// something else; what the system says.
    pub fn unix(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let name = path.display().to_string();
        remove_stale(&path)?;
        let listener = UnixListener::bind(&path)
            .map_err(|error| Error::io(&name, "cannot listen there", error))?;
        Ok(Self { fd: listener.into(), name, tcp: None, path: Some(path) })
    }

    /// Listens at a TCP address such as `localhost:10809`; port 0 lets the system choose.
    ///
    /// # Errors
    /// What the system says.
    pub fn tcp(address: impl ToSocketAddrs) -> Result<Self> {
        let failed = |error| Error::io("NBD server", "cannot listen by TCP", error);
        let listener = TcpListener::bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let name = address.to_string();
        Ok(Self { fd: listener.into(), name, tcp: Some(address), path: None })
    }

    /// Takes over a socket that listens already, as socket activation hands it over.
    pub fn inherited(fd: OwnedFd) -> Self {
        let tcp = rustix::net::getsockname(&fd).ok().and_then(|name| name.try_into().ok());
        Self { fd, name: "inherited socket".to_owned(), tcp, path: None }
    }

    /// The TCP address, if it is one.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp
    }

    /// What to call it in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The next connection; `None` once `stop` is raised.
    pub(super) fn accept(&self, stop: &Event) -> io::Result<Option<Accepted>> {
        loop {
            let mut waits =
                [PollFd::new(&self.fd, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
            match poll(&mut waits, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if !waits[1].revents().is_empty() {
                return Ok(None);
            }
            if waits[0].revents().is_empty() {
                continue;
            }
            match accept_with(&self.fd, SocketFlags::CLOEXEC) {
                Ok(socket) => return Ok(Some(self.adopt(socket))),
                // The client has gone again, or another process took it.
                Err(
                    rustix::io::Errno::AGAIN
                    | rustix::io::Errno::INTR
                    | rustix::io::Errno::CONNABORTED,
                ) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn adopt(&self, socket: OwnedFd) -> Accepted {
        let peer = if self.tcp.is_some() {
            // Neither can fail on a TCP socket in a way that matters: the one costs time, the other
            // keeps half-open connections.
            let _ = set_tcp_nodelay(&socket, true);
            let _ = set_socket_keepalive(&socket, true);
            tcp_peer(socket.as_fd())
        } else {
            unix_peer(socket.as_fd())
        };
        Accepted { socket, peer }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            // Somebody may have removed it already.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn tcp_peer(socket: BorrowedFd<'_>) -> String {
    let address =
        getpeername(socket).ok().flatten().and_then(|peer| SocketAddr::try_from(peer).ok());
    address.map_or_else(|| "unknown".to_owned(), |address| address.to_string())
}

fn unix_peer(socket: BorrowedFd<'_>) -> String {
    match rustix::net::sockopt::socket_peercred(socket) {
        Ok(peer) => format!("process {} of user {}", peer.pid.as_raw_nonzero(), peer.uid.as_raw()),
        Err(_) => "unknown".to_owned(),
    }
}

/// Removes a socket at `path` that nobody listens at, as a server that was killed leaves it.
///
/// # Errors
/// [`ErrorKind::Busy`] if somebody listens there, [`ErrorKind::Exists`] if the path is something
/// else.
pub fn remove_stale(path: &Path) -> Result<()> {
    let name = || path.display().to_string();
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !found.file_type().is_socket() {
        return Err(Error::new(ErrorKind::Exists, name(), "exists and is no socket"));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(path = name(), "removed the socket of a server that was killed");
            std::fs::remove_file(path)
                .map_err(|error| Error::io(name(), "cannot remove the stale socket", error))
        }
        _ => Err(Error::new(ErrorKind::Busy, name(), "belongs to another server")),
    }
}
