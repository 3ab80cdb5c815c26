//! A pool together with those who use it: what the control API acts on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use block_types::{Error, ErrorKind, Result};
use jobs::Registry;
use nbd::{Server, Transport, Uri};
use volume::{Message, NodeName, PoolDirectory, SnapshotName, VolumeInfo, VolumeName};

use crate::exports::{PoolExports, Scope};
use crate::report::{ClientInfo, DaemonInfo, ExportInfo};

/// How long a client that is disconnected may take to finish what it asked for.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a client that only looks at an export may hold up its deletion.
const GLANCE: Duration = Duration::from_secs(2);

/// A pool, its exports and the NBD server.
pub(crate) struct ServedPool {
    pub(crate) pool: Arc<PoolDirectory>,
    pub(crate) exports: Arc<PoolExports>,
    pub(crate) server: Server,
    /// What works on the pool for long.
    pub(crate) jobs: Arc<Registry>,
    /// The NBD server as clients reach it.
    pub(crate) base: Uri,
    /// The pool's directory, absolute.
    pub(crate) path: PathBuf,
}

/// What becomes of the clients of an export that is to go.
#[derive(Clone, Copy)]
enum Clients {
    /// They are disconnected.
    Leave,
    /// They stay, and whoever wants the export gone is given this advice.
    Stay(&'static str),
}

/// Clients stay where nobody can say otherwise.
const UNDISTURBED: Clients = Clients::Stay("disconnect them first");

impl Clients {
    fn of_deleted(force: bool) -> Self {
        match force {
            true => Self::Leave,
            false => Self::Stay("disconnect them, or say --force, which does that first"),
        }
    }
}

impl ServedPool {
    /// What is served, to whom.
    pub(crate) fn exports(&self) -> Vec<ExportInfo> {
        let clients = self.server.clients();
        let export = |(node, _): (NodeName, _)| {
            let name = node.to_string();
            let mine = clients.iter().filter(|client| client.export.as_ref() == Some(&name));
            ExportInfo {
                uri: self.uri(&name),
                read_only: self.exports.is_read_only(&node),
                clients: mine.map(|client| ClientInfo { peer: client.peer.clone() }).collect(),
                name,
            }
        };
        self.exports.nodes().into_iter().map(export).collect()
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

    /// Where clients reach the export called `name`.
    pub(crate) fn uri(&self, name: &str) -> String {
        let transport: Transport = self.base.transport.clone();
        Uri { transport, export: name.to_owned() }.to_string()
    }

    /// The export that a command with `$uri` is given: the first volume, if there is one.
    pub(crate) fn first_export(&self) -> String {
        let first = self.exports.nodes().into_iter().next();
        first.map(|(node, _)| node.to_string()).unwrap_or_default()
    }

    /// Deletes a volume that has no clients, or whose clients may be disconnected.
    pub(crate) fn delete_volume(
        &self,
        name: &VolumeName,
        with_snapshots: bool,
        force: bool,
    ) -> Result<()> {
        let info = self.pool.volume(name)?;
        let scope = if with_snapshots {
            Scope::Tree(name.clone())
        } else {
            Scope::Node(NodeName { volume: name.clone(), snapshot: None })
        };
        // A deletion that is refused anyway costs nobody a connection.
        if with_snapshots || info.snapshots.is_empty() {
            let _withdrawn = self.exports.withdraw(scope.clone());
            self.release(&format!("volume {name}"), &scope, Clients::of_deleted(force))?;
            return self.pool.delete_volume(name, with_snapshots);
        }
        self.pool.delete_volume(name, with_snapshots)
    }

    /// Deletes a snapshot likewise.
    pub(crate) fn delete_snapshot(
        &self,
        volume: &VolumeName,
        snapshot: &SnapshotName,
        force: bool,
    ) -> Result<()> {
        let node = NodeName { volume: volume.clone(), snapshot: Some(snapshot.clone()) };
        let object = format!("snapshot {node}");
        let scope = Scope::Node(node);
        let _withdrawn = self.exports.withdraw(scope.clone());
        self.release(&object, &scope, Clients::of_deleted(force))?;
        self.pool.delete_snapshot(volume, snapshot)
    }

    /// Does what a message says; deletes no device that has clients.
    pub(crate) fn message(&self, message: Message) -> Result<()> {
        let node = match message {
            Message::Delete(id) => self.pool.name_of(id),
            _ => None,
        };
        let Some(node) = node else { return self.pool.message(message) };
        let object = node.to_string();
        let scope = Scope::Node(node);
        // Nobody connects from here on; the pool finds the device by its number, whatever its name
        // is by then, and refuses if somebody has it open.
        let _withdrawn = self.exports.withdraw(scope.clone());
        self.release(&object, &scope, UNDISTURBED).map_err(|error| message.refused(error))?;
        self.pool.message(message)
    }

    /// Gives another name to a volume that has no clients, nor have its snapshots: exports go by
    /// their names.
    pub(crate) fn rename_volume(&self, name: &VolumeName, new: &VolumeName) -> Result<VolumeInfo> {
        self.pool.volume(name)?;
        let scope = Scope::Tree(name.clone());
        let _withdrawn = self.exports.withdraw(scope.clone());
        self.release(&format!("volume {name}"), &scope, UNDISTURBED)?;
        self.pool.rename_volume(name, new)
    }

    /// Sees to it that nobody uses the withdrawn exports in `scope`.
    fn release(&self, object: &str, scope: &Scope, clients: Clients) -> Result<()> {
        let used: Vec<_> =
            self.exports().into_iter().filter(|export| uses(scope, export)).collect();
        if let (false, Clients::Stay(advice)) = (used.is_empty(), clients) {
            return Err(in_use(object, &used, advice));
        }
        for export in &used {
            let orderly = self.server.disconnect_export(&export.name, PATIENCE);
            let clients = export.clients.len();
            tracing::info!(export = export.name, clients, orderly, "clients disconnected by force");
        }
        if self.exports.await_closed(scope, GLANCE) {
            return Ok(());
        }
        let problem = "is still in use: a client has not finished its requests";
        Err(Error::new(ErrorKind::Busy, object, problem).advise("try again in a moment"))
    }
}

/// Whether `export` is one of `scope` and has clients.
fn uses(scope: &Scope, export: &ExportInfo) -> bool {
    !export.clients.is_empty()
        && NodeName::parse(&export.name).is_ok_and(|node| scope.covers(&node))
}

/// Names those who use what was to be deleted.
fn in_use(object: &str, used: &[ExportInfo], advice: &str) -> Error {
    let clients: Vec<_> = used
        .iter()
        .flat_map(|export| {
            export.clients.iter().map(|client| format!("{} ({})", client.peer, export.name))
        })
        .collect();
    let number = match clients.len() {
        1 => "1 NBD client is".to_owned(),
        number => format!("{number} NBD clients are"),
    };
    let problem = format!("{number} connected: {}", clients.join(", "));
    Error::new(ErrorKind::Busy, object, problem).advise(advice)
}
