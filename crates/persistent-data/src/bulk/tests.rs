//! Walks of random trees that share nodes, held against what the transaction has counted.

use std::collections::HashSet;
use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use block_types::ByteCount;
use proptest::prelude::{ProptestConfig, any};
use proptest::proptest;

use super::{Bitmaps, BulkReader, Counted, Forest, Mismatches, NodeKind, RefCounter, TreeKind};
use crate::btree::{ValueRefs, apply, empty};
use crate::{BLOCK_SIZE, BlockKind, BlockStore, DiskSpaceMap, MetaBlock, Transaction, seal};

const TREES: TreeKind = TreeKind { id: 1, value_size: 8 };
const LARGE: TreeKind = TreeKind { id: 2, value_size: 4 };
const INDEX: TreeKind = TreeKind { id: 3, value_size: 16 };
const DATA_BLOCKS: u64 = 20_000;

/// Values are blocks of another device.
struct Blocks<'m>(&'m mut DiskSpaceMap);

impl ValueRefs<u64> for Blocks<'_> {
    fn inc(&mut self, _: &mut Transaction, value: u64) -> block_types::Result<()> {
        self.0.inc(value);
        Ok(())
    }

    fn dec(&mut self, _: &mut Transaction, value: u64) -> block_types::Result<()> {
        self.0.dec(value);
        Ok(())
    }
}

/// A device with some trees, and what its maps say.
struct World {
    device: Arc<dyn BlockDevice>,
    txn: Transaction,
    map: DiskSpaceMap,
    roots: Vec<(MetaBlock, u64)>,
}

impl World {
    /// Trees that are copied and changed as `steps` say.
    fn new(steps: &[(u8, u16, u16)]) -> Self {
        let size = ByteCount::new(600 * BLOCK_SIZE as u64);
        let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new("trees", size));
        let store = Arc::new(BlockStore::new(Arc::clone(&device), 64));
        let mut txn = Transaction::format(store, 600).expect("formatted");
        let mut map = DiskSpaceMap::format(&mut txn, DATA_BLOCKS).expect("formatted");
        let mut roots = vec![(empty::<u64>(&mut txn).expect("room"), 0)];
        for &(tree, from, len) in steps {
            let at = usize::from(tree) % roots.len();
            if tree > 100 && roots.len() < 6 {
                txn.inc(roots[at].0);
                roots.push(roots[at]);
            }
            let (from, len) = (u64::from(from) * 4, u64::from(len % 700) + 1);
            let block = |key: u64| (key * 7 + u64::from(tree)) % DATA_BLOCKS;
            let changes: Vec<_> = (from..from + len).map(|key| (key, Some(block(key)))).collect();
            let (root, entries) = roots[at];
            let applied = apply(&mut txn, root, &changes, &mut Blocks(&mut map)).expect("room");
            roots[at] = (applied.root, entries + applied.inserted - applied.removed);
        }
        Self { device, txn, map, roots }
    }

    fn forest(&self) -> Forest {
        Forest::new(BulkReader::new(Arc::clone(&self.device)))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_walk_counts_what_the_transaction_counts(
        steps in proptest::collection::vec((any::<u8>(), any::<u16>(), any::<u16>()), 1..20)
    ) {
        let World { device, mut txn, mut map, roots } = World::new(&steps);
        let data_root = map.commit(&mut txn).expect("room");
        let root = txn.seal().expect("sealed");
        txn.write().expect("written");
        let world = World { device, txn, map, roots };
        let counter = RefCounter::new(DATA_BLOCKS);
        let mut forest = world.forest();
        let tops: Vec<MetaBlock> = world.roots.iter().map(|(root, _)| *root).collect();
        let walked = forest.walk(tops, TREES, || (), |(), leaf| {
            leaf.entries::<u64>().for_each(|(key, block)| _ = counter.refer(block, key));
        });
        assert!(walked.problems.is_empty(), "{:?}", walked.problems);
        for (block, count) in world.map.counts().used() {
            assert_eq!(counter.count(block), count, "data block {block}");
        }
        // The maps themselves.
        let at = |block: u64| MetaBlock::new(block);
        let walked = forest.walk([at(data_root.bitmap_root.get())], INDEX, Vec::new, |found, leaf| {
            found.extend(leaf.entries::<crate::space_map::IndexEntry>());
        });
        let mut places: Vec<_> = walked.states.into_iter().flatten().collect();
        places.sort_unstable_by_key(|(key, _)| *key);
        let places: Vec<_> = places.iter().map(|(_, entry)| at(entry.bitmap.get())).collect();
        places.iter().for_each(|at| _ = forest.refer(*at));
        let (bitmaps, broken) = Bitmaps::read(forest.reader(), &places, DATA_BLOCKS);
        assert!(broken.is_empty());
        let mut found = Mismatches::new(10);
        bitmaps.compare(&counter, &mut found);
        let large = [at(data_root.ref_count_root.get())];
        let large = forest.walk(large, LARGE, Vec::new, |found, leaf| {
            found.extend(leaf.entries::<u32>());
        });
        for entry in large.states.into_iter().flatten() {
            assert_eq!(bitmaps.compare_large(entry, &counter, &mut found), None);
        }
        assert_eq!((found.lows, found.highs, bitmaps.without_large(1).1), (0, 0, 0));
        assert_eq!(bitmaps.allocated(), world.map.allocated());
        forest.walk([at(root.ref_count_root.get())], LARGE, || (), |(), _| ());
        [0, root.bitmap_root.get()].into_iter().for_each(|block| _ = forest.refer(at(block)));
        world.txn.bitmaps().for_each(|at| _ = forest.refer(at));
        for block in 0..600 {
            assert_eq!(forest.references(at(block)), world.txn.count(at(block)), "block {block}");
        }
        let (settled, misplaced) = forest.settle();
        assert!(misplaced.is_empty(), "{misplaced:?}");
        for (root, entries) in &world.roots {
            assert!(settled.is_sound(*root));
            assert_eq!(settled.entries(*root), *entries);
            let leaves = forest.leaves(*root);
            assert!(leaves.iter().all(|leaf| forest.kind(*leaf) == Some(NodeKind::Leaf)));
            let places: Vec<u64> = leaves.iter().map(|leaf| forest.place(*leaf).0).collect();
            assert!(places.is_sorted());
        }
    }
}

/// A node with these entries, sealed for its place.
fn node(at: u64, flags: u8, entries: &[(u64, u64)]) -> Vec<u8> {
    let mut block = vec![0; BLOCK_SIZE];
    block[4] = flags;
    block[16..20].copy_from_slice(&(entries.len() as u32).to_le_bytes());
    block[20..24].copy_from_slice(&252_u32.to_le_bytes());
    block[24..28].copy_from_slice(&8_u32.to_le_bytes());
    for (place, (key, value)) in entries.iter().enumerate() {
        block[32 + 8 * place..][..8].copy_from_slice(&key.to_le_bytes());
        block[32 + 8 * (252 + place)..][..8].copy_from_slice(&value.to_le_bytes());
    }
    seal(&mut block, BlockKind::Node, MetaBlock::new(at));
    block
}

/// A forest of these nodes, the first at block 0, with its tree at block 0 walked; and what is
/// wrong with it.
fn walked(nodes: &[(u8, &[(u64, u64)])]) -> (Forest, Vec<String>) {
    let nodes = (0..).zip(nodes).map(|(at, (flags, entries))| node(at, *flags, entries));
    let image: Vec<u8> = nodes.flatten().collect();
    let device = Arc::new(MemoryDevice::from_bytes("nodes", image));
    let mut forest = Forest::new(BulkReader::new(device));
    let walked = forest.walk([MetaBlock::new(0)], TREES, || (), |(), _| ());
    let mut problems = walked.problems;
    problems.extend(forest.settle().1);
    (forest, problems.iter().map(ToString::to_string).collect())
}

#[test]
fn hostile_trees_end() {
    const INTERNAL: u8 = 1;
    const LEAF: u8 = 2;
    let says = |nodes: &[(u8, &[(u64, u64)])], words: &str| {
        let (_, problems) = walked(nodes);
        assert!(problems.iter().any(|problem| problem.contains(words)), "{words}: {problems:?}");
    };
    says(&[(INTERNAL, &[(0, 0)])], "itself below it");
    says(&[(INTERNAL, &[(0, 1)]), (INTERNAL, &[(0, 0)])], "itself below it");
    let twice: &[(u64, u64)] = &[(0, 1), (10, 1)];
    says(&[(INTERNAL, twice), (LEAF, &[(0, 1)])], "outside its place");
    says(&[(INTERNAL, &[(0, 1)]), (LEAF, &[])], "empty leaf");
    says(&[(INTERNAL, &[(0, 7)])], "past the end");
    let uneven: [(u8, &[(u64, u64)]); 4] = [
        (INTERNAL, &[(0, 1), (10, 2)]),
        (INTERNAL, &[(0, 3)]),
        (LEAF, &[(10, 0)]),
        (LEAF, &[(0, 0)]),
    ];
    says(&uneven, "different heights");
    // The key of a grandchild lies behind what its parent's parent allows.
    let deep: [(u8, &[(u64, u64)]); 5] = [
        (INTERNAL, &[(0, 1), (10, 2)]),
        (INTERNAL, &[(0, 3)]),
        (INTERNAL, &[(10, 4)]),
        (LEAF, &[(0, 0), (11, 0)]),
        (LEAF, &[(10, 0)]),
    ];
    says(&deep, "outside its place");
    let chain: Vec<[(u64, u64); 1]> = (1..40).map(|next| [(0, next)]).collect();
    let mut nodes: Vec<(u8, &[(u64, u64)])> =
        chain.iter().map(|entry| (INTERNAL, &entry[..])).collect();
    nodes.push((LEAF, &[(0, 0)]));
    says(&nodes, "levels below a root");
}

#[test]
fn what_is_wrong_is_found_by_its_tree_and_its_path() {
    let (forest, problems) = walked(&[(1, &[(0, 1), (10, 2)]), (2, &[(0, 5)]), (7, &[])]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    let at = MetaBlock::new;
    assert_eq!(forest.path(at(2)), [at(0), at(2)]);
    assert_eq!((forest.place(at(1)), forest.place(at(2))), ((0, 9), (10, u64::MAX)));
    let (settled, _) = forest.settle();
    assert!(!settled.is_sound(at(0)) && settled.is_sound(at(1)));
    assert_eq!(settled.faulty_of(at(0), &HashSet::from([at(2)])), [at(2)]);
    assert_eq!(settled.faulty_of(at(1), &HashSet::from([at(2)])), []);
    assert_eq!(forest.leaves(at(0)), [at(1)]);
    assert_eq!(forest.leaf_for(at(0), 5), Some(at(1)));
    assert_eq!(forest.leaf_for(at(0), 15), None);
}

#[test]
fn counts_that_are_wrong_are_told_apart() {
    let world = World::new(&[(0, 0, 500)]);
    let World { device, mut txn, mut map, .. } = world;
    for _ in 0..5 {
        map.inc(0);
    }
    let root = map.commit(&mut txn).expect("room");
    txn.seal().expect("sealed");
    txn.write().expect("written");
    let store = BlockStore::new(Arc::clone(&device), 16);
    let index = MetaBlock::new(root.bitmap_root.get());
    let entry: crate::space_map::IndexEntry =
        crate::btree::lookup(&store, index, 0).expect("read").expect("there");
    let reader = BulkReader::new(device);
    let bitmaps = Bitmaps::read(&reader, &[MetaBlock::new(entry.bitmap.get())], 16320).0;
    let counter = RefCounter::new(16320);
    (0..3).for_each(|_| _ = counter.refer(9, 0));
    let mut found = Mismatches::new(1);
    bitmaps.compare(&counter, &mut found);
    assert_eq!((found.lows, found.high.len()), (1, 1));
    assert!(found.highs > 400);
    assert_eq!((found.low[0].block, found.low[0].said, found.low[0].counted), (9, 0, 3));
    assert_eq!(bitmaps.without_large(9), (vec![0], 1));
    assert_eq!(bitmaps.compare_large((0, 6), &counter, &mut found), None);
    assert_eq!(bitmaps.without_large(9), (vec![], 0));
    assert!(bitmaps.compare_large((0, 2), &counter, &mut found).is_some());
    // An entry for a count that has become small again is nobody's.
    assert_eq!(bitmaps.compare_large((9, 77), &counter, &mut found), None);
}
