//! What a client sends during the transmission, in the dialect that the first byte chooses.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd::wire::walk::client_requests;
use nbd::wire::{Dialect, Request};

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, stream)) = bytes.split_first() else { return };
    let dialect = match choice % 3 {
        0 => Dialect::Simple,
        1 => Dialect::Structured,
        _ => Dialect::Extended,
    };
    for (request, payload) in client_requests(dialect, stream) {
        assert_eq!(payload.len() as u64, request.payload_len(dialect).get());
        let mut written = Vec::new();
        request.push(&mut written, dialect);
        let again = Request::parse(dialect, &written).expect("our own request");
        assert_eq!(again, Some(request));
    }
});
