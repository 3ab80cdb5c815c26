//! A node that is open: what it holds itself. Its parent is none of its business.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::{BlockDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use disk_image::vhd::{OpenOptions, VhdImage};

use crate::NodeId;
use crate::folder::Folder;

/// A node's image, open without its parent, and its file.
pub(crate) struct Layer {
    pub(crate) id: NodeId,
    pub(crate) image: Arc<VhdImage>,
    pub(crate) file: Arc<dyn BlockDevice>,
    pub(crate) writable: bool,
}

impl Layer {
    /// Opens the node `id`.
    pub(crate) fn open(folder: &dyn Folder, id: &NodeId, read_only: bool) -> Result<Self> {
        let file = folder.open(id.file(), read_only)?;
        let options = OpenOptions { read_only, ..OpenOptions::default() };
        let image = VhdImage::open(Arc::clone(&file), None, options)?;
        Ok(Self { id: id.clone(), image: Arc::new(image), file, writable: !read_only })
    }

    /// The size of its disk.
    pub(crate) fn size(&self) -> ByteCount {
        self.image.size()
    }

    /// The runs of `range` that it holds itself; what of the range lies behind its end it does not.
    pub(crate) fn own_extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(ByteRange),
    ) -> Result<()> {
        let inside = range.intersect(ByteRange::new(ByteOffset::ZERO, self.size()));
        if inside.is_empty() {
            return Ok(());
        }
        self.image.own_extents(inside, &mut |own| {
            each(own);
            ControlFlow::Continue(())
        })
    }

    /// Where the start of `range` lies in the file, and how far that goes; the bitmap that it takes
    /// is read.
    pub(crate) fn find(&self, range: ByteRange) -> Result<(ByteCount, Option<ByteOffset>)> {
        loop {
            if let Some(run) = self.image.own_run(range) {
                return Ok((run.len, run.at));
            }
            let first = ByteRange::new(range.start, ByteCount::from_sectors(1));
            self.image.own_extents(first, &mut |_| ControlFlow::Break(()))?;
        }
    }

    /// Makes `range`, which is inside the disk, read as zeros.
    pub(crate) fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.image.zero(range, mode)
    }
}
