//! Serves block devices to NBD clients.
//!
//! ```text
//! listener -> connection: handshake (negotiate), then one session per client, on its own thread:
//!
//!   socket -> input -> vet -> execute -+-> page cache, at once      -+-> outbox -> socket
//!                                      +-> the session's own queue  -+
//!                                      +-> workers (blocking calls) -+
//! ```
//!
//! A client that sends nonsense, half a request or nothing, or does not read its replies, costs its
//! own connection and nothing else: its memory is bounded, and leases on the device are given back
//! as soon as the I/O is complete, whatever the socket does.

mod connection;
mod context;
mod execute;
mod export;
mod input;
mod listener;
mod negotiate;
mod outbox;
mod parking;
mod pool;
mod read;
mod registry;
mod session;
mod slots;
mod slow;
mod status;
mod vet;
mod workers;
mod write;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use block_io::{Event, QueueChoice};
use block_types::{Error, ErrorKind, Result};
use parking_lot::Mutex;

pub use context::MetaContext;
pub use export::{Export, ExportEntry, ExportSource, ExportTable};
pub use listener::{Listener, remove_stale};
pub use registry::ClientInfo;

use registry::Registry;
use workers::Workers;

/// How a server serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerOptions {
    /// The I/O queues of the connections.
    pub queue: QueueChoice,
    /// Most connections at once; more are closed as they come.
    pub max_connections: usize,
    /// Time for a handshake.
    pub handshake_timeout: Duration,
    /// Threads that do what may block, for all connections together.
    pub workers: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            queue: QueueChoice::Auto,
            max_connections: 256,
            handshake_timeout: connection::HANDSHAKE_TIMEOUT,
            workers: 8,
        }
    }
}

/// What all connections of a server use.
struct Shared {
    source: Arc<dyn ExportSource>,
    options: ServerOptions,
    registry: Arc<Registry>,
    workers: Workers,
}

/// A server that runs. Dropping it cuts its clients off; [`Server::shutdown`] lets them finish.
pub struct Server {
    shared: Arc<Shared>,
    stop: Arc<Event>,
    acceptors: Mutex<Vec<JoinHandle<()>>>,
}

impl Server {
    /// Starts to serve what `source` has, to whoever connects to `listeners`.
    ///
    /// # Errors
    /// If the system gives no more threads or descriptors.
    pub fn start(
        listeners: Vec<Listener>,
        source: Arc<dyn ExportSource>,
        options: ServerOptions,
    ) -> Result<Self> {
        let workers = Workers::start(options.workers)?;
        let shared = Arc::new(Shared { source, options, registry: Arc::default(), workers });
        let server =
            Self { shared, stop: Arc::new(Event::new()?), acceptors: Mutex::new(Vec::new()) };
        for listener in listeners {
            let (shared, stop) = (Arc::clone(&server.shared), Arc::clone(&server.stop));
            let thread = std::thread::Builder::new()
                .name("nbd-accept".to_owned())
                .spawn(move || accept_all(&shared, &listener, &stop))
                .map_err(no_thread)?;
            server.acceptors.lock().push(thread);
        }
        Ok(server)
    }

    /// Serves a client whose connection is there already: one end of a socket pair, say. `peer` is
    /// what to call it.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if there are too many connections or the server is shutting down.
    pub fn serve(&self, socket: OwnedFd, peer: impl Into<String>) -> Result<()> {
        serve(&self.shared, socket, peer.into())
    }

    /// The clients that are connected now.
    pub fn clients(&self) -> Vec<ClientInfo> {
        self.shared.registry.clients()
    }

    /// Ends the connections of all clients of the export called `name`, which its source must not
    /// find any more. Requests in flight are finished and answered; whether that took no longer
    /// than `patience`. Then the rest are cut off.
    pub fn disconnect_export(&self, name: &str, patience: Duration) -> bool {
        self.shared.registry.disconnect(name, patience)
    }

    /// Stops listening and ends all connections likewise.
    pub fn shutdown(&self, patience: Duration) -> bool {
        self.stop.notify();
        for thread in self.acceptors.lock().drain(..) {
            // A thread that panicked has said so, and listens no more.
            let _ = thread.join();
        }
        self.shared.registry.close(patience)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}

/// Takes in connections until `stop` is raised.
fn accept_all(shared: &Arc<Shared>, listener: &Listener, stop: &Event) {
    loop {
        match listener.accept(stop) {
            Ok(Some(accepted)) => {
                let peer = accepted.peer.clone();
                if let Err(error) = serve(shared, accepted.socket, accepted.peer) {
                    tracing::warn!(listener = listener.name(), peer, %error, "client refused");
                }
            }
            Ok(None) => return,
            Err(error) => {
                // Most likely out of descriptors: the connection is still there when some are free.
                tracing::warn!(listener = listener.name(), %error, "cannot accept");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Serves one client on a thread of its own.
fn serve(shared: &Arc<Shared>, socket: OwnedFd, peer: String) -> Result<()> {
    let socket = Arc::new(socket);
    let most = shared.options.max_connections;
    let registration = shared.registry.enter(&socket, peer.clone(), most).ok_or_else(|| {
        Error::new(ErrorKind::Busy, "NBD server", "has too many clients, or is shutting down")
    })?;
    let shared = Arc::clone(shared);
    let run = move || {
        let client = registration.id();
        tracing::debug!(client, peer, "connected");
        match connection::serve(&shared, &socket, &registration) {
            Ok(()) => tracing::debug!(client, peer, "disconnected"),
            Err(error) => tracing::info!(client, peer, %error, "disconnected"),
        }
        // The registration goes last, and the socket with it: who waits for it finds that closed.
        drop(socket);
        drop(registration);
    };
    let thread = std::thread::Builder::new().name("nbd-client".to_owned());
    thread.spawn(run).map_err(no_thread)?;
    Ok(())
}

fn no_thread(error: std::io::Error) -> Error {
    Error::io("NBD server", "cannot start a thread", error)
}
