//! What the features of a pool do to discards and to new blocks.

use block_io::{BlockDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ErrorKind};
use dm_thin::{Change, Discards};

use crate::common::{BLOCK, id};
use crate::modes::{BLOCKS, Disks, at, block, full, impatient};

#[test]
fn discards_do_what_the_features_say() {
    for discards in [Discards::Ignored, Discards::Kept, Discards::PassedDown] {
        let disks = Disks::new();
        let mut settings = impatient();
        settings.features.discards = discards;
        let pool = disks.open(settings);
        let thin = full(&pool);
        assert_eq!(thin.limits().discards, discards != Discards::Ignored);
        thin.discard(block(3)).expect("discarded");
        thin.zero(block(4), ZeroMode { may_unmap: true, only_if_fast: false }).expect("zeroed");
        pool.commit().expect("committed");
        let used = if discards == Discards::Ignored { BLOCKS } else { BLOCKS - 2 };
        assert_eq!(pool.status().data_used, used, "{discards:?}");
        let mut bytes = [1; 512];
        thin.read_at(&mut bytes, at(4)).expect("read");
        assert_eq!(bytes, [0; 512]);
        // Whether the bytes below are gone.
        let mut below = [0; 512];
        disks.data.read_at(&mut below, at(3)).expect("read");
        assert_eq!(below == [0; 512], discards == Discards::PassedDown, "{discards:?}");
        assert_eq!(pool.status().discards, discards);
        let mut other = settings;
        other.features.discards =
            if discards == Discards::Ignored { Discards::Kept } else { Discards::Ignored };
        assert_eq!(pool.configure(other).expect_err("open").kind(), ErrorKind::Unsupported);
    }
}

#[test]
fn new_blocks_are_zeroed_unless_that_is_skipped() {
    for skip_zeroing in [false, true] {
        let disks = Disks::new();
        disks.data.write_at(&[9; BLOCK as usize], at(0)).expect("written");
        let mut settings = impatient();
        settings.features.skip_zeroing = skip_zeroing;
        let pool = disks.open(settings);
        pool.change(&[Change::CreateThin(id(0))]).expect("made");
        let size = ByteCount::new(BLOCK);
        let thin = pool.open_volume(id(0), "thin", size, false).expect("opened");
        thin.write_at(&[5; 512], ByteOffset::new(1024)).expect("written");
        let mut bytes = [0; 2048];
        thin.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
        assert_eq!(bytes[1024..1536], [5; 512]);
        let rest = if skip_zeroing { 9 } else { 0 };
        assert_eq!((bytes[0], bytes[1023], bytes[1536]), (rest, rest, rest));
    }
}
