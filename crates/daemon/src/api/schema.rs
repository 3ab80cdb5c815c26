//! The shapes of the reports in the OpenAPI document.
//!
//! The values come from the crate `volume`, which knows nothing of web interfaces; here is what the
//! document says of them. The tests of the API hold the two against each other.
#![expect(dead_code, reason = "never values, only described")]

use utoipa::ToSchema;

/// A pool as a whole. Sizes are bytes.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
pub(super) struct PoolReport {
    /// Its directory.
    path: String,
    /// How much data it can hold.
    size: u64,
    /// The size of its data blocks.
    block_size: u64,
    /// How much data it holds.
    data_used: u64,
    /// What deleted volumes and snapshots had, and what of it nobody shares is given back now.
    reclaiming: u64,
    /// How much metadata it holds.
    metadata_used: u64,
    /// How much room there is for metadata.
    metadata_size: u64,
    /// The transaction id.
    transaction: u64,
    /// How many volumes there are.
    volumes: u64,
    /// How many snapshots there are.
    snapshots: u64,
    /// `rw`, `out_of_data_space`, `out_of_metadata_space`, `ro` or `fail`.
    mode: String,
    /// Why it is not `rw`.
    reason: Option<String>,
    /// Whether only a check may decide if the metadata is sound.
    needs_check: bool,
}

/// A volume. Sizes are bytes.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
pub(super) struct VolumeInfo {
    /// Its name; `#ID` for a device that nobody has named.
    name: String,
    /// Its number in the pool.
    id: u32,
    /// Its size.
    size: u64,
    /// How much of it takes space, shared or not.
    mapped: u64,
    /// When it was made, in RFC 3339.
    created: Option<String>,
    /// The snapshot that it is a clone of, as `db@monday`.
    parent: Option<String>,
    /// The external origin that it shows where it maps nothing.
    origin: Option<OriginInfo>,
    /// Its snapshots, the oldest first.
    snapshots: Vec<SnapshotInfo>,
}

/// A snapshot of a volume. Sizes are bytes.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
pub(super) struct SnapshotInfo {
    /// Its name within its volume.
    name: String,
    /// Its number in the pool.
    id: u32,
    /// Its size.
    size: u64,
    /// How much of it takes space, shared or not.
    mapped: u64,
    /// When it was taken, in RFC 3339.
    created: Option<String>,
    /// The external origin that it shows where it maps nothing.
    origin: Option<OriginInfo>,
}

/// The external origin of a volume or a snapshot.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
pub(super) struct OriginInfo {
    /// An absolute path, or the URI of an NBD export.
    address: String,
    /// The format of a file.
    format: Option<String>,
    /// How many bytes of it show; zeros behind.
    shown: u64,
}

/// An external origin to make a volume over.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
pub(crate) struct OriginSource {
    /// An absolute path, or the URI of an NBD export.
    address: String,
    /// The format of a file, `raw`, `qcow2` or `vhd`; none for an export.
    format: Option<String>,
    /// Folders whose files it may name as its backing files, besides its own; `any` for all.
    #[schema(required = false)]
    allow_backing: Vec<String>,
}

/// A range that differs between two nodes.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
pub(super) struct ChangedRange {
    /// First byte.
    start: u64,
    /// Bytes.
    length: u64,
    /// `data` where the second node has other data, `discarded` where it has none any more.
    kind: String,
}

/// An image of a chain.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
pub(super) struct ChainImage {
    /// Its path.
    filename: String,
    /// Its format, as QEMU calls it.
    format: String,
    /// The size of its disk.
    virtual_size: u64,
}

/// An internal snapshot of an image, in qemu-img's words.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
pub(super) struct ImageSnapshot {
    /// Its number.
    id: String,
    /// Its name.
    name: String,
    /// The size of the disk then.
    disk_size: u64,
    /// The size of its VM state.
    vm_state_size: u64,
    /// When it was taken, in seconds since 1970.
    date_sec: u64,
    /// And nanoseconds.
    date_nsec: u32,
    /// How long the machine had been running, in seconds.
    vm_clock_sec: u64,
    /// And nanoseconds.
    vm_clock_nsec: u32,
    /// Instructions of a machine that is replayed.
    icount: Option<u64>,
}

/// What a check found.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
pub(super) struct CheckReport {
    /// What is broken.
    errors: Vec<String>,
    /// Space that nothing refers to: a loss, but no danger.
    leaks: Vec<String>,
    /// How many metadata blocks were read.
    checked_blocks: u64,
}

/// An origin with its snapshots. Sizes are bytes.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
pub(crate) struct OriginReport {
    /// Its path.
    origin: String,
    /// Its size.
    size: u64,
    /// The process that serves it.
    served_by: Option<u32>,
    /// Its snapshots, the oldest first.
    snapshots: Vec<CowReport>,
}

/// A classic snapshot. Sizes are bytes.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
pub(crate) struct CowReport {
    /// Its name.
    name: String,
    /// The path of its store.
    store: String,
    /// `active`, `overflow`, `invalid`, `merging`, `merge-failed` or `closed`.
    state: String,
    /// What led to that, if it is not the usual one.
    reason: Option<String>,
    /// `sync`, `async`, `deferred` or `transient`.
    mode: String,
    /// The snapshot's size.
    size: u64,
    /// The size of its chunks.
    chunk_size: u64,
    /// Chunks that its store has.
    exceptions: u64,
    /// Up to where the store is used, its metadata included.
    used: u64,
    /// The store's size.
    total: u64,
    /// The store's header and tables.
    metadata: u64,
    /// Up to what size the store grows by itself, if it does.
    grow_limit: Option<u64>,
    /// When it was taken, in RFC 3339.
    created: Option<String>,
    /// The line that `dmsetup status` would print.
    status_line: String,
    /// The line that `dmsetup table` would print.
    table_line: String,
}

/// How a pool is to behave.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
pub(super) struct Settings {
    /// What a write does that finds no space: `queue` (wait) or `error`.
    no_space: String,
    /// Seconds for which it waits before it fails; 0 for as long as it takes.
    no_space_timeout: u64,
    /// What becomes of discards: `passdown`, `keep` or `ignore`.
    discards: String,
    /// Whether new blocks read as zeros where they were not written.
    zero_new_blocks: bool,
    /// Whether the pool takes no changes.
    read_only: bool,
    /// Free data blocks at which an event is raised.
    low_water: u64,
    /// When and how the pool grows by itself, if it does.
    autogrow: Option<AutoGrow>,
}

/// When and how a pool grows by itself.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
pub(super) struct AutoGrow {
    /// Percent of the data blocks in use at which it grows.
    threshold: u64,
    /// By so many percent of its size.
    step: u64,
    /// To so many bytes at most.
    max: Option<u64>,
}

/// Events in order.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
pub(super) struct EventList {
    /// The events.
    events: Vec<EventInfo>,
    /// How many before them were forgotten before anybody asked.
    lost: u64,
    /// Whether there will be no more.
    ended: bool,
}

/// Something that has happened to a pool.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
pub(super) struct EventInfo {
    /// Its number, counted from 1 since the pool was opened.
    sequence: u64,
    /// When, in RFC 3339.
    at: String,
    /// `low-water`, `autogrow`, `metadata-low`, `mode`, `no-space-timeout`, `data-grown` or
    /// `metadata-grown`.
    event: String,
    /// The same in a sentence.
    text: String,
}
