//! The kernel's messages and table lines: what is taken means the same when it is written again.

#![no_main]

use dm_thin::{Message, PoolTable, ThinTable};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(message) = Message::parse(text) {
        assert_eq!(Message::parse(&message.to_string()).ok(), Some(message));
    }
    if let Ok(table) = ThinTable::parse(text) {
        assert_eq!(ThinTable::parse(&table.to_string()).ok(), Some(table));
    }
    if let Ok(table) = PoolTable::parse(text) {
        assert_eq!(PoolTable::parse(&table.to_string()).ok(), Some(table));
    }
});
