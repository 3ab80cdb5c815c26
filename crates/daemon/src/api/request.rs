//! What clients send.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// A size to change to.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewSize {
    /// Bytes.
    pub(crate) size: u64,
}

/// A volume to make.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewVolume {
    /// Its name: 1 to 128 letters, digits and `. _ + -`, not beginning with `.` or `-`.
    pub(crate) name: String,
    /// Its size in bytes.
    pub(crate) size: u64,
}

/// A volume to make, empty or over an external origin.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateVolume {
    /// Its name: 1 to 128 letters, digits and `. _ + -`, not beginning with `.` or `-`.
    pub(crate) name: String,
    /// Its size in bytes; over an origin that of the origin if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<u64>,
    /// What it begins as, and shows where nothing is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<super::schema::OriginSource>)]
    pub(crate) origin: Option<volume::OriginSource>,
}

/// How far a hydration goes.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct HydrateVolume {
    /// Free everything that shares the origin by descent, too: snapshots, clones, ancestors.
    #[serde(default)]
    pub(crate) family: bool,
    /// The bytes that it may copy in a second; without it, all that it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rate: Option<u64>,
}

/// An empty disk to make in a repository.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewDisk {
    /// Its name.
    pub(crate) name: String,
    /// Its size in bytes.
    pub(crate) size: u64,
}

/// A VHD to copy into a repository.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddedDisk {
    /// The name that it is to have.
    pub(crate) name: String,
    /// Where the daemon finds it.
    pub(crate) path: String,
}

/// A message as the kernel's thin-pool target takes it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PoolMessage {
    /// `create_thin ID`, `create_snap ID ORIGIN`, `delete ID`, `set_transaction_id CURRENT NEW`,
    /// `reserve_metadata_snap` or `release_metadata_snap`.
    pub(crate) message: String,
}

/// What to pull up into an image.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct StreamImage {
    /// The path of the image of the chain that stays below it; without one, none does.
    pub(crate) base: Option<String>,
}

/// What to commit.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommitImage {
    /// The path of the upmost image that is written into the base.
    pub(crate) top: Option<String>,
    /// The path of the base; without one it is the next image below.
    pub(crate) base: Option<String>,
}

/// Another backing file.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct RebaseImage {
    /// Its path.
    pub(crate) backing: String,
    /// Its format, if it is not to be found out.
    pub(crate) format: Option<String>,
    /// Folders in which it may name files that it stands on, beside its own.
    #[serde(default)]
    pub(crate) allow_folders: Vec<String>,
    /// Whether it may name any file.
    #[serde(default)]
    pub(crate) allow_any: bool,
}

/// An internal snapshot.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SnapshotOfImage {
    /// Its name, or its id if it is there already.
    pub(crate) name: String,
}

/// A limit on what a job may move.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobRate {
    /// Bytes in a second; 0 for no limit.
    pub(crate) rate: u64,
}

/// What `dmsetup status` would print.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub(crate) struct StatusLine {
    /// The line, with the blank at its end where the kernel leaves one.
    pub(crate) line: String,
}

/// A name for what is to be made.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewName {
    /// 1 to 128 letters, digits and `. _ + -`, not beginning with `.` or `-`.
    pub(crate) name: String,
}

/// How far a delete may go.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeleteVolume {
    /// Delete its snapshots, too.
    #[serde(default)]
    pub(crate) snapshots: bool,
    /// Disconnect its clients first.
    #[serde(default)]
    pub(crate) force: bool,
}

/// How far a delete may go.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeleteSnapshot {
    /// Disconnect its clients first.
    #[serde(default)]
    pub(crate) force: bool,
}

/// What to compare.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Compare {
    /// The earlier node, as `db@monday`.
    pub(crate) from: String,
    /// The later node, as `db`.
    pub(crate) to: String,
}

/// From where on events are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Since {
    /// The last event that is known already; 0 for none.
    #[serde(default)]
    pub(crate) after: u64,
    /// Seconds to wait for an event.
    #[serde(default)]
    pub(crate) wait: u64,
}
