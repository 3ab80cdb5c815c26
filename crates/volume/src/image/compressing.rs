//! An image whose clusters are compressed as they are written.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::{BlockDevice, Limits, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Extent, Result};
use disk_image::qcow2;

use super::DiskImage;

/// A qcow2 image that is filled with compressed clusters. Writes of whole clusters, and of what is
/// left at the end, are compressed where that makes them smaller; others are written as they are.
struct Compressing {
    image: Arc<qcow2::Image>,
    cluster: ByteCount,
}

impl DiskImage {
    /// The disk, which writes whole clusters compressed.
    ///
    /// # Errors
    /// [`Unsupported`](block_types::ErrorKind::Unsupported) for formats without compression.
    pub fn compressing_device(&self) -> Result<Arc<dyn BlockDevice>> {
        let image = Arc::clone(self.qcow2("compression")?);
        let cluster = image.header().cluster_size();
        Ok(Arc::new(Compressing { image, cluster }))
    }
}

impl Compressing {
    /// Whether `piece` is one that compresses: a whole cluster, or the last part of the disk.
    fn is_whole(&self, piece: ByteRange) -> bool {
        let ends = piece.end().get() == self.image.size().get();
        piece.start.is_aligned(self.cluster) && (piece.len == self.cluster || ends)
    }
}

impl BlockDevice for Compressing {
    fn name(&self) -> &str {
        self.image.name()
    }

    fn size(&self) -> ByteCount {
        self.image.size()
    }

    /// As the image's, but with the cluster as the unit that suits, however large it is.
    fn limits(&self) -> Limits {
        Limits { preferred: self.cluster, ..self.image.limits() }
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        self.image.read_at(buffer, at)
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        let mut rest = bytes;
        for piece in ByteRange::new(at, ByteCount::of(bytes)).pieces(self.cluster) {
            let (now, later) = rest.split_at(piece.len.as_usize());
            rest = later;
            if self.is_whole(piece) {
                self.image.write_compressed(now, piece.start)?;
            } else {
                self.image.write_at(now, piece.start)?;
            }
        }
        Ok(())
    }

    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.image.zero(range, mode)
    }

    fn discard(&self, range: ByteRange) -> Result<()> {
        self.image.discard(range)
    }

    fn flush(&self) -> Result<()> {
        self.image.flush()
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.image.extents(range, each)
    }
}
