//! A chain of nodes, read as one: for every piece of the disk it is worked out once which node
//! holds which sectors, so that a read costs the same however many nodes there are.
//!
//! What a node holds never changes as long as somebody reads it through a chain: nodes that others
//! stand on are written by merges alone, and a merge writes only what no reader of this chain takes
//! from that node (see the head of the crate). So what was worked out stays right.

use std::sync::{Arc, OnceLock};

use block_types::{ByteCount, ByteOffset, ByteRange, Result, SECTOR};

use crate::layer::Layer;

/// The part of a disk that is worked out at once.
pub(crate) const PIECE: ByteCount = ByteCount::new(2 << 20);

/// Nodes read as one, the topmost first.
pub(crate) struct Chain {
    layers: Vec<Arc<Layer>>,
    /// How far each of them is looked at: what is above it may be smaller.
    ends: Vec<u64>,
    pieces: Box<[OnceLock<Box<[Part]>>]>,
}

/// A run of sectors of a piece that one layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The first sector, counted from the start of the piece; it ends where the next one begins.
    start: u16,
    /// The layer, or [`NOBODY`].
    layer: u16,
}

/// What no layer holds reads as zeros.
const NOBODY: u16 = u16::MAX;

/// A run of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) len: ByteCount,
    /// Which layer holds it, by its place in the chain.
    pub(crate) layer: Option<usize>,
}

impl Chain {
    /// The chain of `layers`, the topmost first, for a disk of `size`.
    pub(crate) fn new(layers: Vec<Arc<Layer>>, size: ByteCount) -> Self {
        let mut end = size.get();
        let ends = layers.iter().map(|layer| {
            end = end.min(layer.size().get());
            end
        });
        let ends = ends.collect();
        let pieces = (0..size.div_ceil(PIECE)).map(|_| OnceLock::new()).collect();
        Self { layers, ends, pieces }
    }

    pub(crate) fn layers(&self) -> &[Arc<Layer>] {
        &self.layers
    }

    /// The run at the start of `range`, which is not empty and inside the disk, if its piece was
    /// worked out before. Never blocks.
    pub(crate) fn known_run(&self, range: ByteRange) -> Option<Run> {
        if self.layers.is_empty() {
            return Some(Run { len: range.len, layer: None });
        }
        let (index, inside) = locate(range.start);
        Some(run_of(self.pieces[index].get()?, inside, range.len))
    }

    /// The run at the start of `range`; works out its piece if that is new.
    pub(crate) fn run(&self, range: ByteRange) -> Result<Run> {
        loop {
            if let Some(run) = self.known_run(range) {
                return Ok(run);
            }
            let (index, _) = locate(range.start);
            let parts = self.parts(index)?;
            self.pieces[index].get_or_init(|| parts.into());
        }
    }

    /// The runs of a piece, worked out anew, in order and without gaps.
    pub(crate) fn runs_of_piece(&self, index: usize) -> Result<Vec<(ByteRange, Option<usize>)>> {
        let parts = self.parts(index)?;
        let start = ByteOffset::new(index as u64 * PIECE.get());
        let mut runs = Vec::with_capacity(parts.len());
        let mut inside = 0;
        while inside < PIECE.sectors() {
            let left = ByteCount::from_sectors(PIECE.sectors() - inside);
            let run = run_of(&parts, inside, left);
            let at = start.plus(ByteCount::from_sectors(inside));
            runs.push((ByteRange::new(at, run.len), run.layer));
            inside += run.len.sectors();
        }
        Ok(runs)
    }

    /// Works out who holds which sectors of a piece.
    fn parts(&self, index: usize) -> Result<Vec<Part>> {
        let piece = ByteRange::new(ByteOffset::new(index as u64 * PIECE.get()), PIECE);
        let mut taken: Vec<(ByteRange, u16)> = Vec::new();
        let mut open = vec![piece];
        for (number, (layer, &end)) in self.layers.iter().zip(&self.ends).enumerate() {
            let mut left = Vec::new();
            for gap in std::mem::take(&mut open) {
                let inside = gap.intersect(ByteRange::new(ByteOffset::ZERO, ByteCount::new(end)));
                let mut at = gap.start;
                if !inside.is_empty() {
                    layer.own_extents(inside, &mut |own| {
                        if own.start > at {
                            left.push(ByteRange::between(at, own.start));
                        }
                        taken.push((own, number as u16));
                        at = own.end();
                    })?;
                }
                if at < gap.end() {
                    left.push(ByteRange::between(at, gap.end()));
                }
            }
            open = left;
            if open.is_empty() {
                break;
            }
        }
        taken.extend(open.into_iter().map(|gap| (gap, NOBODY)));
        taken.sort_unstable_by_key(|(range, _)| range.start);
        let mut parts: Vec<Part> = Vec::new();
        for (range, layer) in taken {
            if parts.last().is_none_or(|last| last.layer != layer) {
                let start = range.start.since(piece.start).sectors() as u16;
                parts.push(Part { start, layer });
            }
        }
        Ok(parts)
    }
}

/// The piece that holds `at`, and at which of its sectors.
fn locate(at: ByteOffset) -> (usize, u64) {
    let piece = (at.get() / PIECE.get()) as usize;
    (piece, at.get() % PIECE.get() / SECTOR)
}

/// The run at sector `inside` of a piece, of `len` bytes at most.
fn run_of(parts: &[Part], inside: u64, len: ByteCount) -> Run {
    let next = parts.partition_point(|part| u64::from(part.start) <= inside);
    let end = parts.get(next).map_or(PIECE.sectors(), |part| u64::from(part.start));
    let layer = parts[next - 1].layer;
    Run {
        len: ByteCount::from_sectors(end - inside).min(len),
        layer: (layer != NOBODY).then_some(usize::from(layer)),
    }
}

#[cfg(test)]
mod tests {
    use super::{NOBODY, Part, run_of};
    use block_types::ByteCount;

    #[test]
    fn runs_end_with_their_parts() {
        let part = |start, layer| Part { start, layer };
        let parts = [part(0, 3), part(8, NOBODY), part(16, 0)];
        let run = |inside, len| {
            let run = run_of(&parts, inside, ByteCount::from_sectors(len));
            (run.len.sectors(), run.layer)
        };
        assert_eq!(run(0, 100), (8, Some(3)));
        assert_eq!(run(7, 100), (1, Some(3)));
        assert_eq!(run(8, 4), (4, None));
        assert_eq!(run(4095, 100), (1, Some(0)));
        assert_eq!(run(16, 1 << 20), (4080, Some(0)));
    }
}
