//! Bitmaps that record while the image is open: what a crash leaves of them, and what QEMU and Firn
//! make of that.

use std::sync::Arc;

use super::bitmaps::{qemu_list, qemu_ranges, range, ranges};
use super::common::Folder;
use block_io::{BlockDevice, CrashWorld, MemoryDevice};
use block_types::{ByteCount, ByteOffset, DirtyBitmap, ErrorKind, Granularity};
use disk_image::qcow2::{CreateOptions, Image, OpenOptions, check, create};
use testkit::rng::Rng;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// An image of 8 MiB with a bitmap of 64 KiB granules that records.
fn image(folder: &Folder) -> Arc<Image> {
    let image = folder.create("a.qcow2", &CreateOptions::new(ByteCount::new(8 * MIB)));
    image.add_bitmap("daily", None, true).expect("added");
    image.close().expect("closed");
    image
}

#[test]
fn an_idle_image_stays_as_it_is() {
    let folder = Folder::new();
    drop(image(&folder));
    let before = std::fs::read(folder.path().join("a.qcow2")).expect("read");
    let image = folder.open("a.qcow2");
    let bits = image.begin_recording("daily").expect("begun");
    assert_eq!(image.begin_recording("daily").expect_err("twice").kind(), ErrorKind::Busy);
    assert_eq!(image.begin_recording("none").expect_err("none").kind(), ErrorKind::NotFound);
    image.end_recording("daily", bits).expect("stored");
    image.close().expect("closed");
    drop(image);
    assert!(
        std::fs::read(folder.path().join("a.qcow2")).expect("read") == before,
        "it was written"
    );
}

#[test]
fn a_crash_leaves_what_was_put() {
    let folder = Folder::new();
    let image = image(&folder);
    image.add_bitmap("other", None, false).expect("added");
    let bits = image.begin_recording("daily").expect("begun");
    assert!(bits.is_clean());
    image.put_bits("daily", 3, &[(0, &[0xff]), (8, &[0x0f])]).expect("put");
    image.write_at(&[1; 512], ByteOffset::new(5 * 64 * KIB)).expect("written");
    image.flush().expect("flushed");
    // A crash: nothing is closed. QEMU does not believe it.
    std::fs::copy(folder.path().join("a.qcow2"), folder.path().join("b.qcow2")).expect("copied");
    drop(image);
    folder.check("b.qcow2");
    let flags = |file: &str| qemu_list(&folder, file).remove(0).2;
    assert_eq!(flags("b.qcow2"), ["in-use", "auto"]);
    // Firn does, and leaves an ordinary bitmap.
    let expected = [(0, 8 * 64 * KIB), (64 * 64 * KIB, 68 * 64 * KIB)];
    let read_only = Image::open(
        folder.host("b.qcow2", true),
        OpenOptions { read_only: true, ..OpenOptions::default() },
    )
    .expect("opened");
    assert_eq!(ranges(&read_only.bitmap("daily").expect("read")), expected);
    drop(read_only);
    let opened = folder.open("b.qcow2");
    assert_eq!(ranges(&opened.bitmap("daily").expect("read")), expected);
    opened.close().expect("closed");
    drop(opened);
    folder.check("b.qcow2");
    assert_eq!(flags("b.qcow2"), ["auto"]);
    assert_eq!(qemu_ranges(&folder, "b.qcow2", "daily"), expected);
}

#[test]
fn another_writer_ends_the_belief() {
    let folder = Folder::new();
    let image = image(&folder);
    image.begin_recording("daily").expect("begun");
    image.put_bits("daily", 3, &[(0, &[0xff])]).expect("put");
    drop(image);
    folder.io("a.qcow2", &["write -P 7 6M 64k".to_owned()]);
    let image = folder.open("a.qcow2");
    assert!(image.bitmaps().expect("read")[0].inconsistent, "QEMU has written since");
    assert_eq!(image.bitmap("daily").expect_err("refused").kind(), ErrorKind::Corrupt);
    drop(image);
    folder.check("a.qcow2");
}

#[test]
fn the_end_stores_what_has_changed() {
    let folder = Folder::new();
    let image = image(&folder);
    for round in 0..3u64 {
        let bits = image.begin_recording("daily").expect("begun");
        let at = range(round * MIB, round * MIB + 1);
        image.put_bits("daily", 10, &[(0, &[0xff; 16])]).expect("put");
        image.write_at(&[1; 512], at.start).expect("written");
        bits.set(at);
        image.end_recording("daily", bits).expect("stored");
        image.close().expect("closed");
        folder.check("a.qcow2");
        let expected: Vec<_> = (0..=round).map(|n| (n * MIB, n * MIB + 64 * KIB)).collect();
        assert_eq!(qemu_ranges(&folder, "a.qcow2", "daily"), expected);
        assert_eq!(qemu_list(&folder, "a.qcow2")[0].2, ["auto"]);
    }
}

/// Whenever the power fails: the bitmap can be believed, and has what was put there before.
#[test]
fn a_power_failure_takes_nothing_back_that_was_put() {
    let seeds = if std::env::var_os("FIRN_LONG").is_some() { 5000 } else { 400 };
    for seed in 0..seeds {
        let mut rng = Rng::new(seed);
        let memory = Arc::new(MemoryDevice::new("image", ByteCount::ZERO));
        let file: Arc<dyn BlockDevice> = memory.clone();
        let mut options = CreateOptions::new(ByteCount::new(4 * MIB));
        options.cluster_size = ByteCount::new(*rng.pick(&[512, 4096, 65536]));
        create(&file, None, &options).expect("created");
        let image = Image::open(Arc::clone(&file), OpenOptions::default()).expect("opened");
        image.add_bitmap("daily", Some(ByteCount::new(512)), true).expect("added");
        image.close().expect("closed");
        drop(image);
        let world = CrashWorld::new(seed);
        let file = world.device("image", memory.to_bytes()) as Arc<dyn BlockDevice>;
        world.crash_at(1 + rng.within(0..60));
        let put = DirtyBitmap::new(ByteCount::new(4 * MIB), Granularity::SMALLEST).expect("made");
        let begun = put.clone();
        // An error is the power failure.
        let _ = work(&file, &mut rng, &put, &begun);
        assert!(world.crashed(), "seed {seed}: the power did not fail");
        let (_, bytes) = world.after_crash().remove(0);
        let file = Arc::new(MemoryDevice::from_bytes("image", bytes)) as Arc<dyn BlockDevice>;
        for read_only in [true, false] {
            let options = OpenOptions { read_only, ..OpenOptions::default() };
            let image = Image::open(Arc::clone(&file), options).expect("opened");
            let found = image.bitmap("daily");
            let found = found.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let both = found.clone();
            both.merge(&put);
            assert!(both == found, "seed {seed}: {put:?} was put, {found:?} is there");
            both.merge(&begun);
            assert!(both == begun, "seed {seed}: there is what was never put");
            if !read_only {
                image.close().expect("closed");
            }
        }
        assert!(check(&file).expect("checked").corruptions.is_empty(), "seed {seed}");
    }
}

/// Writes and puts until the power fails. `put` holds what was put, `begun` also what was begun.
fn work(
    file: &Arc<dyn BlockDevice>,
    rng: &mut Rng,
    put: &DirtyBitmap,
    begun: &DirtyBitmap,
) -> block_types::Result<()> {
    loop {
        let image = Image::open(Arc::clone(file), OpenOptions::default())?;
        let bits = image.begin_recording("daily")?;
        for _ in 0..rng.within(1..12) {
            let at = rng.within(0..1024 / 8) * 8;
            if rng.chance(1, 4) {
                image.write_at(&[1; 512], ByteOffset::new(at * 8 * 512))?;
                continue;
            }
            let part = bits.clone();
            part.set_part(at..at + 8);
            begun.merge(&part);
            let mut bytes = [0; 8];
            part.export(at, &mut bytes);
            image.put_bits("daily", 6, &[(at, &bytes)])?;
            bits.merge(&part);
            put.merge(&part);
        }
        image.end_recording("daily", bits)?;
        image.close()?;
    }
}
