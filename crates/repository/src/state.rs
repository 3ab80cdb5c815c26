//! What a repository knows while it is open, under one lock.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use block_types::{ByteCount, Error, ErrorKind, Result};
use disk_image::vhd::{BlockSize, ParentLink, Timestamp, VhdImage, probe_node};
use volume::NodeName;

use crate::NodeId;
use crate::chain::Chain;
use crate::disk::{Disk, Retired};
use crate::folder::Folder;
use crate::layer::Layer;
use crate::log::Log;
use crate::point::{Point, Probe};
use crate::progress::Progress;
use crate::record::{Catalogue, Record};
use crate::tree::Tree;

/// The nodes, their names, and who uses them.
pub(crate) struct State {
    pub(crate) folder: Arc<dyn Folder>,
    pub(crate) probe: Probe,
    pub(crate) tree: Tree,
    pub(crate) catalogue: Catalogue,
    /// `None` if the repository is open for reading only.
    pub(crate) log: Option<Log>,
    /// Disks that are in use, or were until just now.
    pub(crate) disks: BTreeMap<NodeName, Arc<Disk>>,
    /// Nodes that are open.
    layers: BTreeMap<NodeId, Weak<Layer>>,
    /// Merges on their way.
    pub(crate) merges: Vec<Running>,
    /// The topmost nodes of runs that somebody is about to merge.
    pub(crate) claimed: Vec<NodeId>,
    /// Why merges were put off, by the topmost of their nodes.
    pub(crate) put_off: BTreeMap<NodeId, PutOff>,
    /// The block size of new disks, if it is not the usual one.
    pub(crate) block_size: Option<BlockSize>,
}

/// A merge that is on its way.
#[derive(Clone)]
pub(crate) struct Running {
    /// Its nodes, the lowest first.
    pub(crate) nodes: Vec<NodeId>,
    /// The one that will hold all.
    pub(crate) target: NodeId,
    pub(crate) progress: Arc<Progress>,
}

/// A merge that could not be done.
#[derive(Clone, Debug)]
pub(crate) struct PutOff {
    pub(crate) why: String,
    /// Not before this is it tried again.
    pub(crate) until: Instant,
}

/// How long a merge that failed is left alone.
const PATIENCE: Duration = Duration::from_secs(60);

impl State {
    pub(crate) fn new(
        folder: Arc<dyn Folder>,
        probe: Probe,
        log: Option<Log>,
        catalogue: Catalogue,
        tree: Tree,
    ) -> Self {
        Self {
            folder,
            probe,
            tree,
            catalogue,
            log,
            disks: BTreeMap::new(),
            layers: BTreeMap::new(),
            merges: Vec::new(),
            claimed: Vec::new(),
            put_off: BTreeMap::new(),
            block_size: None,
        }
    }

    /// Makes a record durable, and then true.
    pub(crate) fn record(&mut self, record: &Record) -> Result<()> {
        let Some(log) = &mut self.log else {
            let problem = "is open for reading only";
            return Err(Error::new(ErrorKind::ReadOnly, self.folder.name(), problem));
        };
        log.append(record)?;
        self.catalogue.apply(record);
        Ok(())
    }

    /// The node that has `name`.
    pub(crate) fn node_of(&self, name: &NodeName) -> Result<NodeId> {
        let binding = self.catalogue.names.get(name).ok_or_else(|| {
            let problem = "does not exist in the repository";
            Error::new(ErrorKind::NotFound, name.to_string(), problem)
                .advise("'firn repo tree' shows what there is")
        })?;
        if !self.tree.contains(&binding.node) {
            let problem = format!("has lost its file {}", binding.node);
            return Err(Error::new(ErrorKind::Corrupt, name.to_string(), problem)
                .advise("restore the file from a copy, or delete the name"));
        }
        Ok(binding.node.clone())
    }

    /// Checks that a node can be read whole.
    pub(crate) fn check_whole(&self, id: &NodeId) -> Result<()> {
        match self.tree.fault(id) {
            None => Ok(()),
            Some((at, fault)) => {
                let object =
                    if at == *id { id.to_string() } else { format!("{id}, by way of {at}") };
                Err(Error::new(ErrorKind::Corrupt, object, fault)
                    .advise("'firn repo tree' shows what is still readable"))
            }
        }
    }

    /// The node, open: as it is, or anew. One that is open for writing is for reading as well.
    pub(crate) fn layer(&mut self, id: &NodeId) -> Result<Arc<Layer>> {
        if let Some(layer) = self.layers.get(id).and_then(Weak::upgrade) {
            return Ok(layer);
        }
        self.enter(Layer::open(&*self.folder, id, true)?)
    }

    /// The node, open for writing. Whoever reads it by what was opened before goes on doing so.
    pub(crate) fn writer(&mut self, id: &NodeId) -> Result<Arc<Layer>> {
        if let Some(layer) = self.open_writer(id) {
            return Ok(layer);
        }
        self.enter(Layer::open(&*self.folder, id, false)?)
    }

    /// The node, if it is open for writing, and not closed.
    fn open_writer(&self, id: &NodeId) -> Option<Arc<Layer>> {
        use block_io::BlockDevice;
        let layer = self.layers.get(id).and_then(Weak::upgrade)?;
        (layer.writable && !layer.image.limits().read_only).then_some(layer)
    }

    fn enter(&mut self, layer: Layer) -> Result<Arc<Layer>> {
        self.layers.retain(|_, layer| layer.strong_count() > 0);
        let layer = Arc::new(layer);
        self.layers.insert(layer.id.clone(), Arc::downgrade(&layer));
        Ok(layer)
    }

    /// Forgets what is open of a node, so that it is opened anew; old readers keep what they have.
    pub(crate) fn forget_layer(&mut self, id: &NodeId) {
        self.layers.remove(id);
    }

    /// Has `work` change a node, which is opened for that, and closed, if nobody has it open.
    pub(crate) fn with_writer(
        &mut self,
        id: &NodeId,
        work: impl FnOnce(&VhdImage) -> Result<()>,
    ) -> Result<()> {
        if let Some(layer) = self.open_writer(id) {
            return work(&layer.image);
        }
        let layer = Layer::open(&*self.folder, id, false)?;
        work(&layer.image)?;
        layer.image.close()
    }

    /// The chain of `ids`, the topmost first, for a disk of `size`.
    pub(crate) fn chain(&mut self, ids: &[NodeId], size: ByteCount) -> Result<Arc<Chain>> {
        let layers = ids.iter().map(|id| self.layer(id)).collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(Chain::new(layers, size)))
    }

    /// How a child names `parent`.
    pub(crate) fn link_to(&self, parent: &NodeId) -> Result<ParentLink> {
        let head = self.tree.get(parent).and_then(|node| node.head.as_ref()).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, parent.to_string(), "cannot be anybody's parent")
        })?;
        let modified = self.folder.modified(parent.file())?;
        Ok(ParentLink {
            id: Some(head.id),
            modified: Timestamp::of(modified),
            path: parent.file().to_owned(),
        })
    }

    /// Makes `parent` the parent that `child` names.
    pub(crate) fn relink(&mut self, child: &NodeId, parent: &NodeId) -> Result<()> {
        let link = self.link_to(parent)?;
        self.with_writer(child, |image| image.relink(&link))?;
        self.reread(child, Some(parent))
    }

    /// Takes the parent away from a node that needs none.
    pub(crate) fn detach(&mut self, id: &NodeId) -> Result<()> {
        self.with_writer(id, VhdImage::detach)?;
        self.reread(id, None)
    }

    /// Enters what the file of a node says now.
    pub(crate) fn reread(&mut self, id: &NodeId, parent: Option<&NodeId>) -> Result<()> {
        let head = probe_node(&*self.folder.open(id.file(), true)?)?;
        self.tree.insert(id, head, parent.cloned());
        Ok(())
    }

    /// Sets the hidden flag of a node to what its name, or the lack of one, says.
    pub(crate) fn settle_flag(&mut self, id: &NodeId) -> Result<()> {
        let hidden = self.catalogue.name_of(id).is_none();
        let Some(node) = self.tree.get(id) else { return Ok(()) };
        let parent = node.parent.clone();
        if node.head.as_ref().is_none_or(|head| head.hidden == hidden) {
            return Ok(());
        }
        self.with_writer(id, |image| image.set_hidden(hidden))?;
        self.reread(id, parent.as_ref())
    }

    /// A file that nobody needs: without a name and without children, the repository's own or, of
    /// `all`, marked as hidden, and in no merge.
    fn garbage(&self, all: bool) -> Option<NodeId> {
        let merging = |id: &NodeId| self.merges.iter().any(|merge| merge.nodes.contains(id));
        let found = self.tree.iter().find(|(id, node)| {
            let hidden = all && node.head.as_ref().is_some_and(|head| head.hidden);
            // One that cannot be read may have children that cannot find it.
            let needed = node.head.is_none() && self.tree.is_mentioned(id);
            !needed
                && node.children.is_empty()
                && (self.catalogue.own.contains(*id) || hidden)
                && self.catalogue.name_of(id).is_none()
                && !merging(id)
        });
        found.map(|(id, _)| id.clone())
    }

    /// Whether there is any.
    pub(crate) fn has_garbage(&self) -> bool {
        self.garbage(true).is_some()
    }

    /// Removes the files that nobody needs: those that the repository made, or `all`, with those
    /// that others have marked as hidden. How many there were.
    pub(crate) fn remove_garbage(&mut self, all: bool) -> Result<u64> {
        let mut removed = 0;
        while let Some(id) = self.garbage(all) {
            if !self.catalogue.own.contains(&id) {
                // Once it is emptied, its own flag does not say any more that nobody needs it.
                self.record(&Record { own: [id.clone()].into(), ..Record::default() })?;
            }
            self.probe.reach(Point::GarbageBefore);
            self.empty(&id);
            self.probe.reach(Point::GarbageEmptied);
            self.folder.remove(id.file())?;
            self.folder.sync()?;
            self.probe.reach(Point::GarbageRemoved);
            self.tree.remove(&id);
            self.layers.remove(&id);
            removed += 1;
        }
        let tree = &self.tree;
        self.catalogue.forget(|id| tree.contains(id));
        Ok(removed)
    }

    /// Gives back the space of a file that is about to go: somebody may have it open yet.
    fn empty(&self, id: &NodeId) {
        let emptied =
            self.folder.open(id.file(), false).and_then(|file| file.resize(ByteCount::ZERO));
        if let Err(error) = emptied {
            tracing::debug!(%error, node = %id, "not emptied before it is removed");
        }
    }

    /// Gives every disk in use the nodes that it has by now. The views that were replaced.
    pub(crate) fn refresh_disks(&mut self) -> Result<Vec<Retired>> {
        let disks: Vec<_> = self.disks.iter().map(|(n, d)| (n.clone(), Arc::clone(d))).collect();
        let mut retired = Vec::new();
        for (name, disk) in disks {
            let view = disk.view();
            let chain = self.tree.chain(&self.node_of(&name)?);
            if view.mirror.is_some() || view.nodes().eq(&chain) {
                continue;
            }
            // The top anew, too: of one that is read only, a merge may have filled the file.
            let top = self.layer(&chain[0])?;
            let below = self.chain(&chain[1..], top.size())?;
            retired.push(disk.exchange(disk.prepare(top, below)?));
        }
        Ok(retired)
    }

    /// Notes why the merge below `top` is put off.
    pub(crate) fn put_off(&mut self, top: &NodeId, why: impl Into<String>) {
        let until = Instant::now() + PATIENCE;
        self.put_off.insert(top.clone(), PutOff { why: why.into(), until });
    }
}
