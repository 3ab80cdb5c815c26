//! Status lines as `dmsetup status` prints them, to the byte.

use block_types::ByteCount;

use crate::metadata_room::low_water;
use crate::{PoolMode, PoolStatus, ThinStatus};

/// What becomes of the space of blocks that are discarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discards {
    /// Discards are refused: `ignore_discard`.
    Ignored,
    /// It goes back to the pool: `no_discard_passdown`.
    Kept,
    /// And on to the data device: `discard_passdown`.
    #[default]
    PassedDown,
}

impl Discards {
    fn word(self) -> &'static str {
        match self {
            Self::Ignored => "ignore_discard",
            Self::Kept => "no_discard_passdown",
            Self::PassedDown => "discard_passdown",
        }
    }
}

impl PoolStatus {
    /// The pool's line, with the blank that the kernel leaves at its end.
    ///
    /// Metadata in use includes what the kernel keeps for its own commits, so that the figure is
    /// the one that Linux gives for the same metadata. As in Linux, a pool is out of data space
    /// once a write has found that out.
    pub fn line(&self) -> String {
        let held = self.held_root.map_or("-".to_owned(), |block| block.to_string());
        let length = ByteCount::new(self.data_total * self.block_size.get()).sectors();
        if self.mode == PoolMode::Fail {
            return format!("0 {length} thin-pool Fail");
        }
        format!(
            "0 {length} thin-pool {} {}/{} {}/{} {held} {} {} {} {} {} ",
            self.transaction,
            (self.metadata_used + reserve(self.metadata_total)).min(self.metadata_total),
            self.metadata_total,
            self.data_used,
            self.data_total,
            self.mode.kernel_word(),
            self.discards.word(),
            if self.fails_at_once { "error_if_no_space" } else { "queue_if_no_space" },
            if self.needs_check { "needs_check" } else { "-" },
            low_water(self.metadata_device),
        )
    }
}

impl ThinStatus {
    /// The line of a thin device: sectors that are mapped, and the last one, or `0 -`.
    pub fn line(&self) -> String {
        let block = self.block_size.sectors();
        let highest = self
            .highest
            .map_or("-".to_owned(), |highest| ((highest.get() + 1) * block - 1).to_string());
        format!("0 {} thin {} {highest}", self.size.sectors(), self.mapped * block)
    }
}

/// Metadata blocks, of `total`, that the kernel counts as used so that a commit always finds room.
fn reserve(total: u64) -> u64 {
    (total / 10).min(4096)
}

#[cfg(test)]
mod tests {
    use super::Discards;
    use crate::{GuestBlock, PoolMode, PoolSettings, PoolStatus, ThinStatus};
    use block_types::ByteCount;

    /// A pool as the kernel had it in the metadata of `k61-m2.snaps`.
    fn kernel_pool() -> PoolStatus {
        PoolStatus {
            transaction: 6,
            time: 4,
            metadata_used: 15,
            metadata_total: 1024,
            metadata_device: 1024,
            data_used: 301,
            data_total: 4096,
            reclaiming: 0,
            block_size: ByteCount::new(65536),
            devices: 5,
            held_root: Some(55),
            needs_check: false,
            read_only: None,
            degraded: false,
            mode: PoolMode::Write,
            settings: PoolSettings::default(),
            discards: Discards::Kept,
            fails_at_once: false,
        }
    }

    #[test]
    fn a_pool_reads_as_the_kernel_printed_it() {
        let kernel = "0 524288 thin-pool 6 117/1024 301/4096 55 rw no_discard_passdown \
                      queue_if_no_space - 256 ";
        assert_eq!(kernel_pool().line(), kernel);
        let erring = PoolStatus { fails_at_once: true, ..kernel_pool() };
        assert_eq!(erring.line(), kernel.replace("queue_if", "error_if"));
    }

    #[test]
    fn every_state_has_its_word() {
        let mode = PoolMode::OutOfDataSpace;
        let full = PoolStatus { data_used: 4096, held_root: None, mode, ..kernel_pool() };
        assert!(full.line().contains(" 4096/4096 - out_of_data_space "), "{}", full.line());
        let failed = PoolStatus { mode: PoolMode::Fail, ..kernel_pool() };
        assert_eq!(failed.line(), "0 524288 thin-pool Fail");
        let mode = PoolMode::ReadOnly;
        let broken = PoolStatus { mode, needs_check: true, ..full };
        assert!(broken.line().contains(" - ro "), "{}", broken.line());
        assert!(broken.line().ends_with(" needs_check 256 "), "{}", broken.line());
        let full = PoolStatus { metadata_used: 1000, discards: Discards::Ignored, ..kernel_pool() };
        assert!(full.line().contains(" 1024/1024 "), "{}", full.line());
        assert!(full.line().contains(" ignore_discard "), "{}", full.line());
    }

    /// At most 16 MiB are kept, and at most 4 MiB are low.
    #[test]
    fn large_metadata_has_its_bounds() {
        let blocks = 1 << 20;
        let large = PoolStatus { metadata_total: blocks, metadata_device: blocks, ..kernel_pool() };
        assert!(large.line().contains(" 4111/1048576 "), "{}", large.line());
        assert!(large.line().ends_with(" - 1024 "), "{}", large.line());
    }

    #[test]
    fn a_thin_device_reads_as_the_kernel_printed_it() {
        let block_size = ByteCount::new(65536);
        let size = ByteCount::new(16 << 20);
        let empty = ThinStatus { size, block_size, mapped: 0, highest: None };
        assert_eq!(empty.line(), "0 32768 thin 0 -");
        let one = ThinStatus { mapped: 1, highest: Some(GuestBlock::new(0)), ..empty };
        assert_eq!(one.line(), "0 32768 thin 128 127");
    }
}
