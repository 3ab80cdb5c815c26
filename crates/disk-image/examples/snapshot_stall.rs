//! How long a writer waits while internal snapshots are taken, deleted and gone back to.
//!
//! `cargo run --release -p disk-image --example snapshot_stall -- IMAGE [ROUNDS]`: IMAGE is a qcow2
//! image that may be written over, as `qemu-img create -o preallocation=metadata` makes it. One
//! writer sends 4 KiB at a large stride, one after the other, with pauses; what is told is its
//! longest wait.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteOffset, Error, ErrorKind, Result};
use disk_image::qcow2::{Image, OpenOptions};

const BLOCK: u64 = 4096;
/// Odd, so that every cluster has its turn.
const STRIDE: u64 = (33 << 20) + BLOCK;
/// The writer's pause between two writes.
const PAUSE: Duration = Duration::from_micros(100);
/// How long the writer runs before and after what is measured.
const AROUND: Duration = Duration::from_millis(300);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let path = arguments.first().ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "snapshot_stall", "is to be told which image")
    })?;
    let rounds: u32 = arguments.get(1).and_then(|word| word.parse().ok()).unwrap_or(3);
    let options = FileOptions { cache: CacheMode::Cached, read_only: false };
    let file = Arc::new(HostFile::open(Path::new(path), options)?);
    let image = Image::open(file, OpenOptions::default())?;
    image.write_at(&[1; BLOCK as usize], ByteOffset::ZERO)?;
    for round in 0..rounds {
        let name = format!("stall{round}");
        let create = stall(&image, || image.create_snapshot(&name, SystemTime::now()).map(drop))?;
        let revert = stall(&image, || image.revert_to_snapshot(&name))?;
        let delete = stall(&image, || image.delete_snapshot(&name))?;
        for (what, (longest, whole)) in [("create", create), ("revert", revert), ("delete", delete)]
        {
            println!("{what}: longest wait {longest:>12.1?}, whole {whole:>12.1?}");
        }
    }
    image.close()
}

/// Runs `work` beside a writer: the writer's longest wait, and how long `work` took.
fn stall(image: &Image, work: impl FnOnce() -> Result<()>) -> Result<(Duration, Duration)> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| longest_wait(image, &done));
        thread::sleep(AROUND);
        let began = Instant::now();
        let worked = work();
        let whole = began.elapsed();
        thread::sleep(AROUND);
        done.store(true, Ordering::SeqCst);
        let longest = writer.join().map_err(|_| {
            Error::new(ErrorKind::Stopped, "the writer", "ended before it was told to")
        })??;
        worked.map(|()| (longest, whole))
    })
}

fn longest_wait(image: &Image, done: &AtomicBool) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    let mut at = 0;
    while !done.load(Ordering::SeqCst) {
        at = (at + STRIDE) % (image.size().get() - BLOCK) / BLOCK * BLOCK;
        let began = Instant::now();
        image.write_at(&[2; BLOCK as usize], ByteOffset::new(at))?;
        longest = longest.max(began.elapsed());
        thread::sleep(PAUSE);
    }
    Ok(longest)
}
