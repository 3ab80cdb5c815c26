//! VHD: fixed, dynamic and differencing disks, with XenServer's batmap, hidden flag and raw
//! parents.
//!
//! A [`VhdImage`] is a block device over its file and, for a differencing disk, over a parent that
//! the caller has opened (GATED-OPEN: nothing here opens a path). The file, of a sparse disk:
//!
//! ```text
//!   copy of   header  block allocation   batmap    parent     blocks, each with    footer
//!   footer            table              (Xen)     locators   a bitmap in front
//!   0         512     1536
//! ```
//!
//! In memory:
//!
//! ```text
//!   VhdImage --- mapping (table and bitmaps, read without a lock) ---- resolves
//!      |  does: read, write, zero, discard
//!      +--- alloc (places for new blocks) --- commit (data, then bitmaps, then table)
//!      +--- heads (footer, header, batmap, each changed in an order that a crash may cut)
//! ```
//!
//! What holds: DATA-FIRST, FLUSH-HOLDS, FAIL-STOP, FULL-IS-NOT-BROKEN, KNOW-OR-REFUSE and
//! GATED-OPEN of `docs/ARCHITECTURE.md`; the code that keeps one names it. After a crash an image
//! reads right as it is; all that it may have lost is space, which the next writer finds again.

mod address;
mod alloc;
mod batmap;
mod check;
mod commit;
mod create;
mod footer;
mod geometry;
mod header;
mod heads;
mod host;
mod identity;
mod image;
mod info;
mod layout;
mod locator;
mod mapping;
mod merge;
mod open;
mod read;
mod relink;
mod repair;
mod resize;
mod write;

pub use address::{BlockSize, FileSector, GuestBlock};
pub use batmap::BatmapState;
pub use check::{CheckReport, Verdict, check};
pub use create::{Content, CreateOptions, create};
pub use footer::Kind;
pub use geometry::Geometry;
pub use header::{ParentInfo, ParentLink};
pub use identity::{Creator, DiskId, Timestamp};
pub use image::{OpenOptions, Parent, VhdImage};
pub use info::{Info, NodeInfo, SparseInfo, probe_node, probe_parent};
pub use locator::{Locator, Platform};
pub use merge::OwnRun;
pub use open::probe;
pub use repair::{RepairReport, repair};
