//! Random work on trees, held against ordinary maps. After every commit everything is counted anew
//! and read anew.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, Result};
use persistent_data::btree::{
    Descend, NoRefs, Node, Record, apply, empty, lookup, max_entries, release, visit_nodes, walk,
};
use persistent_data::{BLOCK_SIZE, BlockStore, MetaBlock, Transaction};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::recount;
use crate::world::{World, contents, held_superblock, mapping};

/// A batch of changes of one tree.
#[derive(Clone, Debug)]
pub(crate) enum Batch {
    /// Every `step`-th key from `start` on, `len` of them.
    Fill { start: u64, len: u64, step: u64 },
    /// Keys behind all that are there.
    Append { len: u64 },
    /// Keys all over the range.
    Scatter { seed: u64, len: u64 },
    /// Removes every key of a range.
    Cut { start: u64, len: u64 },
    /// Removes all keys but every `step`-th.
    Thin { step: u64 },
}

/// Keys of a batch lie below this; only appending goes further.
const SPAN: u64 = 30_000;

impl Batch {
    /// The keys, ascending, and whether they get a value or lose it.
    pub(crate) fn keys<V>(&self, map: &BTreeMap<u64, V>) -> (Vec<u64>, bool) {
        let end = map.keys().next_back().map_or(0, |last| last + 1);
        match *self {
            Self::Fill { start, len, step } => ((0..len).map(|i| start + i * step).collect(), true),
            Self::Append { len } => ((end..end + len).collect(), true),
            Self::Scatter { seed, len } => {
                let mut keys: Vec<u64> = (0..len).map(|i| scramble(seed + i) % SPAN).collect();
                keys.sort_unstable();
                keys.dedup();
                (keys, true)
            }
            Self::Cut { start, len } => ((start..start + len).collect(), false),
            Self::Thin { step } => (
                map.keys().copied().filter(|key| !scramble(*key).is_multiple_of(step)).collect(),
                false,
            ),
        }
    }
}

fn scramble(value: u64) -> u64 {
    let mixed = (value ^ value >> 31).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 7
}

pub(crate) fn batch() -> impl Strategy<Value = Batch> {
    prop_oneof![
        (0..SPAN, 1..4000u64, 1..5u64).prop_map(|(start, len, step)| Batch::Fill {
            start,
            len,
            step
        }),
        (1..600u64).prop_map(|len| Batch::Append { len }),
        (any::<u32>(), 1..300u64)
            .prop_map(|(seed, len)| Batch::Scatter { seed: u64::from(seed), len }),
        (0..SPAN, 1..8000u64).prop_map(|(start, len)| Batch::Cut { start, len }),
        (2..200u64).prop_map(|step| Batch::Thin { step }),
    ]
}

/// What is done to a pool. Volumes are picked by number, modulo how many there are.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create,
    Snapshot(usize),
    Delete(usize),
    Map(usize, Batch),
    Hold,
    Commit,
    Reopen,
}

pub(crate) fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => Just(Op::Create),
        3 => any::<usize>().prop_map(Op::Snapshot),
        1 => any::<usize>().prop_map(Op::Delete),
        8 => (any::<usize>(), batch()).prop_map(|(volume, batch)| Op::Map(volume, batch)),
        1 => Just(Op::Hold),
        3 => Just(Op::Commit),
        1 => Just(Op::Reopen),
    ]
}

/// The mappings of all volumes.
pub(crate) type Contents = BTreeMap<u64, BTreeMap<u64, u64>>;

/// A pool and what it should hold.
pub(crate) struct Model {
    pub(crate) world: World,
    pub(crate) volumes: Contents,
    held: Option<Contents>,
    next_id: u64,
    next_data: u64,
}

impl Model {
    pub(crate) fn new(device: Arc<dyn BlockDevice>, data_blocks: u64) -> Self {
        let world = World::format(device, data_blocks).expect("format");
        Self { world, volumes: BTreeMap::new(), held: None, next_id: 0, next_data: 0 }
    }

    /// Runs one operation; an error leaves the pool useless until it is opened again.
    pub(crate) fn run(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Create => {
                self.world.create(self.next_id)?;
                self.volumes.insert(self.next_id, BTreeMap::new());
                self.next_id += 1;
            }
            Op::Snapshot(pick) => {
                let Some(origin) = self.pick(*pick) else { return Ok(()) };
                self.world.snapshot(origin, self.next_id)?;
                self.volumes.insert(self.next_id, self.volumes[&origin].clone());
                self.next_id += 1;
            }
            Op::Delete(pick) => {
                let Some(id) = self.pick(*pick) else { return Ok(()) };
                self.world.delete(id)?;
                self.volumes.remove(&id);
            }
            Op::Map(pick, batch) => {
                let Some(id) = self.pick(*pick) else { return Ok(()) };
                self.map(id, batch)?;
            }
            Op::Hold if self.held.is_some() => {
                self.world.let_go()?;
                self.held = None;
            }
            Op::Hold => {
                self.world.hold()?;
                self.held = Some(self.volumes.clone());
            }
            Op::Commit => self.commit(),
            Op::Reopen => {
                self.commit();
                self.world = World::open(Arc::clone(&self.world.device))?;
            }
        }
        Ok(())
    }

    fn pick(&self, pick: usize) -> Option<u64> {
        self.volumes.keys().nth(pick % self.volumes.len().max(1)).copied()
    }

    fn map(&mut self, id: u64, batch: &Batch) -> Result<()> {
        let map = self.volumes.get_mut(&id).expect("the volume is there");
        let (keys, fill) = batch.keys(map);
        let mut changes = Vec::with_capacity(keys.len());
        for key in keys {
            if fill {
                let counts = self.world.data.counts();
                let free = counts.next_free(self.next_data).or_else(|| counts.next_free(0));
                let block = free.expect("the data device is large enough");
                self.next_data = block + 1;
                map.insert(key, block);
                changes.push((key, Some(mapping(block))));
            } else {
                map.remove(&key);
                changes.push((key, None));
            }
        }
        self.world.map(id, &changes)?;
        let root = lookup(&self.world.txn, self.world.mappings, id)?.expect("the volume is there");
        for (key, _) in changes.iter().step_by(97) {
            let found: Option<u64> = lookup(&self.world.txn, root, *key)?;
            assert_eq!(found.map(|value| value >> 24), map.get(key).copied());
        }
        Ok(())
    }

    /// Commits, and holds everything against the model and against itself.
    pub(crate) fn commit(&mut self) {
        self.world.commit().expect("commit");
        recount::check(&self.world.device).expect("the device is readable");
        let again = World::open(Arc::clone(&self.world.device)).expect("open");
        assert_eq!(again.txn.counts(), self.world.txn.counts());
        assert_eq!(again.data.counts(), self.world.data.counts());
        assert_eq!(again.contents().expect("contents"), self.volumes);
        assert_eq!(self.world.contents().expect("contents"), self.volumes);
        if let (Some(at), Some(held)) = (self.world.held, &self.held) {
            let copy = held_superblock(&again.txn, at).expect("the held superblock is sound");
            let mappings = MetaBlock::new(copy.mappings.get());
            assert_eq!(contents(&again.txn, mappings).expect("contents"), *held);
        }
    }
}

/// A device of `blocks` metadata blocks.
pub(crate) fn memory(blocks: u64) -> Arc<dyn BlockDevice> {
    Arc::new(MemoryDevice::new("metadata", ByteCount::new(blocks * BLOCK_SIZE as u64)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 400, ..Default::default() })]

    #[test]
    fn pools_hold_what_was_put_there(ops in proptest::collection::vec(op(), 1..40)) {
        let mut model = Model::new(memory(8192), 400_000);
        model.run(&Op::Create).expect("create");
        ops.iter().try_for_each(|op| model.run(op)).expect("the pool is large enough");
        while let Some(id) = model.pick(0) {
            model.world.delete(id).expect("delete");
            model.volumes.remove(&id);
        }
        if model.held.is_some() {
            model.run(&Op::Hold).expect("let go");
        }
        model.commit();
        assert_eq!(model.world.data.allocated(), 0, "data blocks leaked");
        // The next commit frees what the last one could only set aside: nothing is left but the
        // superblock, the two trees of a pool, and the space maps with 25 bitmaps and one.
        model.commit();
        assert_eq!(model.world.txn.counts().allocated(), 1 + 2 + 2 + 25 + 2 + 1);
    }
}

/// A value so large that trees grow deep with few entries.
#[derive(Clone, Copy, Debug, PartialEq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Wide([U64; 8]);

impl Record for Wide {}

/// Trees with a common past, and what they should hold.
struct Forest {
    txn: Transaction,
    trees: Vec<(MetaBlock, BTreeMap<u64, u64>)>,
    stamp: u64,
}

impl Forest {
    fn new() -> Self {
        let store = Arc::new(BlockStore::new(memory(16384), 64));
        let txn = Transaction::format(store, 16384).expect("format");
        let mut forest = Self { txn, trees: Vec::new(), stamp: 0 };
        forest.commit();
        let root = empty::<Wide>(&mut forest.txn).expect("empty");
        forest.trees.push((root, BTreeMap::new()));
        forest
    }

    fn change(&mut self, tree: usize, batch: &Batch) {
        let (root, map) = &mut self.trees[tree];
        let (keys, fill) = batch.keys(map);
        let mut changes = Vec::with_capacity(keys.len());
        for key in keys {
            self.stamp += 1;
            let new = fill.then_some(self.stamp);
            match new {
                Some(stamp) => map.insert(key, stamp),
                None => map.remove(&key),
            };
            changes.push((key, new.map(|stamp| Wide([stamp.into(); 8]))));
        }
        let applied = apply(&mut self.txn, *root, &changes, &mut NoRefs).expect("apply");
        *root = applied.root;
    }

    fn commit(&mut self) {
        self.txn.seal().expect("seal");
        self.txn.write().expect("write");
        self.txn.finish();
    }

    /// Holds the trees against the model, their nodes against the counts and the rules.
    fn check(&self) {
        let mut counts: BTreeMap<MetaBlock, u32> = BTreeMap::new();
        for (root, map) in &self.trees {
            let mut found = BTreeMap::new();
            walk(&self.txn, *root, 0, &mut |key, value: Wide| {
                found.insert(key, value.0[7].get());
                ControlFlow::Continue(())
            })
            .expect("walk");
            assert_eq!(found, *map);
            visit_nodes(&self.txn, *root, &mut |at, info| {
                let count = counts.entry(at).or_default();
                *count += 1;
                if *count > 1 {
                    return Ok(Descend::No);
                }
                let node = info.node()?;
                let least = max_entries(node.value_size()) / 3;
                assert!(info.parent.is_none() || node.len() >= least, "a node is too small");
                assert!(node.is_leaf() || node.len() > 1, "a root has an only child");
                Ok(Descend::Yes)
            })
            .expect("visit");
        }
        for (at, count) in counts {
            assert_eq!(self.txn.count(at), count, "block {at}");
        }
    }
}

/// Steps of the deep model: change a tree, copy one, drop one.
#[derive(Clone, Debug)]
enum Step {
    Change(usize, Batch),
    Copy(usize),
    Drop(usize),
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (any::<usize>(), batch()).prop_map(|(tree, batch)| Step::Change(tree, batch)),
        2 => any::<usize>().prop_map(Step::Copy),
        1 => any::<usize>().prop_map(Step::Drop),
        2 => Just(Step::Commit),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 400, ..Default::default() })]

    #[test]
    fn deep_trees_keep_their_shape(steps in proptest::collection::vec(step(), 1..25)) {
        let mut forest = Forest::new();
        let before = forest.txn.counts().allocated() - 1;
        forest.change(0, &Batch::Fill { start: 0, len: 20_000, step: 1 });
        for step in steps {
            let pick = |tree: usize| tree % forest.trees.len();
            match step {
                Step::Change(tree, batch) => forest.change(pick(tree), &batch),
                Step::Copy(tree) => {
                    let copy = forest.trees[pick(tree)].clone();
                    forest.txn.inc(copy.0);
                    forest.trees.push(copy);
                }
                Step::Drop(tree) if forest.trees.len() > 1 => {
                    let (root, _) = forest.trees.swap_remove(pick(tree));
                    release::<Wide, _>(&mut forest.txn, root, &mut NoRefs).expect("release");
                }
                Step::Drop(_) => {}
                Step::Commit => forest.commit(),
            }
            forest.check();
        }
        for (root, _) in std::mem::take(&mut forest.trees) {
            release::<Wide, _>(&mut forest.txn, root, &mut NoRefs).expect("release");
        }
        forest.commit();
        forest.commit();
        assert_eq!(forest.txn.counts().allocated(), before, "blocks leaked");
    }
}

/// Whatever the size of the batches, a tree that is filled in order gets full nodes.
#[test]
fn filling_in_order_packs_nodes() {
    for len in [1, 7, 100, 252, 1000] {
        let mut forest = Forest::new();
        for _ in 0..8000 / len {
            forest.change(0, &Batch::Append { len });
            if len > 50 {
                forest.commit();
            }
        }
        forest.check();
        let mut leaves = Vec::new();
        visit_nodes(&forest.txn, forest.trees[0].0, &mut |_, info| {
            let node = info.node()?;
            if node.is_leaf() {
                leaves.push(node.len());
            }
            Ok(Descend::Yes)
        })
        .expect("visit");
        let full = leaves.iter().filter(|&&len| len > 54 - 8).count();
        assert!(full + 2 >= leaves.len(), "batches of {len}: {leaves:?}");
    }
}

/// An internal node is left with an only child that is small. When it is joined with its neighbour,
/// the child finds neighbours of its own, and may not stay small.
#[test]
fn an_only_child_is_joined_when_it_gets_neighbours() {
    for (start, len) in [(252 * 54, 6391), (9, 252 * 54 - 9), (9, 252 * 54 - 100)] {
        let mut forest = Forest::new();
        forest.change(0, &Batch::Append { len: 20_000 });
        let root = Node::read(&forest.txn, forest.trees[0].0).expect("root");
        assert_eq!(root.len(), 2, "a root, two internal nodes, and leaves");
        forest.change(0, &Batch::Cut { start, len });
        forest.check();
    }
}

/// A change that makes no difference copies nothing, even where it would have to.
#[test]
fn no_difference_touches_nothing() {
    let mut forest = Forest::new();
    forest.change(0, &Batch::Fill { start: 0, len: 5000, step: 2 });
    forest.commit();
    let (root, map) = forest.trees[0].clone();
    forest.txn.inc(root);
    let free = forest.txn.free_blocks();
    let same = map.iter().map(|(&key, &stamp)| (key, Some(Wide([stamp.into(); 8]))));
    let absent = map.keys().map(|key| (key + 1, None));
    let mut changes: Vec<_> = same.chain(absent).collect();
    changes.sort_by_key(|(key, _)| *key);
    let applied = apply(&mut forest.txn, root, &changes, &mut NoRefs).expect("apply");
    assert_eq!((applied.root, applied.inserted, applied.removed), (root, 0, 0));
    assert_eq!(forest.txn.free_blocks(), free);
}

#[test]
fn walks_begin_anywhere() {
    let mut forest = Forest::new();
    forest.change(0, &Batch::Fill { start: 100, len: 5000, step: 3 });
    let (root, map) = &forest.trees[0];
    for from in [0, 99, 100, 101, 102, 5000, 15_097, 15_098, u64::MAX] {
        let mut found = Vec::new();
        walk(&forest.txn, *root, from, &mut |key, _: Wide| {
            found.push(key);
            if found.len() < 100 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .expect("walk");
        let expected: Vec<u64> = map.range(from..).map(|(&key, _)| key).take(100).collect();
        assert_eq!(found, expected, "from {from}");
    }
}
