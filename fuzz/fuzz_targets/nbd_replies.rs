//! What a server sends, before and during the transmission, read as our client reads it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd::wire::Dialect;
use nbd::wire::walk::{server_answers, server_replies};

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, stream)) = bytes.split_first() else { return };
    match choice % 4 {
        0 => drop(server_answers(stream)),
        1 => drop(server_replies(Dialect::Simple, stream)),
        2 => drop(server_replies(Dialect::Structured, stream)),
        _ => drop(server_replies(Dialect::Extended, stream)),
    }
});
