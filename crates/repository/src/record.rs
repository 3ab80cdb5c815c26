//! What the log says: which nodes have names, which are Firn's own, which were merged into which.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use volume::NodeName;

use crate::NodeId;

/// A name of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Binding {
    /// The node that has it.
    pub(crate) node: NodeId,
    /// When it was given, in RFC 3339.
    pub(crate) created: String,
}

/// A change of the catalogue: whole after a crash, or not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// Nodes that are the repository's own, although they may have no name, nor a whole file yet.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) own: BTreeSet<NodeId>,
    /// Names that are given, or taken away.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) names: BTreeMap<String, Option<Binding>>,
    /// Nodes whose content another holds as well: their children may be given that for a parent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) absorbed: BTreeMap<NodeId, NodeId>,
}

/// What all records together say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Catalogue {
    pub(crate) names: BTreeMap<NodeName, Binding>,
    pub(crate) own: BTreeSet<NodeId>,
    pub(crate) absorbed: BTreeMap<NodeId, NodeId>,
}

impl Record {
    /// A record that gives `name` to `node`.
    #[must_use]
    pub(crate) fn naming(mut self, name: &NodeName, node: &NodeId, created: String) -> Self {
        let binding = Binding { node: node.clone(), created };
        self.own.insert(node.clone());
        self.names.insert(name.to_string(), Some(binding));
        self
    }

    /// A record that takes `name` away.
    #[must_use]
    pub(crate) fn without(mut self, name: &NodeName) -> Self {
        self.names.insert(name.to_string(), None);
        self
    }
}

impl Catalogue {
    /// Adds what a record says. A name that breaks the rules is nobody's.
    pub(crate) fn apply(&mut self, record: &Record) {
        self.own.extend(record.own.iter().cloned());
        self.absorbed.extend(record.absorbed.clone());
        for (name, binding) in &record.names {
            let Ok(name) = NodeName::parse(name) else { continue };
            match binding {
                Some(binding) => {
                    self.own.insert(binding.node.clone());
                    self.names.insert(name, binding.clone());
                }
                None => {
                    self.names.remove(&name);
                }
            }
        }
    }

    /// Forgets nodes that `is_there` does not know: their files are gone for good.
    pub(crate) fn forget(&mut self, is_there: impl Fn(&NodeId) -> bool) {
        let names = &self.names;
        let named = |id: &NodeId| names.values().any(|binding| binding.node == *id);
        self.own.retain(|id| is_there(id) || named(id));
        self.absorbed.retain(|id, _| is_there(id));
    }

    /// The name of a node.
    pub(crate) fn name_of(&self, node: &NodeId) -> Option<&NodeName> {
        self.names.iter().find(|(_, binding)| binding.node == *node).map(|(name, _)| name)
    }

    /// One record that says the same.
    pub(crate) fn to_record(&self) -> Record {
        let names = self.names.iter();
        Record {
            own: self.own.clone(),
            names: names.map(|(name, binding)| (name.to_string(), Some(binding.clone()))).collect(),
            absorbed: self.absorbed.clone(),
        }
    }
}
