//! Taking over what the backing file has, so that the image does without it.

use block_io::AlignedBuf;
use block_types::{ByteCount, ByteRange, Result};

use super::entry::{Cluster, Standard};
use super::geometry::GuestCluster;
use super::image::Image;
use super::mapping::Kind;
use super::write::Fill;

/// Bytes that are taken over at once, at most; the clusters under them are locked meanwhile.
const STEP: ByteCount = ByteCount::new(1 << 20);

/// What a copy does with zeros of the backing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackingZeros {
    /// Says that there are zeros: there will be something else below.
    Keep,
    /// Leaves them out: there will be nothing below.
    Drop,
}

impl Image {
    /// Gives the image what it does not have of `range` and the backing file does, and returns how
    /// much that was. The disk reads the same before, meanwhile and afterwards, and clients may
    /// write to it; what they write is never lost.
    ///
    /// # Errors
    /// Those of the files. What was taken over by then stays.
    pub fn copy_up(&self, range: ByteRange, zeros: BackingZeros) -> Result<ByteCount> {
        let _changes = self.changing.read();
        self.check_write(range)?;
        let geometry = self.source.geometry;
        let step = STEP.max(geometry.cluster());
        let mut buffer = AlignedBuf::zeroed(step.as_usize());
        let mut moved = 0;
        for piece in range.pieces(step) {
            let (first, _) = geometry.locate(piece.start);
            let count = geometry
                .clusters(ByteCount::new(piece.end().get() - geometry.guest_start(first).get()));
            // Between the look at a cluster and its new content nobody else writes it.
            let _alone = self.lock_clusters(first, count);
            let mut at = piece.start;
            while at < piece.end() {
                let run = self.source.run(ByteRange::between(at, piece.end()))?;
                let here = ByteRange::new(at, ByteCount::new(run.len));
                if run.kind == Kind::Absent {
                    let bytes = &mut buffer[..here.len.as_usize()];
                    self.source.read_backing(bytes, at)?;
                    moved += self.take_over(here, bytes, zeros)?;
                }
                at = here.end();
            }
        }
        Ok(ByteCount::new(moved))
    }

    /// Makes `range`, whose clusters are locked and which is absent, hold `bytes`.
    fn take_over(&self, range: ByteRange, bytes: &[u8], zeros: BackingZeros) -> Result<u64> {
        let geometry = self.source.geometry;
        let mut moved = 0;
        // Neighbours that hold data are written together.
        let mut data: Option<ByteRange> = None;
        let part_of = |part: ByteRange| {
            let from = part.start.since(range.start).as_usize();
            &bytes[from..from + part.len.as_usize()]
        };
        for part in range.pieces(geometry.cluster()) {
            let empty = part_of(part).iter().all(|byte| *byte == 0);
            if empty && (zeros == BackingZeros::Drop || self.mark_zero(part)?) {
                if let Some(run) = data.take() {
                    self.write_absent(run, part_of(run))?;
                }
                continue;
            }
            moved += part.len.get();
            data = Some(match data {
                Some(run) => ByteRange::between(run.start, part.end()),
                None => part,
            });
        }
        if let Some(run) = data {
            self.write_absent(run, part_of(run))?;
        }
        Ok(moved)
    }

    /// Makes a whole cluster zeros by its entry alone, if it is one and that can be.
    fn mark_zero(&self, part: ByteRange) -> Result<bool> {
        let geometry = self.source.geometry;
        let (guest, inside) = geometry.locate(part.start);
        let whole = inside.is_zero() && part.len == geometry.cluster();
        let old = self.source.cluster(guest)?;
        if !whole || !geometry.zero_clusters || geometry.external || old.hosts(geometry).is_some() {
            return Ok(false);
        }
        let (index, _) = geometry.slot(guest);
        let mut state = self.state()?.lock();
        state.own_table(&self.source.tree, index)?;
        let zero = Standard::zeros(geometry);
        state.publish(&self.source.tree, guest, Cluster::Standard(zero));
        Ok(true)
    }

    /// Writes `bytes` to `range`, whose clusters are locked.
    fn write_absent(&self, range: ByteRange, bytes: &[u8]) -> Result<()> {
        let size = self.source.geometry.cluster();
        let mut at = range.start;
        while at < range.end() {
            let (guest, inside) = self.source.geometry.locate(at);
            let left = range.end().since(at);
            let rest = &bytes[at.since(range.start).as_usize()..];
            let whole = if inside.is_zero() { left.get() / size.get() } else { 0 };
            let len = if whole > 0 {
                let len = ByteCount::new(whole * size.get());
                self.write_locked_clusters(guest, &rest[..len.as_usize()])?;
                len
            } else {
                let len = left.min(ByteCount::new(size.get() - inside.get()));
                let old = self.source.cluster(GuestCluster(guest.0))?;
                let fill = Fill::Bytes(&rest[..len.as_usize()]);
                self.write_locked(guest, old, inside.get(), len.get(), fill)?;
                len
            };
            at = at.plus(len);
        }
        Ok(())
    }
}
