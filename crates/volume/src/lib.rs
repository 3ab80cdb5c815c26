//! Nodes by path or URI, and the pool directory: a thin pool with names, sizes and a lock.
//!
//! The kernel's thin pool knows devices by number and keeps no sizes; names are a volume manager's
//! business. That is this crate: a [`PoolDirectory`] holds the pool's `metadata` and `data`, the
//! `names`, and a `lock`. Names and metadata are two files, so a crash can come between them; the
//! pool's transaction id says at open which of the names' records came true, as the kernel's
//! documentation intends it for volume managers.

mod activate;
mod address;
mod changes;
mod cow;
mod create;
mod describe;
mod differences;
mod directory;
mod dirty;
mod image;
mod lock;
mod messages;
mod metadata;
mod name;
mod names;
mod new_file;
mod open;
mod origin;
mod report;
mod settings;
mod watch;

pub use address::{NodeName, PoolAddress};
pub use cow::{
    ChunkSize, CowMerge, CowMode, CowOptions, CowOrigin, CowPlace, CowReport, NewSnapshot, OnFull,
    OriginReport, SnapshotKind, SnapshotTarget, StoreSource, TableLine, Target, device_path,
    find_snapshots, forget_snapshot, has_snapshots,
};
pub use create::CreateOptions;
pub use directory::{OpenOptions, PoolDevices, PoolDirectory};
pub use dirty::{BitmapPart, BitmapStore, Recorder, Tracked};
pub use disk_image::qcow2::Secret;
pub use dm_thin::{DataBlock, DeviceId, HeldMetadata, Message, Trimmed};
pub use image::{
    BackingPolicy, ChainChange, ChainImage, CreateImage, DiskImage, EncryptionInfo, FormatSpecific,
    ImageBitmap, ImageCheck, ImageFormat, ImageInfo, ImageMap, ImageMeasure, ImageOptions,
    ImageSettings, ImageSnapshot, MapRun, RecordedImage, RepairImage, Work, amend_image,
    create_image, fill_image, measure_image, rename_backing,
};
pub use lock::PoolLock;
pub use metadata::{MetadataSource, MetadataTarget, MetadataUse, TargetOptions};
pub use name::{SnapshotName, VolumeName};
pub use names::{Names, NamesLog, OriginEntry, OriginSource, Record, RecordedChange, parse_log};
pub use new_file::NewFile;
pub use open::{DeviceOptions, open_device, open_image};
pub use origin::{Hydration, HydrationStep, Merge};
pub use report::{ChangedRange, CheckReport, OriginInfo, PoolReport, SnapshotInfo, VolumeInfo};
pub use settings::{AutoGrow, DiscardSetting, NoSpace, Settings};
pub use watch::{EventInfo, EventList};
