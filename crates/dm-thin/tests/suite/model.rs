//! A pool against the model: random operations, everything read back, everything checked.

use std::sync::Arc;

use crate::common::{Model, Session, formatted, id};
use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ByteRange};
use dm_thin::{BlockSize, Change, Discards, OpenOptions, Pool};
use testkit::rng::Rng;

fn run(seed: u64) {
    let mut rng = Rng::new(seed);
    let (metadata, data) = formatted(1 << 20, 64);
    let metadata = Arc::new(MemoryDevice::from_bytes("metadata", metadata));
    let data = Arc::new(MemoryDevice::from_bytes("data", data));
    let mut model = Model::default();
    for _round in 0..4 {
        // Without passing discards down, a block that is used again still holds what it held.
        let mut options = OpenOptions { background: false, ..OpenOptions::default() };
        if !seed.is_multiple_of(2) {
            options.settings.features.discards = Discards::Kept;
        }
        let pool = Pool::open("pool", metadata.clone(), data.clone(), options).expect("opened");
        model.compare_live(&pool);
        let mut session = Session::new(Arc::clone(&pool));
        for _ in 0..30 {
            model.step(&mut session, &mut rng).expect("done");
        }
        model.compare_live(&pool);
        drop(session);
        pool.close().expect("closed");
        let report = dm_thin::check(metadata.clone()).expect("checked");
        assert!(report.errors.is_empty() && report.leaks.is_empty(), "seed {seed}: {report:#?}");
    }
}

#[test]
fn random_operations_read_back() {
    for seed in 0..150 {
        run(seed);
    }
}

/// Blocks beyond 1 MiB are put together in pieces; sizes need not be powers of two.
#[test]
fn blocks_of_every_size_are_copied_whole() {
    for block in [64 << 10, 192 << 10, 1 << 20, (1 << 20) + (64 << 10), 5 << 20] {
        let metadata: Arc<dyn BlockDevice> =
            Arc::new(MemoryDevice::new("metadata", ByteCount::new(1 << 20)));
        let data = Arc::new(MemoryDevice::new("data", ByteCount::new(8 * block)));
        let size = BlockSize::new(ByteCount::new(block)).expect("a block size");
        Pool::format(&metadata, &*data, size).expect("formatted");
        let options = OpenOptions { background: false, ..OpenOptions::default() };
        let pool = Pool::open("pool", metadata, data, options).expect("opened");
        pool.change(&[Change::CreateThin(id(0))]).expect("made");
        let bytes = ByteCount::new(2 * block);
        let thin = pool.open_volume(id(0), "thin", bytes, false).expect("opened");
        let mut rng = Rng::new(block);
        let mut expected = vec![0; bytes.as_usize()];
        rng.fill(&mut expected);
        thin.write_at(&expected, ByteOffset::ZERO).expect("written");
        for round in 1..40 {
            if round % 4 == 1 {
                let snapshot = id(round);
                let change = Change::CreateSnapshot { id: snapshot, origin: id(0) };
                pool.change(&[change]).expect("made");
                pool.change(&[Change::Delete(snapshot)]).expect("deleted");
            }
            let at = rng.within(0..bytes.get() / 512) * 512;
            let len = (rng.within(1..5000) * 512).min(bytes.get() - at) as usize;
            let part = at as usize..at as usize + len;
            if rng.chance(1, 4) {
                expected[part].fill(0);
                let range = ByteRange::new(ByteOffset::new(at), ByteCount::new(len as u64));
                thin.zero(range, block_io::ZeroMode::default()).expect("zeroed");
            } else {
                rng.fill(&mut expected[part.clone()]);
                thin.write_at(&expected[part], ByteOffset::new(at)).expect("written");
            }
            let mut read = vec![0; expected.len()];
            thin.read_at(&mut read, ByteOffset::ZERO).expect("read");
            assert!(read == expected, "blocks of {block}, round {round}");
        }
    }
}
