//! Internal snapshots of an image.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use block_io::BlockDevice;
use block_types::Result;
use disk_image::qcow2;

use super::{DiskImage, ImageSnapshot};

/// What formats but qcow2 lack.
const WHAT: &str = "internal snapshots";

impl DiskImage {
    /// The internal snapshots, in the order of the image's table.
    ///
    /// # Errors
    /// [`Unsupported`](block_types::ErrorKind::Unsupported) for formats that have none; so of all
    /// that is asked here.
    pub fn snapshots(&self) -> Result<Vec<ImageSnapshot>> {
        Ok(self.qcow2(WHAT)?.snapshots().iter().map(ImageSnapshot::from).collect())
    }

    /// Takes a snapshot of the disk as it is, called `name`.
    ///
    /// # Errors
    /// As [`qcow2::Image::create_snapshot`].
    pub fn create_snapshot(&self, name: &str) -> Result<ImageSnapshot> {
        let taken = self.qcow2(WHAT)?.create_snapshot(name, SystemTime::now())?;
        Ok(ImageSnapshot::from(&taken))
    }

    /// Deletes the snapshot with the id or the name `name`.
    ///
    /// # Errors
    /// As [`qcow2::Image::delete_snapshot`].
    pub fn delete_snapshot(&self, name: &str) -> Result<()> {
        self.qcow2(WHAT)?.delete_snapshot(name)
    }

    /// Makes the disk what the snapshot with the id or the name `name` is, which stays.
    ///
    /// # Errors
    /// As [`qcow2::Image::revert_to_snapshot`].
    pub fn revert_to_snapshot(&self, name: &str) -> Result<()> {
        self.qcow2(WHAT)?.revert_to_snapshot(name)
    }

    /// The disk as the snapshot with the id or the name `name` has it, read-only.
    ///
    /// # Errors
    /// As [`qcow2::Image::open_snapshot`].
    pub fn open_snapshot(&self, name: &str) -> Result<Arc<dyn BlockDevice>> {
        Ok(self.qcow2(WHAT)?.open_snapshot(name)?)
    }
}

impl ImageSnapshot {
    /// When it was taken, in RFC 3339, where that is a time that has a name.
    pub fn created(&self) -> Option<String> {
        let seconds = i64::try_from(self.date_sec).ok()?;
        let at = jiff::Timestamp::new(seconds, i32::try_from(self.date_nsec).ok()?);
        at.ok().map(|at| at.to_string())
    }
}

impl From<&qcow2::SnapshotInfo> for ImageSnapshot {
    fn from(info: &qcow2::SnapshotInfo) -> Self {
        let taken = info.taken.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            id: info.id.clone(),
            name: info.name.clone(),
            disk_size: info.disk_size.get(),
            vm_state_size: info.vm_state_size.get(),
            date_sec: taken.as_secs(),
            date_nsec: taken.subsec_nanos(),
            vm_clock_sec: info.vm_clock.as_secs(),
            vm_clock_nsec: info.vm_clock.subsec_nanos(),
            icount: info.instructions,
        }
    }
}
