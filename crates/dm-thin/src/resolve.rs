//! Saying where the bytes of a request lie: in data blocks, in the external origin, or nowhere.

use std::sync::atomic::Ordering;

use block_io::{Intent, Lease, Place, Resolve};
use block_types::{ByteOffset, ByteRange};

use crate::origin::Origin;
use crate::table::Lookup;
use crate::volume::ThinVolume;

impl Resolve for ThinVolume {
    fn resolve<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<Lease<'d>> {
        let writes = intent == Intent::Write;
        if writes && !self.takes_writes() {
            return None;
        }
        // The lease first: what is read below it, a snapshot or a rollback changed either before
        // its drain began, and then it is seen, or waits for the lease.
        let lease = self.shared.leases.acquire();
        if self.core.gate.load(Ordering::SeqCst) || range.end().get() > self.core.size().get() {
            return None;
        }
        let before = places.len();
        let below = self.resolve_blocks(intent, range, places);
        let joined = below.and_then(|below| lease.and(below));
        if joined.is_none() {
            places.truncate(before);
        }
        joined
    }
}

/// Neighbours that are asked for together.
#[derive(Default)]
struct Run<'d> {
    /// Where they lie: on the data device, or in the external origin, at the same place as in the
    /// volume.
    origin: Option<&'d Origin>,
    range: ByteRange,
}

impl ThinVolume {
    /// Appends the places of `range`, and returns the lease on those that lie in the origin.
    fn resolve_blocks<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<Lease<'d>> {
        let writes = intent == Intent::Write;
        let resolver = self.shared.data.resolver()?;
        let size = self.shared.block_size;
        let mut below = None;
        let mut run = Run::default();
        let mut push = |run: Run<'d>, places: &mut Vec<Place<'d>>| match run.origin {
            _ if run.range.is_empty() => Some(()),
            Some(origin) => {
                if below.is_none() {
                    below = Some(origin.lease(places)?);
                }
                origin.resolve(run.range, places)
            }
            // The data device's places do not move while the pool is open; the volume's lease says
            // who may use them.
            None => resolver.resolve(intent, run.range, places).map(drop),
        };
        for piece in range.pieces(size.bytes()) {
            let (block, inside) = size.locate(piece.start);
            let (origin, at) = match self.core.table.get(block) {
                Lookup::Mapped(mapping) if !(writes && self.core.is_shared(mapping)) => {
                    (None, size.data_start(mapping.block).plus(inside))
                }
                Lookup::Unmapped if !writes => match self.core.origin() {
                    Some(origin) => (Some(origin), piece.start),
                    None => {
                        push(std::mem::take(&mut run), places)?;
                        places.push(Place { file: None, at: ByteOffset::ZERO, len: piece.len });
                        continue;
                    }
                },
                Lookup::Mapped(_) | Lookup::Unmapped | Lookup::Unloaded => return None,
            };
            let same = origin.is_some() == run.origin.is_some();
            if same && !run.range.is_empty() && run.range.end() == at {
                run.range = ByteRange::between(run.range.start, at.plus(piece.len));
            } else {
                let range = ByteRange::new(at, piece.len);
                push(std::mem::replace(&mut run, Run { origin, range }), places)?;
            }
        }
        push(run, places)?;
        Some(below.unwrap_or(Lease::permanent()))
    }
}
