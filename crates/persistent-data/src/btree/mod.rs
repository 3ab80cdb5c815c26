//! Copy-on-write B-trees with 64-bit keys and values of fixed size.
//!
//! A tree is the block number of its root. Trees share nodes: copying a tree is adding one to the
//! count of its root. The count of a node is the number of its parents and of those who hold it as
//! a root; what a node's entries refer to is counted once for the node, however many trees share
//! it.
//!
//! Reading ([`lookup`], [`prefetch`], [`walk`], [`visit_nodes`]) works on whatever blocks can be
//! read from; changing ([`empty`], [`apply`], [`touch`], [`cut`], [`release`]) needs a
//! [`Transaction`](crate::Transaction).

mod balance;
mod create;
mod cut;
mod delete;
mod filter;
mod layout;
mod lookup;
mod node;
mod prefetch;
mod range;
mod touch;
mod update;
mod value;
mod visit;
mod walk;

pub use create::empty;
pub use cut::cut;
pub use delete::release;
pub use layout::{HEADER_SIZE, INTERNAL, KEY_SIZE, LEAF, NodeHeader, max_entries};
pub use lookup::lookup;
pub use node::Node;
pub use prefetch::prefetch;
pub use range::KeyRange;
pub use touch::touch;
pub use update::{Applied, apply};
pub use value::{NoRefs, Record, Value, ValueRefs};
pub use visit::{Descend, NodeInfo, visit_nodes};
pub use walk::walk;

pub(crate) use node::check_node;

/// How many levels a tree may have. A full one of a third-filled nodes with 2^40 entries has seven.
pub const MAX_DEPTH: usize = 16;
