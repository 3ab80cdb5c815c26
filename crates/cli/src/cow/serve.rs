//! `firn serve` of an origin with its snapshots.

use std::path::{Path, PathBuf};

use block_types::{ByteCount, Error, ErrorKind, Result};
use clap::Args;
use serde::Serialize;
use volume::{NewSnapshot, StoreSource, TableLine, Target, device_path, has_snapshots};

/// What is served beside an origin.
#[derive(Args, Debug)]
pub(crate) struct Stores {
    /// Serve a raw disk with the snapshot that this store has; implied for those that 'firn cow'
    /// knows of. May be repeated.
    #[arg(long = "cow", value_name = "STORE")]
    stores: Vec<PathBuf>,

    /// Serve a raw disk with what a table line of the kernel asks for: 'snapshot', 'snapshot-merge'
    /// or 'snapshot-origin' of it. May be repeated.
    #[arg(long = "table", value_name = "LINE")]
    lines: Vec<TableLine>,

    /// Take the origin as it is, though it was written past its snapshots.
    #[arg(long)]
    pub(crate) trust_origin: bool,
}

/// Which origin is being served, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct ServingOrigin {
    pub(crate) origin: String,
    pub(crate) nbd_uri: String,
    pub(crate) nbd_tcp_uri: Option<String>,
    pub(crate) snapshot_uris: Vec<String>,
    pub(crate) control_socket: String,
}

/// Snapshots to serve, and the one of them that is to be merged.
pub(crate) struct Wanted {
    pub(crate) snapshots: Vec<NewSnapshot>,
    pub(crate) merge: Option<PathBuf>,
}

impl Stores {
    /// Whether `path` is to be served as an origin.
    pub(crate) fn concern(&self, path: &Path) -> bool {
        !self.stores.is_empty() || !self.lines.is_empty() || has_snapshots(path)
    }

    /// The stores that were named.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        let of_lines = self.lines.iter().filter_map(|line| match &line.target {
            Target::Origin { .. } => None,
            Target::Snapshot(target) | Target::Merge(target) => Some(device_path(&target.store)),
        });
        self.stores.iter().cloned().chain(of_lines).collect()
    }

    /// What is asked for, of an origin of `size` bytes.
    pub(crate) fn wanted(&self, origin: &Path, size: ByteCount) -> Result<Wanted> {
        let there = |store| NewSnapshot { source: StoreSource::There, ..NewSnapshot::new(store) };
        let mut wanted = Wanted { snapshots: self.stores.iter().map(there).collect(), merge: None };
        for line in &self.lines {
            check(line, origin, size)?;
            match &line.target {
                Target::Origin { .. } => {}
                Target::Snapshot(target) => {
                    wanted.snapshots.push(NewSnapshot::from_target(target, line.len));
                }
                Target::Merge(target) => {
                    wanted.snapshots.push(NewSnapshot::from_target(target, line.len));
                    wanted.merge = Some(device_path(&target.store));
                }
            }
        }
        Ok(wanted)
    }
}

/// Checks that a line is about the origin, from its start on.
fn check(line: &TableLine, origin: &Path, size: ByteCount) -> Result<()> {
    let wrong = |problem: &str| {
        Err(Error::new(ErrorKind::Invalid, format!("table line '{line}'"), problem))
    };
    let (device, whole) = match &line.target {
        Target::Origin { device } => (device, true),
        Target::Snapshot(target) | Target::Merge(target) => (&target.origin, false),
    };
    let same = device_path(device).canonicalize().ok();
    if same.is_none() || same != origin.canonicalize().ok() {
        return wrong("is about another origin than the one that is served");
    }
    if !line.start.is_zero() {
        return wrong("does not begin at sector 0, and one device has one target here");
    }
    if line.len > size || (whole && line.len != size) || line.len.is_zero() {
        return wrong(&format!("has another length than the {} sectors there are", size.sectors()));
    }
    Ok(())
}
