//! Hydration: copying into volumes what they still show of their external origin.
//!
//! A step copies the blocks of a range, each under its lock, as a first write would; so guests
//! write beside it, a crash leaves some blocks copied and others not, and either reads the same.
//! What shows as zeros is left out: a block that is not mapped reads as zeros without an origin.
//!
//! A volume and its snapshots are hydrated together: a block that several of them show is copied
//! once, and mapped by all of them. Its mapping gets a time before their last snapshot, which is
//! what makes each of them copy it before writing, as if it had been there when the snapshot was
//! taken.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use block_io::ZeroMode;
use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use parking_lot::{MutexGuard, RwLockReadGuard};

use crate::origin::Origin;
use crate::shared::Prepared;
use crate::volume::{Core, ThinVolume};
use crate::worst_case::Demand;
use crate::write::{PIECE, with_scratch};
use crate::{GuestBlock, Pool, Time};

impl Pool {
    /// Copies into every volume of `family` what it shows of the external origin in the blocks
    /// that `range` touches, and returns how much space that took. They stand on the same origin,
    /// and each is a snapshot of another, or it is one volume alone; they may be in use, and open
    /// for reading only. Steps are to be of a few MiB: rollbacks of the volumes wait for one.
    ///
    /// Once steps have covered all of every volume, and none of them was rolled back since, a
    /// commit makes them free of their origin.
    ///
    /// # Errors
    /// Those of the origin and of the data device; `OutOfSpace`. What was copied stays.
    pub fn hydrate(&self, family: &[&ThinVolume], range: ByteRange) -> Result<ByteCount> {
        self.shared.check_writable()?;
        let mut members: Vec<&ThinVolume> = family.to_vec();
        members.sort_by_key(|volume| volume.core.id);
        members.dedup_by_key(|volume| volume.core.id);
        let _nobody_rolls_back: Vec<RwLockReadGuard<'_, ()>> =
            members.iter().map(|volume| volume.core.slow.read()).collect();
        members.retain(|volume| volume.core.origin().is_some());
        let block = self.shared.block_size.bytes();
        let end = range.end().get().next_multiple_of(block.get());
        let whole = ByteRange::between(range.start.align_down(block), ByteOffset::new(end));
        let mut copied = 0;
        for data in shown_data(&members, whole)? {
            let end = ByteOffset::new(data.end().get().next_multiple_of(block.get()));
            let blocks = ByteRange::between(data.start.align_down(block), end);
            for piece in blocks.pieces(block) {
                copied +=
                    self.hydrate_block(&members, self.shared.block_size.locate(piece.start).0)?;
            }
        }
        Ok(ByteCount::new(copied * block.get()))
    }

    /// Hydrates one block, and returns how many were written for it.
    fn hydrate_block(&self, members: &[&ThinVolume], block: GuestBlock) -> Result<u64> {
        let start = self.shared.block_size.guest_start(block);
        let whole = ByteRange::new(start, self.shared.block_size.bytes());
        let mut wanting = Vec::new();
        for volume in members {
            let shown = volume.core.origin().map(|origin| origin.shown(whole)).unwrap_or_default();
            if !shown.is_empty() && volume.lookup(block)?.is_none() {
                wanting.push((*volume, shown));
            }
        }
        let _alone: Vec<MutexGuard<'_, ()>> =
            wanting.iter().map(|(volume, _)| volume.core.lock_block(block)).collect();
        // Now that nobody else maps it: by what each shows of it.
        let mut groups: Vec<(ByteRange, Vec<&ThinVolume>)> = Vec::new();
        for (volume, shown) in wanting {
            if volume.lookup(block)?.is_some() {
                continue;
            }
            match groups.iter_mut().find(|(known, _)| *known == shown) {
                Some((_, group)) => group.push(volume),
                None => groups.push((shown, vec![volume])),
            }
        }
        let mut written = 0;
        for (_, group) in &groups {
            // Volumes without a snapshot have no time at which they shared anything.
            let alike = group.len() > 1 && group.iter().all(|volume| volume.core.has_shared());
            let step = if alike { group.len() } else { 1 };
            for together in group.chunks(step) {
                written += u64::from(self.copy_block(together, block)?);
            }
        }
        Ok(written)
    }

    /// Copies `block`, which no one of `volumes` maps and all show alike, and maps it in each;
    /// `false` if it turned out to be zeros.
    fn copy_block(&self, volumes: &[&ThinVolume], block: GuestBlock) -> Result<bool> {
        let size = self.shared.block_size;
        let (first, others) = volumes.split_first().expect("somebody shows it");
        let mut prepared: Option<Prepared<'_>> = None;
        let whole = ByteRange::new(ByteOffset::ZERO, size.bytes());
        for piece in whole.pieces(ByteCount::new(PIECE as u64)) {
            let inside = ByteCount::new(piece.start.get());
            with_scratch(|scratch| {
                let scratch = &mut scratch[..piece.len.as_usize()];
                first.read_unmapped(scratch, size.guest_start(block).plus(inside))?;
                if prepared.is_none() && is_zero(scratch) {
                    return Ok(());
                }
                let token = match &prepared {
                    Some(token) => token,
                    None => {
                        let token = self.shared.prepare(first.core.id, Demand::MOVED)?;
                        let before = ByteRange::new(size.data_start(token.block()), inside);
                        self.shared.data.zero(before, ZeroMode::default())?;
                        prepared.insert(token)
                    }
                };
                let to = size.data_start(token.block()).plus(inside);
                self.shared.data.write_at(scratch, to)
            })?;
        }
        let Some(prepared) = prepared else { return Ok(false) };
        let shares = others
            .iter()
            .map(|_| self.shared.share(Demand::MOVED, false))
            .collect::<Result<_>>()?;
        let cores: Vec<&Core> = others.iter().map(|volume| &*volume.core).collect();
        // DATA-FIRST: the block is written; what makes the mappings durable flushes the data first.
        prepared.publish_for_all(&first.core, &cores, shares, block);
        Ok(true)
    }

    /// Lets `volumes`, which are hydrated, show nothing of their origin any more: their blocks that
    /// are not mapped read as zeros from now on, and can be given up. Somebody has recorded that,
    /// durably, with the commit that holds all of the hydration.
    pub fn free_from_origin(&self, volumes: &[&ThinVolume]) {
        // Whoever found a block unmapped before it was copied reads the origin to the end.
        self.shared.leases.drain();
        for volume in volumes {
            let _nobody_reads = volume.core.slow.write();
            if let Some(origin) = volume.core.origin() {
                origin.free();
            }
        }
    }
}

impl Pool {
    /// Gives up what `volume` maps in `range`, which is whole blocks or ends with the volume: for
    /// a volume whose origin was given the same to hold, durably, and shows it.
    ///
    /// # Errors
    /// What stopped the pool.
    pub fn uncover(&self, volume: &ThinVolume, range: ByteRange) -> Result<()> {
        self.shared.check_writable()?;
        let _nobody_rolls_back = volume.core.slow.read();
        volume.drop_tail(range)
    }
}

impl Core {
    /// Whether mappings can be made that count as shared.
    fn has_shared(&self) -> bool {
        self.snapshotted.load(Ordering::SeqCst) > 0
    }
}

/// Where in `range` something shows of the origin of `members`, the one and the same, that is not
/// known to be zeros.
fn shown_data(members: &[&ThinVolume], range: ByteRange) -> Result<Vec<ByteRange>> {
    let origins = members.iter().filter_map(|volume| volume.core.origin());
    let most = |origin: &&Origin| origin.shown(range).len;
    let Some(origin) = origins.max_by_key(most) else { return Ok(Vec::new()) };
    let mut found: Vec<ByteRange> = Vec::new();
    let unit = members[0].shared.block_size.bytes().get();
    let _whole = origin.extents(range, &mut |extent| {
        if !extent.state.reads_zero() {
            // What touches one block twice is looked at once.
            match found.last_mut() {
                Some(last) if last.end().get().div_ceil(unit) > extent.range.start.get() / unit => {
                    *last = ByteRange::between(last.start, extent.range.end());
                }
                _ => found.push(extent.range),
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// The time of a mapping that several devices share, given when each of them last shared anything.
pub(crate) fn shared_time(snapshotted: impl Iterator<Item = Time>) -> Time {
    let first = snapshotted.min().unwrap_or_default();
    Time::new(first.get().saturating_sub(1))
}
