//! An exception store out of arbitrary bytes: checked, opened, and its past read.

#![no_main]

use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, Result};
use dm_snapshot::{Origin, OriginOptions, SnapshotOptions, Store, TableLine, check};
use libfuzzer_sys::fuzz_target;

/// The size of the origin.
const ORIGIN: ByteCount = ByteCount::new(4 << 20);

fuzz_target!(|input: &[u8]| {
    // An answer or an error: both are right, as long as there is one.
    drop(use_store(input));
    if let Ok(text) = std::str::from_utf8(input) {
        drop(text.parse::<TableLine>());
    }
});

fn use_store(input: &[u8]) -> Result<()> {
    let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("fuzz", input.to_vec()));
    drop(check(&device, Some(ORIGIN)));
    let store = Store::open(device)?;
    let options = OriginOptions { background: false, ..OriginOptions::default() };
    let origin = Origin::open(Arc::new(MemoryDevice::new("origin", ORIGIN)), options)?;
    let snapshot = origin.attach("past", store, SnapshotOptions::default())?;
    let mut buffer = [0; 8192];
    snapshot.read_at(&mut buffer, ByteOffset::new(61_440))?;
    origin.write_at(&buffer, ByteOffset::new(61_440))?;
    origin.flush()?;
    origin.close()
}
