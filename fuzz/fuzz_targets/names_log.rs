//! The log of a pool's names: lines as they are, or, after a first byte of 1, each with the
//! checksum that makes it count.

#![no_main]

use block_types::crc32c;
use libfuzzer_sys::fuzz_target;
use volume::{Names, parse_log};

fuzz_target!(|input: &[u8]| {
    let Some((choice, text)) = input.split_first() else { return };
    let log = if *choice == 1 { sealed(text) } else { text.to_vec() };
    let Ok((begin, records)) = parse_log("names", &log) else { return };
    let ends: Vec<_> = records.iter().map(|(_, behind)| *behind).collect();
    assert!(ends.iter().all(|&end| begin < end && end <= log.len()), "{ends:?}");
    assert!(ends.is_sorted());
    let records: Vec<_> = records.into_iter().map(|(record, _)| record).collect();
    if let Ok(mut names) = Names::replay(&records) {
        let devices: Vec<_> = names.devices().collect();
        names.forget_dead(|id, _| id % 2 == 0);
        assert!(names.devices().all(|id| id % 2 == 0 && devices.contains(&id)));
    }
});

/// Every line of `text` behind its checksum.
fn sealed(text: &[u8]) -> Vec<u8> {
    let mut log = Vec::new();
    for line in text.split(|&byte| byte == b'\n') {
        log.extend(format!("{:08x} ", crc32c(line)).into_bytes());
        log.extend(line);
        log.push(b'\n');
    }
    log
}
