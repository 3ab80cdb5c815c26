//! Looking at every block of a device.

use persistent_data::btree::Value;
use persistent_data::bulk::{BulkReader, NodeView, inspect};
use persistent_data::{Block, BlockKind, MetaBlock};

use super::catalogue::{Catalogue, Class, Note};
use crate::layout::DetailsLayout;
use crate::superblock::Superblock;
use crate::{DeviceId, Mapping};

/// What one thread has found.
#[derive(Default)]
struct Found {
    notes: Vec<Note>,
    edges: Vec<(u64, MetaBlock)>,
    roots: Vec<(MetaBlock, Vec<(u64, MetaBlock)>)>,
    details: Vec<(MetaBlock, Vec<(u64, DetailsLayout)>)>,
    superblocks: Vec<(MetaBlock, Superblock)>,
}

/// Reads the whole device. Blocks that cannot be read are left out like broken ones.
pub(super) fn scan(reader: &BulkReader) -> Catalogue {
    let blocks: Vec<MetaBlock> = (0..reader.blocks()).map(MetaBlock::new).collect();
    let name = reader.device().name();
    let found = reader.for_each(&blocks, Found::default, |found, at, block| {
        if let Ok(block) = block {
            found.look_at(block, at, name, blocks.len() as u64);
        }
    });
    let mut catalogue = Catalogue::default();
    for found in found {
        let before = catalogue.edges.len();
        catalogue.edges.extend(found.edges);
        for mut note in found.notes {
            note.edges = note.edges.start + before..note.edges.end + before;
            catalogue.add(note);
        }
        catalogue.roots.extend(found.roots);
        catalogue.details.extend(found.details);
        catalogue.superblocks.extend(found.superblocks);
    }
    catalogue.superblocks.sort_by_key(|(at, _)| *at);
    catalogue.sum_up();
    catalogue
}

impl Found {
    fn look_at(&mut self, block: &Block, at: MetaBlock, name: &str, blocks: u64) {
        match inspect(block, at) {
            Some(BlockKind::Node) => {
                if let Ok(node) = NodeView::parse(block, at) {
                    self.note(&node, blocks);
                }
            }
            Some(BlockKind::Superblock) => {
                let superblock = Superblock::parse(name, Box::new(**block), at);
                self.superblocks.extend(superblock.ok().map(|superblock| (at, superblock)));
            }
            Some(BlockKind::Index | BlockKind::Bitmap) | None => {}
        }
    }

    fn note(&mut self, node: &NodeView<'_>, blocks: u64) {
        let begin = self.edges.len();
        self.edges.extend(node.children());
        let first = node.keys().first().map(|key| key.get());
        let last = node.keys().last().map(|key| key.get());
        let mut note = Note {
            at: node.at(),
            class: Class::Other,
            leaf: node.is_leaf(),
            len: node.len(),
            keys: first.zip(last),
            newest: 0,
            edges: begin..self.edges.len(),
        };
        if node.is_leaf() {
            note.class = self.classify(node, blocks);
            if note.class != Class::Details && node.value_size() == u64::SIZE {
                let times = node.words().iter().map(|word| Mapping::unpack(word.get()).time.get());
                note.newest = times.max().unwrap_or(0);
            }
        }
        self.notes.push(note);
    }

    /// What a leaf may belong to. The root of a tree is a small number where a mapping would have
    /// to lie in data block 0, which at most one does.
    fn classify(&mut self, leaf: &NodeView<'_>, blocks: u64) -> Class {
        match leaf.value_size() {
            size if size == DetailsLayout::SIZE => {
                self.details.push((leaf.at(), leaf.entries().collect()));
                Class::Details
            }
            size if size == u64::SIZE => {
                let mut entries = leaf.entries::<u64>();
                let device = |(id, root): (u64, u64)| {
                    id <= u64::from(DeviceId::MAX.get()) && (1..blocks).contains(&root)
                };
                if !entries.all(device) {
                    return Class::Mappings;
                }
                let roots = leaf.entries::<u64>().map(|(id, root)| (id, MetaBlock::new(root)));
                self.roots.push((leaf.at(), roots.collect()));
                Class::Devices
            }
            _ => Class::Other,
        }
    }
}
