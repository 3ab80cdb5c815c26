//! Metadata snapshots come and go, and are read by the thin tools, while the pool is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use block_io::{BlockDevice, CacheMode, HostFile};
use block_types::{ByteCount, ByteOffset, ByteRange};
use dm_thin::{BlockSize, OpenOptions, Pool};
use testkit::peer::peer;
use testkit::rng::Rng;
use testkit::thin_tools;

use super::{put, send, volume};
use crate::common::BLOCK;

#[test]
fn metadata_snap_stress() {
    let folder = tempfile::tempdir().expect("a folder");
    let create = |name: &str, size: u64| -> Arc<dyn BlockDevice> {
        let path = folder.path().join(name);
        Arc::new(HostFile::create(&path, ByteCount::new(size), CacheMode::Cached).expect("made"))
    };
    let (metadata, data) = (create("metadata", 4 << 20), create("data", 2000 * BLOCK));
    let size = BlockSize::new(ByteCount::new(BLOCK)).expect("a block size");
    Pool::format(&metadata, &*data, size).expect("formatted");
    let pool = Pool::open("pool", metadata, data, OpenOptions::default()).expect("opened");
    for device in 0..3 {
        send(&pool, &format!("create_thin {device}")).expect("made");
    }
    let file = folder.path().join("metadata");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for device in 0..3 {
            let (pool, done) = (&pool, &done);
            scope.spawn(move || {
                let thin = volume(pool, device, 500);
                let mut rng = Rng::new(device.into());
                while !done.load(Ordering::Relaxed) {
                    let block = rng.within(0..500);
                    let range =
                        ByteRange::new(ByteOffset::new(block * BLOCK), ByteCount::new(BLOCK));
                    match rng.within(0..20) {
                        0 => thin.flush().expect("flushed"),
                        1..4 => thin.discard(range).expect("discarded"),
                        _ => put(&thin, block, block).expect("written"),
                    }
                }
            });
        }
        for round in 0..12 {
            send(&pool, "reserve_metadata_snap").expect("reserved");
            let before = peer("thin_dump").arg("-m").arg(&file).ok();
            assert_eq!(before.matches("<device ").count(), 3, "round {round}");
            let theirs = peer("thin_delta").args(["-m", "--thin1", "0", "--thin2", "1"]);
            theirs.arg(&file).ok();
            let after = peer("thin_dump").arg("-m").arg(&file).ok();
            assert!(before == after, "round {round}: the snapshot has changed");
            send(&pool, "release_metadata_snap").expect("released");
        }
        done.store(true, Ordering::Relaxed);
    });
    pool.close().expect("closed");
    thin_tools::check(&file);
}
