//! What can be merged, and the cheapest way to do it.
//!
//! A *run* is a row of nodes, each the only child of the one below, of which none but the topmost
//! has a name or other children. They become one node, in one pass: the *target* keeps its file,
//! and takes over from the others what is seen through the topmost. What lies above the target is
//! merged down into it, what lies below up; so the target that has most of what is seen costs
//! least, whichever it is.

use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use disk_image::vhd::Kind;

use crate::NodeId;
use crate::chain::{Chain, PIECE};
use crate::layer::Layer;
use crate::state::State;

/// Nodes that can become one, the lowest first; at least two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run(pub(crate) Vec<NodeId>);

/// How a run is to be merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The place of the target in the run.
    pub(crate) target: usize,
    /// Bytes to copy.
    pub(crate) bytes: ByteCount,
    /// Space that the target may take more.
    pub(crate) space: ByteCount,
}

impl Run {
    pub(crate) fn top(&self) -> &NodeId {
        &self.0[self.0.len() - 1]
    }
}

/// Every run of the repository that is not being merged, and can be read whole; the longest first.
pub(crate) fn runs(state: &State) -> Vec<Run> {
    let mut runs: Vec<Run> = state
        .tree
        .iter()
        .filter(|(id, _)| is_inner(state, id) && !continues_below(state, id))
        .filter_map(|(id, _)| run_from(state, id))
        .filter(|run| state.tree.fault(run.top()).is_none())
        .filter(|run| !is_merging(state, run))
        .collect();
    runs.sort_by_key(|run| std::cmp::Reverse(run.0.len()));
    runs
}

/// Whether the node is one that a merge may do away with: without a name, with one child.
fn is_inner(state: &State, id: &NodeId) -> bool {
    state.catalogue.name_of(id).is_none() && state.tree.only_child(id).is_some()
}

/// Whether the run that holds the node begins below it.
fn continues_below(state: &State, id: &NodeId) -> bool {
    let parent = state.tree.get(id).and_then(|node| node.parent.as_ref());
    parent.is_some_and(|parent| is_inner(state, parent))
}

fn run_from(state: &State, lowest: &NodeId) -> Option<Run> {
    let mut nodes = vec![lowest.clone()];
    while let Some(child) = state.tree.only_child(&nodes[nodes.len() - 1])
        && is_inner(state, &nodes[nodes.len() - 1])
    {
        nodes.push(child.clone());
    }
    // A node without a name and without children is garbage, and nothing is merged into it.
    let top = nodes.last()?;
    let wanted = state.catalogue.name_of(top).is_some() || !state.tree.children(top).is_empty();
    (wanted && nodes.len() > 1).then_some(Run(nodes))
}

fn is_merging(state: &State, run: &Run) -> bool {
    state.merges.iter().any(|merge| merge.nodes.iter().any(|node| run.0.contains(node)))
}

/// What a merge of `layers`, the lowest first, costs for each of them as the target; `None` for
/// those that cannot be it.
pub(crate) fn plans(
    layers: &[std::sync::Arc<Layer>],
    has_parent: bool,
) -> Result<Vec<Option<Plan>>> {
    let top = &layers[layers.len() - 1];
    let size = top.size();
    let chain = Chain::new(layers.iter().rev().cloned().collect(), size);
    let pieces = size.div_ceil(PIECE) as usize;
    let blocks: Vec<Vec<bool>> = layers.iter().map(|layer| allocated(layer, pieces)).collect();
    let mut seen = vec![0u64; layers.len()];
    let (mut bytes, mut spaces, mut zeros) =
        (0, vec![0u64; layers.len()], vec![0u64; layers.len()]);
    for piece in (0..pieces).filter(|&piece| blocks.iter().any(|blocks| blocks[piece])) {
        let mut here = vec![0u64; layers.len()];
        let mut nobody = 0;
        for (range, layer) in chain.runs_of_piece(piece)? {
            match layer {
                Some(layer) => here[layers.len() - 1 - layer] += range.len.get(),
                None => nobody += range.len.get(),
            }
        }
        let sum: u64 = here.iter().sum();
        bytes += sum;
        for target in 0..layers.len() {
            seen[target] += here[target];
            if !blocks[target][piece] && here[target] < sum {
                spaces[target] += PIECE.get() + PIECE.get() / 4096;
            }
            // A root's blocks are made whole: QEMU reads them so, whatever their bitmaps say.
            if target > 0 && !has_parent && blocks[target][piece] {
                zeros[target] += nobody;
            }
        }
    }
    let plan = |target: usize| {
        can_hold(&layers[target], size).then(|| Plan {
            target,
            bytes: ByteCount::new(bytes - seen[target] + zeros[target]),
            space: ByteCount::new(spaces[target]),
        })
    };
    Ok((0..layers.len()).map(plan).collect())
}

/// Which pieces of the disk a layer has blocks in.
fn allocated(layer: &Layer, pieces: usize) -> Vec<bool> {
    let Some(size) = layer.image.block_size() else {
        return vec![true; pieces];
    };
    let mut found = vec![false; pieces];
    for block in layer.image.allocated() {
        let start = ByteOffset::new(u64::from(block.get()) * size.bytes().get());
        let block = ByteRange::new(start, size.bytes());
        for piece in block.pieces(PIECE) {
            if let Some(found) = found.get_mut((piece.start.get() / PIECE.get()) as usize) {
                *found = true;
            }
        }
    }
    found
}

/// Whether a node can hold a disk of `size`: it may be grown, not shrunk.
fn can_hold(layer: &Layer, size: ByteCount) -> bool {
    let own = layer.size();
    if own >= size || layer.image.kind() == Kind::Fixed {
        return own <= size;
    }
    let info = layer.image.info();
    info.is_ok_and(|info| info.sparse.is_some_and(|sparse| sparse.largest >= size))
}

/// The cheapest of `plans` whose space there is. With equal costs, the topmost where that is
/// `live`, for its writes then need not be mirrored; else the lowest.
pub(crate) fn choose(
    plans: &[Option<Plan>],
    free: Option<ByteCount>,
    live: bool,
) -> std::result::Result<Plan, String> {
    let possible = || plans.iter().flatten();
    let fits = |plan: &&Plan| free.is_none_or(|free| plan.space <= free);
    let order = |plan: &&Plan| {
        let place = plan.target;
        (plan.bytes, if live { plans.len() - 1 - place } else { place })
    };
    if let Some(plan) = possible().filter(fits).min_by_key(order) {
        return Ok(plan.clone());
    }
    let least = possible().map(|plan| plan.space).min();
    Err(match (least, free) {
        (Some(least), Some(free)) => format!("no space: it may take {least}, {free} is free"),
        _ => "none of its nodes can hold the whole disk".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::{Plan, choose};
    use block_types::ByteCount;

    #[test]
    fn the_cheapest_that_fits() {
        let plan = |target, bytes, space| {
            Some(Plan { target, bytes: ByteCount::new(bytes), space: ByteCount::new(space) })
        };
        let plans = [plan(0, 10, 100), None, plan(2, 10, 0), plan(3, 20, 0)];
        let chosen = |free, live| choose(&plans, free, live).expect("one fits").target;
        assert_eq!(chosen(None, false), 0);
        assert_eq!(chosen(Some(ByteCount::new(50)), false), 2);
        assert_eq!(chosen(None, true), 2);
        let none = choose(&[plan(0, 1, 100)], Some(ByteCount::new(9)), false);
        assert!(none.expect_err("too little").contains("no space"));
    }
}
