//! Reading the nodes of many keys side by side, before they are needed one after another.

use std::ops::Range;
use std::thread;

use block_types::Result;

use super::MAX_DEPTH;
use super::filter::partition;
use super::node::Node;
use crate::checksum::corrupt;
use crate::{MetaBlock, ReadBlocks};

/// Nodes that are read at once: enough to keep a disk busy.
const READERS: usize = 8;

/// Reads the nodes on the ways to `keys`, ascending, in the tree at `root`, level by level and
/// several at a time. `reader` keeps what it read; its cache has to have room for a node for each
/// key.
///
/// # Errors
/// [`Corrupt`](block_types::ErrorKind::Corrupt) if a node on the way breaks the format's rules; the
/// reader's failures.
pub fn prefetch<R: ReadBlocks + Sync>(reader: &R, root: MetaBlock, keys: &[u64]) -> Result<()> {
    let keys: Vec<(u64, ())> = keys.iter().map(|&key| (key, ())).collect();
    let mut level = vec![(root, 0..keys.len())];
    for _ in 0..MAX_DEPTH {
        let nodes = read_all(reader, &level)?;
        if nodes.iter().all(Node::is_leaf) {
            return Ok(());
        }
        let below = nodes.iter().zip(&level).map(|(node, (_, range))| below(node, range, &keys));
        level = below.flatten().collect();
    }
    Err(corrupt(root, "is the root of a tree that is too deep, perhaps a loop"))
}

/// The children of `node` that lead to the keys in `range`, each with its share of them.
fn below(node: &Node, range: &Range<usize>, keys: &[(u64, ())]) -> Vec<(MetaBlock, Range<usize>)> {
    if node.is_leaf() {
        return Vec::new();
    }
    let mut from = range.start;
    let shares = partition(node, &keys[range.clone()]);
    let children = shares.map(|(index, mine)| {
        let share = from..from + mine.len();
        from = share.end;
        (node.child(index), share)
    });
    children.collect()
}

fn read_all<R: ReadBlocks + Sync>(
    reader: &R,
    places: &[(MetaBlock, Range<usize>)],
) -> Result<Vec<Node>> {
    let read = |places: &[(MetaBlock, Range<usize>)]| -> Result<Vec<Node>> {
        places.iter().map(|&(at, _)| Node::read(reader, at)).collect()
    };
    if places.len() <= READERS {
        return read(places);
    }
    thread::scope(|scope| {
        let shares = places.chunks(places.len().div_ceil(READERS));
        let readers: Vec<_> = shares.map(|share| scope.spawn(move || read(share))).collect();
        let mut nodes = Vec::with_capacity(places.len());
        for reader in readers {
            nodes.extend(reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(nodes)
    })
}
