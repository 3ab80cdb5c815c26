//! What a walk knows of each metadata block.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use block_types::Error;

use crate::MetaBlock;

/// What a block that was reached turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A leaf.
    Leaf,
    /// A node with children.
    Internal,
    /// No node, or one that breaks a rule by itself: nothing below it was reached.
    Broken,
}

/// A block that breaks a rule.
#[derive(Debug)]
pub struct NodeProblem {
    /// The block.
    pub at: MetaBlock,
    /// Which rule, or why the block cannot be read.
    pub error: Error,
}

impl fmt::Display for NodeProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

/// The parent of a root.
pub(super) const NO_PARENT: u32 = u32::MAX;

/// A block as far as it is known. Written by the threads of a walk; each block is read by one.
#[derive(Debug)]
pub(super) struct NodeFacts {
    /// References found.
    pub(super) references: AtomicU32,
    /// Who referred to it first: a node, or [`NO_PARENT`] for a root.
    pub(super) parent: AtomicU32,
    /// The least key that it may hold, by all who refer to it.
    pub(super) low: AtomicU64,
    /// The greatest key that it may hold, likewise.
    pub(super) high: AtomicU64,
    /// Its first key.
    pub(super) first: AtomicU64,
    /// Its last key.
    pub(super) last: AtomicU64,
    /// Its place among the internal nodes.
    pub(super) index: AtomicU32,
    /// Its entries.
    pub(super) entries: AtomicU16,
    /// What it is: 0, or one of the values below.
    kind: AtomicU8,
    /// The kind of tree that it was reached in; 0 for none.
    pub(super) tree: AtomicU8,
    /// Whether it refers to something impossible, or hangs in the wrong place.
    pub(super) faulty: AtomicU8,
}

const LEAF: u8 = 1;
const INTERNAL: u8 = 2;
const BROKEN: u8 = 3;

impl Default for NodeFacts {
    fn default() -> Self {
        Self {
            references: AtomicU32::new(0),
            parent: AtomicU32::new(NO_PARENT),
            low: AtomicU64::new(0),
            high: AtomicU64::new(u64::MAX),
            first: AtomicU64::new(0),
            last: AtomicU64::new(0),
            index: AtomicU32::new(0),
            entries: AtomicU16::new(0),
            kind: AtomicU8::new(0),
            tree: AtomicU8::new(0),
            faulty: AtomicU8::new(0),
        }
    }
}

impl NodeFacts {
    pub(super) fn kind(&self) -> Option<NodeKind> {
        match self.kind.load(Ordering::Relaxed) {
            LEAF => Some(NodeKind::Leaf),
            INTERNAL => Some(NodeKind::Internal),
            BROKEN => Some(NodeKind::Broken),
            _ => None,
        }
    }

    pub(super) fn set_kind(&self, kind: NodeKind) {
        let kind = match kind {
            NodeKind::Leaf => LEAF,
            NodeKind::Internal => INTERNAL,
            NodeKind::Broken => BROKEN,
        };
        self.kind.store(kind, Ordering::Relaxed);
    }

    /// Marks the block as one with which, or below which, something is wrong.
    pub(super) fn set_faulty(&self) {
        self.faulty.store(1, Ordering::Relaxed);
    }

    pub(super) fn is_faulty(&self) -> bool {
        self.faulty.load(Ordering::Relaxed) != 0
    }

    /// Narrows the keys that the block may hold.
    pub(super) fn demand(&self, low: u64, high: u64) {
        self.low.fetch_max(low, Ordering::Relaxed);
        self.high.fetch_min(high, Ordering::Relaxed);
    }
}
