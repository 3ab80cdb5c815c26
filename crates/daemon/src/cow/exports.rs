//! What NBD clients can ask for: the origin under its name, every snapshot as `NAME@SNAPSHOT`, or
//! as `SNAPSHOT` alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use block_types::{Error, ErrorKind, Result, format_size};
use nbd::{Export, ExportEntry, ExportSource};
use parking_lot::Mutex;
use volume::CowOrigin;

/// The exports of an origin.
pub(super) struct OriginExports {
    cow: Arc<CowOrigin>,
    name: String,
    read_only: bool,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    /// By full name: who asks again gets the same.
    open: BTreeMap<String, Arc<Export>>,
    /// The full names that nobody gets any more.
    withdrawn: Vec<String>,
}

impl OriginExports {
    pub(super) fn new(cow: Arc<CowOrigin>, name: String, read_only: bool) -> Self {
        Self { cow, name, read_only, table: Mutex::default() }
    }

    /// The name of the origin's export.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The full name of a snapshot's export.
    pub(super) fn full_name(&self, snapshot: &str) -> String {
        format!("{}@{snapshot}", self.name)
    }

    /// Names of all exports.
    pub(super) fn names(&self) -> Vec<String> {
        let snapshots = self.cow.snapshots().into_iter();
        let snapshots = snapshots.map(|(name, _)| self.full_name(&name));
        std::iter::once(self.name.clone()).chain(snapshots).collect()
    }

    /// Lets nobody have the export of a snapshot any more.
    pub(super) fn withdraw(&self, snapshot: &str) {
        let full = self.full_name(snapshot);
        let mut table = self.table.lock();
        table.open.remove(&full);
        table.withdrawn.push(full);
    }

    /// Lets a snapshot be had again, or another one of its name.
    pub(super) fn restore(&self, snapshot: &str) {
        let full = self.full_name(snapshot);
        self.table.lock().withdrawn.retain(|name| *name != full);
    }

    fn open(&self, full: &str) -> Result<Export> {
        let (device, what) = if full == self.name {
            (self.cow.device(), "origin".to_owned())
        } else {
            let mut snapshots = self.cow.snapshots().into_iter();
            let found = snapshots.find(|(name, _)| self.full_name(name) == full);
            let (_, device) = found.ok_or_else(|| unknown(full))?;
            (device, format!("snapshot of {}", self.name))
        };
        let text = format!("{what}, {}", format_size(device.size()));
        let export = Export::new(full.to_owned(), device)?.described(text);
        Ok(if self.read_only { export.read_only() } else { export })
    }
}

impl ExportSource for OriginExports {
    fn find(&self, name: &str) -> Result<Arc<Export>> {
        let full = match name {
            "" => self.name.clone(),
            name if *name == self.name || name.contains('@') => name.to_owned(),
            snapshot => self.full_name(snapshot),
        };
        // Under the lock, so that two clients who come at once get the same export.
        let mut table = self.table.lock();
        if table.withdrawn.contains(&full) {
            return Err(unknown(&full));
        }
        if let Some(export) = table.open.get(&full) {
            return Ok(Arc::clone(export));
        }
        let export = Arc::new(self.open(&full)?);
        table.open.insert(full, Arc::clone(&export));
        Ok(export)
    }

    fn list(&self) -> Vec<ExportEntry> {
        let entry = |name: String| {
            let description = self.find(&name).ok()?.description().unwrap_or_default().to_owned();
            Some(ExportEntry { name, description })
        };
        self.names().into_iter().filter_map(entry).collect()
    }
}

fn unknown(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("export '{name}'"), "does not exist")
}
