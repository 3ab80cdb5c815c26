//! Blocks that nobody wrote as they are: reading them is refused, and never panics.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use block_types::{ErrorKind, Result};
use persistent_data::btree::{Descend, NoRefs, Node, apply, lookup, release, visit_nodes, walk};
use persistent_data::{
    BLOCK_SIZE, Block, BlockKind, BlockStore, DiskSpaceMap, MetaBlock, SpaceMapRoot, Transaction,
    seal,
};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

/// A node with these entries, as bytes, without a seal.
fn node(flags: u32, value_size: u32, max: u32, entries: &[(u64, u64)]) -> Vec<u8> {
    let mut block = vec![0; BLOCK_SIZE];
    block[4..8].copy_from_slice(&flags.to_le_bytes());
    block[16..20].copy_from_slice(&(entries.len() as u32).to_le_bytes());
    block[20..24].copy_from_slice(&max.to_le_bytes());
    block[24..28].copy_from_slice(&value_size.to_le_bytes());
    for (index, (key, value)) in entries.iter().enumerate() {
        block[32 + 8 * index..][..8].copy_from_slice(&key.to_le_bytes());
        let at = 32 + 8 * max as usize + value_size as usize * index;
        block[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    block
}

const INTERNAL: u32 = 1;
const LEAF: u32 = 2;

/// A device with these blocks, sealed for their places.
fn device(blocks: Vec<(BlockKind, Vec<u8>)>) -> Arc<dyn BlockDevice> {
    let mut image = Vec::new();
    for (number, (kind, mut block)) in blocks.into_iter().enumerate() {
        seal(&mut block, kind, MetaBlock::new(number as u64));
        image.extend(block);
    }
    Arc::new(MemoryDevice::from_bytes("broken", image))
}

fn nodes(nodes: Vec<Vec<u8>>) -> BlockStore {
    let blocks = nodes.into_iter().map(|node| (BlockKind::Node, node)).collect();
    BlockStore::new(device(blocks), 16)
}

fn walk_all(store: &BlockStore) -> Result<()> {
    walk(store, MetaBlock::new(0), 0, &mut |_, _: u64| ControlFlow::Continue(()))
}

fn visit_all(store: &BlockStore) -> Result<()> {
    visit_nodes(store, MetaBlock::new(0), &mut |_, _| Ok(Descend::Yes))
}

fn refused(store: &BlockStore, words: &str) {
    for result in [walk_all(store), visit_all(store)] {
        let error = result.expect_err(words);
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.problem().contains(words), "{error}");
    }
}

#[test]
fn loops_end() {
    let store = nodes(vec![node(INTERNAL, 8, 252, &[(0, 0)])]);
    let error = walk_all(&store).expect_err("a loop");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let error = visit_all(&store).expect_err("a loop");
    assert!(error.problem().contains("twice"), "{error}");
    let error = lookup::<u64>(&store, MetaBlock::new(0), 5).expect_err("a loop");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn a_node_in_two_places_is_found() {
    let leaf = node(LEAF, 8, 252, &[(0, 1)]);
    let store = nodes(vec![node(INTERNAL, 8, 252, &[(0, 1), (10, 1)]), leaf]);
    assert_eq!(walk_all(&store).expect_err("twice").kind(), ErrorKind::Corrupt);
    assert_eq!(visit_all(&store).expect_err("twice").kind(), ErrorKind::Corrupt);
}

#[test]
fn the_rules_of_a_node() {
    let broken = |block: Vec<u8>, words: &str| refused(&nodes(vec![block]), words);
    broken(node(3, 8, 252, &[]), "neither leaf nor internal");
    broken(node(0, 8, 252, &[]), "neither leaf nor internal");
    broken(node(LEAF, 8, 255, &[]), "no room");
    broken(node(LEAF, u32::MAX, u32::MAX, &[]), "no room");
    broken(node(LEAF, 8, 1, &[(0, 0), (1, 0)]), "2 entries in room for 1");
    broken(node(LEAF, 8, 252, &[(5, 0), (5, 0)]), "out of order at entry 1");
    broken(node(LEAF, 8, 252, &[(5, 0), (6, 0), (2, 0)]), "out of order at entry 2");
    broken(node(INTERNAL, 8, 252, &[]), "no children");
    broken(node(INTERNAL, 16, 168, &[(0, 0)]), "16-byte values");
    broken(node(INTERNAL, 8, 252, &[(0, 99)]), "past the end");
    let wrong_size = nodes(vec![node(LEAF, 16, 168, &[(0, 0)])]);
    assert!(walk_all(&wrong_size).expect_err("values").problem().contains("16 bytes, not 8"));
}

#[test]
fn keys_belong_where_their_node_hangs() {
    let root = node(INTERNAL, 8, 252, &[(10, 1), (20, 2)]);
    let right = node(LEAF, 8, 252, &[(25, 0)]);
    let sound = node(LEAF, 8, 252, &[(11, 0), (19, 0)]);
    walk_all(&nodes(vec![root.clone(), sound.clone(), right.clone()])).expect("sound");
    let low = node(LEAF, 8, 252, &[(9, 0), (19, 0)]);
    refused(&nodes(vec![root.clone(), low, right.clone()]), "outside its place");
    let high = node(LEAF, 8, 252, &[(11, 0), (20, 0)]);
    refused(&nodes(vec![root.clone(), high, right]), "outside its place");
    let empty = node(LEAF, 8, 252, &[]);
    refused(&nodes(vec![root, sound, empty]), "empty leaf");
}

#[test]
fn a_damaged_block_says_what_is_wrong() {
    let mut image = vec![0; 3 * BLOCK_SIZE];
    seal(&mut image[BLOCK_SIZE..2 * BLOCK_SIZE], BlockKind::Bitmap, MetaBlock::new(1));
    seal(&mut image[2 * BLOCK_SIZE..], BlockKind::Node, MetaBlock::new(7));
    let store = BlockStore::new(Arc::new(MemoryDevice::from_bytes("pool", image)), 16);
    for (number, words) in [
        (0, "wrong checksum for a B-tree node"),
        (1, "is a space map bitmap where a B-tree node is expected"),
        (2, "says that it is block 7"),
        (3, "past the end"),
        (u64::MAX, "past the end"),
    ] {
        let error = store.read(MetaBlock::new(number), BlockKind::Node).expect_err(words);
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.problem().contains(words), "{error}");
        assert_eq!(error.object(), format!("pool: metadata block {number}"));
    }
}

/// Bytes that look more or less like a block of the format, with small numbers in it.
fn bytes() -> impl Strategy<Value = (BlockKind, Vec<u8>)> {
    let small = prop_oneof![4 => 0..12u64, 1 => any::<u64>()];
    let entries = proptest::collection::vec((0..200u64, small), 0..20);
    let tree = (0..4u32, prop_oneof![Just(8u32), Just(16), Just(4)], 20..90u32, entries).prop_map(
        |(flags, size, max, mut entries)| {
            entries.sort_unstable();
            entries.dedup_by_key(|(key, _)| *key);
            (BlockKind::Node, node(flags, size, max, &entries))
        },
    );
    let numbers = proptest::collection::vec(0..12u64, 510);
    let index = numbers.prop_map(|numbers| {
        let head = [0; 16].into_iter();
        let entries = numbers.into_iter().flat_map(u64::to_le_bytes);
        (BlockKind::Index, head.chain(entries).collect())
    });
    let random = proptest::collection::vec(any::<u8>(), BLOCK_SIZE);
    let kind = prop_oneof![Just(BlockKind::Bitmap), Just(BlockKind::Node), Just(BlockKind::Index)];
    prop_oneof![4 => tree, 1 => index, 2 => (kind, random)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..Default::default() })]

    #[test]
    fn any_block_may_be_taken_for_a_node((_, bytes) in bytes()) {
        let mut block = Block::zeroed();
        block.copy_from_slice(&bytes);
        if let Ok(node) = Node::parse(Arc::new(block), MetaBlock::new(0)) {
            assert_eq!(node.keys().len(), node.len());
            let _ = (node.search(7), node.child_for(7));
            if node.value_size() == 8 {
                let _: Vec<u64> = (0..node.len()).map(|index| node.value(index)).collect();
            }
        }
    }

    #[test]
    fn broken_devices_are_refused(
        blocks in proptest::collection::vec(bytes(), 12),
        bitmap_root in 0..12u64,
        ref_count_root in 0..12u64,
        nr_blocks in prop_oneof![0..13u64, any::<u64>()],
    ) {
        let store = Arc::new(BlockStore::new(device(blocks), 16));
        let root = SpaceMapRoot {
            nr_blocks: nr_blocks.into(),
            nr_allocated: 0.into(),
            bitmap_root: bitmap_root.into(),
            ref_count_root: ref_count_root.into(),
        };
        let _ = DiskSpaceMap::open(&store, &root);
        let _ = Transaction::open(Arc::clone(&store), &root);
        for number in 0..12 {
            let at = MetaBlock::new(number);
            let _ = lookup::<u64>(&store, at, 100);
            let _ = walk(&store, at, 3, &mut |_, _: u64| ControlFlow::Continue(()));
            let _ = visit_nodes(&store, at, &mut |_, _| Ok(Descend::Yes));
        }
    }

    /// Trees whose nodes are sound one by one, in a pool whose counts know nothing of them.
    #[test]
    fn changing_a_broken_tree_fails_at_worst(
        blocks in proptest::collection::vec(bytes(), 12),
        root in 0..12u64,
        counts in proptest::collection::vec(0..4u32, 12),
        keys in proptest::collection::btree_map(0..250u64, any::<bool>(), 1..40),
    ) {
        let scratch = Arc::new(BlockStore::new(device(blank(40)), 16));
        let mut txn = Transaction::format(scratch, 40).expect("format");
        let (space_map, map) = spread(&mut txn, &counts);
        let changes: Vec<(u64, Option<u64>)> =
            keys.into_iter().map(|(key, set)| (key, set.then_some(1))).collect();
        write_over(&txn, &map, blocks);
        let store = Arc::new(BlockStore::new(Arc::clone(txn.store().device()), 16));
        let mut txn = Transaction::open(store, &space_map).expect("the counts are sound");
        let _ = apply(&mut txn, map[root as usize], &changes, &mut NoRefs);
        let _ = release::<u64, _>(&mut txn, map[root as usize], &mut NoRefs);
        let _ = txn.seal();
    }
}

fn blank(blocks: usize) -> Vec<(BlockKind, Vec<u8>)> {
    vec![(BlockKind::Node, vec![0; BLOCK_SIZE]); blocks]
}

/// Takes a block for each of `counts`, and commits with those counts; blocks with 0 are free.
fn spread(txn: &mut Transaction, counts: &[u32]) -> (SpaceMapRoot, Vec<MetaBlock>) {
    let mut map = Vec::new();
    for &count in counts {
        let at = txn.alloc().expect("alloc");
        txn.put(at, BlockKind::Node, Block::zeroed()).expect("put");
        (1..count).for_each(|_| txn.inc(at));
        map.push(at);
    }
    txn.seal().expect("seal");
    txn.write().expect("write");
    txn.finish();
    for (&at, _) in map.iter().zip(counts).filter(|(_, count)| **count == 0) {
        txn.dec(at);
    }
    let root = txn.seal().expect("seal");
    txn.write().expect("write");
    txn.finish();
    (root, map)
}

/// Puts `blocks` where `map` says, with their pointers moved along.
fn write_over(txn: &Transaction, map: &[MetaBlock], blocks: Vec<(BlockKind, Vec<u8>)>) {
    for (&at, (kind, mut block)) in map.iter().zip(blocks) {
        let internal = kind == BlockKind::Node && block[4..8] == INTERNAL.to_le_bytes();
        let max = u32::from_le_bytes(block[20..24].try_into().expect("four bytes")) as usize;
        for place in (0..if internal && max < 90 { max } else { 0 }).map(|i| 32 + 8 * (max + i)) {
            let old = u64::from_le_bytes(block[place..place + 8].try_into().expect("eight bytes"));
            let new = map.get(old as usize).map_or(old, |at| at.get());
            block[place..place + 8].copy_from_slice(&new.to_le_bytes());
        }
        seal(&mut block, kind, at);
        let device = txn.store().device();
        device.write_at(&block, at.offset().expect("small")).expect("write");
    }
}
