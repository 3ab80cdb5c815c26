//! The file of a node, as the repository knows it.

use std::fmt;

use block_types::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// How the name of a VHD ends.
const VHD: &str = ".vhd";

/// A node, by the name of its file in the repository's directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

impl NodeId {
    /// The node in the file `name`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for what is no name of a VHD.
    pub fn parse(name: &str) -> Result<Self> {
        let stem = name.strip_suffix(VHD).unwrap_or_default();
        if stem.is_empty() || stem.starts_with('.') || name.contains(['/', '\0']) {
            return Err(Error::new(ErrorKind::Invalid, format!("file '{name}'"), "is no node")
                .advise("nodes are files called NAME.vhd"));
        }
        Ok(Self(name.to_owned()))
    }

    /// The node that a new VHD with this UUID is.
    pub(crate) fn of(id: Uuid) -> Self {
        Self(format!("{id}{VHD}"))
    }

    /// The file's name.
    pub fn file(&self) -> &str {
        &self.0
    }

    /// The name without its ending.
    pub(crate) fn stem(&self) -> &str {
        self.0.strip_suffix(VHD).unwrap_or(&self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for NodeId {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        Self::parse(&name)
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::NodeId;

    #[test]
    fn files_that_are_nodes() {
        assert_eq!(NodeId::parse("base.vhd").expect("a node").stem(), "base");
        for bad in ["names", ".vhd", ".x.vhd", "a/b.vhd", "x.vhdx", ""] {
            assert!(NodeId::parse(bad).is_err(), "{bad}");
        }
    }
}
