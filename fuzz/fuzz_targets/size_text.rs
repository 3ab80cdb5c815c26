//! Sizes as text: whatever is taken has one meaning, and what we write is read again.

#![no_main]

use block_types::{ByteCount, format_size, parse_size};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(size) = parse_size(text) {
        // Two decimals are an approximation; of whole units they are not.
        let units = 1 << (size.get().checked_ilog2().unwrap_or(0) / 10 * 10);
        let whole = ByteCount::new(size.get() / units * units);
        let written = format_size(whole).replace(' ', "");
        assert_eq!(parse_size(&written).map(ByteCount::get).ok(), Some(whole.get()), "{written}");
    }
});
