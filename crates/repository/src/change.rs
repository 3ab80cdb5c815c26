//! Changes of the tree: disks made, added, snapshotted, cloned, deleted.
//!
//! Every one of them has one instant at which it happens: the record in the log that gives or takes
//! names. What is made before that is named in the log as the repository's own, so that a crash
//! leaves nothing but files that the next scan removes; what is left to do after it, the next scan
//! does.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use disk_image::vhd::{self, Content, CreateOptions, DiskId, Timestamp};
use parking_lot::MutexGuard;
use uuid::Uuid;
use volume::{NodeName, SnapshotName};

use crate::NodeId;
use crate::disk::Retired;
use crate::layer::Layer;
use crate::point::Point;
use crate::record::Record;
use crate::repository::{Repository, now};
use crate::state::State;

impl Repository {
    /// Makes an empty disk.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`]; [`ErrorKind::Invalid`] for a size that no VHD has.
    pub fn create_disk(&self, name: &NodeName, size: ByteCount) -> Result<()> {
        let mut state = self.lock();
        state.check_free(name)?;
        let id = state.own_new_nodes(1)?.remove(0);
        self.probe.reach(Point::CreateOwned);
        state.make(&id, None, size, size)?;
        self.probe.reach(Point::CreateMade);
        state.record(&Record::default().naming(name, &id, now()))?;
        self.probe.reach(Point::CreateNamed);
        Ok(())
    }

    /// Copies the VHD at `path` into the repository. The parent of a differencing disk must be
    /// there already.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] for the name, or for a disk with the same UUID;
    /// [`ErrorKind::NotFound`] for a parent that is not there; [`ErrorKind::Unsupported`] for other
    /// formats; those of the files.
    pub fn add(&self, path: &Path, name: &NodeName) -> Result<()> {
        let file = block_io::HostFile::open(
            path,
            block_io::FileOptions { cache: block_io::CacheMode::Cached, read_only: true },
        )?;
        self.add_device(&file, name)
    }

    /// Copies the VHD that `file` holds into the repository, likewise.
    ///
    /// # Errors
    /// Likewise.
    pub fn add_device(&self, file: &dyn BlockDevice, name: &NodeName) -> Result<()> {
        let mut state = self.lock();
        state.check_free(name)?;
        if !vhd::probe(file)? {
            return Err(Error::new(ErrorKind::Unsupported, file.name(), "is no VHD")
                .advise("convert it with 'firn image convert -O vhd'"));
        }
        let head = vhd::probe_node(file)?;
        let parent = state.parent_of_added(file, &head)?;
        let id = NodeId::of(Uuid::from_bytes(head.id.bytes()));
        state.record(&Record { own: [id.clone()].into(), ..Record::default() })?;
        self.probe.reach(Point::AddOwned);
        let copy = state.folder.create(id.file())?;
        copy.resize(file.size())?;
        copy_data(file, &*copy, || self.probe.reach(Point::AddCopying))?;
        copy.flush()?;
        state.folder.sync()?;
        self.probe.reach(Point::AddCopied);
        state.reread(&id, parent.as_ref())?;
        if let Some(parent) = &parent {
            state.relink(&id, parent)?;
        }
        state.record(&Record::default().naming(name, &id, now()))?;
        self.probe.reach(Point::AddNamed);
        state.settle_flag(&id)
    }

    /// Takes a snapshot of a volume as it is now: the volume goes on as a new, empty child of what
    /// it was, and the snapshot is another. The parent of both is hidden. Of a volume that is in
    /// use, writes wait for one flush and one record.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Exists`]; [`ErrorKind::Invalid`] for a volume that has
    /// children; those of the files.
    pub fn snapshot(&self, name: &NodeName, snapshot: &SnapshotName) -> Result<NodeName> {
        let new = NodeName { volume: name.volume.clone(), snapshot: Some(snapshot.clone()) };
        let mut state = self.lock();
        state.check_free(&new)?;
        if name.snapshot.is_some() {
            let problem = "is a snapshot, and does not change: clone it instead";
            return Err(Error::new(ErrorKind::Invalid, name.to_string(), problem));
        }
        self.split(&mut state, name, &new)?;
        Ok(new)
    }

    /// Makes a new volume that begins as `source` is: a volume, a snapshot, or a base.
    ///
    /// # Errors
    /// As of [`snapshot`](Self::snapshot).
    pub fn clone_disk(&self, source: &NodeName, new: &NodeName) -> Result<()> {
        let mut state = self.lock();
        state.check_free(new)?;
        if new.snapshot.is_some() {
            let problem = "is the name of a snapshot, and a clone is a volume";
            return Err(Error::new(ErrorKind::Invalid, new.to_string(), problem));
        }
        let id = state.node_of(source)?;
        if state.tree.children(&id).is_empty() {
            return self.split(&mut state, source, new);
        }
        // It never changes as long as it has children: one more of them is all that it takes.
        state.check_whole(&id)?;
        self.add_child(&mut state, &id, new)
    }

    /// Makes two of the leaf `name`: itself, and `new`.
    fn split(
        &self,
        state: &mut MutexGuard<'_, State>,
        name: &NodeName,
        new: &NodeName,
    ) -> Result<()> {
        // The lock is given away meanwhile, and the name may be another node's afterwards.
        let node = state.node_of(name)?;
        self.end_merges(state, &node);
        let id = state.node_of(name)?;
        state.check_free(new)?;
        state.check_whole(&id)?;
        if !state.tree.children(&id).is_empty() {
            let problem = "has children, so it never changes, and needs no snapshot";
            return Err(Error::new(ErrorKind::Invalid, name.to_string(), problem)
                .advise("clone it with 'firn repo clone'"));
        }
        if let Some(parent) = self.parent_of_empty(state, &id)? {
            return self.add_child(state, &parent, new);
        }
        let children = state.own_new_nodes(2)?;
        self.probe.reach(Point::SnapshotOwned);
        let (size, largest) = state.sizes(&id)?;
        state.make(&children[0], Some(&id), size, largest)?;
        self.probe.reach(Point::SnapshotFirst);
        state.make(&children[1], Some(&id), size, largest)?;
        self.probe.reach(Point::SnapshotSecond);
        let created = state.catalogue.names[name].created.clone();
        let record =
            Record::default().naming(name, &children[0], created).naming(new, &children[1], now());
        let retired = self.switch_to(state, name, &children[0], &record)?;
        self.probe.reach(Point::SnapshotSwitched);
        state.settle_flag(&id)?;
        self.probe.reach(Point::SnapshotHidden);
        if let Some((retired, old)) = retired {
            retired.wait();
            old.image.close()?;
        }
        self.probe.reach(Point::SnapshotClosed);
        Ok(())
    }

    /// Has the disk `name` go on as `child`, and makes `record` true at that instant.
    fn switch_to(
        &self,
        state: &mut MutexGuard<'_, State>,
        name: &NodeName,
        child: &NodeId,
        record: &Record,
    ) -> Result<Option<(Retired, Arc<Layer>)>> {
        let disk = state.disks.get(name).cloned();
        let Some(disk) = disk.filter(|disk| !disk.is_read_only()) else {
            state.record(record)?;
            self.probe.reach(Point::SnapshotNamed);
            // A disk that is open for reading goes on with what it has.
            return Ok(None);
        };
        let old = Arc::clone(&disk.view().top);
        let chain = state.tree.chain(child);
        let top = state.writer(child)?;
        let below = state.chain(&chain[1..], top.size())?;
        let next = disk.prepare(top, below)?;
        // Most of what there is to flush, while nobody waits.
        old.image.flush()?;
        let retired = disk.switch(|_| {
            old.image.flush()?;
            self.probe.reach(Point::SnapshotPaused);
            state.record(record)?;
            self.probe.reach(Point::SnapshotNamed);
            Ok(next)
        })?;
        Ok(Some((retired, old)))
    }

    /// The parent of a node that holds nothing itself, and is as large: another child of that
    /// parent is the same.
    fn parent_of_empty(&self, state: &mut State, id: &NodeId) -> Result<Option<NodeId>> {
        let parent = state.tree.get(id).and_then(|node| node.parent.clone());
        let Some(parent) = parent.filter(|parent| state.tree.size(parent) == state.tree.size(id))
        else {
            return Ok(None);
        };
        let layer = state.layer(id)?;
        // Whoever writes to it may do so until the switch.
        let empty = layer.image.allocated().next().is_none();
        let live =
            state.disks.values().any(|disk| disk.view().top.id == *id && !disk.is_read_only());
        Ok((empty && !live).then_some(parent))
    }

    /// Makes a child of `parent` called `name`.
    fn add_child(
        &self,
        state: &mut MutexGuard<'_, State>,
        parent: &NodeId,
        name: &NodeName,
    ) -> Result<()> {
        let id = state.own_new_nodes(1)?.remove(0);
        self.probe.reach(Point::CloneOwned);
        let (size, largest) = state.sizes(parent)?;
        state.make(&id, Some(parent), size, largest)?;
        self.probe.reach(Point::CloneMade);
        state.record(&Record::default().naming(name, &id, now()))?;
        self.probe.reach(Point::CloneNamed);
        Ok(())
    }

    /// Deletes a disk: the file of a leaf goes, and with it whatever nobody needs any more; one
    /// that has children loses its name, and is hidden.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] for one that is in use; [`ErrorKind::NotFound`]; those of the files.
    pub fn delete(&self, name: &NodeName) -> Result<()> {
        let mut state = self.lock();
        let node = state.node_of(name).ok();
        if node.is_none() && !state.catalogue.names.contains_key(name) {
            return state.node_of(name).map(|_| ());
        }
        if let Some(node) = &node {
            self.end_merges(&mut state, node);
        }
        if Self::is_used(&state, name) {
            return Err(Error::new(ErrorKind::Busy, name.to_string(), "is in use")
                .advise("disconnect its clients first"));
        }
        if let Some(disk) = state.disks.remove(name) {
            let top = disk.view().top.id.clone();
            state.forget_layer(&top);
        }
        let node = state.node_of(name).ok();
        state.record(&Record::default().without(name))?;
        self.probe.reach(Point::DeleteUnnamed);
        if let Some(node) = node.filter(|node| !state.tree.children(node).is_empty()) {
            state.settle_flag(&node)?;
            self.probe.reach(Point::DeleteHidden);
        }
        state.remove_garbage(false)?;
        drop(state);
        self.kick();
        Ok(())
    }
}

impl State {
    /// Checks that nobody has `name`.
    fn check_free(&self, name: &NodeName) -> Result<()> {
        if !self.catalogue.names.contains_key(name) {
            return Ok(());
        }
        let problem = "exists in the repository already";
        Err(Error::new(ErrorKind::Exists, name.to_string(), problem).advise("choose another name"))
    }

    /// Enters `count` new nodes into the log as the repository's own.
    fn own_new_nodes(&mut self, count: usize) -> Result<Vec<NodeId>> {
        let ids: Vec<NodeId> = (0..count).map(|_| NodeId::of(Uuid::new_v4())).collect();
        self.record(&Record { own: ids.iter().cloned().collect(), ..Record::default() })?;
        Ok(ids)
    }

    /// The size of a node's disk, and the size to which it can grow.
    fn sizes(&mut self, id: &NodeId) -> Result<(ByteCount, ByteCount)> {
        let info = self.layer(id)?.image.info()?;
        let largest = info.sparse.map_or(info.size, |sparse| sparse.largest);
        Ok((info.size, largest.max(info.size)))
    }

    /// Makes the file of a node, empty over `parent`; durable, with its name in the directory.
    fn make(
        &mut self,
        id: &NodeId,
        parent: Option<&NodeId>,
        size: ByteCount,
        largest: ByteCount,
    ) -> Result<()> {
        let uuid = Uuid::parse_str(id.stem()).map_err(|error| {
            Error::new(ErrorKind::Invalid, id.to_string(), "has no UUID for a name").because(error)
        })?;
        let now = Timestamp::of(SystemTime::now());
        let mut options = CreateOptions::new(size, DiskId::new(uuid.into_bytes()), now);
        options.largest = largest;
        if let Some(parent) = parent {
            options.content = Content::Differencing(self.link_to(parent)?);
            // As the parent's, so that a merge moves whole blocks.
            options.block_size =
                self.layer(parent)?.image.block_size().unwrap_or(options.block_size);
        } else if let Some(block_size) = self.block_size {
            options.block_size = block_size;
        }
        let file = self.folder.create(id.file())?;
        vhd::create(&*file, &options)?;
        self.folder.sync()?;
        self.reread(id, parent)
    }

    /// The node that is to be the parent of an added disk.
    fn parent_of_added(
        &self,
        file: &dyn BlockDevice,
        head: &vhd::NodeInfo,
    ) -> Result<Option<NodeId>> {
        let same = self
            .tree
            .iter()
            .find(|(_, node)| node.head.as_ref().is_some_and(|known| known.id == head.id));
        if let Some((known, _)) = same {
            let problem = format!("has the UUID {} of {known}, which is there already", head.id);
            return Err(Error::new(ErrorKind::Exists, file.name(), problem));
        }
        let Some(info) = &head.parent else { return Ok(None) };
        let parent = info.id.and_then(|wanted| {
            let mut nodes = self.tree.iter();
            nodes.find(|(_, node)| node.head.as_ref().is_some_and(|head| head.id == wanted))
        });
        let Some((parent, _)) = parent else {
            let wanted = info.id.map_or("a raw disk".to_owned(), |id| id.to_string());
            let problem = format!("stands on {wanted} ('{}'), which is not here", info.name);
            return Err(Error::new(ErrorKind::NotFound, file.name(), problem)
                .advise("add its parent first"));
        };
        let writable = self.disks.values().any(|disk| {
            let view = disk.view();
            !disk.is_read_only() && view.top.id == *parent
        });
        if writable {
            let problem = format!("stands on {parent}, which is being written");
            return Err(Error::new(ErrorKind::Busy, file.name(), problem));
        }
        Ok(Some(parent.clone()))
    }
}

/// A file is copied in pieces of this size.
const PIECE: u64 = 1 << 20;

/// Copies what `from` holds, without its holes; says so after every piece.
fn copy_data(from: &dyn BlockDevice, to: &dyn BlockDevice, mut copied: impl FnMut()) -> Result<()> {
    let whole = ByteRange::new(ByteOffset::ZERO, from.size());
    let mut data = Vec::new();
    from.extents(whole, &mut |extent| {
        data.extend((!extent.state.reads_zero()).then_some(extent.range));
        ControlFlow::Continue(())
    })?;
    let mut buffer = vec![0; PIECE as usize];
    for piece in data.into_iter().flat_map(|range| range.pieces(ByteCount::new(PIECE))) {
        let part = &mut buffer[..piece.len.as_usize()];
        from.read_at(part, piece.start)?;
        to.write_at(part, piece.start)?;
        copied();
    }
    Ok(())
}
