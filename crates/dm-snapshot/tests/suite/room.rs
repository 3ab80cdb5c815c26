//! Stores that fill: at every allocation, in every mode, with growth and without.

use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind};
use dm_snapshot::{
    AutoGrow, Mode, OnFull, Origin, OriginOptions, Snapshot, SnapshotOptions, SnapshotState, Store,
};

use crate::common::{chunk, options};

const CHUNK: u64 = 512;
const CHUNKS: u64 = 120;

struct Table {
    base: Arc<MemoryDevice>,
    store: Arc<MemoryDevice>,
    origin: Origin,
    snapshot: Snapshot,
}

/// An origin of 120 chunks that hold their numbers, and a store with room for `room` chunks.
fn table(room: u64, options: SnapshotOptions, open: OriginOptions) -> Table {
    let bytes = (0..CHUNKS).flat_map(|number| vec![number as u8; CHUNK as usize]).collect();
    let base = Arc::new(MemoryDevice::from_bytes("base", bytes));
    let store = Arc::new(MemoryDevice::new("store", ByteCount::new(room * CHUNK)));
    let origin = Origin::open(base.clone(), open).expect("opened");
    let made = Store::create(store.clone(), chunk(CHUNK)).expect("made");
    let snapshot = origin.attach("snapshot", made, options).expect("attached");
    Table { base, store, origin, snapshot }
}

fn mode(mode: Mode) -> SnapshotOptions {
    SnapshotOptions { mode, ..SnapshotOptions::default() }
}

fn write(device: &dyn BlockDevice, number: u64) -> block_types::Result<()> {
    device.write_at(&[0xee; CHUNK as usize], ByteOffset::new(number * CHUNK))
}

#[test]
fn a_store_that_fills_at_any_chunk_is_invalid_and_the_origin_goes_on() {
    for mode_of in [Mode::Sync, Mode::Async, Mode::Deferred] {
        for room in 3..110 {
            let table = table(room, mode(mode_of), options());
            for number in 0..CHUNKS {
                write(&table.origin, number).expect("the origin is not concerned");
            }
            table.origin.flush().expect("flushed");
            assert_eq!(table.snapshot.status().state, SnapshotState::Invalid, "{mode_of}, {room}");
            assert_eq!(table.snapshot.status().to_string(), "Invalid");
            let reason = table.snapshot.status().reason.expect("a reason");
            assert!(reason.contains("full"), "{reason}");
            assert!(table.base.to_bytes().iter().all(|&byte| byte == 0xee));
            table.origin.close().expect("closed");
            assert!(!Store::open(table.store).expect("opened").is_valid(), "{mode_of}, {room}");
        }
    }
}

/// As much as fits is kept, and with exactly so much room all of it.
#[test]
fn a_store_of_the_computed_size_holds_the_whole_origin() {
    for mode_of in [Mode::Sync, Mode::Async, Mode::Deferred] {
        let room = Store::size_for(ByteCount::new(CHUNKS * CHUNK), chunk(CHUNK)).get() / CHUNK;
        let table = table(room, mode(mode_of), options());
        for number in (0..CHUNKS).rev() {
            write(&table.origin, number).expect("written");
        }
        table.origin.flush().expect("flushed");
        let mut bytes = vec![0; (CHUNKS * CHUNK) as usize];
        table.snapshot.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
        let kept = bytes.chunks(CHUNK as usize).enumerate();
        assert!(kept.clone().all(|(number, chunk)| chunk.iter().all(|&b| b == number as u8)));
        let room = table.snapshot.status().room;
        assert_eq!(room.allocated, room.total, "{mode_of}");
    }
}

#[test]
fn a_write_to_a_full_snapshot_ends_as_its_options_say() {
    for (on_full, state) in
        [(OnFull::Invalidate, SnapshotState::Invalid), (OnFull::Overflow, SnapshotState::Overflow)]
    {
        let options_of = SnapshotOptions { on_full, ..SnapshotOptions::default() };
        let table = table(10, options_of, options());
        let error = (0..CHUNKS).find_map(|number| write(&table.snapshot, number).err());
        assert_eq!(error.expect("full").kind(), ErrorKind::OutOfSpace);
        assert_eq!(table.snapshot.status().state, state);
        let read = table.snapshot.read_at(&mut [0; 512], ByteOffset::ZERO);
        assert_eq!(read.is_ok(), on_full == OnFull::Overflow);
        table.origin.close().expect("closed");
        let store = Store::open(table.store).expect("opened");
        assert_eq!(store.is_valid(), on_full == OnFull::Overflow);
        if store.is_valid() {
            assert_eq!(store.exceptions(), 8);
        }
    }
}

#[test]
fn a_store_that_grows_keeps_the_snapshot_alive() {
    for mode_of in [Mode::Sync, Mode::Async, Mode::Deferred] {
        for threshold in [50, 100] {
            let grow = AutoGrow {
                threshold,
                step: ByteCount::new(4 * CHUNK),
                limit: ByteCount::new(1 << 20),
            };
            let options_of = SnapshotOptions { grow: Some(Arc::new(grow)), ..mode(mode_of) };
            let table = table(4, options_of, options());
            for number in 0..CHUNKS / 2 {
                write(&table.origin, 2 * number).expect("written");
                write(&table.snapshot, 2 * number + 1).expect("written");
            }
            table.origin.flush().expect("flushed");
            let status = table.snapshot.status();
            assert_eq!(status.state, SnapshotState::Active, "{mode_of}: {:?}", status.reason);
            assert!(status.room.total > ByteCount::new(CHUNKS * CHUNK));
            let mut byte = [0; 512];
            table.snapshot.read_at(&mut byte, ByteOffset::new(100 * CHUNK)).expect("read");
            assert_eq!(byte[0], 100);
        }
    }
}

#[test]
fn a_store_may_grow_by_hand_and_a_limit_ends_it() {
    let limit = ByteCount::new(12 * CHUNK);
    let grow = AutoGrow { threshold: 100, step: ByteCount::new(CHUNK), limit };
    let options_of = SnapshotOptions { grow: Some(Arc::new(grow)), ..mode(Mode::Sync) };
    let table = table(4, options_of, options());
    (0..10).for_each(|number| write(&table.origin, number).expect("written"));
    assert_eq!(table.snapshot.status().state, SnapshotState::Active);
    table.snapshot.grow(ByteCount::new(14 * CHUNK)).expect("grown");
    (10..12).for_each(|number| write(&table.origin, number).expect("written"));
    assert_eq!(table.snapshot.status().to_string(), "14/14 2");
    write(&table.origin, 12).expect("written");
    assert_eq!(table.snapshot.status().state, SnapshotState::Invalid);
}

#[test]
fn transient_stores_fill_and_grow_likewise() {
    let base = Arc::new(MemoryDevice::new("base", ByteCount::new(CHUNKS * CHUNK)));
    let store = Arc::new(MemoryDevice::new("store", ByteCount::new(3 * CHUNK)));
    let origin = Origin::open(base, options()).expect("opened");
    let made = Store::transient(store, chunk(CHUNK)).expect("made");
    let snapshot = origin.attach("transient", made, SnapshotOptions::default()).expect("attached");
    (0..3).for_each(|number| write(&origin, number).expect("written"));
    assert_eq!(snapshot.status().to_string(), "3/3 0");
    assert_eq!(snapshot.status().mode, None);
    let mut sector = [1; 512];
    snapshot.read_at(&mut sector, ByteOffset::new(CHUNK)).expect("read");
    assert_eq!(sector, [0; 512]);
    assert_eq!(origin.merge(&snapshot).err().expect("refused").kind(), ErrorKind::Unsupported);
    snapshot.grow(ByteCount::new(4 * CHUNK)).expect("grown");
    write(&origin, 3).expect("written");
    assert_eq!(snapshot.status().state, SnapshotState::Active);
    write(&origin, 4).expect("written");
    assert_eq!(snapshot.status().state, SnapshotState::Invalid);
}

#[test]
fn an_origin_that_grows_and_shrinks() {
    let table = table(200, mode(Mode::Deferred), options());
    let size = ByteCount::new(CHUNKS * CHUNK);
    write(&table.origin, 7).expect("written");
    table.origin.resize(ByteCount::new(200 * CHUNK)).expect("grown");
    write(&table.origin, 150).expect("written");
    table.origin.flush().expect("flushed");
    assert_eq!(table.snapshot.size(), size, "a snapshot keeps its size");
    assert_eq!(table.snapshot.status().exceptions, 1, "what was never there is not kept");
    table.origin.resize(size).expect("shrunk to what the snapshot has");
    let error = table.origin.resize(ByteCount::new(CHUNK)).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Busy);
    table.origin.drop_snapshot(&table.snapshot).expect("dropped");
    assert!(table.snapshot.read_at(&mut [0; 512], ByteOffset::ZERO).is_err());
    table.origin.resize(ByteCount::new(CHUNK)).expect("shrunk");
    assert!(!Store::open(table.store).expect("opened").is_valid());
}

#[test]
fn discards_take_no_room() {
    let table = table(200, mode(Mode::Sync), options());
    write(&table.origin, 3).expect("written");
    let all = ByteRange::new(ByteOffset::ZERO, table.origin.size());
    table.origin.discard(all).expect("discarded");
    assert_eq!(table.snapshot.status().exceptions, 1);
    let base = table.base.to_bytes();
    let place = |number: u64| base[(number * CHUNK) as usize];
    assert_eq!((place(2), place(3), place(4)), (2, 0, 4));
}

#[test]
fn a_discard_of_the_snapshot_zeroes_whole_chunks_where_that_is_asked_for() {
    for zeroes in [false, true] {
        let options_of = SnapshotOptions { discard_zeroes: zeroes, ..SnapshotOptions::default() };
        let table = table(200, options_of, options());
        write(&table.origin, 3).expect("written");
        let three = ByteRange::new(ByteOffset::new(CHUNK), ByteCount::new(3 * CHUNK));
        table.snapshot.discard(three).expect("discarded");
        let mut bytes = [0; 5 * CHUNK as usize];
        table.snapshot.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
        let at = |number: u64| bytes[(number * CHUNK) as usize];
        assert_eq!((at(1), at(3), at(4)), if zeroes { (1, 0, 4) } else { (1, 3, 4) });
    }
}
