//! What snapshots cost: random first-touch writes in each mode, the same once everything is copied,
//! sequential first touch, and a merge, each beside the bare file.
//!
//! `cargo run --release -p dm-snapshot --example first_touch -- FOLDER [direct|cached] [MiB]
//! [random|sequential]`

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile, Intent, Place};
use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use dm_snapshot::{ChunkSize, Mode, Origin, OriginOptions, Snapshot, SnapshotOptions, Store};

const DEPTH: u64 = 32;
const BLOCK: u64 = 4096;
const LARGE: u64 = 1 << 20;

/// Where and how.
struct Bench {
    folder: std::path::PathBuf,
    cache: CacheMode,
    size: u64,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = arguments.first().map_or(".", String::as_str);
    let cached = arguments.get(1).is_some_and(|word| word == "cached");
    let mib: u64 = arguments.get(2).and_then(|word| word.parse().ok()).unwrap_or(128);
    let place = Bench {
        folder: Path::new(folder).join("first-touch"),
        cache: if cached { CacheMode::Cached } else { CacheMode::Direct },
        size: mib << 20,
    };
    fs::create_dir_all(&place.folder)
        .map_err(|error| block_types::Error::io(folder, "cannot make a folder", error))?;
    let done = match arguments.get(3).map(String::as_str) {
        Some("sequential") => measure_sequential(&place),
        Some("random") => measure_random(&place),
        _ => measure_random(&place).and_then(|()| measure_sequential(&place)),
    };
    // Whatever came of it, the files are not needed any more.
    let _ = fs::remove_dir_all(&place.folder);
    done
}

fn measure_random(place: &Bench) -> Result<()> {
    let plain = {
        let (origin, _) = place.open(None)?;
        let rate = random(&origin, place.size, 1)?;
        println!("plain origin, no flushes   {rate:9.0} writes/s");
        rate
    };
    let mut sync_rate = 0.0;
    for mode in [Mode::Sync, Mode::Async, Mode::Deferred] {
        let (origin, snapshot) = place.open(Some(mode))?;
        // Sync is slow: a part of the blocks is enough to know it.
        let share = if mode == Mode::Sync { 8 } else { 1 };
        let rate = random(&origin, place.size / share, 1)?;
        if mode == Mode::Sync {
            sync_rate = rate;
        }
        let (by_sync, by_plain) = (rate / sync_rate, rate / plain);
        print!("first touch, {:<14}{rate:9.0} writes/s", mode.to_string());
        println!("   {by_sync:6.2} of sync   {by_plain:6.2} of plain");
        let Some(snapshot) = snapshot else { continue };
        if mode == Mode::Deferred {
            origin.flush()?;
            once_copied(place, &origin)?;
            let begun = Instant::now();
            let merge = origin.merge(&snapshot)?;
            let chunks = merge.status().exceptions;
            merge.run()?;
            let rate = chunks as f64 / begun.elapsed().as_secs_f64();
            println!("merge of random exceptions {rate:9.0} chunks/s");
        }
    }
    Ok(())
}

fn measure_sequential(place: &Bench) -> Result<()> {
    let bare = {
        let (origin, _) = place.open(None)?;
        sequential(&origin, place.size)?
    };
    println!("sequential, bare           {bare:9.0} MiB/s");
    for mode in [Mode::Sync, Mode::Deferred] {
        let (origin, _snapshot) = place.open(Some(mode))?;
        let rate = sequential(&origin, place.size)?;
        let part = rate / bare;
        let mode = mode.to_string();
        println!("sequential first touch, {mode:<8}{rate:6.0} MiB/s   {part:6.2} of bare");
    }
    Ok(())
}

/// Pairs of runs over what is copied, and over the bare file.
fn once_copied(place: &Bench, origin: &Origin) -> Result<()> {
    let (bare, _) = place.open(None)?;
    for round in 0..4 {
        let with = random(origin, place.size, 10 + round)?;
        let without = random(&bare, place.size, 10 + round)?;
        let part = with / without;
        println!("once copied                {with:9.0} writes/s   {part:6.2} of plain");
    }
    Ok(())
}

impl Bench {
    /// A file that is full of data.
    fn file(&self, name: &str, size: u64) -> Result<Arc<HostFile>> {
        let path = self.folder.join(name);
        // What is not there need not go.
        let _ = fs::remove_file(&path);
        let file = HostFile::create(&path, ByteCount::new(size), self.cache)?;
        let bytes = vec![0x5a; LARGE as usize];
        for at in (0..size).step_by(LARGE as usize) {
            let len = (size - at).min(LARGE) as usize;
            file.write_at(&bytes[..len], ByteOffset::new(at))?;
        }
        file.flush()?;
        HostFile::open(&path, FileOptions { cache: self.cache, read_only: false }).map(Arc::new)
    }

    /// An origin, and a snapshot of it in `mode`.
    fn open(&self, mode: Option<Mode>) -> Result<(Origin, Option<Snapshot>)> {
        let name = if mode.is_some() { "origin" } else { "plain" };
        let origin = Origin::open(self.file(name, self.size)?, OriginOptions::default())?;
        let Some(mode) = mode else { return Ok((origin, None)) };
        let chunk = ChunkSize::new(ByteCount::new(BLOCK))?;
        let room = Store::size_for(ByteCount::new(self.size), chunk).get() + LARGE;
        let store = Store::recreate(self.file("store", room)?, chunk)?;
        let options = SnapshotOptions { mode, ..SnapshotOptions::default() };
        let snapshot = origin.attach("snapshot", store, options)?;
        Ok((origin, Some(snapshot)))
    }
}

/// Writes every block below `size` once, in random order, 32 at a time; blocks per second.
fn random(origin: &Origin, size: u64, seed: u64) -> Result<f64> {
    let blocks = size / BLOCK;
    let next = AtomicU64::new(0);
    // An odd factor permutes the numbers below a power of two; others are passed over.
    let wide = blocks.next_power_of_two();
    let factor = 0x9E37_79B9_7F4A_7C15u64.wrapping_add(2 * seed) | 1;
    let begun = Instant::now();
    let work = || {
        let bytes = block_io::AlignedBuf::zeroed(BLOCK as usize);
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= wide {
                return Ok(());
            }
            let block = number.wrapping_mul(factor) % wide;
            if block < blocks {
                write(origin, &bytes, block * BLOCK)?;
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..DEPTH).map(|_| scope.spawn(work)).collect();
        let joined = threads
            .into_iter()
            .map(|one| one.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.fold(Ok(()), Result::and)
    })?;
    Ok(blocks as f64 / begun.elapsed().as_secs_f64())
}

/// As an export writes: at its place if there is one, else by the blocking call.
fn write(origin: &Origin, bytes: &[u8], at: u64) -> Result<()> {
    let range = ByteRange::new(ByteOffset::new(at), ByteCount::of(bytes));
    let mut places: Vec<Place<'_>> = Vec::new();
    let lease =
        origin.resolver().and_then(|resolver| resolver.resolve(Intent::Write, range, &mut places));
    match (&lease, &places[..]) {
        (Some(_), [Place { file: Some(file), at, .. }]) => file.write_at(bytes, *at),
        _ => origin.write_at(bytes, range.start),
    }
}

/// Writes everything once, by the MiB; MiB per second, what still waits included.
fn sequential(origin: &Origin, size: u64) -> Result<f64> {
    let bytes = block_io::AlignedBuf::zeroed(LARGE as usize);
    let begun = Instant::now();
    for at in (0..size).step_by(LARGE as usize) {
        write(origin, &bytes, at)?;
    }
    origin.flush()?;
    Ok((size >> 20) as f64 / begun.elapsed().as_secs_f64())
}
