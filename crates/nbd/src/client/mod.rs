//! An export of another server as a [`BlockDevice`](block_io::BlockDevice).
//!
//! One connection, one request at a time: callers on several threads take turns. The server's words
//! are not trusted: whatever breaks the protocol ends the connection, and every later call fails
//! with [`ErrorKind::Stopped`](block_types::ErrorKind::Stopped).

mod connection;
mod device;
mod handshake;

use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use block_io::Limits;
use block_types::{ByteCount, Error, Result};
use parking_lot::Mutex;

use crate::channel::Channel;
use crate::server::ExportEntry;
use crate::uri::{Transport, Uri};
use crate::wire::{Dialect, TransmissionFlags};

use connection::Connection;
use handshake::{Agreed, Handshake};

/// Time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection to an export.
#[derive(Debug)]
pub struct Client {
    name: String,
    agreed: Agreed,
    connection: Mutex<Connection>,
}

impl Client {
    /// Connects to the export at `uri`, with the newest dialect the server speaks.
    ///
    /// # Errors
    /// What the system says, [`NotFound`](block_types::ErrorKind::NotFound) if the server has no
    /// such export, [`Corrupt`](block_types::ErrorKind::Corrupt) if it does not speak the protocol.
    pub fn connect(uri: &Uri) -> Result<Self> {
        let name = uri.to_string();
        let socket = open(&uri.transport, &name)?;
        Self::over(socket, &uri.export, name, Dialect::Extended)
    }

    /// Uses a connection that is there already. `name` is what to call the device; `newest` is the
    /// newest dialect to ask for.
    ///
    /// # Errors
    /// Like [`Client::connect`].
    pub fn over(
        socket: OwnedFd,
        export: &str,
        name: impl Into<String>,
        newest: Dialect,
    ) -> Result<Self> {
        let name = name.into();
        let channel = Channel::until(socket.as_fd(), HANDSHAKE_TIMEOUT);
        let agreed = Handshake::begin(channel, &name)?.choose(export, newest)?;
        let connection = Connection::new(socket, agreed.dialect);
        Ok(Self { name, agreed, connection: Mutex::new(connection) })
    }

    /// The same export, with every write refused here.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.agreed.flags = self.agreed.flags.with(TransmissionFlags::READ_ONLY, true);
        self
    }

    /// The exports that the server at `transport` lists.
    ///
    /// # Errors
    /// What the system says; [`Denied`](block_types::ErrorKind::Denied) if the server does not list
    /// its exports.
    pub fn list(transport: &Transport) -> Result<Vec<ExportEntry>> {
        let name = Uri { transport: transport.clone(), export: String::new() }.to_string();
        let socket = open(transport, &name)?;
        let channel = Channel::until(socket.as_fd(), HANDSHAKE_TIMEOUT);
        Handshake::begin(channel, &name)?.list()
    }

    /// The dialect both sides agreed on.
    pub fn dialect(&self) -> Dialect {
        self.agreed.dialect
    }

    /// What the export can do.
    pub fn flags(&self) -> TransmissionFlags {
        self.agreed.flags
    }

    fn limits_of(agreed: &Agreed) -> Limits {
        Limits {
            minimum: ByteCount::new(agreed.minimum.into()),
            preferred: ByteCount::new(agreed.preferred.into()),
            read_only: agreed.flags.contains(TransmissionFlags::READ_ONLY),
            discards: agreed.flags.contains(TransmissionFlags::TRIM),
            zeroes_fast: agreed.flags.contains(TransmissionFlags::WRITE_ZEROES),
        }
    }
}

/// Connects a socket.
fn open(transport: &Transport, name: &str) -> Result<OwnedFd> {
    let failed = |error| Error::io(name, "cannot connect", error);
    match transport {
        Transport::Unix(path) => Ok(UnixStream::connect(path).map_err(failed)?.into()),
        Transport::Tcp { host, port } => {
            let stream = TcpStream::connect((host.as_str(), *port)).map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            Ok(stream.into())
        }
    }
}
