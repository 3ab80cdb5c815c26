//! Volumes and snapshots go, and their space comes back.

use block_types::ErrorKind;

use super::{Rig, get, put};

#[test]
fn create_many_thins_then_delete_them() {
    let mut rig = Rig::new(500);
    let fresh = rig.pool.status().metadata_used;
    for device in 0..400 {
        rig.message(&format!("create_thin {device}"));
        put(&rig.volume(device, 4), 1, 7).expect("written");
    }
    assert_eq!(rig.pool.status().data_used, 400);
    for device in 0..400 {
        rig.message(&format!("delete {device}"));
    }
    rig.reopen();
    let status = rig.pool.status();
    assert_eq!((status.data_used, status.devices), (0, 0));
    assert_eq!(status.metadata_used, fresh);
    rig.check();
}

#[test]
fn create_many_recursive_snaps_then_delete_them() {
    let rig = Rig::with_volume(500);
    for device in 1..300 {
        let origin = device - 1;
        put(&rig.volume(origin, 300), u64::from(origin), 7).expect("written");
        rig.message(&format!("create_snap {device} {origin}"));
    }
    // From the middle outwards, so that what is left is neither end.
    for step in 0..150 {
        rig.message(&format!("delete {}", 150 + step));
        rig.message(&format!("delete {}", 149 - step));
    }
    assert_eq!(rig.pool.status().data_used, 0);
    rig.check();
}

#[test]
fn delete_an_active_device_fails() {
    let rig = Rig::with_volume(16);
    let volume = rig.volume(0, 16);
    assert_eq!(rig.refusal("delete 0"), "EBUSY");
    put(&volume, 0, 1).expect("it goes on");
    drop(volume);
    rig.message("delete 0");
    rig.check();
}

#[test]
fn delete_unknown_devices() {
    let rig = Rig::with_volume(16);
    for device in [1, 7, 16_777_215] {
        assert_eq!(rig.refusal(&format!("delete {device}")), "ENODATA");
    }
    rig.check();
}

#[test]
fn delete_after_out_of_space() {
    let rig = Rig::with_volume(64);
    rig.message("create_thin 1");
    let (gone, kept) = (rig.volume(0, 64), rig.volume(1, 64));
    (0..32).try_for_each(|block| put(&gone, block, 1)).expect("written");
    (0..32).try_for_each(|block| put(&kept, block, 2)).expect("written");
    let error = put(&kept, 40, 2).expect_err("the pool is full");
    assert_eq!(error.kind(), ErrorKind::OutOfSpace);
    drop(gone);
    rig.message("delete 0");
    (32..64).try_for_each(|block| put(&kept, block, 2)).expect("there is space again");
    assert!(put(&kept, 0, 3).is_ok());
    assert!((1..64).all(|block| get(&kept, block) == 2));
    drop(kept);
    rig.check();
}
