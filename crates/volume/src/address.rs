//! Addresses: `db@monday` among a pool's nodes, `lab/db@monday` on the command line.

use std::fmt;
use std::path::{Path, PathBuf};

use block_types::{Error, ErrorKind, Result};

use crate::{SnapshotName, VolumeName};

/// A volume, or a snapshot of one, within its pool.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName {
    /// The volume.
    pub volume: VolumeName,
    /// The snapshot of it that is meant, if not the volume itself.
    pub snapshot: Option<SnapshotName>,
}

/// A pool directory and, perhaps, a node in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolAddress {
    /// The pool's directory.
    pub pool: PathBuf,
    /// The node.
    pub node: Option<NodeName>,
}

impl NodeName {
    /// Reads `db` or `db@monday`.
    ///
    /// # Errors
    /// `Invalid` where one of the names breaks the rules.
    pub fn parse(text: &str) -> Result<Self> {
        let (volume, snapshot) = match text.split_once('@') {
            Some((volume, snapshot)) => (volume, Some(SnapshotName::parse(snapshot)?)),
            None => (text, None),
        };
        Ok(Self { volume: VolumeName::parse(volume)?, snapshot })
    }
}

impl PoolAddress {
    /// Reads `POOLDIR/VOLUME` or `POOLDIR/VOLUME@SNAPSHOT`: the last component is the node.
    ///
    /// # Errors
    /// `Invalid` where there is no `/`, or a name breaks the rules.
    pub fn parse(text: &str) -> Result<Self> {
        let Some((pool, node)) = text.rsplit_once('/') else {
            return Err(Error::new(ErrorKind::Invalid, format!("'{text}'"), "names no pool")
                .advise("write POOLDIR/VOLUME, as in lab/db"));
        };
        let pool = if pool.is_empty() { Path::new("/") } else { Path::new(pool) };
        Ok(Self { pool: pool.to_owned(), node: Some(NodeName::parse(node)?) })
    }

    /// The address of a pool as a whole.
    pub fn parse_pool(text: &str) -> Self {
        Self { pool: PathBuf::from(text), node: None }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.snapshot {
            None => write!(f, "{}", self.volume),
            Some(snapshot) => write!(f, "{}@{snapshot}", self.volume),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{NodeName, PoolAddress};
    use std::path::Path;

    #[test]
    fn reads_addresses() {
        let address = PoolAddress::parse("a/b/lab/db@monday").expect("an address");
        assert_eq!(address.pool, Path::new("a/b/lab"));
        assert_eq!(address.node.map(|node| node.to_string()).as_deref(), Some("db@monday"));
        assert_eq!(PoolAddress::parse("/db").expect("an address").pool, Path::new("/"));
        for bad in ["db", "lab/", "lab/db@", "lab/@x", "lab/db@a@b"] {
            assert!(PoolAddress::parse(bad).is_err(), "{bad}");
        }
        assert!(NodeName::parse("db").expect("a node").snapshot.is_none());
    }
}
