//! A record of the names: one change, and the transaction that makes it true.

use serde::{Deserialize, Serialize};

use super::OriginSource;
use crate::{SnapshotName, VolumeName};

/// One change of the names.
///
/// It holds if the pool's transaction id has reached [`Record::transaction`]: the record is durable
/// before the metadata commit that carries that id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    /// The transaction id that the pool has once the change is done.
    pub transaction: u64,
    /// When, in RFC 3339.
    pub at: String,
    /// What.
    pub change: RecordedChange,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordedChange {
    /// A new, empty volume.
    Create {
        /// Its name.
        name: VolumeName,
        /// Its device.
        id: u32,
        /// Its size in bytes.
        size: u64,
    },
    /// A new volume over an external origin.
    CreateOver {
        /// Its name.
        name: VolumeName,
        /// Its device.
        id: u32,
        /// Its size in bytes.
        size: u64,
        /// The origin.
        origin: OriginSource,
        /// How many bytes of it show.
        shown: u64,
    },
    /// A snapshot of a volume.
    Snapshot {
        /// The volume.
        volume: VolumeName,
        /// The snapshot's name.
        name: SnapshotName,
        /// The snapshot's device.
        id: u32,
        /// Its size in bytes: the volume's at that moment.
        size: u64,
    },
    /// A new volume that begins as a snapshot is.
    Clone {
        /// The snapshot's volume.
        volume: VolumeName,
        /// The snapshot.
        snapshot: SnapshotName,
        /// The new volume's name.
        name: VolumeName,
        /// The new volume's device.
        id: u32,
        /// Its size in bytes.
        size: u64,
    },
    /// A volume became what a snapshot of it is.
    Rollback {
        /// The volume.
        volume: VolumeName,
        /// The snapshot.
        snapshot: SnapshotName,
    },
    /// A volume has another size.
    Resize {
        /// The volume.
        volume: VolumeName,
        /// Its size in bytes.
        size: u64,
    },
    /// A device that others made got a name, and is a volume from now on.
    Name {
        /// The name.
        name: VolumeName,
        /// The device.
        id: u32,
        /// Its size in bytes.
        size: u64,
        /// The transaction in which it was made.
        born: u64,
    },
    /// A volume goes by another name, and so do its snapshots.
    Rename {
        /// The volume.
        volume: VolumeName,
        /// Its new name.
        name: VolumeName,
    },
    /// A volume and all its snapshots are gone.
    Delete {
        /// The volume.
        volume: VolumeName,
    },
    /// A snapshot is gone.
    DeleteSnapshot {
        /// The volume.
        volume: VolumeName,
        /// The snapshot.
        snapshot: SnapshotName,
    },
    /// A device without a name was made as a snapshot of another that stands on an external origin.
    Inherit {
        /// The device.
        id: u32,
        /// What it is a snapshot of.
        of: u32,
    },
    /// Such a device is gone.
    Disinherit {
        /// The device.
        id: u32,
    },
    /// These devices hold themselves all that they showed of their external origin.
    Free {
        /// The devices.
        ids: Vec<u32>,
    },
    /// What a volume held over its external origin is in the origin now.
    Merge {
        /// The volume.
        volume: VolumeName,
        /// How many bytes of the origin show in it.
        shown: u64,
    },
}
