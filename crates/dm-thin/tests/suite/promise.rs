//! FULL-IS-NOT-BROKEN: no commit takes more metadata than admission promised it. Every commit of a
//! debug build checks that itself; here are trees of three levels, shared in many ways, for it.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::{BlockDevice, Limits, MemoryDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Extent, Result};
use dm_thin::{BlockSize, Change, OpenOptions, Pool, ThinVolume};
use testkit::rng::Rng;

use crate::common::{BLOCK, id};

/// Blocks of a volume: three levels of nodes.
const BLOCKS: u64 = 1 << 17;

/// A data device of so many blocks that keeps nothing.
pub(crate) struct Hollow(pub(crate) u64);

impl BlockDevice for Hollow {
    fn name(&self) -> &str {
        "data"
    }

    fn size(&self) -> ByteCount {
        ByteCount::new(self.0 * BLOCK)
    }

    fn limits(&self) -> Limits {
        let one = ByteCount::new(1);
        Limits { minimum: one, preferred: one, read_only: false, discards: true, zeroes_fast: true }
    }

    fn read_at(&self, buffer: &mut [u8], _: ByteOffset) -> Result<()> {
        buffer.fill(0);
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: ByteOffset) -> Result<()> {
        Ok(())
    }

    fn zero(&self, _: ByteRange, _: ZeroMode) -> Result<()> {
        Ok(())
    }

    fn discard(&self, _: ByteRange) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extents(&self, _: ByteRange, _: &mut dyn FnMut(Extent) -> ControlFlow<()>) -> Result<()> {
        Ok(())
    }
}

fn write(volume: &ThinVolume, block: u64) {
    volume.write_at(&[1; 512], ByteOffset::new(block * BLOCK)).expect("written");
}

fn block(at: u64) -> ByteRange {
    ByteRange::new(ByteOffset::new(at * BLOCK), ByteCount::new(BLOCK))
}

#[test]
fn no_commit_takes_more_than_was_promised() {
    let metadata: Arc<dyn BlockDevice> =
        Arc::new(MemoryDevice::new("metadata", ByteCount::new(256 << 20)));
    let size = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
    Pool::format(&metadata, &Hollow(64 * BLOCKS), size).expect("formatted");
    let options = OpenOptions { background: false, ..OpenOptions::default() };
    let pool =
        Pool::open("pool", metadata, Arc::new(Hollow(64 * BLOCKS)), options).expect("opened");
    let open = |number| {
        let size = ByteCount::new(BLOCKS * BLOCK);
        pool.open_volume(id(number), "thin", size, false).expect("opened")
    };
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let origin = open(0);
    // Every other block in order, so that later ones split leaves everywhere.
    (0..BLOCKS).step_by(2).for_each(|at| write(&origin, at));
    let mut rng = Rng::new(7);
    let mut alive = vec![0];
    for round in 1..24 {
        let origin_id = *rng.pick(&alive);
        pool.change(&[Change::CreateSnapshot { id: id(round), origin: id(origin_id) }])
            .expect("taken");
        alive.push(round);
        let volume = open(round);
        // One change a commit, then some, then many, over all and close together.
        for (changes, span) in [(1, BLOCKS), (1, BLOCKS), (9, BLOCKS), (400, BLOCKS), (400, 900)] {
            let from = rng.within(0..BLOCKS - span + 1);
            for _ in 0..changes {
                let target = if rng.chance(1, 3) { &origin } else { &volume };
                let at = from + rng.within(0..span);
                if rng.chance(1, 4) {
                    target.discard(block(at)).expect("discarded");
                } else {
                    write(target, at);
                }
            }
            pool.commit().expect("committed");
        }
        drop(volume);
        if round % 3 == 0 {
            let gone = alive.remove(1 + rng.index(alive.len() - 1));
            pool.change(&[Change::Delete(id(gone))]).expect("deleted");
        }
    }
}

/// A tree that goes takes away one reference from each block that its own leaves name. Where those
/// blocks have many others, that changes an entry of the tree of large counts for each of them.
#[test]
fn letting_go_of_what_is_shared_widely_keeps_the_promise() {
    let metadata: Arc<dyn BlockDevice> =
        Arc::new(MemoryDevice::new("metadata", ByteCount::new(64 << 20)));
    let size = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
    Pool::format(&metadata, &Hollow(BLOCKS), size).expect("formatted");
    let options = OpenOptions { background: false, ..OpenOptions::default() };
    let pool = Pool::open("pool", metadata, Arc::new(Hollow(BLOCKS)), options).expect("opened");
    let open = |number| {
        let size = ByteCount::new(BLOCKS * BLOCK);
        pool.open_volume(id(number), "thin", size, false).expect("opened")
    };
    pool.change(&[Change::CreateThin(id(0))]).expect("made");
    let origin = open(0);
    (0..BLOCKS / 4).for_each(|at| write(&origin, at));
    for round in 1..7 {
        pool.change(&[Change::CreateSnapshot { id: id(round), origin: id(0) }]).expect("taken");
        let volume = open(round);
        // One block of each leaf, which makes the leaf the snapshot's own.
        (0..BLOCKS / 4).step_by(60).for_each(|at| write(&volume, at));
        pool.commit().expect("committed");
    }
    pool.change(&[Change::ReserveMetadataSnapshot]).expect("held");
    (0..BLOCKS / 4).step_by(60).for_each(|at| write(&origin, at));
    pool.commit().expect("committed");
    pool.change(&[Change::Delete(id(3))]).expect("deleted");
    pool.change(&[Change::ReleaseMetadataSnapshot]).expect("released");
    pool.change(&[Change::Delete(id(4))]).expect("deleted");
    pool.change(&[Change::Rollback { id: id(5), source: id(1) }]).expect("rolled back");
}
