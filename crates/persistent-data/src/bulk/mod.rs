//! Reading the whole of a metadata device fast: for those who check it, repair it, or copy it.
//!
//! A pool reads single nodes, by keys. Who wants everything reads in the order of the disk instead:
//! [`BulkReader`] takes sorted lists of blocks, joins neighbours to large reads, and hands each
//! block to one of several workers where it lies in the buffer ([`NodeView`]). [`Forest`] turns
//! that into a walk of trees: level by level, every node once however many trees share it, and in
//! the end it knows who refers to whom. [`RefCounter`] counts what leaves refer to, and [`Bitmaps`]
//! holds what was counted against a space map.
//!
//! Nothing here believes what it reads: whatever the blocks hold, each is looked at once, and
//! memory is taken in proportion to what is there.

mod audit;
mod counter;
mod facts;
mod forest;
mod pages;
mod read;
mod settle;
#[cfg(test)]
mod tests;
mod view;

pub use audit::{Bitmaps, CountMismatch, Counted, Mismatches};
pub use counter::{RefCounter, Referred};
pub use facts::{NodeKind, NodeProblem};
pub use forest::{Forest, TreeKind, Walked};
pub use read::BulkReader;
pub use settle::Settled;
pub use view::{NodeView, inspect};
