//! The trees of a repository in memory: nodes, and which stands on which.

use std::collections::{BTreeMap, BTreeSet};

use block_types::{ByteCount, Result};
use disk_image::vhd::{self, NodeInfo, ParentInfo};

use crate::NodeId;
use crate::folder::Folder;

/// A node as its file says.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// What the file says; `None` where it cannot be read.
    pub(crate) head: Option<NodeInfo>,
    /// What is wrong with the node itself, or with what it says of its parent.
    pub(crate) fault: Option<String>,
    pub(crate) parent: Option<NodeId>,
    pub(crate) children: BTreeSet<NodeId>,
}

/// All nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<NodeId, Node>,
}

impl Tree {
    /// Reads the heads of all files in `folder` that may be nodes.
    ///
    /// # Errors
    /// Those of the directory; a file that cannot be read is a node with a fault.
    pub(crate) fn scan(folder: &dyn Folder) -> Result<Self> {
        let mut tree = Self::default();
        for file in folder.list()? {
            let Ok(id) = NodeId::parse(&file) else { continue };
            let head = folder.open(&file, true).and_then(|file| vhd::probe_node(&*file));
            tree.nodes.insert(id, Node::new(head));
        }
        tree.link();
        Ok(tree)
    }

    /// Finds the parents: by UUID where one file alone has it, else by what the child calls it.
    fn link(&mut self) {
        let ids: Vec<NodeId> = self.nodes.keys().cloned().collect();
        for id in &ids {
            let info = self.nodes[id].head.as_ref().and_then(|head| head.parent.clone());
            let Some(info) = info else { continue };
            let found = self.find_parent(&info);
            let node = self.nodes.get_mut(id).expect("it was listed");
            match found {
                Ok(parent) => node.parent = Some(parent),
                Err(fault) => node.fault = Some(fault),
            }
        }
        for id in &ids {
            if self.is_in_loop(id) {
                let node = self.nodes.get_mut(id).expect("it was listed");
                node.fault = Some("stands on itself, by way of its parents".to_owned());
            }
        }
        for id in &ids {
            let parent = self.nodes[id].parent.clone();
            if let Some(parent) = parent.and_then(|parent| self.nodes.get_mut(&parent)) {
                parent.children.insert(id.clone());
            }
        }
    }

    fn find_parent(&self, info: &ParentInfo) -> std::result::Result<NodeId, String> {
        let Some(wanted) = info.id else {
            return Err(format!("stands on the raw disk '{}', which is no node", info.name));
        };
        let has_id = |node: &Node| node.head.as_ref().is_some_and(|head| head.id == wanted);
        let mut by_id = self.nodes.iter().filter(|(_, node)| has_id(node));
        let paths = info.locators.iter().filter_map(vhd::Locator::relative_path);
        let by_name = paths.chain([info.name.clone()]).find_map(|path| {
            let name = path.strip_prefix("./").unwrap_or(&path).to_owned();
            NodeId::parse(&name).ok().filter(|id| self.nodes.contains_key(id))
        });
        match (by_id.next(), by_id.next(), by_name) {
            (Some((id, _)), None, _) => Ok(id.clone()),
            (Some(_), Some(_), Some(id)) if has_id(&self.nodes[&id]) => Ok(id),
            (Some(_), Some(_), _) => Err(format!("has several files for a parent: {wanted}")),
            (None, _, Some(id)) => Err(match &self.nodes[&id].head {
                None => format!("stands on {id}, which cannot be read"),
                Some(head) => format!("stands on {wanted}, but {id} is {}", head.id),
            }),
            (None, _, None) => Err(format!("stands on {wanted} ('{}'), which is gone", info.name)),
        }
    }

    fn is_in_loop(&self, id: &NodeId) -> bool {
        let mut at = self.nodes[id].parent.as_ref();
        for _ in 0..self.nodes.len() {
            match at {
                None => return false,
                Some(parent) if parent == id => return true,
                Some(parent) => at = self.nodes[parent].parent.as_ref(),
            }
        }
        // Its parents go in a circle, and it is not one of them.
        false
    }

    pub(crate) fn get(&self, id: &NodeId) -> Option<&Node> {
        self.nodes.get(id)
    }

    pub(crate) fn contains(&self, id: &NodeId) -> bool {
        self.nodes.contains_key(id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&NodeId, &Node)> {
        self.nodes.iter()
    }

    /// The children of a node.
    pub(crate) fn children(&self, id: &NodeId) -> Vec<NodeId> {
        self.nodes.get(id).map(|node| node.children.iter().cloned().collect()).unwrap_or_default()
    }

    /// The only child of a node.
    pub(crate) fn only_child(&self, id: &NodeId) -> Option<&NodeId> {
        let children = &self.nodes.get(id)?.children;
        children.first().filter(|_| children.len() == 1)
    }

    /// The nodes from `id` down to its root, itself first; cut at a parent that is not there.
    pub(crate) fn chain(&self, id: &NodeId) -> Vec<NodeId> {
        let mut chain = vec![id.clone()];
        while let Some(parent) = self.nodes.get(&chain[chain.len() - 1]).and_then(|node| {
            let parent = node.parent.clone().filter(|_| node.fault.is_none());
            parent.filter(|parent| self.nodes.contains_key(parent))
        }) {
            chain.push(parent);
        }
        chain
    }

    /// What keeps a node from being read whole: the first fault from it down.
    pub(crate) fn fault(&self, id: &NodeId) -> Option<(NodeId, &str)> {
        self.chain(id).into_iter().find_map(|id| {
            let fault = self.nodes.get(&id)?.fault.as_deref()?;
            Some((id, fault))
        })
    }

    /// Whether a node says that it stands on the file of `id`, whatever that holds now.
    pub(crate) fn is_mentioned(&self, id: &NodeId) -> bool {
        self.nodes.values().any(|node| {
            let Some(info) = node.head.as_ref().and_then(|head| head.parent.as_ref()) else {
                return false;
            };
            let paths = info.locators.iter().filter_map(vhd::Locator::relative_path);
            let mut paths = paths.chain([info.name.clone()]);
            let by_id = info.id.is_some_and(|parent| parent.to_string() == id.stem());
            by_id || paths.any(|path| path.rsplit('/').next() == Some(id.file()))
        })
    }

    /// The size of a node's disk.
    pub(crate) fn size(&self, id: &NodeId) -> Option<ByteCount> {
        Some(self.nodes.get(id)?.head.as_ref()?.size)
    }

    /// Adds a node, or enters what its file says now.
    pub(crate) fn insert(&mut self, id: &NodeId, head: NodeInfo, parent: Option<NodeId>) {
        let children =
            self.nodes.remove(id).map(|old| self.unlink(id, old).children).unwrap_or_default();
        if let Some(parent) = parent.as_ref().and_then(|parent| self.nodes.get_mut(parent)) {
            parent.children.insert(id.clone());
        }
        let node = Node { head: Some(head), fault: None, parent, children };
        self.nodes.insert(id.clone(), node);
    }

    /// Removes a node.
    pub(crate) fn remove(&mut self, id: &NodeId) {
        if let Some(node) = self.nodes.remove(id) {
            self.unlink(id, node);
        }
    }

    fn unlink(&mut self, id: &NodeId, node: Node) -> Node {
        if let Some(parent) = node.parent.as_ref().and_then(|parent| self.nodes.get_mut(parent)) {
            parent.children.remove(id);
        }
        node
    }
}

impl Node {
    fn new(head: Result<NodeInfo>) -> Self {
        let (head, fault) = match head {
            Ok(head) => (Some(head), None),
            Err(error) => (None, Some(format!("cannot be read: {}", error.problem()))),
        };
        Self { head, fault, parent: None, children: BTreeSet::new() }
    }
}
