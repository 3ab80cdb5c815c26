//! Repositories of disk images: a directory of VHDs that stand on each other as trees, and the
//! collector that keeps the trees short.
//!
//! ```text
//!   Repository --- state: tree (from the files), catalogue (from the log), who uses what
//!     |  change: create, add, snapshot, clone, delete        each happens by one record
//!     |  collector --- plan (what, and the cheapest way) --- merge --- copy
//!     v
//!   Disk: a block device; its view --- top, and the chain below it, read as one
//! ```
//!
//! A disk has a name in the log, or it is nobody's: *hidden* if others stand on it, garbage if not.
//! The hidden flag of the files follows the names, for other programs to see. Nodes are read by
//! their own sectors, which a [`Disk`] joins; images know nothing of their parents here.
//!
//! # What a merge may do at any instant
//!
//! A run is a row of nodes `N0 <- N1 <- ... <- Nk`, each the only child of the one before, all but
//! the last without a name. It is merged into one of them, `Nt`. The obligation: *for every disk,
//! what is read through its chain is the same before, during and after, whichever part of the steps
//! is on the disk*. State by state:
//!
//! 1. **Growing `Nt`.** Readers of `Nt` come through `Nk`, which is no larger than `Nt` is made,
//!    and what is added to `Nt` reads as zeros, as it did when `Nt` ended before it (`vhd` hides a
//!    longer parent). `Nk` itself is never grown.
//! 2. **Copying.** A sector of `Ns`, above `Nt`, that is seen through `Nk`, is written to `Nt`. All
//!    readers of `Nt` come through `Ns` or one above it that has the sector, and none reads `Nt`'s.
//!    A sector seen below `Nt` is filled into `Nt` where it has none: it reads the same there as
//!    below. So every part of the copy, in any order, shows nowhere, and doing it twice changes
//!    nothing. After a crash the run is found again, as it was.
//! 3. **`Nt` is flushed.** From here on `Nt`, read with what is below `N0`, is what `Nk` shows.
//! 4. **`Nt` gets the parent of `N0`**, or becomes a root, by one sector. Before and after, `Nt`
//!    reads the same, since it lacks nothing that is seen of `N0` to `N(t-1)`. Those have no child
//!    any more: garbage, to be recognised by having neither name nor child.
//! 5. **The record**: "`N(t+1)` to `Nk` are absorbed by `Nt`, and the name of `Nk` is `Nt`'s". It
//!    is durable or it is not. Before: as in 3. After: a named `Nk` is garbage; children of `Nk`
//!    read the same through `Nk` as through `Nt`.
//! 6. **Children of `Nk` are given `Nt` for a parent**, one by one, each by one sector. A scan that
//!    finds the record finishes this; and both parents read the same meanwhile.
//! 7. **Disks in use exchange their views**, one after the other. Old and new read the same.
//! 8. **Files are removed**, the topmost first, when no view has them. A file is emptied before: it
//!    has no name and no child, so an empty one is garbage as well.
//!
//! **A leaf that a guest writes to** (`Nk`, with a [`Disk`]). Merged up (`t = k`), the guest's
//! writes and the filling meet under the lock of a block: what the guest has written stays. Merged
//! down, the guest's writes go to `Nk`, and to `Nt` as well where that part is merged already,
//! under the lock of the step (`mirror`). Until the record `Nk` is the truth, and the only one that
//! is flushed: what `Nt` holds more than that is hidden by `Nk`, or was never flushed, and then a
//! crash may keep it. At the switch writes wait: `Nt` is flushed, the record made, the view
//! exchanged. FLUSH-HOLDS: whatever a flush covered before is in `Nk` or, after the record, in
//! `Nt`.
//!
//! **A snapshot** makes two children of the leaf, then waits for writes, flushes the leaf, and
//! makes the record that gives the leaf's name to the one and the snapshot's to the other. Before
//! the record the children are garbage; after it the leaf is hidden. **A deletion** is the record
//! that takes the name away. **Whatever is made** is entered in the log as the repository's own
//! before its file is there, so an unfinished one is garbage, and a file that the log does not know
//! is somebody else's: a scan gives it a name, if it is not marked as hidden.
//!
//! RERUNNABLE, FLUSH-HOLDS, SNAPSHOT-FIXED and GATED-OPEN (no path in an image leads out of the
//! directory) hold; [`Point`] names the instants between the steps.

mod chain;
mod change;
mod collector;
mod copy;
mod disk;
mod files;
mod folder;
mod layer;
mod log;
mod merge;
mod mirror;
mod node;
mod plan;
mod point;
mod progress;
mod record;
mod report;
mod repository;
mod state;
mod tree;
mod view;

pub use collector::{CollectOptions, Collected};
pub use disk::Disk;
pub use folder::{Folder, HostFolder};
pub use node::NodeId;
pub use point::{Point, Probe};
pub use report::{NodeReport, Role};
pub use repository::{OpenOptions, Repository};
