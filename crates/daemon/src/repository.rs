//! The daemon of a repository: every disk an export, the collector in the background.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use block_io::BlockDevice;
use block_types::{ByteCount, Error, ErrorKind, Result, format_size};
use jobs::Registry;
use nbd::{Export, ExportEntry, ExportSource, Server, ServerOptions, Uri};
use repository::{CollectOptions, OpenOptions, Repository, Role};
use tokio::runtime::Runtime;
use volume::NodeName;

use crate::api;
use crate::control::{self, Control};
use crate::daemon::{GRACE, NBD_SOCKET, Ready, ServeOptions, absolute, listen};
use crate::job::{JobAccess, JobInfo};
use crate::notify::notify;
use crate::report::{ClientInfo, DaemonInfo, ExportInfo};
use crate::serve::{Signals, await_end};
use crate::socket::PrivateSocket;

/// A repository together with those who use it: what the control API acts on.
pub(crate) struct ServedRepository {
    pub(crate) repository: Arc<Repository>,
    pub(crate) jobs: Arc<Registry>,
    server: Server,
    read_only: bool,
    base: Uri,
    path: PathBuf,
}

/// The disks of a repository by their names. A disk stays open as long as a client has it.
struct Disks {
    repository: Arc<Repository>,
    read_only: bool,
}

impl Disks {
    /// The disk that clients call `name`; without a name the only volume.
    fn name(&self, name: &str) -> Result<NodeName> {
        if !name.is_empty() {
            return NodeName::parse(name).map_err(|error| unknown(name).because(error));
        }
        let volumes = self.repository.names().into_iter().filter(|name| name.snapshot.is_none());
        match <[NodeName; 1]>::try_from(volumes.collect::<Vec<_>>()) {
            Ok([only]) => Ok(only),
            Err(_) => Err(unknown(name).advise("name the disk in the address")),
        }
    }
}

impl ExportSource for Disks {
    fn find(&self, name: &str) -> Result<Arc<Export>> {
        let name = self.name(name)?;
        let disk = self.repository.open_disk(&name, self.read_only).map_err(|error| {
            if error.kind() == ErrorKind::NotFound { unknown(&name.to_string()) } else { error }
        })?;
        let text = format!("disk of {}", format_size(disk.size()));
        Ok(Arc::new(Export::new(name.to_string(), disk)?.described(text)))
    }

    fn list(&self) -> Vec<ExportEntry> {
        let entry = |name: NodeName| ExportEntry {
            description: match name.snapshot {
                None => "volume".to_owned(),
                Some(_) => format!("snapshot of {}", name.volume),
            },
            name: name.to_string(),
        };
        self.repository.names().into_iter().map(entry).collect()
    }
}

impl ServedRepository {
    /// What is served, to whom.
    pub(crate) fn exports(&self) -> Vec<ExportInfo> {
        let clients = self.server.clients();
        let nodes = self.repository.report();
        let export = |name: NodeName| {
            let text = name.to_string();
            let mine = clients.iter().filter(|client| client.export.as_ref() == Some(&text));
            let role = nodes.iter().find(|node| node.name.as_ref() == Some(&text));
            ExportInfo {
                uri: Uri { transport: self.base.transport.clone(), export: text.clone() }
                    .to_string(),
                read_only: self.read_only || role.is_none_or(|node| node.role != Role::Volume),
                clients: mine.map(|client| ClientInfo { peer: client.peer.clone() }).collect(),
                name: text,
            }
        };
        self.repository.names().into_iter().map(export).collect()
    }

    /// Who serves.
    pub(crate) fn info(&self) -> DaemonInfo {
        DaemonInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            pool: self.path.display().to_string(),
            uri: self.base.to_string(),
        }
    }

    /// Deletes a disk; one that has clients is busy, and they are named.
    pub(crate) fn delete(&self, name: &NodeName) -> Result<()> {
        let text = name.to_string();
        let clients = self.server.clients();
        let used: Vec<_> = clients
            .iter()
            .filter(|client| client.export.as_ref() == Some(&text))
            .map(|client| client.peer.clone())
            .collect();
        if used.is_empty() {
            return self.repository.delete(name);
        }
        let problem = format!("is in use by {}", used.join(", "));
        Err(Error::new(ErrorKind::Busy, text, problem).advise("disconnect its clients first"))
    }

    /// Begins the job that collects.
    pub(crate) fn collect(&self) -> Result<JobInfo> {
        let repository = Arc::clone(&self.repository);
        let object = self.path.display().to_string();
        let id = self.jobs.start("collect", &object, ByteCount::ZERO, move |monitor| {
            repository.collect(&CollectOptions::default(), monitor)
        })?;
        JobAccess::show(&*self.jobs, id.get())
    }
}

fn unknown(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("export '{name}'"), "does not exist")
}

/// A repository that is being served by this process.
pub struct RepositoryDaemon {
    served: Arc<ServedRepository>,
    control: Control,
    collector: Option<JoinHandle<()>>,
    ready: Ready,
    /// Last, so that everything above can still use it.
    runtime: Runtime,
}

impl RepositoryDaemon {
    /// Opens the repository and serves it; the sockets accept when this returns.
    ///
    /// # Errors
    /// As [`Repository::open`], or if one of the sockets is not to be had.
    pub fn start(options: &ServeOptions) -> Result<Self> {
        Self::start_on(control::runtime()?, options)
    }

    fn start_on(runtime: Runtime, options: &ServeOptions) -> Result<Self> {
        let open = OpenOptions { read_only: options.read_only, ..OpenOptions::new("firn serve") };
        let repository = Repository::open(&options.pool, &open)?;
        let path = absolute(&options.pool)?;
        // Under the repository's lock: what lies at these paths now belongs to nobody alive.
        let control_path = options.pool.join(control::SOCKET);
        let control_socket = PrivateSocket::listen(&control_path)?;
        let nbd_path = options.socket.clone().unwrap_or_else(|| options.pool.join(NBD_SOCKET));
        let (listeners, base, tcp) = listen(&nbd_path, options.tcp, options.listen_fds)?;
        let source = Disks { repository: Arc::clone(&repository), read_only: options.read_only };
        let server = Server::start(listeners, Arc::new(source), ServerOptions::default())?;
        let jobs = Arc::new(Registry::new());
        let read_only = options.read_only;
        let served = ServedRepository { repository, jobs, server, read_only, base, path };
        let served = Arc::new(served);
        let api = api::repository_router(Arc::clone(&served));
        let control = Control::start(&runtime, control_socket, api)?;
        let collector = (!read_only).then(|| Self::collector(&served)).transpose()?;
        let ready = Ready {
            nbd_uri: served.base.to_string(),
            nbd_tcp_uri: tcp.map(|uri| uri.to_string()),
            control_socket: absolute(&control_path)?,
        };
        Ok(Self { served, control, collector, ready, runtime })
    }

    fn collector(served: &Arc<ServedRepository>) -> Result<JoinHandle<()>> {
        let (repository, jobs) = (Arc::clone(&served.repository), Arc::clone(&served.jobs));
        let work = move || repository.keep_collected(CollectOptions::default(), &jobs);
        let thread = std::thread::Builder::new().name("collector".to_owned()).spawn(work);
        thread.map_err(|error| Error::io("collector", "no thread can be had for it", error))
    }

    /// Where it is reached.
    pub fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Stops serving: no more connections are taken, requests in flight are finished, merges are
    /// ended where they are; then the sockets are removed and the repository is closed.
    ///
    /// # Errors
    /// If a disk cannot be closed in order.
    pub fn stop(self) -> Result<()> {
        notify("STOPPING=1");
        let Self { served, mut control, collector, runtime, .. } = self;
        control.refuse();
        let orderly = served.server.shutdown(GRACE);
        let closed = served.repository.close();
        let ended = served.jobs.shutdown(GRACE);
        if let Some(collector) = collector {
            // It has ended by the repository's closing; how makes no difference any more.
            let _ = collector.join();
        }
        if !control.finish(&runtime, GRACE) || !orderly || !ended {
            tracing::warn!("some requests took too long and were broken off");
        }
        runtime.shutdown_timeout(Duration::ZERO);
        closed
    }
}

/// Serves a repository until SIGTERM or SIGINT, or until the command of [`ServeOptions::run`] has
/// ended, as [`serve`](crate::serve()) does a pool.
///
/// # Errors
/// As [`RepositoryDaemon::start`] and [`RepositoryDaemon::stop`].
pub fn serve_repository(options: &ServeOptions, ready: impl FnOnce(&Ready)) -> Result<i32> {
    let runtime = control::runtime()?;
    let signals = {
        let _entered = runtime.enter();
        Signals::take()?
    };
    let daemon = RepositoryDaemon::start_on(runtime, options)?;
    notify("READY=1");
    ready(daemon.ready());
    let first = daemon.served.repository.names().into_iter().next();
    let transport = daemon.served.base.transport.clone();
    let uri = Uri { transport, export: first.map(|name| name.to_string()).unwrap_or_default() };
    let outcome = await_end(&daemon.runtime, options.run.as_deref(), &uri, signals);
    let stopped = daemon.stop();
    // What the command had to say comes first.
    outcome.and_then(|code| stopped.map(|()| code))
}
