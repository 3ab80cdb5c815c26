//! External origins among the names: which volumes and snapshots stand on what.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a volume was made from, and still shows where it holds nothing itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OriginSource {
    /// An absolute path, or the URI of an NBD export.
    pub address: String,
    /// The format of a file, so that it is never guessed again: `raw`, `qcow2` or `vhd`.
    pub format: Option<String>,
    /// Folders whose files it may name as its backing files, besides its own; `any` for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_backing: Vec<String>,
}

/// The origin of a volume or of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginEntry {
    /// What it is.
    pub origin: OriginSource,
    /// How many bytes of it show, at most; zeros behind. It gets less, never more.
    pub shown: u64,
    /// The transaction that made the volume: its snapshots and clones have the same, and nobody
    /// else.
    pub family: u64,
}

/// Devices without a name that began as snapshots of what stands on an origin: only the names know
/// that they do, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct UnnamedOrigins(BTreeMap<u32, (u64, OriginEntry)>);

impl UnnamedOrigins {
    /// Device `id`, made in the transaction `born`, stands on `origin`.
    pub(super) fn insert(&mut self, id: u32, born: u64, origin: OriginEntry) {
        self.0.insert(id, (born, origin));
    }

    pub(super) fn get(&self, id: u32) -> Option<&OriginEntry> {
        self.0.get(&id).map(|(_, origin)| origin)
    }

    /// The device goes, or gets a name.
    pub(super) fn remove(&mut self, id: u32) -> Option<OriginEntry> {
        self.0.remove(&id).map(|(_, origin)| origin)
    }

    pub(super) fn forget_dead(&mut self, is_alive: impl Fn(u32, u64) -> bool) {
        self.0.retain(|id, (born, _)| is_alive(*id, *born));
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (u32, &OriginEntry)> {
        self.0.iter().map(|(id, (_, origin))| (*id, origin))
    }
}
