//! Addresses on the command line: what each verb demands of them, checked before anything else.

use std::fmt;
use std::path::{Path, PathBuf};

use block_types::{Error, ErrorKind, Result};
use volume::{DeviceId, NodeName, PoolAddress, SnapshotName, VolumeName};

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

/// A volume, or a device that has no name: `lab/db`, `lab/#7`.
#[derive(Clone, Debug)]
pub(crate) struct DeviceAddress {
    pub(crate) pool: PathBuf,
    pub(crate) device: Device,
}

/// A device, as it goes by now.
#[derive(Clone, Debug)]
pub(crate) enum Device {
    Named(VolumeName),
    Numbered(DeviceId),
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

/// Reads `POOLDIR/VOLUME` or `POOLDIR/#ID`.
pub(crate) fn volume_or_device(text: &str) -> Result<DeviceAddress> {
    let numbered =
        text.rsplit_once('/').and_then(|(pool, name)| Some((pool, name.strip_prefix('#')?)));
    let Some((pool, number)) = numbered else {
        let VolumeAddress { pool, volume } = volume(text)?;
        return Ok(DeviceAddress { pool, device: Device::Named(volume) });
    };
    let id = number.parse().ok().and_then(|id| DeviceId::new(id).ok()).ok_or_else(|| {
        let problem = "is no number of a device, from 0 to 16777215";
        Error::new(ErrorKind::Invalid, format!("'#{number}'"), problem)
            .advise("'firn volume list' shows what there is")
    })?;
    let pool = if pool.is_empty() { Path::new("/") } else { Path::new(pool) };
    Ok(DeviceAddress { pool: pool.to_owned(), device: Device::Numbered(id) })
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

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pool = self.pool.display();
        match &self.device {
            Device::Named(name) => write!(f, "{pool}/{name}"),
            Device::Numbered(id) => write!(f, "{pool}/#{id}"),
        }
    }
}

impl fmt::Display for SnapshotAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.pool.display(), self.volume, self.snapshot)
    }
}
