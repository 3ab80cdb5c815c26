//! What a client sends before the transmission: flags and options.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd::wire::walk::client_options;
use nbd::wire::{ClientOption, OPTION_HEAD_LEN, OptionHead};

fuzz_target!(|bytes: &[u8]| {
    for option in client_options(bytes) {
        let mut written = Vec::new();
        option.push(&mut written);
        let (head, data) = written.split_first_chunk::<OPTION_HEAD_LEN>().expect("a whole head");
        let head = OptionHead::parse(head).expect("our own head");
        assert_eq!(head.len as usize, data.len());
        assert_eq!(ClientOption::parse(head.code, data), Ok(option));
    }
});
