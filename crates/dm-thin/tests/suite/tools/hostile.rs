//! Metadata from hostile hands: sound by its checksums, and wrong in what it says. Whoever reads it
//! ends, without a panic.

use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};
use dm_thin::dump::{Dialect, Options, View, dump};
use dm_thin::restore::{Overrides, restore};
use dm_thin::{DataBlock, delta, ls, pack, rmap};
use persistent_data::{MetaBlock, identify, seal};
use testkit::rng::Rng;

use super::Metadata;
use crate::common::id;

/// Changes something in a block, and gives it a checksum for that.
fn spoil(bytes: &mut [u8], used: &[usize], rng: &mut Rng) {
    let number = *rng.pick(used);
    let block = &mut bytes[number * 4096..(number + 1) * 4096];
    let kind = identify(block).expect("a block of metadata");
    // Heads are short, and where most of the meaning is.
    let words = if rng.chance(1, 2) { 1..10 } else { 1..512 };
    let place = rng.within(words) as usize * 8;
    let word = match rng.within(0..4) {
        0 => rng.bits(),
        1 => rng.within(0..64),
        2 => u64::MAX,
        _ => rng.within(0..1 << 20) << 24,
    };
    let width = *rng.pick(&[1, 4, 8]);
    block[place..place + width].copy_from_slice(&word.to_le_bytes()[..width]);
    seal(block, kind, MetaBlock::new(number as u64));
}

#[test]
fn readers_end_whatever_the_metadata_says() {
    let original = Metadata::image("k61-oom").bytes();
    let used: Vec<usize> = (0..original.len() / 4096)
        .filter(|number| identify(&original[number * 4096..(number + 1) * 4096]).is_some())
        .collect();
    let rounds = if std::env::var_os("FIRN_LONG").is_some() { 20_000 } else { 150 };
    let mut refused = 0;
    for seed in 0..rounds {
        let mut rng = Rng::new(seed);
        let mut bytes = original.clone();
        for _ in 0..rng.within(1..4) {
            spoil(&mut bytes, &used, &mut rng);
        }
        refused += usize::from(read_all(bytes));
    }
    assert!(refused > 30, "{refused} of {rounds} were refused");
}

/// Lets every tool read the metadata, and answers whether any refused it.
fn read_all(bytes: Vec<u8>) -> bool {
    let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes("spoilt", bytes));
    let mut xml = Vec::new();
    let shared = dump(device.clone(), &Options::default(), &mut xml);
    let all = Options { dialect: Dialect::Tools09, ..Options::default() };
    let expanded = dump(device.clone(), &all, std::io::sink());
    let (left, right) = (delta::Side::Device(id(0)), delta::Side::Device(id(9)));
    let compared = [true, false].map(|same| {
        let options = delta::Options { left, right, view: View::Live, same };
        delta::delta(device.clone(), &options, &mut |_| Ok(()))
    });
    let listed = ls::list(device.clone(), View::Live, true);
    let found = [rmap::Naming::Every, rmap::Naming::First].map(|naming| {
        let regions = vec![DataBlock::new(0)..DataBlock::new(1 << 40)];
        rmap::rmap(device.clone(), &rmap::Options { regions, view: View::Live, naming })
    });
    let mut packed = Vec::new();
    pack::pack(&*device, &mut packed).expect("a pack takes any block");
    let unpacked = MemoryDevice::from_bytes("unpacked", vec![0; 4096]);
    pack::unpack(&packed[..], &unpacked).expect("what was packed unpacks");
    let restored = MemoryDevice::from_bytes("restored", vec![0; 2 << 20]);
    let restored = restore(&xml[..], Arc::new(restored), &Overrides::default());
    // An incomplete document is never taken for a whole one.
    assert!(shared.is_ok() || restored.is_err());
    shared.is_err()
        || expanded.is_err()
        || compared.iter().any(Result::is_err)
        || listed.is_err()
        || found.iter().any(Result::is_err)
}
