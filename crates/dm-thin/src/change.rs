//! What can be asked of a pool as a whole, by the kernel's messages or by a volume manager.

use crate::DeviceId;

/// A change of the pool's devices. Several are applied together or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Makes an empty thin device, the kernel's `create_thin`.
    CreateThin(DeviceId),
    /// Makes a snapshot, the kernel's `create_snap`: a device that reads as its origin does now.
    CreateSnapshot {
        /// The new device.
        id: DeviceId,
        /// The device it is taken of.
        origin: DeviceId,
    },
    /// Makes `id` read as `source` does now, as if it were deleted and made anew as a snapshot.
    Rollback {
        /// The device whose content is given up.
        id: DeviceId,
        /// The device whose content it takes.
        source: DeviceId,
    },
    /// Deletes a device, the kernel's `delete`.
    Delete(DeviceId),
    /// Holds the metadata as this commit leaves it for readers beside the pool, the kernel's
    /// `reserve_metadata_snap`. One at a time.
    ReserveMetadataSnapshot,
    /// Lets go of it, the kernel's `release_metadata_snap`.
    ReleaseMetadataSnapshot,
    /// Exchanges the transaction id for another if it is what the caller thinks, the kernel's
    /// `set_transaction_id`.
    SetTransaction {
        /// What the caller thinks it is.
        current: u64,
        /// What it becomes.
        new: u64,
    },
}
