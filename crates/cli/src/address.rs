//! Addresses on the command line: what each verb demands of them, checked before anything else.

use std::fmt;
use std::path::PathBuf;

use block_types::{Error, ErrorKind, Result};
use volume::{NodeName, PoolAddress, SnapshotName, VolumeName};

/// What names are made of.
const NAME_RULE: &str =
    "a name is 1 to 128 letters, digits and . _ + -, and does not begin with . or -";

/// A volume or a snapshot: `lab/db`, `lab/db@monday`.
#[derive(Clone, Debug)]
pub(crate) struct NodeAddress {
    pub(crate) pool: PathBuf,
    pub(crate) node: NodeName,
}

/// A volume: `lab/db`.
#[derive(Clone, Debug)]
pub(crate) struct VolumeAddress {
    pub(crate) pool: PathBuf,
    pub(crate) volume: VolumeName,
}

/// A snapshot: `lab/db@monday`.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotAddress {
    pub(crate) pool: PathBuf,
    pub(crate) volume: VolumeName,
    pub(crate) snapshot: SnapshotName,
}

/// Reads `POOLDIR/VOLUME[@SNAPSHOT]`.
pub(crate) fn node(text: &str) -> Result<NodeAddress> {
    let address = PoolAddress::parse(text).map_err(explain)?;
    let node = address.node.expect("an address with a slash has a node");
    Ok(NodeAddress { pool: address.pool, node })
}

/// Reads `POOLDIR/VOLUME`.
pub(crate) fn volume(text: &str) -> Result<VolumeAddress> {
    let NodeAddress { pool, node } = node(text)?;
    match node.snapshot {
        None => Ok(VolumeAddress { pool, volume: node.volume }),
        Some(_) => Err(Error::new(
            ErrorKind::Invalid,
            format!("'{text}'"),
            "is a snapshot, and a volume is wanted",
        )
        .advise("write POOLDIR/VOLUME, as in lab/db")),
    }
}

/// Reads `POOLDIR/VOLUME@SNAPSHOT`.
pub(crate) fn snapshot(text: &str) -> Result<SnapshotAddress> {
    let NodeAddress { pool, node } = node(text)?;
    match node.snapshot {
        Some(snapshot) => Ok(SnapshotAddress { pool, volume: node.volume, snapshot }),
        None => Err(Error::new(
            ErrorKind::Invalid,
            format!("'{text}'"),
            "is a volume, and a snapshot is wanted",
        )
        .advise("write POOLDIR/VOLUME@SNAPSHOT, as in lab/db@monday")),
    }
}

/// Reads the name of a volume.
pub(crate) fn volume_name(text: &str) -> Result<VolumeName> {
    VolumeName::parse(text).map_err(explain)
}

/// Adds the rule to an error that only says how it was broken.
fn explain(error: Error) -> Error {
    if error.advice().is_some() { error } else { error.advise(NAME_RULE) }
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool.display(), self.node)
    }
}

impl fmt::Display for VolumeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.pool.display(), self.volume)
    }
}

impl fmt::Display for SnapshotAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.pool.display(), self.volume, self.snapshot)
    }
}
