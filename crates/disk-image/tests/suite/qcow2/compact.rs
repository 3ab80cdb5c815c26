//! Compaction: what it leaves is what was there, in less space, whenever the power fails.

use std::fs;
use std::sync::Arc;
use std::time::SystemTime;

use super::common::{Folder, contents, same, text};
use super::model::{Model, Setup};
use block_io::{BlockDevice, CrashWorld, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ByteRange, DirtyBitmap, ErrorKind, Granularity};
use disk_image::qcow2::{CreateOptions, Image, Repair, check, repair};
use testkit::rng::Rng;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Compacts in steps of `most`; says how many it took.
fn compact(image: &Image, most: u64) -> block_types::Result<u32> {
    let mut steps = 0;
    while !image.compact_step(ByteCount::new(most))?.done {
        steps += 1;
        assert!(steps < 10_000, "it does not end");
    }
    Ok(steps)
}

/// A clean bitmap of sectors.
fn sectors(size: ByteCount) -> DirtyBitmap {
    let granularity = Granularity::new(ByteCount::new(512)).expect("a power of two");
    DirtyBitmap::new(size, granularity).expect("made")
}

fn copy(bits: &DirtyBitmap) -> DirtyBitmap {
    let copy = sectors(bits.size());
    copy.merge(bits);
    copy
}

#[test]
fn gaps_are_closed_under_snapshots_bitmaps_and_compressed_data() {
    let folder = Folder::new();
    for (name, cluster, extended_l2) in
        [("a", 64 * KIB, false), ("b", 512, false), ("c", 4 * KIB, false), ("d", 16 * KIB, true)]
    {
        let mut options = CreateOptions::new(ByteCount::new(16 * MIB));
        (options.cluster_size, options.extended_l2) = (ByteCount::new(cluster), extended_l2);
        let image = folder.create(name, &options);
        let unit = cluster.max(16 * KIB);
        for at in (0..8 * MIB).step_by(unit as usize) {
            image.write_at(&vec![(at / unit) as u8; unit as usize], ByteOffset::new(at)).unwrap();
        }
        for at in (8 * MIB..12 * MIB).step_by(cluster as usize).take(300) {
            image.write_compressed(&text(cluster as usize, at), ByteOffset::new(at)).unwrap();
        }
        image.create_snapshot("then", SystemTime::now()).expect("taken");
        let then = contents(&*image);
        // Everything else goes, and something comes.
        for at in (0..12 * MIB).step_by(2 * unit as usize) {
            image.discard(ByteRange::new(ByteOffset::new(at), ByteCount::new(unit))).unwrap();
        }
        image.create_snapshot("between", SystemTime::now()).expect("taken");
        let between = contents(&*image);
        image.write_at(&text(MIB as usize, 5), ByteOffset::new(13 * MIB)).expect("written");
        image.delete_snapshot("then").expect("deleted");
        let bits = sectors(image.size());
        (0..1000).for_each(|at| {
            let range = ByteRange::new(ByteOffset::new(at * 16_000), ByteCount::new(1));
            bits.set(range);
        });
        image.add_bitmap_with("daily", true, copy(&bits)).expect("added");
        let disk = contents(&*image);
        image.close().expect("closed");
        let before = fs::metadata(folder.file(name)).expect("there").len();
        let view = image.open_snapshot("between").expect("opened");
        let error = image.compact_step(ByteCount::new(MIB)).expect_err("it is open");
        assert_eq!(error.kind(), ErrorKind::Busy);
        drop(view);
        let steps = compact(&image, MIB / 2).expect("compacted");
        assert!(steps > 1, "{steps} steps");
        same(&contents(&*image), &disk);
        same(&contents(&*image.open_snapshot("between").expect("opened")), &between);
        // A disk that goes on.
        image.write_at(&[1; 70_000], ByteOffset::new(15 * MIB)).expect("written");
        image.discard(ByteRange::new(ByteOffset::new(15 * MIB), ByteCount::new(MIB))).unwrap();
        image.close().expect("closed");
        drop(image);
        folder.check(name);
        same(&folder.content(name, ""), &disk);
        same(&folder.content(name, "-l between"), &between);
        let after = fs::metadata(folder.file(name)).expect("there").len();
        let report = check(&folder.host(name, true)).expect("checked");
        // The half of the data that is left, and tables; gaps of a few tables at most.
        assert!(after < before * 3 / 4, "{name}: {after} of {before} bytes");
        assert_eq!(report.image_end.get(), after);
        let image = folder.open(name);
        let inconsistent = image.bitmaps().expect("read")[0].inconsistent;
        assert!(inconsistent, "it was written to");
        image.delete_snapshot("between").expect("deleted");
        compact(&image, 64 * MIB).expect("compacted");
        same(&contents(&*image), &disk);
        image.close().expect("closed");
        folder.check(name);
        assert_ne!(then, disk);
    }
}

#[test]
fn bitmaps_move_with_the_rest() {
    let folder = Folder::new();
    let mut options = CreateOptions::new(ByteCount::new(64 * MIB));
    options.cluster_size = ByteCount::new(512);
    let image = folder.create("a", &options);
    image.write_at(&vec![1; MIB as usize], ByteOffset::ZERO).expect("written");
    let bits = sectors(image.size());
    bits.set(ByteRange::new(ByteOffset::new(MIB), ByteCount::new(9 * MIB)));
    image.add_bitmap_with("daily", true, copy(&bits)).expect("added");
    image.close().expect("closed");
    drop(image);
    let image = folder.open("a");
    image.create_snapshot("s", SystemTime::now()).expect("taken");
    image.revert_to_snapshot("s").expect("reverted");
    image.delete_snapshot("s").expect("deleted");
    compact(&image, MIB).expect("compacted");
    assert!(image.bitmap("daily").expect("consistent") == bits);
    image.close().expect("closed");
    folder.check("a");
}

#[test]
fn a_dense_image_stays_as_it_is() {
    let folder = Folder::new();
    let image = folder.create("a", &CreateOptions::new(ByteCount::new(4 * MIB)));
    image.write_at(&vec![1; 4 * MIB as usize], ByteOffset::ZERO).expect("written");
    image.close().expect("closed");
    let before = fs::metadata(folder.file("a")).expect("there").len();
    compact(&image, 64 * MIB).expect("compacted");
    image.close().expect("closed");
    assert!(fs::metadata(folder.file("a")).expect("there").len() <= before);
    folder.check("a");
}

/// Does random things to an image, then compacts it, with the power failing somewhere.
fn run(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let setup = Setup::random(&mut rng);
    let memory = Arc::new(MemoryDevice::from_bytes("image", setup.image()));
    let file: Arc<dyn BlockDevice> = memory.clone();
    let mut model: Model = setup.model();
    let text = |error: block_types::Error| error.to_string();
    let image = setup.open(Arc::clone(&file)).map_err(text)?;
    for _ in 0..60 {
        match model.step(&image, &mut rng) {
            Err(error) if error.kind() != ErrorKind::Unsupported => return Err(text(error)),
            _ => {}
        }
    }
    image.close().map_err(text)?;
    drop(image);
    let world = CrashWorld::new(seed);
    let device = world.device("image", memory.to_bytes());
    if rng.chance(3, 4) {
        world.crash_at(rng.within(1..60));
    }
    let image = setup.open(device).map_err(text)?;
    model.step(&image, &mut rng).ok();
    image.flush().ok();
    let most = *rng.pick(&[512, 8 * KIB, MIB]);
    match compact(&image, most) {
        // Counts of few bits may be too small for compressed data that are packed elsewhere.
        Err(error) if !world.crashed() && error.kind() != ErrorKind::Unsupported => {
            return Err(format!("compaction: {error}"));
        }
        _ => {}
    }
    if !world.crashed() {
        model.compare(&image)?;
    }
    drop(image);
    for draw in 0..2 {
        let (_, bytes) = world.images(draw).remove(0);
        let file: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("image", bytes));
        let report = check(&file).map_err(text)?;
        if report.corruption_count != 0 {
            return Err(format!("draw {draw}: {report:#?}"));
        }
        let image = setup.open(Arc::clone(&file)).map_err(text)?;
        let mut model = model.clone();
        model.survive(&image)?;
        drop(image);
        repair(&file, Repair::Leaks).map_err(text)?;
        let image = setup.open(Arc::clone(&file)).map_err(text)?;
        compact(&image, MIB).or_else(|error| match error.kind() {
            ErrorKind::Unsupported => Ok(0),
            _ => Err(format!("again: {error}")),
        })?;
        model.compare(&image)?;
        image.close().map_err(text)?;
        let report = check(&file).map_err(text)?;
        if !report.is_sound() {
            return Err(format!("draw {draw}, in the end: {report:#?}"));
        }
    }
    Ok(())
}

#[test]
fn a_power_failure_while_it_is_compacted_leaves_leaks_at_worst() {
    let seeds = if std::env::var_os("FIRN_LONG").is_some() { 4000 } else { 250 };
    for seed in 0..seeds {
        run(seed).unwrap_or_else(|problem| panic!("seed {seed}: {problem}"));
    }
}
