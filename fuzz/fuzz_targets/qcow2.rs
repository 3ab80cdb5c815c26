//! A qcow2 image out of arbitrary bytes: opened, checked, read, compacted, written, closed.

#![no_main]

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use disk_image::qcow2::{Image, OpenOptions, Repair, check, repair};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // An answer or an error: both are right, as long as there is one.
    drop(read(input));
    drop(write(input));
    let file: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("fuzz", input.to_vec()));
    drop(repair(&file, Repair::All));
});

fn read(input: &[u8]) -> Result<()> {
    let file: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("fuzz", input.to_vec()));
    drop(check(&file));
    let options = OpenOptions { read_only: true, without_backing: true, ..OpenOptions::default() };
    let image = Image::open(file, options)?;
    for info in image.bitmaps().unwrap_or_default() {
        drop(image.bitmap(&info.name));
    }
    let mut buffer = [0; 8192];
    image.read_at(&mut buffer, ByteOffset::new(60_000))?;
    let range = ByteRange::new(ByteOffset::ZERO, image.size().min(ByteCount::new(1 << 24)));
    image.extents(range, &mut |_| ControlFlow::Continue(()))
}

fn write(input: &[u8]) -> Result<()> {
    let file = Arc::new(MemoryDevice::from_bytes("fuzz", input.to_vec()));
    let options = OpenOptions { without_backing: true, ..OpenOptions::default() };
    let image = Image::open(file, options)?;
    drop(image.add_bitmap("fuzz", None, true));
    drop(image.compact_step(ByteCount::new(1 << 16)));
    image.write_at(&[1; 1024], ByteOffset::new(60_000))?;
    image.discard(ByteRange::new(ByteOffset::ZERO, ByteCount::new(65_536)))?;
    image.flush()?;
    image.close()
}
