//! Discards of a snapshot that go on to the device under the origin.

use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ByteRange};
use dm_snapshot::{Origin, Snapshot, SnapshotOptions, Store};

use crate::common::{chunk, options};

const CHUNK: u64 = 4096;
const CHUNKS: u64 = 16;

/// An origin whose chunks hold their numbers plus one.
fn origin() -> (Arc<MemoryDevice>, Origin) {
    let bytes = (0..CHUNKS).flat_map(|number| [number as u8 + 1; CHUNK as usize]).collect();
    let base = Arc::new(MemoryDevice::from_bytes("base", bytes));
    let origin = Origin::open(Arc::clone(&base) as Arc<dyn BlockDevice>, options()).expect("open");
    (base, origin)
}

fn attach(origin: &Origin, name: &str, options: SnapshotOptions) -> Snapshot {
    let device = Arc::new(MemoryDevice::new(name, ByteCount::new(32 * CHUNK)));
    let store = Store::create(device, chunk(CHUNK)).expect("made");
    origin.attach(name, store, options).expect("attached")
}

fn first_bytes(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; (CHUNKS * CHUNK) as usize];
    device.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
    bytes.chunks(CHUNK as usize).map(|chunk| chunk[0]).collect()
}

/// The device forgets what only the asking snapshot wanted, and another snapshot keeps all it has.
#[test]
fn what_others_need_stays() {
    let passdown = SnapshotOptions {
        discard_zeroes: true,
        discard_passdown: true,
        ..SnapshotOptions::default()
    };
    let (base, origin) = origin();
    let asking = attach(&origin, "asking", passdown);
    let other = attach(&origin, "other", SnapshotOptions::default());
    let before = first_bytes(&other);
    // Both have the chunks 2 and 3; the asking one has its own 5.
    origin.write_at(&[99; 2 * CHUNK as usize], ByteOffset::new(2 * CHUNK)).expect("written");
    asking.write_at(&[77; CHUNK as usize], ByteOffset::new(5 * CHUNK)).expect("written");
    let range = ByteRange::new(ByteOffset::new(CHUNK), ByteCount::new(6 * CHUNK));
    asking.discard(range).expect("discarded");
    assert_eq!(first_bytes(&other), before, "another snapshot has changed");
    let now = first_bytes(&*base);
    assert_eq!(now[1..8], [2, 0, 0, 5, 6, 7, 8], "only what both have was let go of");
    assert_eq!(first_bytes(&asking)[..7], [1, 2, 0, 0, 5, 0, 7]);
    assert_eq!(asking.status().exceptions + other.status().exceptions, 4, "room was taken");
    origin.drop_snapshot(&other).expect("dropped");
    asking.discard(range).expect("discarded");
    assert_eq!(first_bytes(&*base)[..8], [1, 0, 0, 0, 0, 0, 0, 8]);
}

#[test]
fn nothing_passes_unless_it_was_asked_for() {
    let zeroes = SnapshotOptions { discard_zeroes: true, ..SnapshotOptions::default() };
    let (base, origin) = origin();
    let snapshot = attach(&origin, "snapshot", zeroes);
    let all = ByteRange::new(ByteOffset::ZERO, ByteCount::new(CHUNKS * CHUNK));
    origin.write_at(&[99; CHUNK as usize], ByteOffset::ZERO).expect("written");
    let before = first_bytes(&*base);
    snapshot.discard(all).expect("discarded");
    assert_eq!(first_bytes(&*base), before);
    assert_eq!(first_bytes(&snapshot)[..3], [0, 2, 3]);
}
