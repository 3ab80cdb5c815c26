//! FULL-IS-NOT-BROKEN: a pool can be made larger in every mode but failure, also when both its
//! spaces are used up, and when its metadata takes no other change.

use block_types::{ByteCount, Error, ErrorKind, Result};
use persistent_data::{BLOCK_SIZE, Transaction};

use crate::allocator::MarkName;
use crate::metadata_room::grow_device;
use crate::mode::Lack;
use crate::pending::{Batch, Op};
use crate::share::Share;
use crate::trees::{Promise, blocks_of};
use crate::worst_case::Demand;
use crate::{EventKind, Pool, PoolMode};

/// Metadata blocks that growing the data of a full pool asks for first.
const FIRST_AID: u64 = 1024;

impl Pool {
    /// Takes over a data device that has grown, or makes it grow to `size` if it can.
    ///
    /// # Errors
    /// `Invalid` where that is smaller than the pool: pools do not shrink. What stops the pool, if
    /// its metadata cannot be written or is somebody else's to write.
    pub fn grow_data(&self, size: ByteCount) -> Result<()> {
        self.check_growable()?;
        let _one_at_a_time = self.growing.lock();
        let block = self.shared.block_size.bytes().get();
        let (blocks, now) = (size.get() / block, self.shared.pending.lock().data_blocks);
        if blocks < now {
            let problem = format!("has {now} data blocks and cannot shrink to {blocks}");
            return Err(Error::new(ErrorKind::Invalid, &*self.shared.name, problem));
        }
        let bytes = ByteCount::new(blocks * block);
        if self.shared.data.size() < bytes {
            self.shared.data.resize(bytes)?;
        }
        self.enter_growth(Op::GrowData { blocks }, Demand::more_data(blocks - now))?;
        self.shared.pending.lock().data_blocks = blocks;
        let mut allocator = self.shared.allocator.lock();
        allocator.grow(blocks);
        allocator.set_mark(MarkName::LowWater, Some(self.shared.condition.settings().low_water));
        drop(allocator);
        if blocks > now {
            self.shared.condition.events.push(EventKind::DataGrown { from: now, to: blocks });
        }
        self.shared.condition.provide(Lack::Data);
        Ok(())
    }

    /// Takes over a metadata device that has grown, or makes it grow to `size` if it can. Metadata
    /// in a file grows by itself as it is needed.
    ///
    /// # Errors
    /// `Invalid` where that is smaller than the metadata, or more than the format can use; else as
    /// [`Pool::grow_data`].
    pub fn grow_metadata(&self, size: ByteCount) -> Result<()> {
        self.check_growable()?;
        let _one_at_a_time = self.growing.lock();
        let trees = self.shared.trees.lock();
        let (_, now) = trees.metadata_blocks();
        let blocks = size.get() / BLOCK_SIZE as u64;
        if !(now..=Transaction::MAX_BLOCKS).contains(&blocks) {
            let most = Transaction::MAX_BLOCKS;
            let problem = format!("has {now} metadata blocks, and may have {most}: not {blocks}");
            return Err(Error::new(ErrorKind::Invalid, &*self.shared.name, problem));
        }
        grow_device(&*trees.metadata, now, blocks)?;
        drop(trees);
        self.enter_growth(Op::GrowMetadata { blocks }, Demand::default())
    }

    fn check_growable(&self) -> Result<()> {
        let summary = self.shared.condition.summary();
        let allows = summary.halt.is_none_or(|halt| halt.why.allows_growing());
        if allows && summary.mode != PoolMode::Fail {
            return Ok(());
        }
        self.shared.check_writable()
    }

    /// Makes `op` durable, whatever state the pool is in.
    fn enter_growth(&self, op: Op, demand: Demand) -> Result<()> {
        if self.shared.condition.check_commits().is_err() {
            return self.grow_halted(op);
        }
        let share = self.share_of_growth(demand)?;
        let generation = {
            let mut pending = self.shared.pending.lock();
            pending.ops.push(op);
            share.enter(&mut pending);
            pending.generation
        };
        self.shared.commit_to(generation)
    }

    /// The metadata that growing needs: from what is kept in reserve, and if need be from metadata
    /// that grows first.
    fn share_of_growth(&self, demand: Demand) -> Result<Share<'_>> {
        let share = self.shared.share_of_commit(demand, true);
        let is_full = share.as_ref().is_err_and(|error| error.kind() == ErrorKind::OutOfSpace);
        if !is_full || demand == Demand::default() {
            return share;
        }
        let trees = self.shared.trees.lock();
        let (_, now) = trees.metadata_blocks();
        let wanted = (now + FIRST_AID).max(blocks_of(&*trees.metadata));
        let grown = grow_device(&*trees.metadata, now, wanted.min(Transaction::MAX_BLOCKS));
        drop(trees);
        let Ok(blocks) = grown else { return share };
        drop(share);
        self.enter_growth(Op::GrowMetadata { blocks }, Demand::default())?;
        self.shared.share_of_commit(demand, true)
    }

    /// Grows a pool that takes no other change: in a transaction of its own on what is durable. The
    /// mark that it needs a check stays.
    fn grow_halted(&self, op: Op) -> Result<()> {
        let mut trees = self.shared.trees.lock();
        // Nothing was tried yet: a device that is not ours to write is no failure of the pool.
        if trees.metadata.limits().read_only {
            self.shared.check_writable()?;
        }
        let (_, before) = trees.metadata_blocks();
        let batch = Batch { ops: vec![op], generation: 0 };
        let promise = Promise { most: u64::MAX, comfortable: 0 };
        let done = trees.reopen().and_then(|()| {
            let roots = trees.prepare(&batch, promise, &mut Vec::new())?;
            trees.publish(&roots)
        });
        if let Err(error) = done {
            drop(trees);
            self.shared.stop(&error);
            return Err(error);
        }
        let _nobody_reads = self.shared.reading.write();
        trees.finish();
        if let Op::GrowMetadata { blocks } = op {
            let event = EventKind::MetadataGrown { from: before, to: blocks };
            self.shared.condition.events.push(event);
        }
        Ok(())
    }
}
