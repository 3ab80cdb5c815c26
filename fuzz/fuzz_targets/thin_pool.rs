//! A whole pool out of arbitrary metadata: opened, read, written, snapshotted, closed.

#![no_main]

use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, Result};
use dm_thin::{Change, DeviceId, OpenOptions, Pool};
use firn_fuzz::image::Image;
use libfuzzer_sys::fuzz_target;

/// The size of the fixtures' metadata devices, from which the seeds are made, and the largest of
/// their data devices. Memory is taken only where something is written.
const METADATA: ByteCount = ByteCount::new(4 << 20);
const DATA: ByteCount = ByteCount::new(40_000 << 16);

/// What a volume is opened with; its own size is not part of the metadata.
const VOLUME: ByteCount = ByteCount::new(64 << 20);

fuzz_target!(|input: &[u8]| {
    let Some(image) = Image::new(input, METADATA) else { return };
    // An answer or an error: both are right, as long as there is one.
    drop(use_pool(&image));
});

fn use_pool(image: &Image) -> Result<()> {
    let data = Arc::new(MemoryDevice::new("data", DATA));
    let options = OpenOptions { background: false, ..OpenOptions::default() };
    let pool = Pool::open("fuzz", image.device.clone(), data, options)?;
    let status = pool.status();
    assert!(status.metadata_used <= status.metadata_total, "{status:?}");
    assert!(status.data_used <= status.data_total, "{status:?}");
    let newest = DeviceId::new(1000)?;
    let mut buffer = [0; 8192];
    for (id, _) in pool.devices().into_iter().take(4) {
        let volume = pool.open_volume(id, "volume", VOLUME, false)?;
        volume.read_at(&mut buffer, ByteOffset::new(60_000))?;
        volume.write_at(&buffer, ByteOffset::new(60_000))?;
        volume.flush()?;
        drop(volume);
        pool.change(&[Change::CreateSnapshot { id: newest, origin: id }])?;
        pool.change(&[Change::Rollback { id, source: newest }, Change::Delete(newest)])?;
    }
    Ok(())
}
