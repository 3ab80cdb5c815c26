//! What an image says of itself, and what it holds apart from its parent.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use block_io::{BlockDevice, check_range};
use block_types::{ByteCount, ByteOffset, ByteRange, Result};

use super::address::{BlockSize, GuestBlock};
use super::batmap::BatmapState;
use super::footer::{Footer, Kind};
use super::geometry::Geometry;
use super::header::ParentInfo;
use super::identity::{Creator, DiskId, Timestamp};
use super::image::{Parent, VhdImage};
use super::open::Parts;

/// What an image says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// How the disk is stored.
    pub kind: Kind,
    /// Its size.
    pub size: ByteCount,
    /// Its UUID, which children name.
    pub id: DiskId,
    /// When it was made.
    pub created: Timestamp,
    /// By what.
    pub creator: Creator,
    /// Its geometry.
    pub geometry: Geometry,
    /// Whether it is an inner node, not for users (XenServer).
    pub hidden: bool,
    /// What only sparse disks have.
    pub sparse: Option<SparseInfo>,
    /// Of a differencing disk: what it says of its parent.
    pub parent: Option<ParentInfo>,
}

/// What a dynamic or differencing disk says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SparseInfo {
    /// The size of its blocks.
    pub block_size: BlockSize,
    /// Blocks that have a place in the file.
    pub allocated: u64,
    /// The size to which it can grow.
    pub largest: ByteCount,
    /// What it has of a batmap.
    pub batmap: BatmapState,
}

/// What `file`, a VHD, says of its parent, without being opened; `None` if it has none.
///
/// # Errors
/// As of [`VhdImage::open`].
pub fn probe_parent(file: &dyn BlockDevice) -> Result<Option<ParentInfo>> {
    let Parts { footer, header, .. } = Parts::read(file)?;
    let header = header.filter(|_| footer.kind() == Kind::Differencing);
    header.map(|header| header.parent(file)).transpose()
}

/// What a file says as a node of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// How the disk is stored.
    pub kind: Kind,
    /// Its size.
    pub size: ByteCount,
    /// Its UUID, which children name.
    pub id: DiskId,
    /// When it was made.
    pub created: Timestamp,
    /// Whether it is an inner node, not for users (XenServer).
    pub hidden: bool,
    /// Of a differencing disk: what it says of its parent.
    pub parent: Option<ParentInfo>,
}

/// What `file`, a VHD, says as a node of a tree, from footer and header alone.
///
/// # Errors
/// As of [`VhdImage::open`].
pub fn probe_node(file: &dyn BlockDevice) -> Result<NodeInfo> {
    let Parts { footer, header, .. } = Parts::read(file)?;
    let header = header.filter(|_| footer.kind() == Kind::Differencing);
    Ok(NodeInfo {
        kind: footer.kind(),
        size: footer.size(),
        id: footer.id(),
        created: footer.created(),
        hidden: footer.is_hidden(),
        parent: header.map(|header| header.parent(file)).transpose()?,
    })
}

impl VhdImage {
    /// What the image says of itself.
    ///
    /// # Errors
    /// Those of the file, from which locators are read.
    pub fn info(&self) -> Result<Info> {
        let footer: Footer = self.heads.lock().footer;
        Ok(Info {
            kind: self.kind(),
            size: self.size(),
            id: footer.id(),
            created: footer.created(),
            creator: footer.creator(),
            geometry: footer.geometry(),
            hidden: footer.is_hidden(),
            sparse: self.sparse_info(),
            parent: self.parent_info()?,
        })
    }

    fn sparse_info(&self) -> Option<SparseInfo> {
        let mapping = &self.sparse.as_ref()?.mapping;
        let heads = self.heads.lock();
        let batmap = match (&heads.batmap, &heads.distrust) {
            (Some(_), _) => BatmapState::Trusted,
            (None, Some(why)) => BatmapState::Distrusted(why.clone()),
            (None, None) => BatmapState::None,
        };
        let block = mapping.block_size().bytes();
        Some(SparseInfo {
            block_size: mapping.block_size(),
            allocated: mapping.places().count() as u64,
            largest: ByteCount::new(mapping.capacity() as u64 * block.get()),
            batmap,
        })
    }

    /// What a differencing disk says of its parent; `None` for others.
    ///
    /// # Errors
    /// Those of the file.
    pub fn parent_info(&self) -> Result<Option<ParentInfo>> {
        let header = self.heads.lock().header.filter(|_| self.kind() == Kind::Differencing);
        header.map(|header| header.parent(&*self.file)).transpose()
    }

    /// The disk's UUID.
    pub fn id(&self) -> DiskId {
        self.heads.lock().footer.id()
    }

    /// How the disk is stored.
    pub fn kind(&self) -> Kind {
        if self.detached.load(Ordering::SeqCst) { Kind::Dynamic } else { self.opened_as }
    }

    /// Whether the disk is an inner node, not for users (XenServer).
    pub fn is_hidden(&self) -> bool {
        self.heads.lock().footer.is_hidden()
    }

    /// The size of the disk's blocks; `None` for a fixed disk.
    pub fn block_size(&self) -> Option<BlockSize> {
        self.sparse.as_ref().map(|sparse| sparse.mapping.block_size())
    }

    /// The blocks that have a place in the file, in order. A fixed disk has none.
    pub fn allocated(&self) -> impl Iterator<Item = GuestBlock> {
        let places = self.sparse.iter().flat_map(|sparse| sparse.mapping.places());
        places.map(|(block, _)| block)
    }

    /// How long the file would be with `more` blocks that have no place yet: what merging a child
    /// costs at most.
    pub fn file_size_with(&self, more: u64) -> ByteCount {
        let Some(sparse) = &self.sparse else { return self.file.size() };
        let grown = sparse.space.as_ref().and_then(|space| space.lock().target(more));
        let wanted = grown.map_or(0, ByteOffset::get).max(self.file.size().get());
        if more == 0 { self.file.size() } else { ByteCount::new(wanted) }
    }

    /// Calls `each` with the runs of `range` that the image itself holds, not its parent: in order,
    /// by the sector, until it breaks off. Neighbours may touch. This is what a merge into the
    /// parent has to copy, and all that it has to copy.
    ///
    /// # Errors
    /// [`block_types::ErrorKind::OutOfRange`]; those of the file, from which bitmaps are read.
    pub fn own_extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(ByteRange) -> ControlFlow<()>,
    ) -> Result<()> {
        check_range(self, range)?;
        let walked = self.walk_runs(range, |piece, own| {
            Ok(if own.is_some() { each(piece) } else { ControlFlow::Continue(()) })
        });
        walked.map(|_whole| ())
    }
}

impl Parent {
    /// An open VHD as a parent.
    pub fn vhd(image: &std::sync::Arc<VhdImage>) -> Self {
        Self { device: image.clone(), id: Some(image.id()) }
    }

    /// A device without a UUID as a parent: XenServer's raw parent.
    pub fn raw(device: std::sync::Arc<dyn BlockDevice>) -> Self {
        Self { device, id: None }
    }
}
