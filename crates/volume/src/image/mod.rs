//! Disk images: files of a format, perhaps over a chain of backing files.
//!
//! The formats open nothing by themselves; this is where a chain is followed, and where it is
//! decided what may be (GATED-OPEN):
//!
//! ```text
//!   path --- chain: file, format, what it names --- gate: may that be opened? --- the next file
//!              |
//!              v   from the lowest up
//!           DiskImage: layer over layer, the topmost a block device
//! ```
//!
//! [`ImageInfo`] is the exception: it opens the one file that it was given, and nothing else.

mod amend;
mod below;
mod bitmaps;
mod carry;
mod chain;
mod check;
mod compressing;
mod create;
mod format;
mod gate;
mod graph;
mod held;
mod info;
mod layer;
mod lock;
mod map;
mod measure;
mod node;
mod open;
mod probe;
mod rebase;
mod recorded;
mod settings;
mod snapshots;
mod work;

pub use amend::amend_image;
pub use bitmaps::ImageBitmap;
pub use check::{ImageCheck, RepairImage};
pub use create::{CreateImage, create_image, fill_image};
pub use format::ImageFormat;
pub use gate::BackingPolicy;
pub use graph::ChainImage;
pub use info::{EncryptionInfo, FormatSpecific, ImageInfo, ImageSnapshot};
pub(crate) use lock::ImageLock;
pub use map::{ImageMap, MapRun};
pub use measure::{ImageMeasure, measure_image};
pub use open::{DiskImage, ImageOptions};
pub use rebase::rename_backing;
pub use recorded::RecordedImage;
pub use settings::ImageSettings;
pub use work::{ChainChange, Work};
