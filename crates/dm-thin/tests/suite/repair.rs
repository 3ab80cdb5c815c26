//! Damaged metadata: a check says so, and a repair brings back at least what `thin_repair` does.
//!
//! `FIRN_LONG=1` damages every block of the large images, too, in more ways.

mod large;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::common::{Model, Session, formatted, open};
use block_io::{BlockDevice, FaultCalls, FaultPlan, FaultyDevice, MemoryDevice};
use block_types::{ByteCount, ErrorKind};
use dm_thin::BlockSize;
use dm_thin::repair::{RepairReport, Roots, repair};
use dm_thin::restore::Overrides;
use persistent_data::{BLOCK_SIZE, BlockStore, SpaceMapRoot, Transaction};
use testkit::peer::peer;
use testkit::rng::Rng;
use testkit::{fixture, thin_tools};
use zerocopy::FromBytes;

/// Every mapping of a pool: device and guest block to data block.
type Mappings = BTreeMap<(u64, u64), u64>;

/// What a pool was like before it was damaged.
struct Image {
    name: String,
    bytes: Vec<u8>,
    mappings: Mappings,
    used: Vec<usize>,
}

/// How a block is damaged.
#[derive(Clone, Copy, Debug)]
enum Damage {
    Zeroed,
    Flipped,
    /// The content of the block before it, as after a misdirected write.
    Misplaced,
}

impl Image {
    fn new(name: &str, bytes: Vec<u8>, folder: &Path) -> Self {
        let file = folder.join(format!("{name}.sound"));
        fs::write(&file, &bytes).expect("written");
        let used = used_blocks(&bytes);
        Self { name: name.to_owned(), mappings: dump(&file).expect("sound"), bytes, used }
    }

    fn damaged(&self, block: usize, damage: Damage) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let at = block * BLOCK_SIZE;
        match damage {
            Damage::Zeroed => bytes[at..at + BLOCK_SIZE].fill(0),
            Damage::Flipped => bytes[at + 40] ^= 4,
            Damage::Misplaced if block == 0 => bytes.copy_within(BLOCK_SIZE..2 * BLOCK_SIZE, 0),
            Damage::Misplaced => bytes.copy_within(at - BLOCK_SIZE..at, at),
        }
        bytes
    }
}

/// The metadata blocks in use, by the space map.
fn used_blocks(bytes: &[u8]) -> Vec<usize> {
    let store = BlockStore::new(Arc::new(MemoryDevice::from_bytes("sound", bytes.to_vec())), 64);
    let root = SpaceMapRoot::read_from_bytes(&bytes[0xc0..0xe0]).expect("32 bytes");
    let txn = Transaction::open(Arc::new(store), &root).expect("opened");
    txn.counts().used().map(|(block, _)| block as usize).collect()
}

/// The mappings of the pool in `file`, if `thin_dump` can read it.
fn dump(file: &Path) -> Option<Mappings> {
    let outcome = peer("thin_dump").arg(file).run();
    (outcome.code() == Some(0)).then(|| parse(&outcome.text()))
}

fn parse(xml: &str) -> Mappings {
    let mut mappings = Mappings::new();
    let mut device = 0;
    for element in xml.lines().map(str::trim) {
        let number = |name: &str| -> u64 {
            let (_, rest) = element.split_once(&format!(" {name}=\"")).expect("an attribute");
            rest.split('"').next().and_then(|value| value.parse().ok()).expect("a number")
        };
        if element.starts_with("<device") {
            device = number("dev_id");
        } else if element.starts_with("<single_mapping") {
            mappings.insert((device, number("origin_block")), number("data_block"));
        } else if element.starts_with("<range_mapping") {
            for index in 0..number("length") {
                let key = (device, number("origin_begin") + index);
                mappings.insert(key, number("data_begin") + index);
            }
        }
    }
    mappings
}

fn overrides() -> Overrides {
    let block_size = BlockSize::new(ByteCount::new(65536)).expect("a block size");
    Overrides {
        transaction: None,
        block_size: Some(block_size),
        data_blocks: None,
        renumber: false,
    }
}

fn repaired(bytes: Vec<u8>, overrides: &Overrides) -> block_types::Result<(Vec<u8>, RepairReport)> {
    let size = ByteCount::new((bytes.len() as u64).max(4 << 20));
    let damaged: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("damaged", bytes));
    let fresh = Arc::new(MemoryDevice::new("repaired", size));
    let report = repair(&damaged, fresh.clone(), overrides)?;
    Ok((fresh.to_bytes(), report))
}

/// What `thin_repair` makes of it, if anything.
fn thin_repair(bytes: &[u8], folder: &Path, name: &str) -> Option<Mappings> {
    let (damaged, fresh) = (folder.join(format!("{name}.in")), folder.join(format!("{name}.out")));
    fs::write(&damaged, bytes).expect("written");
    fs::write(&fresh, vec![0; bytes.len().max(4 << 20)]).expect("written");
    let blocks = ["--data-block-size", "128", "--nr-data-blocks", "4096", "--transaction-id", "1"];
    let options: &[&str] = if bytes[..4] == [0; 4] { &blocks } else { &[] };
    let outcome =
        peer("thin_repair").arg("-i").arg(&damaged).arg("-o").arg(&fresh).args(options).run();
    let found = (outcome.code() == Some(0)).then(|| dump(&fresh)).flatten();
    drop(fs::remove_file(&damaged));
    drop(fs::remove_file(&fresh));
    found
}

/// Damages one block, checks, repairs, and holds the result against the truth and the peer's.
fn try_one(image: &Image, block: usize, damage: Damage, folder: &Path) -> Result<(), String> {
    let name = format!("{}-{block}-{damage:?}", image.name);
    let bytes = image.damaged(block, damage);
    if bytes == image.bytes {
        return Ok(());
    }
    let device = Arc::new(MemoryDevice::from_bytes("damaged", bytes.clone()));
    let checked = dm_thin::check(device).map(|report| report.errors.is_empty());
    if checked.is_ok_and(|sound| sound) {
        return Err(format!("{name}: a check finds nothing"));
    }
    let theirs = thin_repair(&bytes, folder, &name).unwrap_or_default();
    let (ours, doubtful, report) = match repaired(bytes, &overrides()) {
        Ok((bytes, report)) => {
            let file = folder.join(format!("{name}.ours"));
            fs::write(&file, &bytes).expect("written");
            let checked = thin_tools::run_check(&file);
            if checked.code() != Some(0) {
                return Err(format!("{name}: thin_check: {checked}"));
            }
            let found = dump(&file).ok_or_else(|| format!("{name}: cannot be dumped"))?;
            drop(fs::remove_file(&file));
            let again = Arc::new(MemoryDevice::from_bytes("repaired", bytes));
            let again = dm_thin::check(again).map_err(|error| format!("{name}: {error}"))?;
            if again.verdict() != dm_thin::Verdict::Sound {
                return Err(format!("{name}: {again:?}"));
            }
            let doubtful = report.devices.iter().filter(|device| device.doubtful);
            let doubtful: Vec<u64> = doubtful.map(|device| device.id.get().into()).collect();
            (found, doubtful, format!("{report:?}"))
        }
        Err(error) => (Mappings::new(), Vec::new(), error.to_string()),
    };
    let right = |found: &Mappings| -> Vec<(u64, u64)> {
        let right = |(key, data): &(&(u64, u64), &u64)| image.mappings.get(*key) == Some(*data);
        found.iter().filter(right).map(|(key, _)| *key).collect()
    };
    let missed: Vec<_> = right(&theirs).into_iter().filter(|key| !ours.contains_key(key)).collect();
    let wrong = |found: &Mappings| -> Vec<u64> {
        let wrong = |(key, data): &(&(u64, u64), &u64)| image.mappings.get(*key) != Some(*data);
        found.iter().filter(wrong).map(|((device, _), _)| *device).collect()
    };
    // What is not as it was must at least be said to be in doubt.
    let unsaid = wrong(&ours).into_iter().any(|device| !doubtful.contains(&device));
    if !missed.is_empty() || unsaid {
        let (all, mine, yours) = (image.mappings.len(), right(&ours).len(), right(&theirs).len());
        return Err(format!(
            "{name}: {mine} of {all}, thin_repair {yours}; wrong {:?} and {:?}; missed {:?}; \
             {report}",
            wrong(&ours),
            wrong(&theirs),
            &missed[..missed.len().min(3)],
        ));
    }
    Ok(())
}

/// Pools after some random use.
fn used_pool(seed: u64) -> Vec<u8> {
    let (metadata, data) = formatted(1 << 20, 48);
    let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
    let data = Arc::new(MemoryDevice::from_bytes("data", data));
    let mut session = Session::new(open(metadata.clone(), data).expect("opened"));
    let (mut model, mut rng) = (Model::default(), Rng::new(seed));
    for _ in 0..80 {
        // A full pool is as good as any other.
        let _ = model.step(&mut session, &mut rng);
    }
    drop(session);
    metadata.to_bytes()
}

/// Damages the blocks in use of an image, each `step`th of them, side by side.
fn try_all(image: &Image, damages: &[Damage], step: usize, folder: &Path) {
    let blocks: Vec<usize> = image.used.iter().copied().step_by(step).collect();
    let cases: Vec<(usize, Damage)> =
        blocks.iter().flat_map(|block| damages.iter().map(|damage| (*block, *damage))).collect();
    let failed: Vec<String> = std::thread::scope(|scope| {
        let runs: Vec<_> = cases
            .chunks(cases.len().div_ceil(4))
            .map(|cases| {
                scope.spawn(|| {
                    let tries = cases.iter().map(|(at, how)| try_one(image, *at, *how, folder));
                    tries.filter_map(Result::err).collect::<Vec<_>>()
                })
            })
            .collect();
        runs.into_iter().flat_map(|run| run.join().expect("no panic")).collect()
    });
    assert!(failed.is_empty(), "{} of {}:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

fn long() -> bool {
    std::env::var_os("FIRN_LONG").is_some()
}

#[test]
fn every_block_of_a_small_pool_may_be_damaged() {
    let folder = tempfile::tempdir().expect("a folder");
    for seed in 0..if long() { 20 } else { 3 } {
        let image = Image::new(&format!("pool-{seed}"), used_pool(seed), folder.path());
        try_all(&image, &[Damage::Zeroed, Damage::Flipped], 1, folder.path());
    }
}

#[test]
fn every_block_of_a_pool_of_linux_may_be_damaged() {
    let folder = tempfile::tempdir().expect("a folder");
    let all = [Damage::Zeroed, Damage::Flipped, Damage::Misplaced];
    for (name, step) in [
        ("k61-m1.thin", 1),
        ("k61-m2.snaps", 1),
        ("k61-oom", 29),
        ("k61-grown", 13),
        ("tpt09-restored", 1),
        ("tpt133-restored", 1),
    ] {
        let bytes = fixture::bytes(&format!("thin/{name}.md.gz"));
        let image = Image::new(name, bytes, folder.path());
        let (damages, step) = if long() { (&all[..], 1) } else { (&all[..2], step) };
        try_all(&image, damages, step, folder.path());
    }
}

fn fixture_image(name: &str, folder: &Path) -> Image {
    Image::new(name, fixture::bytes(&format!("thin/{name}.md.gz")), folder)
}

/// The pool that a repair has written.
fn dumped(bytes: &[u8], folder: &Path) -> (Mappings, String) {
    let file = folder.join("repaired");
    fs::write(&file, bytes).expect("written");
    thin_tools::check(&file);
    (dump(&file).expect("sound"), thin_tools::dump(&file))
}

#[test]
fn sound_metadata_comes_through_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["k61-m1.thin", "k61-m2.snaps", "k61-oom", "k61-grown", "tpt09-restored"] {
        let image = fixture_image(name, folder.path());
        let (bytes, report) = repaired(image.bytes.clone(), &Overrides::default()).expect(name);
        assert!(report.is_complete(), "{name}: {report:?}");
        let (mappings, xml) = dumped(&bytes, folder.path());
        assert_eq!(mappings, image.mappings, "{name}");
        // The same devices with the same details, and the same pool around them.
        let heads = |xml: &str| -> Vec<String> {
            let heads = xml.lines().filter(|line| line.contains("<device "));
            heads.map(str::to_owned).collect()
        };
        let sound = thin_tools::dump(&folder.path().join(format!("{name}.sound")));
        assert_eq!(heads(&xml), heads(&sound), "{name}");
    }
}

#[test]
fn blocks_that_lie_in_one_data_block_stay_there_and_are_counted() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = fixture_image("k61-ov", folder.path());
    let (bytes, report) = repaired(image.bytes.clone(), &Overrides::default()).expect("repaired");
    assert!(report.is_complete(), "{report:?}");
    assert_eq!(dumped(&bytes, folder.path()).0, image.mappings);
    let repaired = Arc::new(MemoryDevice::from_bytes("repaired", bytes));
    let report = dm_thin::check(repaired).expect("checked");
    assert_eq!(report.errors.len(), 2, "{report:#?}");
    assert!(report.errors.iter().all(|error| error.contains("both lie in data block")));
    assert!(report.leaks.is_empty());
}

#[test]
fn a_pool_without_devices_comes_through() {
    let bytes = fixture::bytes("thin/k61-m0.fresh.md.gz");
    let (bytes, report) = repaired(bytes, &Overrides::default()).expect("repaired");
    assert!(report.is_complete() && report.devices.is_empty(), "{report:?}");
    let folder = tempfile::tempdir().expect("a folder");
    assert!(dumped(&bytes, folder.path()).0.is_empty());
}

#[test]
fn without_a_superblock_the_size_of_blocks_is_asked_for_unless_a_copy_tells() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = fixture_image("k61-grown", folder.path());
    let bytes = image.damaged(0, Damage::Zeroed);
    let error = repaired(bytes.clone(), &Overrides::default()).expect_err("unknown");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("how large data blocks are"), "{error}");
    let told = Overrides { transaction: Some(7), data_blocks: Some(5000), ..overrides() };
    let (bytes, report) = repaired(bytes, &told).expect("repaired");
    assert_eq!((report.roots, report.details), (Roots::Search, Some(Roots::Search)));
    let (mappings, xml) = dumped(&bytes, folder.path());
    assert_eq!(mappings, image.mappings);
    for words in ["transaction=\"7\"", "nr_data_blocks=\"5000\"", "data_block_size=\"128\""] {
        assert!(xml.contains(words), "{words}");
    }
    // The metadata snapshot has a copy.
    let image = fixture_image("k61-m2.snaps", folder.path());
    let (bytes, _) =
        repaired(image.damaged(0, Damage::Zeroed), &Overrides::default()).expect("repaired");
    let (mappings, xml) = dumped(&bytes, folder.path());
    assert_eq!(mappings, image.mappings);
    assert!(xml.contains("nr_data_blocks=\"302\""), "the last that is mapped, and no more");
}

/// A mapping is taken for unshared if it is not older than the device's last snapshot. A repair
/// that forgot a snapshot would have the device overwrite what the snapshot reads.
#[test]
fn details_that_are_lost_are_made_up_so_that_no_sharing_is_overlooked() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = fixture_image("k61-grown", folder.path());
    let details = u64::from_le_bytes(image.bytes[0x148..0x150].try_into().expect("8 bytes"));
    for block in [0, details as usize] {
        let (bytes, report) =
            repaired(image.damaged(block, Damage::Zeroed), &overrides()).expect("repaired");
        assert_ne!(report.details, Some(Roots::Superblock));
        let (mappings, xml) = dumped(&bytes, folder.path());
        assert_eq!(mappings, image.mappings);
        let number = |line: &str, name: &str| -> u64 {
            let (_, rest) = line.split_once(&format!(" {name}=\"")).expect("an attribute");
            rest.split('"').next().and_then(|value| value.parse().ok()).expect("a number")
        };
        let mut snapshotted = 0;
        for line in xml.lines() {
            if line.contains("<device ") {
                snapshotted = number(line, "snap_time");
                assert!(snapshotted >= 18, "{line}");
            } else if line.contains(" time=") && line.contains("origin") {
                // What is of the time itself was written after the last snapshot there was.
                let time = number(line, "time");
                assert!(time < snapshotted || (block != 0 && time == snapshotted), "{line}");
            }
        }
    }
}

#[test]
fn what_is_lost_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = fixture_image("k61-m2.snaps", folder.path());
    let word = |block: usize, at: usize| {
        let at = block * BLOCK_SIZE + at;
        u64::from_le_bytes(image.bytes[at..at + 8].try_into().expect("8 bytes")) as usize
    };
    let leaf = word(word(51, 2048), 2048 + 8);
    let (_, report) =
        repaired(image.damaged(leaf, Damage::Flipped), &Overrides::default()).expect("repaired");
    assert!(!report.is_complete());
    let findings = report.findings();
    assert!(findings.contains(&"the metadata snapshot is not taken over".to_owned()));
    assert!(findings.contains(&"device 3: mappings are lost from block 126 on".to_owned()));
    assert!(findings.contains(&"device 3: 126 blocks are mapped, there were 300".to_owned()));
}

/// Several blocks at once, of any kind: no wrong mapping comes out of it while the pool still knows
/// its devices, and what comes out is sound.
#[test]
fn many_damages_lose_mappings_and_invent_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = fixture_image("k61-grown", folder.path());
    let tops = [0x140, 0x148].map(|at| {
        u64::from_le_bytes(image.bytes[at..at + 8].try_into().expect("8 bytes")) as usize
    });
    let mut whole = 0;
    for seed in 0..if long() { 2000 } else { 30 } {
        let mut rng = Rng::new(seed);
        let mut bytes = image.bytes.clone();
        for _ in 0..rng.within(2..40) {
            let block = *rng.pick(&image.used);
            if block != 0 && !tops.contains(&block) {
                bytes[block * BLOCK_SIZE..(block + 1) * BLOCK_SIZE].fill(0);
            }
        }
        let (bytes, report) = repaired(bytes, &Overrides::default()).expect("repaired");
        let file = folder.path().join("repaired");
        fs::write(&file, &bytes).expect("written");
        let found = dump(&file).expect("sound");
        assert!(found.iter().all(|(key, data)| image.mappings.get(key) == Some(data)), "{seed}");
        let sound = dm_thin::check(Arc::new(MemoryDevice::from_bytes("repaired", bytes)));
        assert_eq!(sound.expect("checked").verdict(), dm_thin::Verdict::Sound, "{seed}");
        assert_eq!(report.is_complete(), found == image.mappings, "{seed}: {report:?}");
        whole += usize::from(!found.is_empty());
    }
    assert!(whole > 10);
}

#[test]
fn a_block_that_cannot_be_read_is_like_one_that_is_broken() {
    let calls = FaultCalls { reads: true, ..FaultCalls::default() };
    let bytes = fixture::bytes("thin/k61-m1.thin.md.gz");
    let sound = Arc::new(MemoryDevice::from_bytes("damaged", bytes));
    for fail_at in 1..20 {
        let plan = FaultPlan { fail_at, calls, kind: ErrorKind::Io, sticky: false };
        let damaged: Arc<dyn BlockDevice> = FaultyDevice::new(sound.clone(), plan);
        let fresh = Arc::new(MemoryDevice::new("repaired", ByteCount::new(4 << 20)));
        // One read may hit a block that nobody can do without.
        if repair(&damaged, fresh.clone(), &overrides()).is_ok() {
            let report = dm_thin::check(fresh).expect("checked");
            assert_eq!(report.verdict(), dm_thin::Verdict::Sound, "{fail_at}");
        }
    }
}

#[test]
fn a_repair_that_fails_leaves_no_pool() {
    let bytes = fixture::bytes("thin/k61-grown.md.gz");
    let damaged: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("damaged", bytes));
    let small = Arc::new(MemoryDevice::new("small", ByteCount::new(64 * BLOCK_SIZE as u64)));
    let error = repair(&damaged, small, &Overrides::default()).expect_err("small");
    assert_eq!(error.kind(), ErrorKind::OutOfSpace);
    let mut failed = 0;
    loop {
        // What is there already is a pool, and must not be taken for the repaired one.
        let old = fixture::bytes("thin/k61-m1.thin.md.gz");
        let fresh = Arc::new(MemoryDevice::from_bytes("repaired", old));
        let calls = FaultCalls::CHANGES;
        let plan = FaultPlan { fail_at: failed + 1, calls, kind: ErrorKind::Io, sticky: true };
        let device = FaultyDevice::new(fresh.clone(), plan);
        if repair(&damaged, device, &Overrides::default()).is_ok() {
            break;
        }
        // Before anything was changed, the old pool is whole.
        if failed > 0 && !fresh.to_bytes()[..BLOCK_SIZE].iter().all(|&byte| byte == 0) {
            let report = dm_thin::check(fresh).expect("checked");
            assert_eq!((report.verdict(), report.mappings), (dm_thin::Verdict::Sound, 54721));
        }
        failed += 1;
    }
    assert!(failed > 3, "{failed}");
}
