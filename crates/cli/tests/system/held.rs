//! The tools for metadata on a pool that is being written: each sees one moment, and nobody waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use block_io::BlockDevice;
use block_types::ByteOffset;

use crate::lab::{KIB, Lab, MIB};

/// The unit in which the pool gives space.
const BLOCK: u64 = 64 * KIB;

/// What each of the tools says, of what does not change any more.
fn told(lab: &Lab) -> Vec<String> {
    [
        "pool delta lab db@one db@two",
        "pool delta lab db@one db@two --verbose --json",
        "pool delta lab --thin1 1 --thin2 db@two --skip-same",
        "snapshot diff lab/db@one lab/db@two",
        "snapshot diff lab/db@one lab/db@two --json",
        "pool dump lab --dev-id 1 --dev-id 2",
    ]
    .map(|words| lab.ok(words))
    .to_vec()
}

#[test]
fn tools_work_beside_writers() {
    let lab = Lab::new(&["db"], "64M");
    let server = lab.serve("");
    let client = lab.connect("db");
    let write = |at: u64| client.write_at(&[at as u8 + 1; 512], ByteOffset::new(at * BLOCK));
    (0..20).for_each(|at| write(at).unwrap());
    lab.ok("snapshot create lab/db@one");
    (10..30).for_each(|at| write(at).unwrap());
    lab.ok("snapshot create lab/db@two");
    let before = told(&lab);
    let ranges = lab.json("snapshot diff lab/db@one lab/db@two");
    assert_eq!(ranges.as_array().unwrap().len(), 1);
    assert_eq!(
        (&ranges[0]["start"], &ranges[0]["length"]),
        (&(10 * BLOCK).into(), &(20 * BLOCK).into())
    );

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let client = lab.connect("db");
            for at in (0..64 * MIB / BLOCK).cycle() {
                client.write_at(&[9; 4096], ByteOffset::new(at * BLOCK)).unwrap();
                if at % 8 == 0 {
                    client.flush().unwrap();
                }
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        });
        let _stopping = Stopping(&stop);
        for _ in 0..3 {
            assert_eq!(told(&lab), before);
            assert!(lab.ok("pool check lab").starts_with("lab: sound"));
            assert!(lab.ok("pool ls lab").lines().count() == 4);
            assert!(lab.ok("pool rmap lab --region 0..4").contains("data 0..4"));
            assert!(!writing.is_finished(), "the writer has failed");
        }
        stop.store(true, Ordering::Relaxed);
    });
    drop(client);
    assert!(server.stop().success());
    // The same of the closed pool.
    let closed = told(&lab);
    assert_eq!(closed, before);
    lab.assert_sound();
}

/// Stops the writer however the test ends.
struct Stopping<'s>(&'s AtomicBool);

impl Drop for Stopping<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
