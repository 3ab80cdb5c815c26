//! Allocating, running out, and growing.

use std::collections::BTreeSet;
use std::sync::Arc;

use block_io::MemoryDevice;
use block_types::{ByteCount, ErrorKind};
use persistent_data::btree::{NoRefs, apply, empty, walk};
use persistent_data::{
    BLOCK_SIZE, Block, BlockKind, BlockStore, DiskSpaceMap, MetaBlock, SpaceMapRoot, Transaction,
};

use crate::model::memory;
use crate::recount;
use crate::world::{World, mapping};

fn format(blocks: u64) -> Transaction {
    let store = Arc::new(BlockStore::new(memory(blocks), 64));
    Transaction::format(store, blocks).expect("format")
}

fn commit(txn: &mut Transaction) -> SpaceMapRoot {
    let root = txn.seal().expect("seal");
    txn.write().expect("write");
    txn.finish();
    root
}

fn fill(txn: &mut Transaction) -> MetaBlock {
    let at = txn.alloc().expect("alloc");
    txn.put(at, BlockKind::Node, Block::zeroed()).expect("put");
    at
}

#[test]
fn a_full_device_is_an_answer() {
    let mut txn = format(40);
    commit(&mut txn);
    while txn.free_blocks() > 0 {
        txn.alloc().expect("there is a free block");
    }
    let error = txn.alloc().expect_err("there is none");
    assert_eq!(error.kind(), ErrorKind::OutOfSpace);
    assert!(error.advice().is_some());
    let root = empty::<u64>(&mut txn).expect_err("no tree either");
    assert_eq!(root.kind(), ErrorKind::OutOfSpace);
}

#[test]
fn a_commit_that_does_not_fit_is_an_answer() {
    let mut world = World::format(memory(60), 100_000).expect("format");
    world.create(0).expect("create");
    let mut stopped = None;
    for round in 0..100 {
        let changes: Vec<_> =
            (0..200).map(|i| (round * 200 + i, Some(mapping(round * 200 + i)))).collect();
        if let Err(error) = world.map(0, &changes).and_then(|()| world.commit()) {
            stopped = Some(error.kind());
            break;
        }
    }
    assert_eq!(stopped, Some(ErrorKind::OutOfSpace));
    // What was committed before is as it was.
    recount::check(&world.device).expect("sound");
    World::open(Arc::clone(&world.device)).expect("open").contents().expect("readable");
}

#[test]
fn blocks_of_a_transaction_lie_side_by_side() {
    let mut txn = format(1000);
    commit(&mut txn);
    let first = fill(&mut txn).get();
    for distance in 1..50 {
        assert_eq!(fill(&mut txn).get(), first + distance);
    }
    commit(&mut txn);
    assert_eq!(fill(&mut txn).get(), first + 52, "behind the index and the bitmap");
}

/// FREE-LATE: a block of the committed state is taken again only after the commit that freed it,
/// also where it is the first one that looks free.
#[test]
fn a_freed_block_waits_for_its_commit() {
    let mut txn = format(64);
    let kept: Vec<MetaBlock> = (0..40).map(|_| fill(&mut txn)).collect();
    commit(&mut txn);
    // The search has come to the end of the device, and goes on at its beginning.
    let behind: Vec<MetaBlock> = (0..txn.free_blocks()).map(|_| fill(&mut txn)).collect();
    assert!(behind.iter().all(|&at| txn.dec(at) == 0));
    let free = txn.free_blocks();
    assert!(kept.iter().all(|&at| txn.dec(at) == 0));
    assert_eq!(txn.free_blocks(), free, "freed blocks are not free yet");
    let freed: BTreeSet<MetaBlock> = kept.into_iter().collect();
    let taken: Vec<MetaBlock> = (2..free).map(|_| fill(&mut txn)).collect();
    assert!(taken.iter().all(|at| !freed.contains(at)), "a block was reused too early");
    commit(&mut txn);
    let again: Vec<MetaBlock> = (0..20).map(|_| txn.alloc().expect("alloc")).collect();
    assert!(again.iter().any(|at| freed.contains(at)), "freed blocks come back");
}

/// A block that was taken and given up in one transaction was free before: nobody has to wait.
#[test]
fn a_fresh_block_comes_back_at_once() {
    let mut txn = format(30);
    commit(&mut txn);
    for _ in 0..1000 {
        let at = fill(&mut txn);
        assert_eq!(txn.dec(at), 0);
    }
}

#[test]
fn an_impossible_count_stops_the_commit() {
    for spoil in [
        |txn: &mut Transaction| txn.inc(MetaBlock::new(60)),
        |txn: &mut Transaction| assert_eq!(txn.dec(MetaBlock::new(60)), 0),
        |txn: &mut Transaction| txn.inc(MetaBlock::new(1 << 50)),
    ] {
        let mut txn = format(64);
        commit(&mut txn);
        spoil(&mut txn);
        let error = txn.seal().expect_err("the counts are wrong");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    let mut txn = format(64);
    let mut data = DiskSpaceMap::format(&mut txn, 100).expect("format");
    assert_eq!(data.dec(5), 0);
    assert_eq!(data.commit(&mut txn).expect_err("wrong").kind(), ErrorKind::Corrupt);
}

#[test]
fn only_blocks_of_the_transaction_are_written() {
    let mut txn = format(64);
    let at = fill(&mut txn);
    commit(&mut txn);
    let error = txn.put(at, BlockKind::Node, Block::zeroed()).expect_err("committed");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let at = txn.alloc().expect("alloc");
    assert_eq!(txn.seal().expect_err("no content").kind(), ErrorKind::Invalid, "block {at}");
}

#[test]
fn the_metadata_grows_past_a_bitmap() {
    let device = memory(100);
    let mut world = World::format(Arc::clone(&device), 1000).expect("format");
    world.create(0).expect("create");
    world.commit().expect("commit");
    let error = world.txn.extend(20_000).expect_err("the device is too small");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    device.resize(ByteCount::new(20_000 * BLOCK_SIZE as u64)).expect("resize");
    world.txn.extend(20_000).expect("extend");
    assert_eq!(world.txn.extend(100).expect_err("no way back").kind(), ErrorKind::Invalid);
    world.commit().expect("commit");
    let taken = (0..17_000).map(|_| fill(&mut world.txn)).last().expect("blocks");
    assert!(taken.get() > 16_320);
    let mut world = World::open(device).expect("open");
    assert_eq!(world.txn.nr_blocks(), 20_000);
    world.create(1).expect("create");
    world.commit().expect("commit");
    recount::check(&world.device).expect("sound");
}

#[test]
fn the_format_ends_somewhere() {
    let blocks = Transaction::MAX_BLOCKS;
    assert_eq!(blocks, 4_161_600);
    let mut root = SpaceMapRoot { nr_blocks: (blocks + 1).into(), ..format_root() };
    let store = Arc::new(BlockStore::new(memory(64), 64));
    let error = Transaction::open(Arc::clone(&store), &root).expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    root.nr_blocks = 65.into();
    let error = Transaction::open(store, &root).expect_err("larger than the device");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

fn format_root() -> SpaceMapRoot {
    commit(&mut format(64))
}

#[test]
fn the_data_device_grows() {
    let mut world = World::format(memory(500), 10).expect("format");
    world.create(0).expect("create");
    let changes: Vec<_> = (0..10).map(|i| (i, Some(mapping(i)))).collect();
    world.map(0, &changes).expect("map");
    world.commit().expect("commit");
    assert_eq!(world.data.counts().next_free(0), None);
    world.data.extend(50_000);
    assert!(world.data.counts().free_runs().eq(std::iter::once(10..50_000)));
    world.map(0, &[(10, Some(mapping(49_999)))]).expect("map");
    world.commit().expect("commit");
    recount::check(&world.device).expect("sound");
    let again = World::open(Arc::clone(&world.device)).expect("open");
    assert_eq!(again.data.nr_blocks(), 50_000);
    assert_eq!((again.data.get(49_999), again.data.get(49_998)), (1, 0));
}

/// Counts beyond a byte live in the tree of large counts like all from 3 on.
#[test]
fn large_counts_survive() {
    let mut world = World::format(memory(500), 100_000).expect("format");
    for (block, count) in [(5u64, 2u32), (6, 3), (7, 255), (99_999, 70_000)] {
        (1..=count).for_each(|count| assert_eq!(world.data.inc(block), count));
    }
    world.commit().expect("commit");
    let mut again = World::open(Arc::clone(&world.device)).expect("open");
    assert_eq!(again.data.counts(), world.data.counts());
    assert_eq!(again.data.counts().overflowing(), 3);
    again.data.dec(6);
    (1..70_000).rev().for_each(|count| assert_eq!(again.data.dec(99_999), count));
    again.commit().expect("commit");
    let last = World::open(Arc::clone(&world.device)).expect("open");
    let used: Vec<_> = last.data.counts().used().collect();
    assert_eq!(used, [(5, 2), (6, 2), (7, 255), (99_999, 1)]);
}

/// Batches on a device that a file backs with more than the cache holds read back the same.
#[test]
fn trees_larger_than_the_cache() {
    let device = Arc::new(MemoryDevice::new("metadata", ByteCount::new(16 << 20)));
    let store = Arc::new(BlockStore::new(device, 8));
    let mut txn = Transaction::format(store, 4096).expect("format");
    let mut root = empty::<u64>(&mut txn).expect("empty");
    for round in 0..10u64 {
        let changes: Vec<_> = (0..5000).map(|i| (i * 10 + round, Some(i + round))).collect();
        root = apply(&mut txn, root, &changes, &mut NoRefs).expect("apply").root;
        commit(&mut txn);
    }
    let mut keys = 0;
    walk(&txn, root, 0, &mut |key, value: u64| {
        assert_eq!((key, value), (keys, keys / 10 + keys % 10));
        keys += 1;
        std::ops::ControlFlow::Continue(())
    })
    .expect("walk");
    assert_eq!(keys, 50_000);
}
