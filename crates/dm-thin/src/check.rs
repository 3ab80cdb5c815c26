//! Checking metadata: everything is counted anew and held against what the space maps say.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{Error, Result};
use persistent_data::btree::{Descend, Value, visit_nodes, walk};
use persistent_data::space_map::IndexEntry;
use persistent_data::{BlockKind, BlockStore, DiskSpaceMap, MetaBlock, RefCounts, Transaction};

use crate::layout::DetailsLayout;
use crate::superblock::{Roots, Superblock};
use crate::{DeviceId, Mapping};

/// Clean blocks that a check keeps: shared nodes are met again.
const CACHE_BLOCKS: usize = 16 << 10;
/// Findings of one sort that are listed; the rest is only counted.
const LISTED: usize = 100;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What is broken.
    pub errors: Vec<String>,
    /// Space that nothing refers to: a loss, but no danger.
    pub leaks: Vec<String>,
    /// Metadata blocks in use that were read or counted.
    pub blocks: u64,
}

/// Checks the metadata of a pool that nobody writes to: the structure of every tree, and every
/// count of both space maps.
///
/// # Errors
/// What keeps the check from being made: the device fails, or the superblock is none.
pub fn check(metadata: Arc<dyn BlockDevice>) -> Result<CheckReport> {
    let superblock = Superblock::read(&*metadata)?;
    let store = BlockStore::new(metadata, CACHE_BLOCKS);
    let mut check = Check::new(&store);
    check.superblock(&superblock);
    check.spaces(&superblock.roots());
    Ok(check.report)
}

struct Check<'s> {
    store: &'s BlockStore,
    /// Parents of every metadata block that was reached.
    metadata: HashMap<MetaBlock, u32>,
    /// Leaves of mapping trees that name a data block.
    data: HashMap<u64, u32>,
    report: CheckReport,
}

impl<'s> Check<'s> {
    fn new(store: &'s BlockStore) -> Self {
        let (metadata, data) = (HashMap::new(), HashMap::new());
        Self { store, metadata, data, report: CheckReport::default() }
    }

    /// Counts everything that hangs on the superblock, and on the copy that a metadata snapshot is.
    fn superblock(&mut self, superblock: &Superblock) {
        self.reach(MetaBlock::new(0));
        let roots = superblock.roots();
        self.device_trees(roots.mappings, roots.details, true);
        if let Some(held) = superblock.held_root() {
            self.reach(held);
            let copy = self.store.read(held, BlockKind::Superblock).and_then(|block| {
                Superblock::parse(self.store.device().name(), Box::new(**block), held)
            });
            match copy {
                Err(error) => self.broken("the metadata snapshot", &error),
                Ok(copy) => {
                    let roots = copy.roots();
                    self.device_trees(roots.mappings, roots.details, false);
                }
            }
        }
    }

    /// Counts the tree of roots, the mapping trees in it, and the tree of details.
    fn device_trees(&mut self, mappings: MetaBlock, details: MetaBlock, live: bool) {
        let mut roots = Vec::new();
        self.tree::<u64>("the tree of devices", mappings, &mut |key, root| roots.push((key, root)));
        let mut states = HashMap::new();
        self.tree::<DetailsLayout>("the tree of details", details, &mut |key, state| {
            states.insert(key, state.mapped.get());
        });
        for &(device, root) in &roots {
            self.mapping_tree(device, MetaBlock::new(root));
        }
        if live {
            self.compare_devices(&roots, states);
        }
    }

    /// Holds the devices of both trees and their numbers of mapped blocks against each other.
    fn compare_devices(&mut self, roots: &[(u64, u64)], mut states: HashMap<u64, u64>) {
        for &(device, root) in roots {
            if device > DeviceId::MAX.key() {
                self.error(format!("device {device} is larger than 24 bits"));
            }
            let Some(stated) = states.remove(&device) else {
                self.error(format!("device {device} has mappings but no details"));
                continue;
            };
            match self.aliases(device, MetaBlock::new(root)) {
                Ok(counted) if counted != stated => self.error(format!(
                    "device {device} has {counted} mapped blocks, its details say {stated}"
                )),
                Ok(_) => {}
                // The tree's own walk has named it.
                Err(_) => {}
            }
        }
        let mut stray: Vec<u64> = states.into_keys().collect();
        stray.sort_unstable();
        for device in stray {
            self.error(format!("device {device} has details but no mappings"));
        }
    }

    /// Counts the mappings of a device and names pairs of its blocks that share a data block, as
    /// the overflow of the pool's time leaves them.
    fn aliases(&mut self, device: u64, root: MetaBlock) -> Result<u64> {
        let mut seen: HashMap<u64, u64> = HashMap::new();
        let mut pairs = Vec::new();
        walk(self.store, root, 0, &mut |key, value: u64| {
            let block = Mapping::unpack(value).block.get();
            if let Some(other) = seen.insert(block, key) {
                pairs.push((other, key, block));
            }
            ControlFlow::Continue(())
        })?;
        let mapped = seen.len() as u64 + pairs.len() as u64;
        for (one, other, block) in pairs {
            self.error(format!(
                "device {device}: blocks {one} and {other} both lie in data block {block}"
            ));
        }
        Ok(mapped)
    }

    /// Counts a mapping tree; below nodes that were met before nothing is new.
    fn mapping_tree(&mut self, device: u64, root: MetaBlock) {
        let name = format!("the mappings of device {device}");
        let mut named = Vec::new();
        self.tree::<u64>(&name, root, &mut |_, value| {
            named.push(Mapping::unpack(value).block.get());
        });
        for block in named {
            *self.data.entry(block).or_default() += 1;
        }
    }

    /// Counts the nodes of a tree and shows the entries of leaves that were not met before.
    fn tree<V: Value>(&mut self, name: &str, root: MetaBlock, each: &mut dyn FnMut(u64, V)) {
        let metadata = &mut self.metadata;
        let visited = visit_nodes(self.store, root, &mut |at, info| {
            let parents = metadata.entry(at).or_default();
            *parents += 1;
            if *parents > 1 {
                return Ok(Descend::No);
            }
            let node = info.node()?;
            if node.is_leaf() {
                if node.value_size() != V::SIZE {
                    let problem = format!("has values of {} bytes", node.value_size());
                    let object = format!("metadata block {at}");
                    return Err(Error::new(block_types::ErrorKind::Corrupt, object, problem));
                }
                for index in 0..node.len() {
                    each(node.key(index), node.value::<V>(index));
                }
            }
            Ok(Descend::Yes)
        });
        if let Err(error) = visited {
            self.broken(name, &error);
        }
    }

    /// Holds the counts of both space maps against what was counted.
    fn spaces(&mut self, roots: &Roots) {
        self.data_map_blocks(roots);
        match DiskSpaceMap::open(self.store, &roots.data_map) {
            Err(error) => self.broken("the data space map", &error),
            Ok(map) => {
                let counted = std::mem::take(&mut self.data);
                self.compare("data", map.counts(), &counted);
            }
        }
        let store = Arc::new(BlockStore::new(Arc::clone(self.store.device()), 0));
        match Transaction::open(store, &roots.metadata_map) {
            Err(error) => self.broken("the metadata space map", &error),
            Ok(txn) => {
                self.reach(MetaBlock::new(roots.metadata_map.bitmap_root.get()));
                txn.bitmaps().for_each(|at| self.reach(at));
                let counted = self.metadata.iter().map(|(at, count)| (at.get(), *count)).collect();
                self.compare("metadata", txn.counts(), &counted);
                self.report.blocks = txn.counts().allocated();
            }
        }
    }

    /// Counts the blocks that the data space map consists of, and both trees of large counts.
    fn data_map_blocks(&mut self, roots: &Roots) {
        let mut bitmaps = Vec::new();
        let index = MetaBlock::new(roots.data_map.bitmap_root.get());
        self.tree::<IndexEntry>("the index of the data space map", index, &mut |_, entry| {
            bitmaps.push(MetaBlock::new(entry.bitmap.get()));
        });
        bitmaps.into_iter().for_each(|at| self.reach(at));
        for root in [roots.data_map.ref_count_root, roots.metadata_map.ref_count_root] {
            self.tree::<u32>("a tree of large counts", MetaBlock::new(root.get()), &mut |_, _| {});
        }
    }

    fn compare(&mut self, what: &str, said: &RefCounts, counted: &HashMap<u64, u32>) {
        let mut blocks: HashSet<u64> = counted.keys().copied().collect();
        blocks.extend(said.used().map(|(block, _)| block));
        let mut blocks: Vec<u64> = blocks.into_iter().collect();
        blocks.sort_unstable();
        let (mut errors, mut leaks) = (Vec::new(), Vec::new());
        for block in blocks {
            let said = said.get(block);
            let counted = counted.get(&block).copied().unwrap_or(0);
            let finding =
                || format!("{what} block {block} has count {said}, should have {counted}");
            if said < counted {
                errors.push(finding());
            } else if said > counted {
                leaks.push(finding());
            }
        }
        shorten(&mut errors, what);
        shorten(&mut leaks, what);
        self.report.errors.extend(errors);
        self.report.leaks.extend(leaks);
    }

    fn reach(&mut self, at: MetaBlock) {
        *self.metadata.entry(at).or_default() += 1;
    }

    fn error(&mut self, text: String) {
        self.report.errors.push(text);
    }

    fn broken(&mut self, what: &str, error: &Error) {
        self.error(format!("{what} cannot be read: {error}"));
    }
}

/// Cuts a list of findings to a length that can be read.
fn shorten(findings: &mut Vec<String>, what: &str) {
    if findings.len() > LISTED {
        let more = findings.len() - LISTED;
        findings.truncate(LISTED);
        findings.push(format!("and {more} more {what} blocks"));
    }
}
