//! The tools on arbitrary metadata: checked, dumped, listed, repaired.

#![no_main]

use std::io;
use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, Result};
use dm_thin::restore::Overrides;
use dm_thin::{dump, ls, repair};
use firn_fuzz::image::Image;
use libfuzzer_sys::fuzz_target;

/// The size of the fixtures' metadata devices.
const METADATA: ByteCount = ByteCount::new(4 << 20);

fuzz_target!(|input: &[u8]| {
    let Some(image) = Image::new(input, METADATA) else { return };
    let metadata: Arc<dyn BlockDevice> = image.device;
    // An answer or an error: both are right, as long as there is one.
    drop(dm_thin::check(Arc::clone(&metadata)));
    drop(dump::dump(Arc::clone(&metadata), &dump::Options::default(), io::sink()));
    drop(ls::list(Arc::clone(&metadata), dump::View::Live, true));
    drop(repaired_is_sound(&metadata));
});

fn repaired_is_sound(metadata: &Arc<dyn BlockDevice>) -> Result<()> {
    let fresh: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new("repaired", METADATA));
    repair::repair(metadata, Arc::clone(&fresh), &Overrides::default())?;
    // Two blocks of guests in one data block are kept, and told; nothing else may be wrong.
    dm_thin::check(fresh).map(drop)
}
