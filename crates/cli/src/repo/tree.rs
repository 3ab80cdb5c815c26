//! `firn repo tree, scan`: what there is, drawn as it stands.

use block_types::{ByteCount, format_size};
use clap::Args;
use repository::{NodeReport, Role};

use super::{Target, with};
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::table::Table;

/// Show the trees of a repository: every node, its size, and of a hidden one what becomes of it.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn repo tree sr")]
pub(crate) struct Tree {
    #[command(flatten)]
    target: Target,
}

/// Read a repository's directory anew, and show its trees.
///
/// VHDs that were put there become disks under the names of their files. What a crash has left is
/// put in order, and what can be merged is merged by the daemon, or by 'firn repo gc'. Nodes whose
/// chain is broken are shown with what is wrong, and what of them can still be read.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn repo scan sr")]
pub(crate) struct Scan {
    #[command(flatten)]
    target: Target,
}

impl Tree {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let nodes = with(&self.target.dir, true, |repository| repository.nodes())?;
        output.result(&nodes, || draw(&nodes))?;
        Ok(DONE)
    }
}

impl Scan {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let nodes = with(&self.target.dir, false, |repository| {
            repository.scan()?;
            repository.nodes()
        })?;
        output.result(&nodes, || draw(&nodes))?;
        Ok(DONE)
    }
}

/// The nodes, each below its parent.
fn draw(nodes: &[NodeReport]) -> String {
    let mut table = Table::new(&["NODE", "ROLE", "SIZE", "TAKEN", "NOTE"], &[2, 3]);
    let bytes = |count: u64| format_size(ByteCount::new(count));
    for (at, node) in nodes.iter().enumerate() {
        let label = node.name.clone().unwrap_or_else(|| format!("({})", node.file));
        let mut note = node.note.clone().unwrap_or_default();
        if let Some(readable) = node.readable {
            note.push_str(&format!("; {} of it can be read", bytes(readable)));
        }
        if node.in_use {
            note.push_str("in use");
        }
        table.add([
            format!("{}{label}", branch(nodes, at)),
            role(node.role).to_owned(),
            node.size.map_or("unknown".to_owned(), bytes),
            bytes(node.taken),
            note,
        ]);
    }
    table.render()
}

/// The lines before the node at `at` that lead to its parent.
fn branch(nodes: &[NodeReport], at: usize) -> String {
    let mut text = String::new();
    let mut node = &nodes[at];
    let mut from = at;
    let mut last = true;
    while let Some(place) = parent_of(nodes, node, from) {
        let more = nodes[from + 1..].iter().any(|other| other.parent == node.parent);
        let piece = match (last, more) {
            (true, true) => "|- ",
            (true, false) => "`- ",
            (false, true) => "|  ",
            (false, false) => "   ",
        };
        text.insert_str(0, piece);
        (last, from, node) = (false, place, &nodes[place]);
    }
    text
}

/// Where the parent of `node` stands: before it.
fn parent_of(nodes: &[NodeReport], node: &NodeReport, at: usize) -> Option<usize> {
    let parent = node.parent.as_ref()?;
    nodes[..at].iter().rposition(|other| other.file == *parent)
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Volume => "volume",
        Role::Snapshot => "snapshot",
        Role::Base => "base",
        Role::Hidden => "hidden",
        Role::Garbage => "garbage",
        Role::Broken => "broken",
    }
}
