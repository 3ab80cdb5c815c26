//! A snapshot of an open origin.

use std::path::PathBuf;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, Error, ErrorKind, Result};
use dm_snapshot::{
    Merge, Mode, OnFull, SharedStore, Snapshot, SnapshotOptions, SnapshotState, ViewId,
};
use uuid::Uuid;

use super::new::OpenStore;
use super::record::{Kept, store_name};
use super::report::Facts;
use super::{CowReport, NewSnapshot};
use crate::image::ImageLock;

/// A snapshot, with its store.
pub(super) struct Live {
    pub(super) facts: Facts,
    pub(super) path: PathBuf,
    pub(super) snapshot: Arc<Snapshot>,
    /// The store and its number there, where several share it.
    pub(super) shared: Option<(Arc<Depot>, ViewId)>,
    pub(super) merge: Option<Arc<Merge>>,
    /// Whether the file was made for it, and is nothing without it: that of a transient store.
    pub(super) scratch: bool,
    /// Of its store, unless several share it.
    pub(super) _lock: Option<ImageLock>,
}

/// A store that several snapshots share.
pub(super) struct Depot {
    pub(super) store: SharedStore,
    pub(super) path: PathBuf,
    pub(super) id: Uuid,
    pub(super) grow_limit: Option<u64>,
    pub(super) _lock: ImageLock,
}

impl Live {
    /// Its report now; `merging` where it is to be merged, by whoever opens it for writing.
    pub(super) fn report(&self, merging: bool) -> CowReport {
        let mut status = match &self.merge {
            Some(merge) => merge.status(),
            None => self.snapshot.status(),
        };
        if merging && status.state == SnapshotState::Active {
            status.state = SnapshotState::Merging;
        }
        self.facts.report(&status)
    }

    /// The device.
    pub(super) fn device(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.snapshot) as Arc<dyn BlockDevice>
    }
}

impl Kept {
    /// What is recorded of a snapshot that is being taken.
    pub(super) fn of(
        new: &NewSnapshot,
        name: &str,
        origin: &std::path::Path,
        opened: &OpenStore,
        id: Uuid,
        size: ByteCount,
    ) -> Self {
        let limit = opened.limit(new.grow_limit, size);
        Self {
            name: name.to_owned(),
            store: store_name(origin, &opened.path),
            id,
            view: None,
            mode: new.mode.to_string(),
            kind: match new.on_full {
                OnFull::Invalidate => "P",
                OnFull::Overflow => "PO",
            }
            .to_owned(),
            discard_zeroes: new.discard_zeroes,
            discard_passdown: new.discard_passdown,
            size: size.get(),
            grow_limit: limit.map(ByteCount::get),
            merging: false,
            created: jiff::Timestamp::now().to_string(),
        }
    }

    /// What is told of it.
    pub(super) fn facts(&self, origin: &std::path::Path, store: &std::path::Path) -> Facts {
        Facts {
            name: self.name.clone(),
            origin: origin.display().to_string(),
            store: store.display().to_string(),
            size: ByteCount::new(self.size),
            on_full: self.on_full(),
            discard_zeroes: self.discard_zeroes,
            discard_passdown: self.discard_passdown,
            grow_limit: self.grow_limit,
            created: Some(self.created.clone()),
        }
    }

    /// How it is attached.
    pub(super) fn options(&self, opened: &OpenStore, read_only: bool) -> Result<SnapshotOptions> {
        let mode: Mode = self.mode.parse()?;
        Ok(SnapshotOptions {
            mode,
            on_full: self.on_full(),
            discard_zeroes: self.discard_zeroes,
            discard_passdown: self.discard_passdown,
            read_only,
            size: Some(ByteCount::new(self.size)),
            grow: opened.policy(self.grow_limit.map(ByteCount::new)),
        })
    }

    fn on_full(&self) -> OnFull {
        match self.kind.as_str() {
            "P" => OnFull::Invalidate,
            _ => OnFull::Overflow,
        }
    }

    /// Checks that `opened` is the store that was recorded.
    pub(super) fn check_same(&self, opened: &OpenStore) -> Result<()> {
        let label = opened.store.label();
        // One that Linux has marked invalid has lost its label; nothing of it is read.
        let lost = label.is_none() && !opened.store.is_valid();
        if lost || label.is_some_and(|label| label.id == self.id.into_bytes()) {
            return Ok(());
        }
        let problem = format!("is not the store that the snapshot {} had", self.name);
        Err(Error::new(ErrorKind::Denied, opened.path.display().to_string(), problem)
            .advise("put that one back, or give the snapshot up with 'firn cow drop'"))
    }
}
