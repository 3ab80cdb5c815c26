//! What classic snapshots cost: first writes to the origin in each mode, writes to what is copied,
//! and the merge.
//!
//! Every round begins with a new store that has room for everything, and a server just started;
//! the origin is a copy of the raw disk. As many requests as the buffer of mode deferred holds do
//! not count: that many may wait in it when the time is over.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use block_io::{AlignedBuf, BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteCount, ByteOffset};
use tempfile::TempDir;
use testkit::rng::Rng;
use testkit::server::{Listens, Server};
use volume::{ChunkSize, CowMode, CowOptions, CowOrigin, NewSnapshot, StoreSource};

use super::Options;
use super::client::Client;
use super::fio;
use super::lab::{Lab, firn, run_firn};
use super::pairs::{Spread, spread};
use super::report::Line;
use super::rows::{Access, Cache, Load, Sample, small};
use super::table::{cell, figure};

/// Requests that the buffer of mode deferred holds.
const BUFFERED: u64 = (64 << 20) / 4096;
/// What is written over and over where everything is copied.
const COPIED: u64 = 64 << 20;
const BLOCK: u64 = 4096;
const LARGE: u32 = 1 << 20;
/// Exceptions of a merge, each alone in its place.
const MERGED: u64 = 8192;

/// How the origin is served.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    /// Without snapshots.
    Plain,
    Sync,
    Deferred,
}

/// The origin, in a folder of its own.
struct Table {
    folder: TempDir,
    length: Duration,
    rounds: usize,
}

/// Measures all of it.
pub(super) fn run(lab: &Lab, options: &Options) -> Result<Vec<Line>> {
    let folder = lab.scratch()?;
    std::fs::copy(lab.raw()?, folder.path().join("disk.img"))?;
    std::fs::File::open(folder.path().join("disk.img"))?.sync_all()?;
    let table = Table { folder, length: 4 * options.length, rounds: options.rounds };
    let mut lines = Vec::new();
    let mut add = |line: Line| {
        eprintln!("{}", line.text());
        lines.push(line);
    };
    let first = |side: Side| move |table: &Table, round| table.first_writes(side, round);
    let rate = "kIOPS";
    let against = "mode sync, first writes 4K qd32";
    let ratio = table.pair(first(Side::Deferred), first(Side::Sync))?;
    add(line("cow deferred", against, 5.0, &ratio, rate));
    let against = "no snapshot, first writes 4K qd32";
    let ratio = table.pair(first(Side::Deferred), first(Side::Plain))?;
    add(line("cow deferred", against, 0.5, &ratio, rate));
    let large = |table: &Table, round| table.large_writes(round);
    let bare = |table: &Table, _| table.bare();
    let against = "the bare file, first writes 1M in order";
    add(line("cow deferred", against, 0.4, &table.pair(large, bare)?, "MB/s / 1000"));
    let again = |side: Side| move |table: &Table, round| table.copied_writes(side, round);
    let ratio = table.pair(again(Side::Sync), again(Side::Plain))?;
    add(line("cow sync", "no snapshot, 4K qd32, all copied", 0.95, &ratio, rate));
    let merge = |table: &Table, round| table.merge(round);
    let naive = |table: &Table, round| table.merge_one_by_one(round);
    let against = "one flush for each, random 4K exceptions";
    add(line("cow merge", against, 3.0, &table.pair(merge, naive)?, "thousand/s"));
    Ok(lines)
}

/// The figures of two sides and their ratio, round by round.
struct Ratio {
    a: Spread,
    b: Spread,
    ratio: Spread,
}

fn line(what: &str, against: &str, target: f64, ratio: &Ratio, unit: &str) -> Line {
    Line {
        what: what.to_owned(),
        against: against.to_owned(),
        target: format!(">= {target}x"),
        reached: format!("{}x", figure(ratio.ratio.median)),
        figures: format!(
            "ratio {}; {} against {} {unit}",
            cell(&ratio.ratio),
            cell(&ratio.a),
            cell(&ratio.b)
        ),
        met: ratio.ratio.median >= target,
    }
}

impl Table {
    fn disk(&self) -> PathBuf {
        self.folder.path().join("disk.img")
    }

    /// Runs both in turn, and says what the rounds come to, in thousands.
    fn pair(
        &self,
        a: impl Fn(&Self, usize) -> Result<f64>,
        b: impl Fn(&Self, usize) -> Result<f64>,
    ) -> Result<Ratio> {
        let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
        for round in 0..self.rounds {
            if round % 2 == 0 {
                of_a.push(a(self, round)? / 1e3);
                of_b.push(b(self, round)? / 1e3);
            } else {
                of_b.push(b(self, round)? / 1e3);
                of_a.push(a(self, round)? / 1e3);
            }
        }
        Ok(Ratio {
            ratio: spread(of_a.iter().zip(&of_b).map(|(a, b)| a / b)),
            a: spread(of_a.into_iter()),
            b: spread(of_b.into_iter()),
        })
    }

    /// Has `work` done with a client of the origin, with or without a snapshot.
    fn served<R>(&self, side: Side, work: impl FnOnce(&mut Client) -> Result<R>) -> Result<R> {
        let (disk, store) = (self.disk().display().to_string(), self.folder.path().join("s.cow"));
        let store = store.display().to_string();
        let size = (std::fs::metadata(&disk)?.len() * 17 / 16).to_string();
        let mode = if side == Side::Deferred { "deferred" } else { "sync" };
        if side != Side::Plain {
            let words = ["cow", "create", &disk, "--store", &store, "--mode", mode];
            let more = ["--chunk-size", "4K", "--size", &size, "-f", "raw"];
            run_firn(&[&words[..], &more[..]].concat())?;
        }
        let sockets = tempfile::tempdir()?;
        let socket = sockets.path().join("nbd");
        let path = socket.display().to_string();
        let words = ["serve", &disk, "-f", "raw", "--socket", &path];
        let server = Server::start(firn()?, words, Listens::Unix(socket.clone()))?;
        let mut client = Client::connect(&socket, "disk.img")?;
        let done = work(&mut client)?;
        drop(client);
        server.stop()?;
        if side != Side::Plain {
            run_firn(&["cow", "drop", &store])?;
        }
        Ok(done)
    }

    /// Offsets in random order, each once, while there is time.
    fn offsets(&self, blocks: u64, round: usize) -> impl Iterator<Item = u64> {
        let mut blocks: Vec<u64> = (0..blocks).collect();
        let mut rng = Rng::new(round as u64);
        for end in (1..=blocks.len()).rev() {
            blocks.swap(rng.index(end), end - 1);
        }
        let deadline = Instant::now() + self.length;
        let offsets = blocks.into_iter().map(|block| block * BLOCK);
        offsets.take_while(move |_| Instant::now() < deadline)
    }

    fn first_writes(&self, side: Side, round: usize) -> Result<f64> {
        let sample = self.served(side, |client| {
            let offsets = self.offsets(client.size() / BLOCK, round);
            client.each(small(Access::Write), offsets)
        })?;
        Ok(settled(&sample, side))
    }

    fn large_writes(&self, _round: usize) -> Result<f64> {
        let load = Load { access: Access::Write, block: LARGE, depth: 8 };
        let sample = self.served(Side::Deferred, |client| {
            let deadline = Instant::now() + self.length;
            let offsets = (0..client.size() / u64::from(LARGE)).map(|piece| piece << 20);
            client.each(load, offsets.take_while(|_| Instant::now() < deadline))
        })?;
        Ok(sample.per_second * f64::from(LARGE) / 1e6)
    }

    fn bare(&self) -> Result<f64> {
        let load = Load { access: Access::Write, block: LARGE, depth: 8 };
        let sample = fio::on_file(&self.disk(), load, Cache::Direct, self.length)?;
        Ok(sample.per_second * f64::from(LARGE) / 1e6)
    }

    /// Writes where every chunk is in the store.
    fn copied_writes(&self, side: Side, round: usize) -> Result<f64> {
        let sample = self.served(side, |client| {
            let load = Load { access: Access::Write, block: LARGE, depth: 8 };
            client.each(load, (0..COPIED / u64::from(LARGE)).map(|piece| piece << 20))?;
            let mut rng = Rng::new(round as u64);
            let deadline = Instant::now() + self.length;
            let offsets = std::iter::repeat_with(|| rng.within(0..COPIED / BLOCK) * BLOCK);
            client.each(small(Access::Write), offsets.take_while(|_| Instant::now() < deadline))
        })?;
        Ok(sample.per_second)
    }

    /// Chunks merged in a second, none beside another on either side.
    fn merge(&self, round: usize) -> Result<f64> {
        let origin = CowOrigin::open(&self.disk(), CowOptions::default())?;
        let chunk = ChunkSize::new(ByteCount::new(BLOCK))?;
        let new = NewSnapshot {
            source: StoreSource::Made { chunk, size: None },
            mode: CowMode::Deferred,
            ..NewSnapshot::new(self.folder.path().join("m.cow"))
        };
        let name = origin.create(&new)?.name;
        let device = origin.device();
        let blocks = device.size().get() / BLOCK / 2;
        let mut rng = Rng::new(round as u64);
        let bytes = AlignedBuf::zeroed(BLOCK as usize);
        for _ in 0..MERGED {
            device.write_at(&bytes, ByteOffset::new(rng.within(0..blocks) * 2 * BLOCK))?;
        }
        device.flush()?;
        let merge = origin.begin_merge(&name, false)?;
        let chunks = merge.left().get() / BLOCK;
        let begun = Instant::now();
        while !merge.step()?.is_zero() {}
        let seconds = begun.elapsed().as_secs_f64();
        drop(device);
        origin.close()?;
        Ok(chunks as f64 / seconds)
    }

    /// The same as the kernel does it: each chunk copied, the origin flushed, the exception cleared
    /// and that flushed.
    fn merge_one_by_one(&self, round: usize) -> Result<f64> {
        let options = FileOptions { cache: CacheMode::Direct, read_only: false };
        let origin: Arc<dyn BlockDevice> = Arc::new(HostFile::open(&self.disk(), options)?);
        let path = self.folder.path().join("naive");
        std::fs::write(&path, vec![1; (64 << 20) as usize])?;
        let store = HostFile::open(&path, options)?;
        store.flush()?;
        let mut rng = Rng::new(round as u64);
        let mut bytes = AlignedBuf::zeroed(BLOCK as usize);
        let (mut chunks, begun) = (0, Instant::now());
        while begun.elapsed() < self.length {
            let mut place = |size: u64| ByteOffset::new(rng.within(0..size / BLOCK) * BLOCK);
            store.read_at(&mut bytes, place(64 << 20))?;
            origin.write_at(&bytes, place(origin.size().get()))?;
            origin.flush()?;
            store.write_at(&bytes, ByteOffset::new(BLOCK))?;
            store.flush()?;
            chunks += 1;
        }
        remove(&path)?;
        Ok(f64::from(chunks) / begun.elapsed().as_secs_f64())
    }
}

/// Requests in a second, without those that were only buffered at the end.
fn settled(sample: &Sample, side: Side) -> f64 {
    let counted = match side {
        Side::Deferred => sample.requests.saturating_sub(BUFFERED),
        Side::Plain | Side::Sync => sample.requests,
    };
    sample.per_second * counted as f64 / sample.requests.max(1) as f64
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).with_context(|| path.display().to_string())
}
