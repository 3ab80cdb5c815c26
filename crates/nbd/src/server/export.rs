//! What is served: devices under names.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, Error, ErrorKind, Result};
use parking_lot::RwLock;

use super::context::{BaseAllocation, MetaContext};
use crate::wire::{Dialect, InfoItem, MAX_PAYLOAD, MAX_STRING, TransmissionFlags};

/// A device under a name.
///
/// It lives as long as a client uses it, also after its source has forgotten it.
pub struct Export {
    name: String,
    description: Option<String>,
    device: Arc<dyn BlockDevice>,
    read_only: bool,
    one_connection: bool,
    contexts: Vec<Arc<dyn MetaContext>>,
}

impl Export {
    /// Serves `device` as `name`, writable if the device is, with the context `base:allocation`.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if the name is longer than 4096 bytes.
    pub fn new(name: impl Into<String>, device: Arc<dyn BlockDevice>) -> Result<Self> {
        let name = name.into();
        if name.len() > MAX_STRING {
            return Err(Error::new(
                ErrorKind::Invalid,
                device.name(),
                "cannot be exported under a name of more than 4096 bytes",
            ));
        }
        let read_only = device.limits().read_only;
        let allocation = Arc::new(BaseAllocation::new(Arc::clone(&device)));
        let contexts: Vec<Arc<dyn MetaContext>> = vec![allocation];
        Ok(Self { name, description: None, device, read_only, one_connection: false, contexts })
    }

    /// Refuses every write.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Is made anew for each connection: clients must not spread requests over several.
    #[must_use]
    pub fn one_connection(mut self) -> Self {
        self.one_connection = true;
        self
    }

    /// Says more about the export, for people; cut at 4096 bytes.
    #[must_use]
    pub fn described(mut self, text: impl Into<String>) -> Self {
        let mut text = text.into();
        text.truncate(text.floor_char_boundary(MAX_STRING));
        self.description = Some(text);
        self
    }

    /// Offers one more metadata context.
    #[must_use]
    pub fn with_context(mut self, context: Arc<dyn MetaContext>) -> Self {
        self.contexts.push(context);
        self
    }

    /// The export's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The words for people.
    pub fn description(&self) -> Option<&str> {
        self.description.as_deref()
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Whether every write is refused.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether it was made for one connection.
    pub(super) fn is_of_one_connection(&self) -> bool {
        self.one_connection
    }

    /// The metadata contexts; the one at index `i` has the number `i + 1` on the wire.
    pub(super) fn contexts(&self) -> &[Arc<dyn MetaContext>] {
        &self.contexts
    }

    /// The size clients see: without a broken block at the end, which no request could reach.
    pub(super) fn size(&self) -> ByteCount {
        let size = self.device.size().get();
        ByteCount::new(size - size % self.device.limits().minimum.get())
    }

    /// What the export can do for a client that speaks `dialect`.
    pub(super) fn flags(&self, dialect: Dialect) -> TransmissionFlags {
        let writable = !self.read_only;
        TransmissionFlags::HAS_FLAGS
            .with(TransmissionFlags::READ_ONLY, self.read_only)
            .with(TransmissionFlags::FLUSH, true)
            .with(TransmissionFlags::FUA, true)
            .with(TransmissionFlags::TRIM, writable && self.device.limits().discards)
            .with(TransmissionFlags::WRITE_ZEROES, writable)
            .with(TransmissionFlags::FAST_ZERO, writable)
            .with(TransmissionFlags::DF, dialect >= Dialect::Structured)
            .with(TransmissionFlags::MULTI_CONN, !self.one_connection)
            .with(TransmissionFlags::CACHE, true)
    }

    /// The block sizes to announce.
    pub(super) fn block_sizes(&self) -> InfoItem {
        let limits = self.device.limits();
        let bound = |size: ByteCount, least: u32| {
            u32::try_from(size.get()).unwrap_or(u32::MAX).clamp(least, MAX_PAYLOAD)
        };
        let minimum = bound(limits.minimum, 1);
        let preferred = bound(limits.preferred, minimum.max(512));
        InfoItem::BlockSize { minimum, preferred, maximum: MAX_PAYLOAD }
    }
}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export")
            .field("name", &self.name)
            .field("device", &self.device.name())
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}

/// One line of the list of exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportEntry {
    /// The export's name.
    pub name: String,
    /// Words for people, perhaps none.
    pub description: String,
}

/// Where a server finds its exports. Called by connection threads, several at once.
pub trait ExportSource: Send + Sync {
    /// The export called `name`; the empty name asks for the default one.
    ///
    /// It is asked again when a client has chosen, so it has to return the same export as long as
    /// that may be used. Whoever withdraws an export first lets this return
    /// [`ErrorKind::NotFound`], and then calls
    /// [`Server::disconnect_export`](super::Server::disconnect_export).
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none; [`ErrorKind::Denied`] if this client may not know;
    /// anything else if it cannot be had now.
    fn find(&self, name: &str) -> Result<Arc<Export>>;

    /// All exports a client may know of.
    fn list(&self) -> Vec<ExportEntry>;
}

/// A table of exports. If it holds a single one, that is also the default export.
#[derive(Debug, Default)]
pub struct ExportTable {
    exports: RwLock<BTreeMap<String, Arc<Export>>>,
}

impl ExportTable {
    /// A table without exports.
    pub fn new() -> Self {
        Self::default()
    }

    /// A table with one export.
    pub fn single(export: Export) -> Self {
        let table = Self::new();
        table.insert(export);
        table
    }

    /// Adds `export`; returns the one that had its name before.
    pub fn insert(&self, export: Export) -> Option<Arc<Export>> {
        self.exports.write().insert(export.name().to_owned(), Arc::new(export))
    }

    /// Withdraws the export called `name`, and returns it.
    pub fn remove(&self, name: &str) -> Option<Arc<Export>> {
        self.exports.write().remove(name)
    }
}

impl ExportSource for ExportTable {
    fn find(&self, name: &str) -> Result<Arc<Export>> {
        let exports = self.exports.read();
        let only = || exports.values().next().filter(|_| name.is_empty() && exports.len() == 1);
        exports.get(name).or_else(only).cloned().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("export '{name}'"), "does not exist")
        })
    }

    fn list(&self) -> Vec<ExportEntry> {
        let entry = |export: &Arc<Export>| ExportEntry {
            name: export.name().to_owned(),
            description: export.description().unwrap_or_default().to_owned(),
        };
        self.exports.read().values().map(entry).collect()
    }
}
