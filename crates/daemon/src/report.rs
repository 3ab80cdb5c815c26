//! What the daemon tells about itself: plain data, as JSON has it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A volume or a snapshot as NBD clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct ExportInfo {
    /// Its export name: `db`, or `db@monday` for a snapshot.
    pub name: String,
    /// Where clients reach it.
    pub uri: String,
    /// Whether every write is refused.
    pub read_only: bool,
    /// Those who use it now.
    pub clients: Vec<ClientInfo>,
}

/// A client of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct ClientInfo {
    /// Who it is: an address, or the process behind a Unix socket.
    pub peer: String,
}

/// The program behind a control socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub struct DaemonInfo {
    /// Firn's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The pool directory that it serves.
    pub pool: String,
    /// Its NBD server, without the name of an export.
    pub uri: String,
}
