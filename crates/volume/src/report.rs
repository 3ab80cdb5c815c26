//! What is told of pools, volumes and snapshots: plain data, as JSON has it.

use serde::{Deserialize, Serialize};

/// A pool as a whole. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PoolReport {
    /// Its directory.
    pub path: String,
    /// How much data it can hold.
    pub size: u64,
    /// Its data blocks' size.
    pub block_size: u64,
    /// Data blocks in use.
    pub data_used: u64,
    /// What deleted volumes and snapshots had, and what of it nobody shares is given back now.
    pub reclaiming: u64,
    /// Metadata blocks in use.
    pub metadata_used: u64,
    /// Metadata blocks there are; more are added as they are needed.
    pub metadata_size: u64,
    /// The transaction id.
    pub transaction: u64,
    /// Volumes.
    pub volumes: u64,
    /// Snapshots of volumes.
    pub snapshots: u64,
    /// `rw`, `out_of_data_space`, `out_of_metadata_space`, `ro` or `fail`: what it does with
    /// writes, whoever opens it.
    pub mode: String,
    /// Why it is not `rw`.
    pub reason: Option<String>,
    /// Whether only a check may decide if the metadata is sound.
    pub needs_check: bool,
}

/// A volume. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VolumeInfo {
    /// Its name; `#ID` for a device that nobody has named.
    pub name: String,
    /// Its number in the pool.
    pub id: u32,
    /// Its size.
    pub size: u64,
    /// How much of it is mapped, shared or not.
    pub mapped: u64,
    /// When it was made, in RFC 3339.
    pub created: Option<String>,
    /// The snapshot that it is a clone of.
    pub parent: Option<String>,
    /// The external origin that it shows where it maps nothing.
    pub origin: Option<OriginInfo>,
    /// Its snapshots, the oldest first.
    pub snapshots: Vec<SnapshotInfo>,
}

/// A snapshot of a volume. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotInfo {
    /// Its name within its volume.
    pub name: String,
    /// Its number in the pool.
    pub id: u32,
    /// Its size.
    pub size: u64,
    /// How much of it is mapped, shared or not.
    pub mapped: u64,
    /// When it was taken, in RFC 3339.
    pub created: Option<String>,
    /// The external origin that it shows where it maps nothing.
    pub origin: Option<OriginInfo>,
}

/// The external origin of a volume or a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OriginInfo {
    /// An absolute path, or the URI of an NBD export.
    pub address: String,
    /// The format of a file.
    pub format: Option<String>,
    /// How many bytes of it show; zeros behind.
    pub shown: u64,
}

/// A range that differs between two nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChangedRange {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// `data` where the second node has other data, `discarded` where it has none any more.
    pub kind: String,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckReport {
    /// What is broken.
    pub errors: Vec<String>,
    /// Space that nothing refers to: a loss, but no danger.
    pub leaks: Vec<String>,
    /// Metadata blocks that were read.
    pub checked_blocks: u64,
}
