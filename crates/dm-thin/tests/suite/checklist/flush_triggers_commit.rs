//! A flush makes mappings durable, and a write alone does not.

use std::sync::Arc;

use block_io::{BlockDevice, MemoryDevice};

use super::{Rig, get, open, put, volume};

#[test]
fn flush_triggers_commit() {
    let rig = Rig::with_volume(64);
    let thin = rig.volume(0, 64);
    // What somebody finds who looks at the disks now, as after a power failure.
    let found = |block: u64| {
        let copy = |device: &MemoryDevice| {
            Arc::new(MemoryDevice::from_bytes(device.name(), device.to_bytes()))
        };
        let pool = open(copy(&rig.metadata), copy(&rig.data));
        get(&volume(&pool, 0, 64), block)
    };
    put(&thin, 3, 5).expect("written");
    assert_eq!(found(3), 0);
    thin.flush().expect("flushed");
    assert_eq!(found(3), 5);
    put(&thin, 4, 6).expect("written");
    rig.message("create_thin 1");
    assert_eq!(found(4), 6, "so does a message");
    drop(thin);
    rig.check();
}
