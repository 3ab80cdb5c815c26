//! Persistent dirty bitmaps as they lie in an image: what QEMU makes of ours and we of QEMU's, and
//! what becomes of them when the disk changes under them.

use std::sync::Arc;
use std::time::SystemTime;

use super::common::Folder;
use block_io::{BlockDevice, CrashWorld, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ByteRange, DirtyBitmap, ErrorKind, Granularity};
use disk_image::qcow2::{CreateOptions, Image, OpenOptions, check, create};
use serde_json::Value;
use testkit::peer::peer;
use testkit::rng::Rng;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

pub(super) fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::between(ByteOffset::new(start), ByteOffset::new(end))
}

pub(super) fn ranges(bits: &DirtyBitmap) -> Vec<(u64, u64)> {
    bits.dirty_runs().map(|range| (range.start.get(), range.end().get())).collect()
}

/// What QEMU's server tells of a bitmap: the dirty parts.
pub(super) fn qemu_ranges(folder: &Folder, image: &str, bitmap: &str) -> Vec<(u64, u64)> {
    let context = format!("--map=qemu:dirty-bitmap:{bitmap}");
    let server = ["[", "qemu-nbd", "-r", "-f", "qcow2", "-B", bitmap, image, "]"];
    let asked = peer("nbdinfo").args(["--json", &context, "--"]).args(server);
    let text = asked.in_folder(folder.path()).ok();
    let map: Value = serde_json::from_str(&text).expect("JSON");
    let mut found: Vec<(u64, u64)> = Vec::new();
    for run in map.as_array().expect("a list").iter().filter(|run| run["type"] != 0) {
        let start = run["offset"].as_u64().expect("a number");
        let end = start + run["length"].as_u64().expect("a number");
        match found.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => found.push((start, end)),
        }
    }
    found
}

/// What qemu-img says of each bitmap: name, granularity, flags.
pub(super) fn qemu_list(folder: &Folder, image: &str) -> Vec<(String, u64, Vec<String>)> {
    let info: Value =
        serde_json::from_str(&folder.img(&format!("info --output=json {image}"))).expect("JSON");
    let list = info["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
    let entry = |entry: &Value| {
        let flags = entry["flags"].as_array().expect("a list").iter();
        let flags = flags.map(|flag| flag.as_str().expect("text").to_owned()).collect();
        let name = entry["name"].as_str().expect("text").to_owned();
        (name, entry["granularity"].as_u64().expect("a number"), flags)
    };
    list.iter().map(entry).collect()
}

#[test]
fn what_qemu_recorded_is_read() {
    let folder = Folder::new();
    for layout in ["cluster_size=64k", "cluster_size=512", "extended_l2=on"] {
        folder.img(&format!("create -q -f qcow2 -o {layout} a.qcow2 64M"));
        folder.img("bitmap --add a.qcow2 coarse");
        folder.img("bitmap --add -g 512 a.qcow2 fine");
        folder.img("bitmap --add --disable a.qcow2 still");
        folder.io("a.qcow2", &["write -q 5000 100".into(), "write -q 32M 1M".into()]);
        let image = folder.open("a.qcow2");
        assert_eq!(ranges(&image.bitmap("fine").expect("read"))[0], (4608, 5120), "{layout}");
        for name in ["coarse", "fine", "still"] {
            let ours = ranges(&image.bitmap(name).expect("read"));
            assert_eq!(ours, qemu_ranges(&folder, "a.qcow2", name), "{layout}, {name}");
        }
        let recording: Vec<_> =
            image.bitmaps().expect("read").iter().map(|info| info.recording).collect();
        assert_eq!(recording, [true, true, false]);
    }
}

#[test]
fn what_firn_writes_qemu_reads() {
    let folder = Folder::new();
    for layout in ["cluster_size=64k", "cluster_size=512", "backing"] {
        if layout == "backing" {
            folder.img("create -q -f raw base.raw 64M");
            folder.img("create -q -f qcow2 -b base.raw -F raw a.qcow2");
        } else {
            folder.img(&format!("create -q -f qcow2 -o {layout} a.qcow2 64M"));
        }
        let open = || {
            let options = OpenOptions { without_backing: true, ..OpenOptions::default() };
            folder.try_open("a.qcow2", options).expect("opened")
        };
        let names = open().header().backing_file();
        folder.io("a.qcow2", &["write -q 0 1M".into()]);
        let image = open();
        image.add_bitmap("one", None, true).expect("added");
        let bits = DirtyBitmap::new(image.size(), Granularity::SMALLEST).expect("made");
        bits.set(range(0, 20 * MIB));
        bits.set(range(40 * MIB + 5, 40 * MIB + 6));
        bits.set(range(64 * MIB - 1, 64 * MIB));
        image.add_bitmap_with("two", false, bits.clone()).expect("added");
        image.merge_into_bitmap("one", &bits).expect("merged");
        image.record_in_bitmap("one", false).expect("stopped");
        image.record_in_bitmap("two", true).expect("begun");
        let error = image.add_bitmap("one", None, true).expect_err("there is one");
        assert_eq!(error.kind(), ErrorKind::Exists);
        assert_eq!(image.clear_bitmap("x").expect_err("none").kind(), ErrorKind::NotFound);
        image.close().expect("closed");
        folder.check("a.qcow2");
        let listed = qemu_list(&folder, "a.qcow2");
        let names_of: Vec<_> = listed.iter().map(|(name, _, _)| name.as_str()).collect();
        assert_eq!(names_of, ["one", "two"]);
        assert_eq!((&listed[0].2[..], &listed[1].2[..]), (&[][..], &["auto".to_owned()][..]));
        assert_eq!(qemu_ranges(&folder, "a.qcow2", "two"), ranges(&bits), "{layout}");
        let one = ranges(&image.bitmap("one").expect("read"));
        assert_eq!(qemu_ranges(&folder, "a.qcow2", "one"), one, "{layout}");
        image.remove_bitmap("one").expect("removed");
        image.clear_bitmap("two").expect("cleared");
        image.close().expect("closed");
        folder.check("a.qcow2");
        assert_eq!(qemu_ranges(&folder, "a.qcow2", "two"), []);
        image.remove_bitmap("two").expect("removed");
        image.close().expect("closed");
        drop(image);
        folder.check("a.qcow2");
        assert!(qemu_list(&folder, "a.qcow2").is_empty());
        assert_eq!(open().header().backing_file(), names, "{layout}");
        folder.img("bitmap --add a.qcow2 theirs");
        folder.check("a.qcow2");
    }
}

#[test]
fn a_bitmap_that_was_in_use_can_only_be_removed() {
    let folder = Folder::new();
    let image = folder.create("a.qcow2", &CreateOptions::new(ByteCount::new(MIB)));
    image.add_bitmap("daily", None, true).expect("added");
    image.write_at(&[1; 512], ByteOffset::ZERO).expect("written");
    // One that is added while a guest writes is marked before it writes on.
    image.add_bitmap("hourly", None, true).expect("added");
    let inconsistent =
        || image.bitmaps().expect("read").iter().map(|info| info.inconsistent).collect::<Vec<_>>();
    assert_eq!(inconsistent(), [true, false]);
    image.write_at(&[2; 512], ByteOffset::ZERO).expect("written");
    assert_eq!(inconsistent(), [true, true]);
    for done in [
        image.clear_bitmap("daily"),
        image.record_in_bitmap("daily", false),
        image.bitmap("daily").map(drop),
    ] {
        assert_eq!(done.expect_err("refused").kind(), ErrorKind::Corrupt);
    }
    image.resize(ByteCount::new(2 * MIB)).expect("grown");
    image.remove_bitmap("daily").expect("removed");
    image.close().expect("closed");
    folder.check("a.qcow2");
    folder.img("bitmap --remove a.qcow2 hourly");
    folder.check("a.qcow2");
}

#[test]
fn a_revert_is_recorded() {
    let folder = Folder::new();
    for extended_l2 in [false, true] {
        let name = format!("{extended_l2}.qcow2");
        let options = CreateOptions { extended_l2, ..CreateOptions::new(ByteCount::new(8 * MIB)) };
        let image = folder.create(&name, &options);
        image.write_at(&vec![1; MIB as usize], ByteOffset::ZERO).expect("written");
        image.create_snapshot("then", SystemTime::now()).expect("taken");
        image.write_at(&[2; 512], ByteOffset::new(300 * KIB)).expect("written");
        image.write_at(&[2; 512], ByteOffset::new(5 * MIB)).expect("written");
        image.add_bitmap("daily", Some(ByteCount::new(64 * KIB)), true).expect("added");
        image.add_bitmap("still", Some(ByteCount::new(64 * KIB)), false).expect("added");
        image.close().expect("closed");
        drop(image);
        let image = folder.open(&name);
        image.revert_to_snapshot("then").expect("reverted");
        let daily = image.bitmap("daily").expect("consistent");
        let changed = [(256 * KIB, 320 * KIB), (5 * MIB, 5 * MIB + 64 * KIB)];
        assert_eq!(ranges(&daily), changed);
        assert!(image.bitmap("still").expect("consistent").is_clean());
        image.close().expect("closed");
        folder.check(&name);
        assert_eq!(qemu_ranges(&folder, &name, "daily"), changed);
    }
}

#[test]
fn a_disk_that_changes_its_size_is_recorded() {
    let folder = Folder::new();
    let image = folder.create("a.qcow2", &CreateOptions::new(ByteCount::new(4 * MIB)));
    image.create_snapshot("small", SystemTime::now()).expect("taken");
    image.add_bitmap("daily", None, true).expect("added");
    image.add_bitmap("still", None, false).expect("added");
    image.resize(ByteCount::new(6 * MIB)).expect("grown");
    assert_eq!(ranges(&image.bitmap("daily").expect("read")), [(4 * MIB, 6 * MIB)]);
    assert_eq!(ranges(&image.bitmap("still").expect("read")), []);
    image.resize(ByteCount::new(3 * MIB)).expect("shrunk");
    image.resize(ByteCount::new(5 * MIB)).expect("grown");
    assert_eq!(ranges(&image.bitmap("daily").expect("read")), [(3 * MIB, 5 * MIB)]);
    image.revert_to_snapshot("small").expect("reverted");
    assert_eq!(ranges(&image.bitmap("daily").expect("read")), [(3 * MIB, 4 * MIB)]);
    image.close().expect("closed");
    folder.check("a.qcow2");
    assert_eq!(qemu_ranges(&folder, "a.qcow2", "daily"), [(3 * MIB, 4 * MIB)]);
    assert_eq!(qemu_ranges(&folder, "a.qcow2", "still"), []);
}

/// What an image holds and what its bitmap says, if that is to be believed.
fn state(file: &Arc<dyn BlockDevice>) -> Result<(Vec<u8>, Option<DirtyBitmap>), String> {
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let image = Image::open(Arc::clone(file), options).map_err(|error| error.to_string())?;
    let mut bytes = vec![0; image.size().as_usize()];
    image.read_at(&mut bytes, ByteOffset::ZERO).map_err(|error| error.to_string())?;
    let there = image.bitmaps().map_err(|error| error.to_string())?;
    let usable = there.iter().any(|info| info.name == "daily" && !info.inconsistent);
    let bits = usable.then(|| image.bitmap("daily").map_err(|error| error.to_string()));
    Ok((bytes, bits.transpose()?))
}

/// Whenever the power fails: what differs from the day the bitmap began is in the bitmap, or the
/// bitmap is not to be believed.
#[test]
fn a_power_failure_never_makes_a_bitmap_say_too_little() {
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let memory = Arc::new(MemoryDevice::new("image", ByteCount::ZERO));
        let file: Arc<dyn BlockDevice> = memory.clone();
        let mut options = CreateOptions::new(ByteCount::new(256 * KIB));
        options.cluster_size = ByteCount::new(*rng.pick(&[512, 4096, 65536]));
        create(&file, None, &options).expect("created");
        let image = Image::open(Arc::clone(&file), OpenOptions::default()).expect("opened");
        for at in 0..20u64 {
            image.write_at(&[at as u8 + 1; 2048], ByteOffset::new(at * 12 * KIB)).expect("written");
        }
        image.create_snapshot("then", SystemTime::now()).expect("taken");
        image.write_at(&[77; 9000], ByteOffset::new(rng.within(0..200) * KIB)).expect("written");
        image.add_bitmap("daily", Some(ByteCount::new(1024)), true).expect("added");
        image.close().expect("closed");
        drop(image);
        let (origin, _) = state(&file).expect("sound");

        let world = CrashWorld::new(seed);
        let device = world.device("image", memory.to_bytes());
        world.crash_at(rng.within(1..80));
        let image = Image::open(device, OpenOptions::default()).expect("opened");
        let steps = [
            image.revert_to_snapshot("then").map(drop),
            image.resize(ByteCount::new(200 * KIB)),
            image.add_bitmap("more", None, false),
            image.resize(ByteCount::new(300 * KIB)),
            image.record_in_bitmap("more", true),
            image.write_at(&[88; 3000], ByteOffset::new(100 * KIB)),
            image.remove_bitmap("more"),
            image.flush(),
        ];
        if !world.crashed() {
            assert!(steps.iter().all(Result::is_ok), "seed {seed}: {steps:?}");
        }
        drop(image);
        for draw in 0..3 {
            let (_, bytes) = world.images(draw).remove(0);
            let file: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("image", bytes));
            let report = check(&file).expect("checked");
            assert_eq!(report.corruption_count, 0, "seed {seed}, draw {draw}: {report:#?}");
            let (now, bits) =
                state(&file).unwrap_or_else(|problem| panic!("seed {seed}, {draw}: {problem}"));
            let Some(bits) = bits else { continue };
            let dirty = ranges(&bits);
            for (at, byte) in now.iter().enumerate() {
                let at = at as u64;
                let known = dirty.iter().any(|(start, end)| (*start..*end).contains(&at));
                let same = origin.get(at as usize) == Some(byte);
                assert!(same || known, "seed {seed}, draw {draw}: byte {at} changed unseen");
            }
        }
    }
}
