//! Writing compressed clusters, packed one behind the other.

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};

use super::bytes::write_any;
use super::compressed::compress;
use super::entry::{Cluster, Descriptor, sectors_touched};
use super::geometry::Geometry;
use super::image::Image;
use super::state::State;

impl Image {
    /// Writes a whole cluster, or the last part of the disk, compressed if that makes it smaller;
    /// like [`BlockDevice::write_at`] otherwise. Several threads may compress at once.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for anything but one cluster; and as `write_at`.
    pub fn write_compressed(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        let geometry = self.source.geometry;
        let range = ByteRange::new(at, ByteCount::of(bytes));
        let whole = range.len == geometry.cluster() || range.end().get() == self.size().get();
        if !at.is_aligned(geometry.cluster()) || range.len > geometry.cluster() || !whole {
            let problem = "is compressed by whole clusters only";
            return Err(Error::new(ErrorKind::Invalid, &*self.source.name, problem));
        }
        if self.source.crypt.is_some() {
            let problem = "is encrypted, and what is encrypted is not compressed";
            return Err(Error::new(ErrorKind::Unsupported, &*self.source.name, problem));
        }
        let mut cluster = bytes.to_vec();
        cluster.resize(geometry.cluster().as_usize(), 0);
        let data =
            if geometry.external { None } else { compress(self.source.compression, &cluster)? };
        let Some(data) = data else {
            return self.write_at(bytes, at);
        };
        let _changes = self.changing.read();
        self.check_write(range)?;
        let (guest, _) = geometry.locate(at);
        let (index, _) = geometry.slot(guest);
        let _alone = self.lock_cluster(guest);
        let old = self.source.cluster(guest)?;
        let placed = {
            // Neighbours may share a sector that a device writes whole: one at a time.
            let _packing = self.packing.lock();
            let placed = {
                let mut state = self.state()?.lock();
                state.own_table(&self.source.tree, index)?;
                state.place_compressed(geometry, ByteCount::of(&data))?
            };
            if let Some(descriptor) = placed {
                write_any(&*self.source.file, &data, descriptor.at)?;
            }
            placed
        };
        match placed {
            Some(descriptor) => {
                let mut state = self.state()?.lock();
                state.publish(&self.source.tree, guest, Cluster::Compressed(descriptor));
                state.abandon(old);
                Ok(())
            }
            // Too far back in the file for a descriptor.
            None => self.write_locked(
                guest,
                old,
                0,
                cluster.len() as u64,
                super::write::Fill::Bytes(&cluster),
            ),
        }
    }
}

impl State {
    /// Takes a place for `len` bytes of compressed data, behind those that were written last if
    /// they fit there; `None` where no descriptor can name it.
    pub(super) fn place_compressed(
        &mut self,
        geometry: Geometry,
        len: ByteCount,
    ) -> Result<Option<Descriptor>> {
        let at = match self.place_behind(geometry, len)? {
            Some(at) => at,
            None => geometry.host_start(self.alloc.allocate(1)?.first),
        };
        let end = at.plus(len);
        let descriptor = Descriptor { at, sectors: sectors_touched(at, len) };
        let offset_bits = (62 - (geometry.cluster_bits - 8)).min(56);
        if end.get() >> offset_bits != 0 {
            let (first, count) = descriptor.hosts(geometry);
            self.alloc.give_back(first, count)?;
            return Ok(None);
        }
        self.compressed_end = (!end.is_aligned(geometry.cluster())).then_some(end);
        Ok(Some(descriptor))
    }

    /// A place behind the data that were written last, perhaps on into the next cluster.
    fn place_behind(&mut self, geometry: Geometry, len: ByteCount) -> Result<Option<ByteOffset>> {
        let Some(at) = self.compressed_end.take() else {
            return Ok(None);
        };
        let cluster = geometry.host_cluster_of(at);
        let end = geometry.host_start(cluster.plus(1));
        if at.plus(len) > end {
            let next = self.alloc.allocate(1)?.first;
            if next != cluster.plus(1) {
                // Not beside it: the data begin there.
                return Ok(Some(geometry.host_start(next)));
            }
            return match self.alloc.counts.add(cluster, 1) {
                Ok(()) => Ok(Some(at)),
                Err(_) => Ok(Some(geometry.host_start(next))),
            };
        }
        match self.alloc.counts.add(cluster, 1) {
            Ok(()) => Ok(Some(at)),
            // As many clusters as its count can hold.
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(error),
        }
    }
}
