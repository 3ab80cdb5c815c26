//! `firn serve` of an origin, until a signal, or a command, ends it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use block_types::{Error, ErrorKind, Result};
use nbd::{ExportSource, Server, ServerOptions, Uri};
use tokio::runtime::Runtime;
use volume::{CowOptions, CowOrigin, NewSnapshot};

use super::api;
use super::exports::OriginExports;
use super::served::ServedOrigin;
use crate::control::{self, Control};
use crate::daemon::{GRACE, listen};
use crate::job::PATIENCE;
use crate::notify::notify;
use crate::serve::{Signals, await_end};
use crate::socket::PrivateSocket;

/// How to serve an origin.
#[derive(Clone, Debug)]
pub struct OriginServeOptions {
    /// Its path.
    pub origin: PathBuf,
    /// How it is opened; where it is reached is filled in.
    pub open: CowOptions,
    /// Snapshots to take or to go on with first.
    pub snapshots: Vec<NewSnapshot>,
    /// The store whose snapshot is to be merged, if one is.
    pub merge: Option<PathBuf>,
    /// The Unix socket for NBD.
    pub socket: PathBuf,
    /// The Unix socket for the control API.
    pub control: PathBuf,
    /// A TCP address for NBD beside it; port 0 lets the system choose.
    pub tcp: Option<SocketAddr>,
    /// A shell command to run while serving, as for a pool.
    pub run: Option<String>,
    /// Serve NBD at the sockets that the service manager hands over, if it does.
    pub listen_fds: bool,
}

/// Where an origin is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginReady {
    /// The origin's export.
    pub nbd_uri: String,
    /// The same by TCP, where that was asked for.
    pub nbd_tcp_uri: Option<String>,
    /// Its snapshots' exports.
    pub snapshots: Vec<String>,
    /// The control API.
    pub control_socket: PathBuf,
}

/// Serves an origin with all its snapshots until SIGTERM or SIGINT, or until the command of
/// [`OriginServeOptions::run`] has ended; then closes it. The exit code is 0, or that of the
/// command. `ready` is called as soon as the sockets accept.
///
/// # Errors
/// As [`CowOrigin::open`]; if a socket is not to be had, the command cannot be started, or the
/// origin cannot be closed.
pub fn serve_origin(options: &OriginServeOptions, ready: impl FnOnce(&OriginReady)) -> Result<i32> {
    let runtime = control::runtime()?;
    let signals = {
        let _entered = runtime.enter();
        Signals::take()?
    };
    let control_path = absolute(&options.control)?;
    let open = CowOptions { control: Some(control_path.clone()), ..options.open.clone() };
    let cow = CowOrigin::open(&options.origin, open)?;
    let outcome = serve_open(&cow, options, &runtime, signals, control_path, ready);
    // Whatever went wrong, stores and record are left as they should be.
    let closed = cow.close();
    runtime.shutdown_timeout(Duration::ZERO);
    // What the command had to say comes first.
    outcome.and_then(|code| closed.map(|()| code))
}

fn serve_open(
    cow: &Arc<CowOrigin>,
    options: &OriginServeOptions,
    runtime: &Runtime,
    signals: Signals,
    control_path: PathBuf,
    ready: impl FnOnce(&OriginReady),
) -> Result<i32> {
    prepare(cow, options)?;
    // Under the origin's lock: what lies at these paths now belongs to nobody alive.
    let socket = PrivateSocket::listen(&control_path)?;
    let name = options.origin.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let read_only = options.open.read_only;
    let exports = Arc::new(OriginExports::new(Arc::clone(cow), name, read_only));
    let (listeners, base, tcp) = listen(&options.socket, options.tcp, options.listen_fds)?;
    let source = Arc::clone(&exports) as Arc<dyn ExportSource>;
    let server = Server::start(listeners, source, ServerOptions::default())?;
    let served = Arc::new(ServedOrigin::new(Arc::clone(cow), exports, server, base));
    let wanted = options.merge.as_ref().and_then(|store| cow.snapshot_of(store));
    match wanted.filter(|_| cow.merging().is_none()) {
        Some(name) => drop(served.begin_merge(&name, true, false)?),
        None => served.resume_merge()?,
    }
    let mut control = Control::start(runtime, socket, api::router(Arc::clone(&served)))?;
    let uri = Uri { export: served.exports.name().to_owned(), ..served.base.clone() };
    let mut uris = served.list().into_iter().map(|export| export.uri);
    let name = cow.path().display();
    tracing::info!(origin = %name, %uri, "serving");
    notify("READY=1");
    ready(&OriginReady {
        nbd_uri: uris.next().unwrap_or_default(),
        nbd_tcp_uri: tcp.map(|tcp| Uri { export: uri.export.clone(), ..tcp }.to_string()),
        snapshots: uris.collect(),
        control_socket: control_path,
    });
    let outcome = await_end(runtime, options.run.as_deref(), &uri, signals);
    tracing::info!(origin = %name, "stopping");
    notify("STOPPING=1");
    control.refuse();
    let orderly = served.server.shutdown(GRACE);
    if !control.finish(runtime, GRACE) || !orderly {
        tracing::warn!("some requests took too long and were broken off");
    }
    // A merge that is cancelled here goes on with the next server.
    if !served.jobs.shutdown(PATIENCE) {
        tracing::warn!("a merge took too long to stop");
    }
    outcome
}

/// Takes up the snapshots that were named and are not known yet.
fn prepare(cow: &CowOrigin, options: &OriginServeOptions) -> Result<()> {
    if options.open.read_only
        && let Some(name) = cow.merging()
    {
        let problem =
            format!("has the snapshot {name} half merged, and reads whole through it only");
        return Err(Error::new(ErrorKind::Busy, cow.path().display().to_string(), problem)
            .advise("serve it without --read-only, or finish with 'firn cow merge'"));
    }
    for new in &options.snapshots {
        if cow.snapshot_of(&new.store).is_none() {
            cow.create(new)?;
        }
    }
    Ok(())
}

fn absolute(path: &std::path::Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|error| Error::io(path.display().to_string(), "has no absolute path", error))
}
