//! Sockets that the daemon listens at: made, left behind by others, handed over by who started it.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use block_types::{Error, ErrorKind, Result};
use nbd::{Listener, Transport, remove_stale};
use rustix::fs::Mode;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, getsockname, listen, socket_with,
};
use rustix::process::getpid;

/// The first descriptor of socket activation.
const FIRST_FD: i32 = 3;

/// A Unix socket at a path that is removed at the end.
#[derive(Debug)]
pub(crate) struct PrivateSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl PrivateSocket {
    /// Listens at `path` for processes of the same user and of root. A socket that a killed daemon
    /// left there is replaced.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if somebody listens there, [`ErrorKind::Exists`] if the path is
    /// something else.
    pub(crate) fn listen(path: &Path) -> Result<Self> {
        remove_stale(path)?;
        let failed = |error: rustix::io::Errno| {
            let error = Error::io(path.display().to_string(), "cannot listen there", error.into());
            match path.as_os_str().len() {
                ..108 => error,
                _ => error
                    .advise("paths of sockets have at most 107 bytes; name it by a shorter one"),
            }
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).map_err(failed)?;
        bind(&socket, &SocketAddrUnix::new(path).map_err(failed)?).map_err(failed)?;
        let listener = Self { listener: socket.into(), path: path.to_owned() };
        // Before it listens: nobody gets in while the mode is what the umask left.
        rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR).map_err(failed)?;
        listen(&listener.listener, 64).map_err(failed)?;
        Ok(listener)
    }

    /// The socket, for those who accept. Its path is removed when `self` is dropped.
    pub(crate) fn try_clone(&self) -> Result<UnixListener> {
        self.listener.try_clone().map_err(|error| {
            Error::io(self.path.display().to_string(), "cannot be listened at", error)
        })
    }
}

impl Drop for PrivateSocket {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Sockets that the one who started this process listens at on its behalf, with the address of the
/// first; `None` if there are none (`LISTEN_PID`, `LISTEN_FDS`: systemd's socket activation).
///
/// # Errors
/// If what was announced is not there.
pub(crate) fn inherited() -> Result<Option<(Vec<Listener>, Transport)>> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    let meant = number("LISTEN_PID") == Some(getpid().as_raw_pid());
    let Some(count) = number("LISTEN_FDS").filter(|count| meant && *count > 0) else {
        return Ok(None);
    };
    let mut sockets = Vec::new();
    for fd in FIRST_FD..FIRST_FD.saturating_add(count) {
        sockets.push(adopt(fd)?);
    }
    let transport = transport_of(&sockets[0])?;
    Ok(Some((sockets.into_iter().map(Listener::inherited).collect(), transport)))
}

/// An owned copy of a socket that is known by its number only.
fn adopt(fd: i32) -> Result<OwnedFd> {
    let advice = "start without LISTEN_FDS, or hand over sockets that listen";
    let socket = block_io::copy_inherited(fd).map_err(|error| error.advise(advice))?;
    getsockname(&socket).map_err(|error| {
        let object = format!("inherited descriptor {fd}");
        Error::io(object, "is no socket", error.into()).advise(advice)
    })?;
    Ok(socket)
}

/// Where clients reach an inherited socket.
fn transport_of(socket: &OwnedFd) -> Result<Transport> {
    let unknown =
        || Error::new(ErrorKind::Unsupported, "inherited socket", "has neither a path nor a port");
    let address = getsockname(socket)
        .map_err(|error| Error::io("inherited socket", "does not say where it is", error.into()))?;
    if let Ok(address) = std::net::SocketAddr::try_from(address.clone()) {
        return Ok(Transport::Tcp { host: address.ip().to_string(), port: address.port() });
    }
    let address = SocketAddrUnix::try_from(address).map_err(|_| unknown())?;
    let path = address.path().ok_or_else(unknown)?;
    Ok(Transport::Unix(PathBuf::from(OsStr::from_bytes(path.to_bytes()))))
}

#[cfg(test)]
mod tests {
    use super::PrivateSocket;
    use block_types::ErrorKind;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn replaces_what_a_killed_daemon_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the standard library leaves the path behind");

        let socket = PrivateSocket::listen(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn removes_neither_files_nor_living_sockets() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "mine").unwrap();
        assert_eq!(PrivateSocket::listen(&file).unwrap_err().kind(), ErrorKind::Exists);
        assert_eq!(std::fs::read(&file).unwrap(), b"mine");

        let path = folder.path().join("sock");
        let _other = UnixListener::bind(&path).unwrap();
        assert_eq!(PrivateSocket::listen(&path).unwrap_err().kind(), ErrorKind::Busy);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn says_which_paths_are_too_long() {
        let folder = tempfile::tempdir().unwrap();
        let error = PrivateSocket::listen(&folder.path().join("x".repeat(108))).unwrap_err();
        assert!(error.to_string().contains("107 bytes"), "{error}");
    }
}
