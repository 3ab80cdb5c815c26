//! What is told of an origin and its snapshots: plain data, as JSON has it.

use block_types::ByteCount;
use dm_snapshot::{ChunkSize, Target};
use dm_snapshot::{OnFull, SnapshotKind, SnapshotState, SnapshotStatus, SnapshotTarget, TableLine};
use serde::{Deserialize, Serialize};

/// An origin with its snapshots. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct OriginReport {
    /// Its path.
    pub origin: String,
    /// Its size.
    pub size: u64,
    /// The process that serves it, if one does.
    pub served_by: Option<u32>,
    /// Its snapshots, the oldest first.
    pub snapshots: Vec<CowReport>,
}

/// A classic snapshot. Sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CowReport {
    /// Its name.
    pub name: String,
    /// The path of its store.
    pub store: String,
    /// `active`, `overflow`, `invalid`, `merging`, `merge-failed` or `closed`.
    pub state: String,
    /// What led to that, if it is not the usual one.
    pub reason: Option<String>,
    /// `sync`, `async` or `deferred`; `transient` where nothing survives.
    pub mode: String,
    /// The snapshot's size.
    pub size: u64,
    /// The size of its chunks.
    pub chunk_size: u64,
    /// Chunks that its store has.
    pub exceptions: u64,
    /// Up to where the store is used, its metadata included.
    pub used: u64,
    /// The store's size.
    pub total: u64,
    /// The store's header and tables.
    pub metadata: u64,
    /// Up to what size the store grows by itself, if it does.
    pub grow_limit: Option<u64>,
    /// When it was taken, in RFC 3339.
    pub created: Option<String>,
    /// The line that `dmsetup status` would print.
    pub status_line: String,
    /// The line that `dmsetup table` would print.
    pub table_line: String,
}

/// What of a report does not change while a snapshot is in use.
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) origin: String,
    pub(super) store: String,
    pub(super) size: ByteCount,
    pub(super) on_full: OnFull,
    pub(super) discard_zeroes: bool,
    pub(super) discard_passdown: bool,
    pub(super) grow_limit: Option<u64>,
    pub(super) created: Option<String>,
}

impl Facts {
    /// The report of a snapshot in that state.
    pub(super) fn report(&self, status: &SnapshotStatus) -> CowReport {
        let merging = matches!(status.state, SnapshotState::Merging | SnapshotState::MergeFailed);
        let line = self.line(status.mode.is_some(), status.chunk, merging);
        CowReport {
            name: self.name.clone(),
            store: self.store.clone(),
            state: word(status.state).to_owned(),
            reason: status.reason.clone(),
            mode: status.mode.map_or_else(|| "transient".to_owned(), |mode| mode.to_string()),
            size: self.size.get(),
            chunk_size: status.chunk.bytes().get(),
            exceptions: status.exceptions,
            used: status.room.allocated.get(),
            total: status.room.total.get(),
            metadata: status.room.metadata.get(),
            grow_limit: self.grow_limit,
            created: self.created.clone(),
            status_line: line.status_line(status),
            table_line: line.to_string(),
        }
    }

    /// The table line of the kernel's target.
    fn line(&self, persistent: bool, chunk: ChunkSize, merging: bool) -> TableLine {
        let kind = match persistent {
            true => SnapshotKind::Persistent(self.on_full),
            false => SnapshotKind::Transient,
        };
        let target = SnapshotTarget {
            origin: self.origin.clone(),
            store: self.store.clone(),
            kind,
            chunk: Some(chunk),
            discard_zeroes: self.discard_zeroes,
            discard_passdown: self.discard_passdown,
        };
        let target = if merging { Target::Merge(target) } else { Target::Snapshot(target) };
        TableLine { start: ByteCount::ZERO, len: self.size, target }
    }
}

const fn word(state: SnapshotState) -> &'static str {
    match state {
        SnapshotState::Active => "active",
        SnapshotState::Overflow => "overflow",
        SnapshotState::Invalid => "invalid",
        SnapshotState::Merging => "merging",
        SnapshotState::MergeFailed => "merge-failed",
        SnapshotState::Closed => "closed",
    }
}
