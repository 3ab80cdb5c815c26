//! The daemon of a pool, from its first socket to its last.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_io::CacheMode;
use block_types::{Error, Result};
use jobs::Registry;
use nbd::{ExportSource, Listener, Server, ServerOptions, Transport, Uri};
use tokio::runtime::Runtime;
use volume::{OpenOptions, PoolDirectory};

use crate::api;
use crate::control::{self, Control};
use crate::exports::PoolExports;
use crate::keeper::Keeper;
use crate::notify::notify;
use crate::served::ServedPool;
use crate::socket::{self, PrivateSocket};

/// The NBD socket's name in a pool directory.
pub(crate) const NBD_SOCKET: &str = "nbd.sock";

/// How long requests in flight may take when the daemon stops.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// What to serve, and where.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The pool's directory.
    pub pool: PathBuf,
    /// Whether data goes through the page cache.
    pub cache: CacheMode,
    /// Refuse every write; others may read the pool at the same time.
    pub read_only: bool,
    /// The Unix socket for NBD, if not `nbd.sock` in the pool's directory.
    pub socket: Option<PathBuf>,
    /// A TCP address for NBD beside it; port 0 lets the system choose.
    pub tcp: Option<SocketAddr>,
    /// A shell command to run while serving, with `$uri`, `$unixsocket`, `$port`, `$exportname` and
    /// `$nbd` set as nbdkit sets them; its exit code becomes ours.
    pub run: Option<String>,
    /// Serve NBD at the sockets that the service manager hands over, if it does, instead of a Unix
    /// socket of our own (`LISTEN_FDS`).
    pub listen_fds: bool,
}

/// Where a daemon is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// NBD, without the name of an export.
    pub nbd_uri: String,
    /// NBD by TCP beside it, where that was asked for.
    pub nbd_tcp_uri: Option<String>,
    /// The control API.
    pub control_socket: PathBuf,
}

/// A pool that is being served by this process.
///
/// Dropping it cuts clients off; [`Daemon::stop`] lets them finish.
pub struct Daemon {
    pub(crate) served: Arc<ServedPool>,
    control: Control,
    keeper: Option<Keeper>,
    ready: Ready,
    /// Last, so that everything above can still use it.
    runtime: Runtime,
}

impl Daemon {
    /// Opens the pool and serves it; the sockets accept when this returns.
    ///
    /// # Errors
    /// As [`PoolDirectory::open`], or if one of the sockets is not to be had.
    pub fn start(options: &ServeOptions) -> Result<Self> {
        Self::start_on(control::runtime()?, options)
    }

    /// [`Daemon::start`], with the control API on `runtime`.
    pub(crate) fn start_on(runtime: Runtime, options: &ServeOptions) -> Result<Self> {
        let open = OpenOptions {
            read_only: options.read_only,
            cache: options.cache,
            holder: "firn serve".to_owned(),
        };
        let pool = PoolDirectory::open_for_others(&options.pool, &open)?;
        let path = absolute(&options.pool)?;
        // Under the pool's lock: what lies at these paths now belongs to nobody alive.
        let control_path = options.pool.join(control::SOCKET);
        let control_socket = PrivateSocket::listen(&control_path)?;
        let nbd_path = options.socket.clone().unwrap_or_else(|| options.pool.join(NBD_SOCKET));
        let (listeners, base, tcp) = listen(&nbd_path, options.tcp, options.listen_fds)?;
        let exports = Arc::new(PoolExports::new(Arc::clone(&pool), options.read_only));
        let keeper = if options.read_only { None } else { Some(Keeper::start(&pool)?) };
        let source = Arc::clone(&exports) as Arc<dyn ExportSource>;
        let server = Server::start(listeners, source, ServerOptions::default())?;
        let jobs = Arc::new(Registry::new());
        let served = Arc::new(ServedPool { pool, exports, server, jobs, base, path });
        let control = Control::start(&runtime, control_socket, api::router(Arc::clone(&served)))?;
        let ready = Ready {
            nbd_uri: served.base.to_string(),
            nbd_tcp_uri: tcp.map(|uri| uri.to_string()),
            control_socket: absolute(&control_path)?,
        };
        Ok(Self { served, control, keeper, ready, runtime })
    }

    /// Where it is reached.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// The export that a command is given, and the server that has it.
    pub(crate) fn first_export(&self) -> Uri {
        let transport = self.served.base.transport.clone();
        Uri { transport, export: self.served.first_export() }
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Stops serving: no more connections are taken, requests in flight are finished, for at most
    /// ten seconds; then the sockets are removed and the pool is closed.
    ///
    /// # Errors
    /// If the last commit fails.
    pub fn stop(self) -> Result<()> {
        notify("STOPPING=1");
        let Self { served, mut control, keeper, runtime, .. } = self;
        let deadline = Instant::now() + GRACE;
        control.refuse();
        // Whoever follows the events is answered, too.
        drop(keeper);
        served.pool.end_events();
        // Jobs end beside the clients' last requests; what they leave can be taken up again.
        let orderly = std::thread::scope(|scope| {
            let jobs = scope.spawn(|| served.jobs.shutdown(GRACE));
            let clients = served.server.shutdown(GRACE);
            clients && jobs.join().unwrap_or(false)
        });
        let rest = deadline.saturating_duration_since(Instant::now());
        // The sockets go before the lock does: the paths may be another daemon's right after that.
        if !control.finish(&runtime, rest) || !orderly {
            tracing::warn!("some requests took too long and were broken off");
        }
        let closed = served.pool.close();
        runtime.shutdown_timeout(Duration::ZERO);
        tracing::info!(pool = %served.path.display(), "stopped");
        closed
    }
}

/// The NBD listeners with the first one's address, and the TCP one's.
///
/// At the sockets that the service manager hands over, if `inherited` says so and it does; else at
/// a Unix socket at `path`.
pub(crate) fn listen(
    path: &Path,
    tcp: Option<SocketAddr>,
    inherited: bool,
) -> Result<(Vec<Listener>, Uri, Option<Uri>)> {
    let handed = if inherited { socket::inherited()? } else { None };
    let (mut listeners, transport) = match handed {
        Some(handed) => handed,
        None => (vec![Listener::unix(path)?], Transport::Unix(absolute(path)?)),
    };
    let uri = |transport| Uri { transport, export: String::new() };
    let mut tcp_uri = None;
    if let Some(address) = tcp {
        let listener = Listener::tcp(address)?;
        tcp_uri = listener.tcp_address().map(|address| {
            uri(Transport::Tcp { host: address.ip().to_string(), port: address.port() })
        });
        listeners.push(listener);
    }
    Ok((listeners, uri(transport), tcp_uri))
}

/// `path` as processes elsewhere have to name it.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|error| Error::io(path.display().to_string(), "has no absolute path", error))
}
