//! What NBD clients can ask for: every volume under its name, every snapshot as `NAME@SNAPSHOT`.
//!
//! A device is opened when a client asks for it and closed with its last client: nothing here keeps
//! it, so that whoever only looks (INFO, LIST) leaves no trace, and a volume without clients can be
//! deleted.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use block_types::{ByteCount, Error, ErrorKind, Result, format_size};
use nbd::{Export, ExportEntry, ExportSource};
use parking_lot::Mutex;
use volume::{NodeName, PoolDirectory, SnapshotName, VolumeInfo, VolumeName};

/// The export of the pool's metadata, as a commit left it when the client came. It is not listed,
/// and no volume can be called that.
pub(crate) const METADATA: &str = ".metadata";

/// The exports of a pool.
pub(crate) struct PoolExports {
    pool: Arc<PoolDirectory>,
    read_only: bool,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// Exports that clients hold.
    open: BTreeMap<NodeName, Weak<Export>>,
    /// What nobody gets any more.
    withdrawn: Vec<Scope>,
}

/// Some nodes of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// One node.
    Node(NodeName),
    /// A volume and all its snapshots.
    Tree(VolumeName),
}

/// Exports that nobody gets as long as this lives.
pub(crate) struct Withdrawal<'e> {
    exports: &'e PoolExports,
    scope: Scope,
}

impl Scope {
    /// Whether `node` is one of them.
    pub(crate) fn covers(&self, node: &NodeName) -> bool {
        match self {
            Self::Node(one) => one == node,
            Self::Tree(volume) => *volume == node.volume,
        }
    }
}

impl PoolExports {
    pub(crate) fn new(pool: Arc<PoolDirectory>, read_only: bool) -> Self {
        Self { pool, read_only, table: Mutex::default() }
    }

    /// All nodes that have a name, volumes before their snapshots.
    pub(crate) fn nodes(&self) -> Vec<(NodeName, ByteCount)> {
        self.pool.volumes().iter().flat_map(nodes_of).collect()
    }

    /// Whether clients are refused every write to `node`.
    pub(crate) fn is_read_only(&self, node: &NodeName) -> bool {
        // Asked anew for each client: a pool that is read-only may become writable.
        self.read_only || node.snapshot.is_some() || self.pool.status().mode == "ro"
    }

    /// Lets nobody have the exports in `scope` until the withdrawal is dropped.
    pub(crate) fn withdraw(&self, scope: Scope) -> Withdrawal<'_> {
        self.table.lock().withdrawn.push(scope.clone());
        Withdrawal { exports: self, scope }
    }

    /// Whether nobody holds an export in `scope` any more; waits for that at most `patience`.
    pub(crate) fn await_closed(&self, scope: &Scope, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        while self.is_held(scope) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    fn is_held(&self, scope: &Scope) -> bool {
        let table = self.table.lock();
        table.open.iter().any(|(node, export)| scope.covers(node) && export.strong_count() > 0)
    }

    /// The node that clients call `name`.
    fn node(&self, name: &str) -> Result<NodeName> {
        if name.is_empty() {
            return self.only_volume();
        }
        NodeName::parse(name).map_err(|error| unknown(name).because(error))
    }

    /// What clients get that name no export.
    fn only_volume(&self) -> Result<NodeName> {
        let volumes = self.nodes().into_iter().map(|(node, _)| node);
        let volumes: Vec<_> = volumes.filter(|node| node.snapshot.is_none()).collect();
        match <[NodeName; 1]>::try_from(volumes) {
            Ok([only]) => Ok(only),
            Err(volumes) if volumes.is_empty() => {
                Err(Error::new(ErrorKind::NotFound, "default export", "the pool has no volumes"))
            }
            Err(_) => Err(Error::new(
                ErrorKind::NotFound,
                "default export",
                "the pool has several volumes, none of which is the default",
            )
            .advise("name the volume in the address")),
        }
    }
}

impl Table {
    /// Gives `node` to one more client.
    fn lend(&mut self, node: NodeName, exports: &PoolExports) -> Result<Arc<Export>> {
        if self.withdrawn.iter().any(|scope| scope.covers(&node)) {
            return Err(unknown(&node.to_string()));
        }
        if let Some(export) = self.open.get(&node).and_then(Weak::upgrade) {
            return Ok(export);
        }
        let device = exports.pool.open_node(&node, exports.is_read_only(&node))?;
        let text = describe(&node, device.size());
        let export = Arc::new(Export::new(node.to_string(), device)?.described(text));
        self.open.retain(|_, export| export.strong_count() > 0);
        self.open.insert(node, Arc::downgrade(&export));
        Ok(export)
    }
}

impl ExportSource for PoolExports {
    fn find(&self, name: &str) -> Result<Arc<Export>> {
        if name == METADATA {
            let metadata = Arc::new(self.pool.hold_metadata()?);
            return Ok(Arc::new(Export::new(METADATA, metadata)?.one_connection()));
        }
        let node = self.node(name)?;
        // Not under the lock: the server of an external origin may take its time.
        let _stays_open = self.pool.open_origin(&node)?;
        // Under the lock, so that two clients who come at once get the same export.
        self.table.lock().lend(node, self)
    }

    fn list(&self) -> Vec<ExportEntry> {
        let entry = |(node, size): (NodeName, ByteCount)| ExportEntry {
            description: describe(&node, size),
            name: node.to_string(),
        };
        self.nodes().into_iter().map(entry).collect()
    }
}

impl Drop for Withdrawal<'_> {
    fn drop(&mut self) {
        let mut table = self.exports.table.lock();
        // Others may have withdrawn the same at the same time: one entry for each.
        if let Some(at) = table.withdrawn.iter().position(|scope| *scope == self.scope) {
            table.withdrawn.swap_remove(at);
        }
    }
}

/// A volume and its snapshots; nothing for a device that nobody has named.
fn nodes_of(info: &VolumeInfo) -> Vec<(NodeName, ByteCount)> {
    let Ok(volume) = VolumeName::parse(&info.name) else { return Vec::new() };
    let head = (NodeName { volume: volume.clone(), snapshot: None }, ByteCount::new(info.size));
    let snapshot = |info: &volume::SnapshotInfo| {
        let name = SnapshotName::parse(&info.name).ok()?;
        let node = NodeName { volume: volume.clone(), snapshot: Some(name) };
        Some((node, ByteCount::new(info.size)))
    };
    std::iter::once(head).chain(info.snapshots.iter().filter_map(snapshot)).collect()
}

/// Words for people who list exports.
fn describe(node: &NodeName, size: ByteCount) -> String {
    let size = format_size(size);
    match node.snapshot {
        None => format!("volume of {size}"),
        Some(_) => format!("snapshot of {}, {size}", node.volume),
    }
}

fn unknown(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("export '{name}'"), "does not exist")
}
