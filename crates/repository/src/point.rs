//! The instants at which a crash leaves something half done, each with a name.
//!
//! Nothing happens at a point: it is where tests end the process. Every change of a repository goes
//! through all of its points, so a test that visits each has seen every state that recovery must
//! know (the power may also fail between the writes of a single step: that is the crash
//! simulator's part).

use std::fmt;
use std::sync::Arc;

macro_rules! points {
    ($($name:ident $text:literal $(#[$doc:meta])*;)*) => {
        /// An instant of a change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Point {
            $($(#[$doc])* $name,)*
        }

        impl Point {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The point's name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

points! {
    CreateOwned "create-owned" #[doc = "A new disk's node is in the log, its file is not there."];
    CreateMade "create-made" #[doc = "Its file is whole, and has no name."];
    CreateNamed "create-named" #[doc = "It has its name."];
    AddOwned "add-owned" #[doc = "A copied disk's node is in the log, its file is not there."];
    AddCopying "add-copying" #[doc = "Its file is there in part."];
    AddCopied "add-copied" #[doc = "Its file is whole, and says the old parent's path."];
    AddNamed "add-named" #[doc = "It has its name."];
    SnapshotOwned "snapshot-owned" #[doc = "The children are in the log, no file is there."];
    SnapshotFirst "snapshot-first-child" #[doc = "The first child's file is whole."];
    SnapshotSecond "snapshot-second-child" #[doc = "Both are; the volume is still the parent."];
    SnapshotPaused "snapshot-paused" #[doc = "Writes are held up, all before are durable."];
    SnapshotNamed "snapshot-named" #[doc = "The children have their names, writes still wait."];
    SnapshotSwitched "snapshot-switched" #[doc = "Writes go to the new child."];
    SnapshotHidden "snapshot-hidden" #[doc = "The parent is marked hidden."];
    SnapshotClosed "snapshot-closed" #[doc = "The parent's batmap and footer are in order."];
    CloneOwned "clone-owned" #[doc = "The new child is in the log, its file is not there."];
    CloneMade "clone-made" #[doc = "Its file is whole, and has no name."];
    CloneNamed "clone-named" #[doc = "It has its name."];
    DeleteUnnamed "delete-unnamed" #[doc = "The name is gone, the file is as it was."];
    DeleteHidden "delete-hidden" #[doc = "An inner node is marked hidden."];
    GarbageBefore "garbage-before" #[doc = "A file that nobody needs is about to go."];
    GarbageEmptied "garbage-emptied" #[doc = "Its space is given back, its name is there."];
    GarbageRemoved "garbage-removed" #[doc = "It is gone; its parent may be next."];
    MergeBegun "merge-begun" #[doc = "A merge has its plan, nothing is written."];
    MergeGrown "merge-grown" #[doc = "The target is as large as the disk that it will hold."];
    MergeMirrored "merge-mirrored" #[doc = "A live leaf's writes are mirrored."];
    MergeCopying "merge-copying" #[doc = "A piece was copied, others not."];
    MergeCopied "merge-copied" #[doc = "All is copied, nothing flushed."];
    MergeFlushed "merge-flushed" #[doc = "All is copied and durable; no parent has changed."];
    MergeParent "merge-parent" #[doc = "The target stands on what the lowest node stood on."];
    MergePaused "merge-paused" #[doc = "A live leaf's writes are held up for the switch."];
    MergeAbsorbed "merge-absorbed" #[doc = "The log says who holds all; children as before."];
    MergeSwitched "merge-switched" #[doc = "A live leaf's writes go to the target."];
    MergeRelinking "merge-relinking" #[doc = "One child has its new parent."];
    MergeRelinked "merge-relinked" #[doc = "All children have."];
    MergeClosed "merge-closed" #[doc = "The target's batmap and footer are in order."];
    MergeShown "merge-shown" #[doc = "The target's hidden flag is as its new place wants it."];
    MergeRefreshed "merge-refreshed" #[doc = "Disks in use read by the new nodes."];
    MergeRetired "merge-retired" #[doc = "Nobody reads the merged nodes any more."];
    SettleAdopted "settle-adopted" #[doc = "A scan has named what others put there."];
    SettleRelinked "settle-relinked" #[doc = "A scan has finished a relink."];
    SettleFlagged "settle-flagged" #[doc = "A scan has corrected a hidden flag."];
    LogNext "log-next" #[doc = "The log is about to be written anew."];
    LogReplaced "log-replaced" #[doc = "It has been."];
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is told when a point is reached; as a rule nobody.
#[derive(Clone, Default)]
pub struct Probe(Option<Arc<dyn Fn(Point) + Send + Sync>>);

impl Probe {
    /// A probe that calls `reached` at every point. For tests.
    pub fn new(reached: impl Fn(Point) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(reached)))
    }

    /// A point is reached.
    pub(crate) fn reach(&self, point: Point) {
        if let Some(reached) = &self.0 {
            reached(point);
        }
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "a probe" } else { "no probe" })
    }
}
