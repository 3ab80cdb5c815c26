//! Restoring from arbitrary XML: refused, or restored to metadata that is sound.

#![no_main]

use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use block_types::ByteCount;
use dm_thin::restore::{Overrides, restore};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let metadata: Arc<dyn BlockDevice> =
        Arc::new(MemoryDevice::new("metadata", ByteCount::new(4 << 20)));
    if restore(input, Arc::clone(&metadata), &Overrides::default()).is_ok() {
        let report = dm_thin::check(metadata).expect("it can be checked");
        assert!(report.leaks.is_empty(), "{:?}", report.leaks);
    }
});
