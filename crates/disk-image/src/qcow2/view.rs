//! An internal snapshot as a read-only block device.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::{BlockDevice, Intent, Lease, Limits, Place, Resolve, ZeroMode, check_range};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, Result};

use super::image::{Image, checked, new_token};
use super::source::Source;
use super::tree::Tree;

/// An internal snapshot that is open for reading. It cannot be deleted meanwhile.
pub struct SnapshotView {
    source: Source,
    size: ByteCount,
    /// Reads here keep apart from those who change tables there.
    image: Arc<Image>,
    _token: Arc<()>,
}

impl Image {
    /// Opens the snapshot with the id or the name `name` for reading.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Corrupt`] for an L1 table that breaks the rules.
    pub fn open_snapshot(self: &Arc<Self>, name: &str) -> Result<Arc<SnapshotView>> {
        // Held until it is in the list: a snapshot that is about to be deleted is not opened.
        let mut views = self.views.lock();
        let table = self.snapshots.read();
        let entry = table.get(name).ok_or_else(|| self.not_found(name))?;
        let own = &self.source;
        let tree = Tree::read(&*own.file, own.geometry, entry.l1())?;
        let size = entry.disk_size().unwrap_or_else(|| self.size());
        if own.geometry.l1_entries(size) > tree.l1.read().len() as u64 {
            let problem = "has an L1 table that is too small for its disk";
            return Err(Error::new(ErrorKind::Corrupt, self.object(name), problem));
        }
        let token = new_token();
        views.push((entry.l1().start, Arc::downgrade(&token)));
        let source = Source {
            name: self.object(name),
            file: Arc::clone(&own.file),
            data: own.data.clone(),
            backing: own.backing.clone(),
            geometry: own.geometry,
            compression: own.compression,
            crypt: own.crypt.clone(),
            tree,
            leases: Arc::clone(&own.leases),
            decompressed: Arc::clone(&own.decompressed),
            state: None,
        };
        Ok(Arc::new(SnapshotView { source, size, image: Arc::clone(self), _token: token }))
    }
}

impl SnapshotView {
    fn read_only(&self) -> Error {
        Error::new(ErrorKind::ReadOnly, &*self.source.name, "is a snapshot, which never changes")
            .advise("revert to it, or export it to an image of its own")
    }
}

impl BlockDevice for SnapshotView {
    fn name(&self) -> &str {
        &self.source.name
    }

    fn size(&self) -> ByteCount {
        self.size
    }

    fn limits(&self) -> Limits {
        let limits = self.image.limits();
        Limits { read_only: true, discards: false, zeroes_fast: false, ..limits }
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        let range = checked(self, buffer.len(), at)?;
        self.source.read(buffer, range.start)
    }

    fn write_at(&self, _bytes: &[u8], _at: ByteOffset) -> Result<()> {
        Err(self.read_only())
    }

    fn zero(&self, _range: ByteRange, _mode: ZeroMode) -> Result<()> {
        Err(self.read_only())
    }

    fn discard(&self, _range: ByteRange) -> Result<()> {
        Err(self.read_only())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        check_range(self, range)?;
        self.source.extents(range, each)
    }

    fn resolver(&self) -> Option<&dyn Resolve> {
        Some(self)
    }
}

impl Resolve for SnapshotView {
    fn resolve<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<Lease<'d>> {
        if intent == Intent::Write || range.end().get() > self.size.get() {
            return None;
        }
        let lease = self.source.leases.acquire();
        self.source.resolve(intent, range, places).map(|()| lease)
    }
}
