//! A VHD out of arbitrary bytes, its heads sealed: opened, checked, read, written.

#![no_main]

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use disk_image::vhd::{OpenOptions, VhdImage, check};
use libfuzzer_sys::fuzz_target;

/// Where heads lie, as (start, length, offset of the checksum): the copy of the footer, the header.
const HEADS: [(usize, usize, usize); 2] = [(0, 512, 64), (512, 1024, 36)];

fuzz_target!(|input: &[u8]| {
    let mut bytes = input.to_vec();
    // No mutation would ever get a checksum right.
    for (start, len, sum) in HEADS {
        seal(&mut bytes, start, len, sum);
    }
    let end = bytes.len().saturating_sub(512);
    seal(&mut bytes, end, 512, 64);
    drop(use_image(&bytes));
});

/// Makes the sum of a head right: the complement of the sum of its other bytes, big-endian.
fn seal(bytes: &mut [u8], start: usize, len: usize, sum: usize) {
    let Some(head) = bytes.get_mut(start..start + len) else { return };
    head[sum..sum + 4].fill(0);
    let total = !head.iter().map(|&byte| u32::from(byte)).sum::<u32>();
    head[sum..sum + 4].copy_from_slice(&total.to_be_bytes());
}

fn use_image(bytes: &[u8]) -> Result<()> {
    let device = || Arc::new(MemoryDevice::from_bytes("fuzz", bytes.to_vec()));
    drop(check(&*device(), None));
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let image = VhdImage::open(device(), None, options)?;
    let mut buffer = [0; 8192];
    drop(image.read_at(&mut buffer, ByteOffset::new(60_000)));
    let range = ByteRange::new(ByteOffset::ZERO, image.size().min(ByteCount::new(1 << 24)));
    image.extents(range, &mut |_| ControlFlow::Continue(()))?;
    let options = OpenOptions { step: ByteCount::new(1 << 20), ..OpenOptions::default() };
    let image = VhdImage::open(device(), None, options)?;
    image.write_at(&[1; 1024], ByteOffset::new(61_440))?;
    image.flush()
}
