//! A pool of more leaves than are read at once: several threads check and repair it.

use std::sync::Arc;

use block_io::MemoryDevice;
use block_types::ByteCount;
use dm_thin::restore::{Builder, Overrides, PoolFields, Run};
use dm_thin::{BlockSize, DataBlock, DeviceId, DeviceState, GuestBlock, Time};
use persistent_data::{BLOCK_SIZE, BlockKind, identify};
use testkit::rng::Rng;

use super::{Image, dumped, repaired};

/// Blocks of each device of the large pool.
const LARGE: u64 = 120_000;

/// A pool of two devices that share half of their blocks, of more leaves than are read at once.
fn large_pool() -> Vec<u8> {
    let metadata = Arc::new(MemoryDevice::new("large", ByteCount::new(16 << 20)));
    let mut builder = Builder::new(metadata.clone(), 3 * LARGE).expect("begun");
    // Every other block, so that nothing lies side by side.
    let run = |from: u64, to: u64| {
        let (from, to) = (GuestBlock::new(2 * from), DataBlock::new(to));
        Run { from, to, len: 1, time: Time::new(0) }
    };
    builder.begin_shared().expect("begun");
    (0..LARGE / 2).for_each(|block| builder.run(run(block, block)).expect("mapped"));
    let shared = builder.end_shared().expect("ended");
    let snapshotted = Time::new(1);
    let state = DeviceState { mapped: 0, transaction: 5, created: Time::new(0), snapshotted };
    for device in 0..2_u32 {
        let id = DeviceId::new(device).expect("24 bits");
        builder.begin_device(id, state).expect("begun");
        builder.share(shared).expect("shared");
        let first = (1 + u64::from(device)) * LARGE;
        (LARGE / 2..LARGE).for_each(|block| {
            builder.run(run(block, first + block)).expect("mapped");
        });
        assert_eq!(builder.end_device().expect("ended"), LARGE);
    }
    let block_size = BlockSize::new(ByteCount::new(65536)).expect("a block size");
    let fields = PoolFields { block_size, time: Time::new(1), transaction: 5 };
    builder.finish(&fields).expect("finished");
    metadata.to_bytes()
}

#[test]
fn a_large_pool_is_checked_and_repaired_on_several_threads() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = Image::new("large", large_pool(), folder.path());
    assert_eq!(image.mappings.len() as u64, 2 * LARGE);
    let check = |bytes: &[u8]| {
        let device = Arc::new(MemoryDevice::from_bytes("large", bytes.to_vec()));
        dm_thin::check(device).expect("checked")
    };
    let report = check(&image.bytes);
    assert_eq!(report.verdict(), dm_thin::Verdict::Sound, "{report:#?}");
    assert_eq!((report.mappings, report.blocks), (2 * LARGE, image.used.len() as u64));
    let mut rng = Rng::new(3);
    let mut bytes = image.bytes.clone();
    let whole = |block: usize| block * BLOCK_SIZE..(block + 1) * BLOCK_SIZE;
    let is_leaf = |block: usize| {
        let bytes = &image.bytes[whole(block)];
        identify(bytes) == Some(BlockKind::Node) && bytes[4] == 2 && bytes[16] > 120
    };
    let leaves: Vec<usize> = image.used.iter().copied().filter(|block| is_leaf(*block)).collect();
    assert!(leaves.len() > 600);
    let mut broken: Vec<usize> = (0..20).map(|_| *rng.pick(&leaves)).collect();
    broken.sort_unstable();
    broken.dedup();
    broken.iter().for_each(|block| bytes[whole(*block)].fill(0));
    let report = check(&bytes);
    for block in &broken {
        let name = format!("metadata block {block}: ");
        assert!(report.errors.iter().any(|error| error.starts_with(&name)), "{report:#?}");
    }
    let (bytes, report) = repaired(bytes, &Overrides::default()).expect("repaired");
    assert_eq!(check(&bytes).verdict(), dm_thin::Verdict::Sound);
    let found = dumped(&bytes, folder.path()).0;
    assert!(found.iter().all(|(key, data)| image.mappings.get(key) == Some(data)));
    // What is missing is what was said to be lost, and the other way round.
    let lost = |device: u64, block: u64| {
        let device = &report.devices[device as usize];
        let inside = |range: &dm_thin::repair::LostRange| {
            range.first.get() <= block && range.last.is_none_or(|last| block <= last.get())
        };
        device.lost.iter().any(inside)
    };
    for key in image.mappings.keys() {
        assert_eq!(found.contains_key(key), !lost(key.0, key.1), "{key:?}");
    }
}
