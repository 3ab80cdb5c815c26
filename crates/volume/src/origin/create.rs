//! Making volumes over an origin, and opening what stands on one.

use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, Error, ErrorKind, Result, SECTOR};
use dm_thin::{Change, DeviceId, ExternalOrigin, ThinVolume};

use crate::changes::check_size;
use crate::names::KnownNode;
use crate::{
    Names, NodeName, OriginEntry, OriginSource, PoolDirectory, RecordedChange, VolumeInfo,
    VolumeName,
};

impl PoolDirectory {
    /// Makes a volume that begins as `origin`, and shows it where nothing has been written. It is
    /// as large as the origin unless `size` says otherwise; behind the origin's end it reads as
    /// zeros. The origin must not change as long as anything stands on it.
    ///
    /// # Errors
    /// `Exists`; `Invalid` for a size of 0 or an origin inside the pool; those of opening the
    /// origin.
    pub fn create_volume_over(
        &self,
        name: &VolumeName,
        size: Option<ByteCount>,
        origin: &OriginSource,
    ) -> Result<VolumeInfo> {
        self.check_outside(origin)?;
        let device = match self.origins.get(origin) {
            Some(device) => device,
            None => self.origins.open(origin)?,
        };
        let whole = ByteCount::new(device.size().get().next_multiple_of(SECTOR));
        let size = size.unwrap_or(whole);
        check_size(name, size)?;
        let shown = device.size().min(size).get();
        let made = self.transact(|names| {
            names.check_free(name)?;
            let (id, origin) = (self.free_id()?, origin.clone());
            let (name, size) = (name.clone(), size.get());
            let change = RecordedChange::CreateOver { name, id: id.get(), size, origin, shown };
            Ok((change, vec![Change::CreateThin(id)]))
        });
        if made.is_err() {
            self.release_origins();
        }
        made?;
        self.volume(name)
    }

    /// Refuses the pool's own files: what is written to a volume over them would change it.
    fn check_outside(&self, origin: &OriginSource) -> Result<()> {
        let inside = self.path.canonicalize().is_ok_and(|pool| {
            !origin.is_remote() && std::path::Path::new(&origin.address).starts_with(pool)
        });
        if !inside {
            return Ok(());
        }
        let problem = "lies in the pool, and cannot be the origin of a volume in it";
        Err(Error::new(ErrorKind::Invalid, &*origin.address, problem)
            .advise("take a snapshot of a volume, and clone that"))
    }

    /// Opens a volume or a snapshot, over its origin if it has one.
    pub(crate) fn open_thin(&self, node: &NodeName, read_only: bool) -> Result<ThinVolume> {
        let read_only = read_only || self.read_only || node.snapshot.is_some();
        loop {
            let _stays_open = self.open_origin(node)?;
            let names = self.names.lock();
            let known = names.table.known(node)?;
            let Some(entry) = &known.origin else {
                return self.open_known(node, &known, None, read_only);
            };
            // Unless the node has become another meanwhile.
            if let Some(device) = self.origins.get(&entry.origin) {
                let shown = ByteCount::new(entry.shown);
                let origin = ExternalOrigin::new(device, shown);
                let origin = origin.map_err(|error| missing(node, &error))?;
                return self.open_known(node, &known, Some(origin), read_only);
            }
        }
    }

    /// What a node stands on, opened if it is not open. A server may take its time for that; while
    /// somebody has its export the node opens at once.
    ///
    /// # Errors
    /// `NotFound` for the node; those of the origin.
    pub fn open_origin(&self, node: &NodeName) -> Result<Option<Arc<dyn BlockDevice>>> {
        let known = self.names.lock().table.known(node)?;
        let Some(OriginEntry { origin, .. }) = known.origin else { return Ok(None) };
        let device = match self.origins.get(&origin) {
            Some(device) => Ok(device),
            None => self.origins.open(&origin).map_err(|error| missing(node, &error)),
        };
        device.map(Some)
    }

    fn open_known(
        &self,
        node: &NodeName,
        known: &KnownNode,
        origin: Option<ExternalOrigin>,
        read_only: bool,
    ) -> Result<ThinVolume> {
        let name = format!("{}/{node}", self.path.display());
        let (id, size) = (DeviceId::new(known.id)?, ByteCount::new(known.size));
        self.pool.open_volume_over(id, &name, size, read_only, origin)
    }

    /// Lets go of origins that nothing stands on any more.
    pub(crate) fn release_origins(&self) {
        let names = self.names.lock();
        self.origins.retain(|source| names.table.stands_on(source));
    }
}

impl Names {
    /// Whether anything stands on `source`.
    pub(crate) fn stands_on(&self, source: &OriginSource) -> bool {
        self.over_origins().any(|(_, entry)| entry.origin == *source)
    }
}

/// What keeps a volume from being opened whose origin cannot be.
fn missing(node: &NodeName, error: &Error) -> Error {
    let problem = format!("cannot be opened without its external origin: {error}");
    Error::new(error.kind(), format!("volume {node}"), problem).advise(
        "bring the origin back as it was; nothing is lost, and what does not stand on it is not \
         affected",
    )
}
