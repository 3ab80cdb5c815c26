//! Checking metadata: what Linux and the thin tools wrote, what is broken in every way that can be
//! thought of, and what is put right.

use std::fs;
use std::sync::Arc;

use block_io::{BlockDevice, CrashWorld, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
use block_types::ErrorKind;
use dm_thin::repair::repair;
use dm_thin::restore::Overrides;
use dm_thin::{
    CheckDepth, CheckOptions, CheckReport, Verdict, check, check_with, clear_needs_check,
    repair_leaks,
};
use persistent_data::{BLOCK_SIZE, BlockKind, MetaBlock, identify, seal};
use testkit::rng::Rng;
use testkit::{fixture, thin_tools};

/// Where a superblock has things.
const FLAGS: usize = 4;
const TIME: usize = 0x2c;
const DATA_MAP: usize = 0x40;
const METADATA_MAP: usize = 0xc0;
const MAPPINGS: usize = 0x140;
const DETAILS: usize = 0x148;
const COMPAT_RO: usize = 0x164;

/// Metadata that is changed block by block, each sealed again.
#[derive(Clone)]
struct Editor(Vec<u8>);

impl Editor {
    fn fixture(name: &str) -> Self {
        Self(fixture::bytes(&format!("thin/{name}.md.gz")))
    }

    fn word(&self, block: u64, at: usize) -> u64 {
        let at = block as usize * BLOCK_SIZE + at;
        u64::from_le_bytes(self.0[at..at + 8].try_into().expect("8 bytes"))
    }

    /// Overwrites bytes of a block and seals it as what it was.
    fn put(&mut self, block: u64, at: usize, bytes: &[u8]) {
        let place = block as usize * BLOCK_SIZE;
        let whole = &mut self.0[place..place + BLOCK_SIZE];
        let kind = identify(whole).expect("a sealed block");
        whole[at..at + bytes.len()].copy_from_slice(bytes);
        seal(whole, kind, MetaBlock::new(block));
    }

    fn put_word(&mut self, block: u64, at: usize, word: u64) {
        self.put(block, at, &word.to_le_bytes());
    }

    fn device(self) -> Arc<MemoryDevice> {
        Arc::new(MemoryDevice::from_bytes("metadata", self.0))
    }

    fn check(self) -> CheckReport {
        check(self.device()).expect("checked")
    }

    /// Checks, and expects an error with all of `words`.
    #[track_caller]
    fn expect_error(self, words: &[&str]) {
        let report = self.check();
        let named = |error: &String| words.iter().all(|word| error.contains(word));
        assert!(report.errors.iter().any(named), "{words:?} in {report:#?}");
    }
}

/// Where a node of 252 entries has a value.
const fn value(index: usize) -> usize {
    32 + 252 * 8 + index * 8
}

/// Where a node has a key.
const fn key(index: usize) -> usize {
    32 + index * 8
}

#[test]
fn what_others_wrote_is_what_their_table_says() {
    for (name, verdict, mappings, warnings) in [
        ("k61-m0.fresh", Verdict::Sound, 0, 0),
        ("k61-m1.thin", Verdict::Sound, 300, 0),
        ("k61-m2.snaps", Verdict::Sound, 1500, 0),
        ("k61-oom", Verdict::Leaks, 54720, 0),
        ("k61-grown", Verdict::Leaks, 54721, 0),
        // The time, and a number of blocks in use that the tools had wrong.
        ("k61-ov", Verdict::Corrupt, 34, 2),
        ("tpt09-restored", Verdict::Sound, 602, 1),
        ("tpt133-restored", Verdict::Sound, 602, 0),
    ] {
        let report = Editor::fixture(name).check();
        assert_eq!(report.verdict(), verdict, "{name}: {report:#?}");
        assert_eq!(report.mappings, mappings, "{name}");
        assert_eq!(report.warnings.len(), warnings, "{name}: {:#?}", report.warnings);
        assert!(!report.needs_check);
    }
}

#[test]
fn blocks_of_one_device_that_lie_in_one_data_block_are_found_whatever_the_counts_say() {
    let report = Editor::fixture("k61-ov").check();
    let aliases = [
        "device 0: blocks 1000 and 1001 both lie in data block 11",
        "device 0: blocks 1002 and 1003 both lie in data block 13",
    ];
    assert_eq!(report.errors[..2], aliases);
    assert!(report.warnings[0].contains("16777216"), "{:?}", report.warnings);
    // As a tool leaves it that makes the counts fit: legal by the counts, and wrong all the same.
    let mut mended = Editor::fixture("k61-ov");
    let index = mended.word(0, DATA_MAP + 16);
    let bitmap = mended.word(index, 32 + 168 * 8);
    // Blocks 8 to 11 and 12 to 15: of each pair the first is free and the second has two.
    let at = bitmap as usize * BLOCK_SIZE + 16;
    let counts = [mended.0[at + 2], mended.0[at + 3]];
    mended.put(bitmap, 18, &[counts[0] & 0x0f | 0b01_00 << 4, counts[1] & 0xf0 | 0b01_00]);
    let report = mended.check();
    assert_eq!(report.errors, aliases, "{report:#?}");
    assert!(report.leaks.is_empty(), "{report:#?}");
}

#[test]
fn blocks_of_two_devices_in_one_data_block_are_found_by_its_count() {
    let mut pool = Editor::fixture("k61-m2.snaps");
    // Device 1 has its own copy of guest block 1, in data block 301: it now leads to that of block
    // 1 of the others, which is right as far as sharing goes, but is not counted.
    let root = pool.word(51, value(1));
    let leaf = pool.word(root, value(0));
    pool.put_word(leaf, value(1), 300 << 24 | 1);
    let report = pool.clone().check();
    assert_eq!(report.errors, ["data block 300 has count 1, should have 2"]);
    assert_eq!(report.leaks, ["data block 301 has count 1, should have 0"]);
    // And the same from another guest block, where no snapshot can have put it.
    pool.put_word(leaf, value(1), 301 << 24 | 1);
    pool.put_word(leaf, value(2), 300 << 24 | 1);
    pool.expect_error(&["block 1 of device 0", "block 2 of device 1", "data block 300"]);
}

#[test]
fn a_broken_leaf_is_named_with_its_devices_its_blocks_and_the_way_to_it() {
    let mut pool = Editor::fixture("k61-m2.snaps");
    let root = pool.word(51, value(0));
    let leaf = pool.word(root, value(1));
    pool.0[leaf as usize * BLOCK_SIZE + 100] ^= 1;
    let way = format!("path {root} > {leaf}");
    let block = format!("metadata block {leaf}: has a wrong checksum");
    // The second leaf is that of all five devices.
    let all = "the mappings of devices 0, 1, 2, 3 and 4, guest blocks from 126 on";
    pool.expect_error(&[&block, all, &way]);
}

#[test]
fn every_rule_that_is_broken_is_named() {
    let pool = Editor::fixture("k61-m2.snaps");
    let root = pool.word(51, value(0));
    let (left, right) = (pool.word(root, value(0)), pool.word(root, value(1)));
    let edit = |block: u64, at: usize, word: u64| {
        let mut edited = pool.clone();
        edited.put_word(block, at, word);
        edited
    };
    let node = |block: u64| format!("metadata block {block}");
    edit(left, key(3), 2).expect_error(&[&node(left), "keys out of order", "device"]);
    edit(left, key(125), 400).expect_error(&[&node(left), "outside its place"]);
    edit(left, value(7), 5000 << 24).expect_error(&["block 7", "data block 5000", "does not have"]);
    edit(root, value(1), left).expect_error(&[&node(left), "outside its place"]);
    edit(root, value(1), root).expect_error(&[&node(root), "itself below it"]);
    edit(root, value(1), 9999).expect_error(&[&node(root), "block 9999", "past the end"]);
    edit(root, value(1), 52).expect_error(&[&node(root), "block 52", "tree of another kind"]);
    edit(51, key(4), 1 << 24).expect_error(&["device 16777216 is larger than 24 bits"]);
    edit(51, key(4), 9).expect_error(&["device 9 has mappings but no details"]);
    edit(51, key(4), 9).expect_error(&["device 4 has details but no mappings"]);
    let mapped = 32 + 126 * 8;
    edit(52, mapped, 7).expect_error(&["device 0 has 300 mapped blocks, its details say 7"]);
    // A leaf that says that it lies elsewhere, as after a misdirected write.
    let mut moved = pool.clone();
    let bytes = pool.0[left as usize * BLOCK_SIZE..][..BLOCK_SIZE].to_vec();
    moved.0[right as usize * BLOCK_SIZE..][..BLOCK_SIZE].copy_from_slice(&bytes);
    moved.expect_error(&[&node(right), &format!("says that it is block {left}")]);
    // The metadata snapshot has no trees of its own here; its copy of the superblock is broken.
    let mut held = pool.clone();
    held.0[55 * BLOCK_SIZE + 9] ^= 1;
    held.expect_error(&["metadata block 55"]);
}

#[test]
fn every_part_of_the_space_maps_is_looked_at() {
    let pool = Editor::fixture("k61-grown");
    let (index, large) = (pool.word(0, DATA_MAP + 16), pool.word(0, DATA_MAP + 24));
    let bitmap = pool.word(index, 32 + 168 * 8);
    let zap = |block: u64| {
        let mut zapped = pool.clone();
        zapped.0[block as usize * BLOCK_SIZE + 2000] ^= 8;
        zapped
    };
    zap(index).expect_error(&["the index of the data space map"]);
    zap(index).expect_error(&["lists 0 bitmaps", "needed"]);
    zap(bitmap).expect_error(&["a bitmap of the data space map"]);
    zap(large).expect_error(&["large counts"]);
    let (index, large) = (pool.word(0, METADATA_MAP + 16), pool.word(0, METADATA_MAP + 24));
    let bitmap = pool.word(index, 16);
    zap(index).expect_error(&["no sound index"]);
    zap(bitmap).expect_error(&["a bitmap of the metadata space map"]);
    zap(large).expect_error(&["large counts"]);
    // The first large count becomes another, and then none at all.
    let mut other = pool.clone();
    other.put(large, 32 + 336 * 8, &9_u32.to_le_bytes());
    assert_eq!(other.check().leaks.len(), 2);
    let mut none = pool.clone();
    let first = pool.word(large, key(0));
    let last = pool.word(large, 16) & 0xffff_ffff;
    none.put(large, 16, &(last as u32 - 1).to_le_bytes());
    assert!(first > 0);
    none.expect_error(&["lacks its count of 3 or more"]);
    // The map claims to be larger than the device.
    let mut larger = pool.clone();
    larger.put_word(0, METADATA_MAP, 1 << 40);
    larger.expect_error(&["counts 1099511627776 blocks"]);
    let mut larger = pool;
    larger.put_word(0, DATA_MAP, 1 << 60);
    larger.expect_error(&["bitmaps without a gap"]);
}

#[test]
fn a_check_goes_as_far_as_it_is_told() {
    let mut pool = Editor::fixture("k61-grown");
    let root = pool.word(pool.word(0, MAPPINGS), value(0));
    pool.0[root as usize * BLOCK_SIZE + 99] ^= 1;
    let run = |depth, ignore_leaks| {
        let options = CheckOptions { depth, ignore_leaks };
        check_with(pool.clone().device(), options).expect("checked").verdict()
    };
    assert_eq!(run(CheckDepth::Superblock, false), Verdict::Sound);
    assert_eq!(run(CheckDepth::Devices, false), Verdict::Sound);
    assert_eq!(run(CheckDepth::Everything, false), Verdict::Corrupt);
    let details = pool.word(0, DETAILS);
    pool.0[details as usize * BLOCK_SIZE + 99] ^= 1;
    let run = |depth| {
        let options = CheckOptions { depth, ignore_leaks: false };
        check_with(pool.clone().device(), options).expect("checked").verdict()
    };
    assert_eq!(run(CheckDepth::Superblock), Verdict::Sound);
    assert_eq!(run(CheckDepth::Devices), Verdict::Corrupt);
    let options = CheckOptions { depth: CheckDepth::Everything, ignore_leaks: true };
    let report = check_with(Editor::fixture("k61-grown").device(), options).expect("checked");
    assert_eq!(report.verdict(), Verdict::Sound);
}

#[test]
fn a_block_that_cannot_be_read_is_one_finding_and_does_not_end_the_check() {
    let calls = FaultCalls { reads: true, ..FaultCalls::default() };
    let pool = Editor::fixture("k61-m1.thin").device();
    let counting = FaultyDevice::new(
        pool.clone(),
        FaultPlan { fail_at: 0, calls, kind: ErrorKind::Io, sticky: false },
    );
    check(counting.clone()).expect("checked");
    let mut named = 0;
    for fail_at in 2..=counting.counted() {
        let plan = FaultPlan { fail_at, calls, kind: ErrorKind::Io, sticky: true };
        let report = check(FaultyDevice::new(pool.clone(), plan)).expect("checked");
        assert_eq!(report.verdict(), Verdict::Corrupt, "read {fail_at}");
        named += 1;
    }
    assert!(named > 5);
}

#[test]
fn the_mark_that_asks_for_a_check_is_taken_off_sound_metadata_only() {
    let mut pool = Editor::fixture("k61-grown");
    pool.put(0, FLAGS, &1_u32.to_le_bytes());
    assert!(pool.clone().check().needs_check);
    let device = pool.clone().device();
    let shared: Arc<dyn BlockDevice> = device.clone();
    let report = clear_needs_check(&shared).expect("cleared");
    assert_eq!((report.verdict(), report.needs_check), (Verdict::Leaks, true));
    let after = Editor(device.to_bytes());
    assert_eq!(after.0[BLOCK_SIZE..], pool.0[BLOCK_SIZE..]);
    assert!(!after.check().needs_check);
    let root = pool.word(0, MAPPINGS);
    pool.0[root as usize * BLOCK_SIZE + 99] ^= 1;
    let before = pool.0.clone();
    let device = pool.device();
    let shared: Arc<dyn BlockDevice> = device.clone();
    assert_eq!(clear_needs_check(&shared).expect_err("broken").kind(), ErrorKind::Corrupt);
    assert_eq!(repair_leaks(&shared).expect_err("broken").kind(), ErrorKind::Corrupt);
    assert_eq!(device.to_bytes(), before);
}

#[test]
fn features_that_forbid_writing_are_respected() {
    let mut pool = leaking();
    pool.put(0, FLAGS, &1_u32.to_le_bytes());
    pool.put(0, COMPAT_RO, &4_u32.to_le_bytes());
    let before = pool.0.clone();
    assert!(pool.clone().check().warnings.iter().any(|warning| warning.contains("bits 0x4")));
    let device = pool.device();
    let shared: Arc<dyn BlockDevice> = device.clone();
    assert_eq!(repair_leaks(&shared).expect_err("refused").kind(), ErrorKind::Unsupported);
    assert_eq!(clear_needs_check(&shared).expect_err("refused").kind(), ErrorKind::Unsupported);
    assert_eq!(device.to_bytes(), before);
}

#[test]
fn times_near_their_end_are_told() {
    for (time, words) in [((1 << 24) - 3, "2 more snapshots"), (1 << 24, "more than the")] {
        let mut pool = Editor::fixture("k61-m2.snaps");
        pool.put(0, TIME, &u32::to_le_bytes(time));
        let report = pool.check();
        assert_eq!(report.verdict(), Verdict::Sound);
        assert!(report.warnings[0].contains(words), "{:?}", report.warnings);
    }
    let mut pool = Editor::fixture("k61-m2.snaps");
    pool.put(0, TIME, &0_u32.to_le_bytes());
    let report = pool.check();
    assert!(report.warnings.iter().any(|warning| warning.contains("devices of a time after")));
    assert!(report.warnings.iter().any(|warning| warning.contains("mappings are of time 1")));
}

/// A pool that has leaked data blocks and metadata blocks, of small and of large counts.
fn leaking() -> Editor {
    let mut pool = Editor::fixture("k61-grown");
    for (map, blocks) in [(DATA_MAP, [3600_usize, 3700]), (METADATA_MAP, [900, 1000])] {
        let index = pool.word(0, map + 16);
        let first = if map == DATA_MAP { 32 + 168 * 8 } else { 16 };
        let bitmap = pool.word(index, first);
        for (block, bits) in blocks.into_iter().zip([0b10, 0b01]) {
            let at = bitmap as usize * BLOCK_SIZE + 16 + block / 4;
            let byte = pool.0[at] | bits << (2 * (block % 4));
            pool.put(bitmap, 16 + block / 4, &[byte]);
        }
    }
    pool
}

#[test]
fn leaks_are_repaired() {
    let report = leaking().check();
    assert_eq!((report.verdict(), report.leaks.len()), (Verdict::Leaks, 5), "{report:#?}");
    let device = leaking().device();
    let shared: Arc<dyn BlockDevice> = device.clone();
    let repaired = repair_leaks(&shared).expect("repaired");
    assert_eq!((repaired.data, repaired.metadata), (3, 2));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("metadata");
    fs::write(&file, device.to_bytes()).expect("written");
    thin_tools::check(&file);
    let report = Editor(device.to_bytes()).check();
    assert_eq!((report.verdict(), report.mappings), (Verdict::Sound, 54721), "{report:#?}");
    assert_eq!(repair_leaks(&shared).expect("nothing to do"), dm_thin::LeakRepair::default());
}

#[test]
fn a_power_failure_while_leaks_are_repaired_leaves_them_or_none() {
    let bytes = leaking().0;
    let world = CrashWorld::new(0);
    let device: Arc<dyn BlockDevice> = world.device("metadata", bytes.clone());
    repair_leaks(&device).expect("repaired");
    let (mut before, mut after) = (0, 0);
    for op in 1..=world.ops() {
        let world = CrashWorld::new(op);
        let device: Arc<dyn BlockDevice> = world.device("metadata", bytes.clone());
        world.crash_at(op);
        assert!(repair_leaks(&device).is_err());
        for draw in 0..8 {
            let (_, left) = world.images(draw).remove(0);
            let report = Editor(left).check();
            assert!(report.errors.is_empty(), "{op}, {draw}: {report:#?}");
            match report.leaks.len() {
                0 => after += 1,
                5 => before += 1,
                other => panic!("{op}, {draw}: {other} leaks: {report:#?}"),
            }
        }
    }
    assert!(before > 0 && after > 0, "{before}, {after}");
}

/// Bytes changed at random, and sealed again, so that they get past the checksums.
fn hostile(bytes: &mut [u8], rng: &mut Rng) {
    let blocks = bytes.len() / BLOCK_SIZE;
    for _ in 0..rng.within(1..6) {
        // Most of what is in use lies at the beginning.
        let block = if rng.chance(1, 4) { 0 } else { rng.index(blocks.min(64)) };
        let whole = &mut bytes[block * BLOCK_SIZE..][..BLOCK_SIZE];
        let Some(kind) = identify(whole) else { continue };
        // Heads, first keys and first values matter most.
        let at = match rng.within(0..4) {
            0 => rng.index(0x170),
            1 => 16 + rng.index(16),
            2 => 32 + 252 * 8 + rng.index(64),
            _ => rng.index(BLOCK_SIZE - 8),
        };
        if kind == BlockKind::Superblock && (0x20..0x28).contains(&at) {
            continue;
        }
        let small = rng.within(0..blocks as u64 + 2);
        let word = *rng.pick(&[small, 0, u64::MAX, 1 << 23, 1 << 40, small << 24]);
        whole[at.min(BLOCK_SIZE - 8)..][..8].copy_from_slice(&word.to_le_bytes());
        seal(whole, kind, MetaBlock::new(block as u64));
    }
}

#[test]
fn hostile_metadata_gets_an_answer() {
    let seeds = if std::env::var_os("FIRN_LONG").is_some() { 20_000 } else { 300 };
    let images = ["k61-m1.thin", "k61-m2.snaps", "k61-grown", "tpt133-restored"];
    let images = images.map(|name| Editor::fixture(name).0[..1 << 20].to_vec());
    let (mut refused, mut broken, mut repaired) = (0, 0, 0);
    for seed in 0..seeds {
        let mut rng = Rng::new(seed);
        let mut bytes = rng.pick(&images).clone();
        hostile(&mut bytes, &mut rng);
        let device: Arc<dyn BlockDevice> = Editor(bytes).device();
        match check(Arc::clone(&device)) {
            Err(_) => refused += 1,
            Ok(report) => broken += u32::from(report.verdict() == Verdict::Corrupt),
        }
        let fresh = Arc::new(MemoryDevice::new("fresh", block_types::ByteCount::new(2 << 20)));
        if repair(&device, fresh.clone(), &Overrides::default()).is_ok() {
            let report = check(fresh).expect("checked");
            // Of two blocks that lie in one, nobody knows whose it is: a repair keeps both.
            let kept = |error: &String| error.contains("both lie in data block");
            assert!(report.leaks.is_empty(), "{seed}: {report:#?}");
            assert!(report.errors.iter().all(kept), "{seed}: {report:#?}");
            repaired += 1;
        }
    }
    assert!(refused > 0 && broken > 0 && repaired > 0, "{refused}, {broken}, {repaired}");
}
