//! What a repository says of its nodes.

use std::collections::BTreeMap;

use block_types::{ByteCount, Result};
use serde::{Deserialize, Serialize};
use volume::NodeName;

use crate::NodeId;
use crate::layer::Layer;
use crate::plan::runs;
use crate::repository::Repository;
use crate::state::State;

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// A disk that can be written.
    Volume,
    /// A snapshot of one.
    Snapshot,
    /// A disk with a name that others stand on, so it does not change.
    Base,
    /// A node without a name that others stand on.
    Hidden,
    /// A file that nobody needs.
    Garbage,
    /// A node that cannot be read whole.
    Broken,
}

/// A node, as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeReport {
    /// Its file.
    pub file: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// What it is.
    pub role: Role,
    /// When it got its name, in RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The size of its disk in bytes, if that is known.
    pub size: Option<u64>,
    /// What its file takes, in bytes.
    pub taken: u64,
    /// The file of the node that it stands on.
    pub parent: Option<String>,
    /// Nodes that stand on it.
    pub children: usize,
    /// Whether it is in use as a disk.
    pub in_use: bool,
    /// Of a hidden node: what becomes of it, or why nothing does. Of a broken one: what is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Of a broken node: how many bytes of its disk can still be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readable: Option<u64>,
}

impl Repository {
    /// All nodes, each behind its parent.
    pub fn report(&self) -> Vec<NodeReport> {
        let state = self.lock();
        let fates = fates(&state);
        let roots = state.tree.iter().filter(|(_, node)| {
            node.parent.as_ref().is_none_or(|parent| !state.tree.contains(parent))
        });
        let mut open: Vec<NodeId> = roots.map(|(id, _)| id.clone()).collect();
        open.sort_by_key(|id| std::cmp::Reverse(label(&state, id)));
        let mut report = Vec::new();
        while let Some(id) = open.pop() {
            report.extend(node_report(&state, &id, &fates));
            let mut children = state.tree.children(&id);
            children.sort_by_key(|id| std::cmp::Reverse(label(&state, id)));
            open.extend(children);
        }
        // Nodes that stand on themselves are behind no root.
        let seen: Vec<String> = report.iter().map(|node| node.file.clone()).collect();
        let lost = state.tree.iter().filter(|(id, _)| !seen.iter().any(|file| file == id.file()));
        report.extend(lost.filter_map(|(id, _)| node_report(&state, id, &fates)));
        report
    }

    /// Names whose files are gone.
    pub fn lost(&self) -> Vec<(NodeName, NodeId)> {
        let state = self.lock();
        let names = state.catalogue.names.iter();
        let lost = names.filter(|(_, binding)| !state.tree.contains(&binding.node));
        lost.map(|(name, binding)| (name.clone(), binding.node.clone())).collect()
    }

    /// The names of all disks.
    pub fn names(&self) -> Vec<NodeName> {
        self.lock().catalogue.names.keys().cloned().collect()
    }
}

/// What nodes are sorted by: names first, as people read them.
fn label(state: &State, id: &NodeId) -> (bool, String) {
    match state.catalogue.name_of(id) {
        Some(name) => (false, name.to_string()),
        None => (true, id.to_string()),
    }
}

fn node_report(state: &State, id: &NodeId, fates: &BTreeMap<NodeId, String>) -> Option<NodeReport> {
    let node = state.tree.get(id)?;
    let name = state.catalogue.name_of(id);
    let fault = state.tree.fault(id);
    let role = match name {
        _ if fault.is_some() => Role::Broken,
        Some(_) if !node.children.is_empty() => Role::Base,
        Some(name) if name.snapshot.is_some() => Role::Snapshot,
        Some(_) => Role::Volume,
        None if node.children.is_empty() => Role::Garbage,
        None => Role::Hidden,
    };
    let note = match (fault, role) {
        (Some((at, fault)), _) if at == *id => Some(fault.to_owned()),
        (Some((at, fault)), _) => Some(format!("{at}, below it, {fault}")),
        (None, Role::Hidden) => fates.get(id).cloned(),
        (None, Role::Garbage) => Some("removed by the next collection".to_owned()),
        (None, _) => None,
    };
    let binding = name.and_then(|name| state.catalogue.names.get(name));
    let used = name.is_some_and(|name| Repository::is_used(state, name));
    Some(NodeReport {
        file: id.to_string(),
        name: name.map(ToString::to_string),
        role,
        created: binding.map(|binding| binding.created.clone()),
        size: state.tree.size(id).map(ByteCount::get),
        taken: state.folder.taken(id.file()).unwrap_or(ByteCount::ZERO).get(),
        parent: node.parent.as_ref().map(ToString::to_string),
        children: node.children.len(),
        in_use: used,
        note,
        readable: (role == Role::Broken).then(|| readable(state, id).unwrap_or(0)),
    })
}

/// What becomes of every hidden node.
fn fates(state: &State) -> BTreeMap<NodeId, String> {
    let mut fates = BTreeMap::new();
    for run in runs(state) {
        let count = run.0.len();
        let what = match state.put_off.get(run.top()) {
            Some(put_off) => format!("merge put off: {}", put_off.why),
            None => {
                format!("merged with {} other{} next", count - 1, if count > 2 { "s" } else { "" })
            }
        };
        run.0.iter().for_each(|id| {
            fates.insert(id.clone(), what.clone());
        });
    }
    for merge in &state.merges {
        let (done, total) = (merge.progress.done().get(), merge.progress.total().get());
        let percent = (done * 100).checked_div(total).unwrap_or(100);
        for id in &merge.nodes {
            fates.insert(id.clone(), format!("being merged into {}, {percent} %", merge.target));
        }
    }
    for (id, node) in state.tree.iter() {
        let children: Vec<String> =
            node.children.iter().map(|child| label(state, child).1).collect();
        fates
            .entry(id.clone())
            .or_insert_with(|| format!("kept: {} stand on it", children.join(", ")));
    }
    fates
}

/// Bytes of a broken node's disk that it, and those below it that can be read, hold.
fn readable(state: &State, id: &NodeId) -> Result<u64> {
    let chain = state.tree.chain(id);
    let mut layers = Vec::new();
    for id in chain {
        match Layer::open(&*state.folder, &id, true) {
            Ok(layer) => layers.push(std::sync::Arc::new(layer)),
            Err(_) => break,
        }
    }
    let Some(top) = layers.first() else { return Ok(0) };
    let size = top.size();
    let chain = crate::chain::Chain::new(layers, size);
    let pieces = size.div_ceil(crate::chain::PIECE) as usize;
    let mut held = 0;
    for piece in 0..pieces {
        let runs = chain.runs_of_piece(piece)?;
        held += runs
            .iter()
            .filter(|(_, layer)| layer.is_some())
            .map(|(range, _)| range.len.get())
            .sum::<u64>();
    }
    Ok(held)
}
