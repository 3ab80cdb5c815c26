//! Power failures at random moments, over the origin and all stores at once. What comes back is
//! held against exactly what each mode promises:
//!
//! - in every mode the origin has everything that was flushed, and of the rest each sector as it
//!   was at one moment since (FLUSH-HOLDS);
//! - sync and deferred: the snapshot is valid, and has what the origin held when it was taken, and
//!   what was written to it and flushed (SNAPSHOT-FIXED, DATA-FIRST);
//! - async: the snapshot is marked invalid, from its first moment until it is closed;
//! - a merge that is begun again has the origin read the same as before.
//!
//! `FIRN_LONG=1` runs ten times as many seeds.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{Disks, Model, STORE, STORES, Session, first_bytes};
use block_io::{BlockDevice, CrashWorld, Limits, MemoryDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, ErrorKind, Extent, Result};
use dm_snapshot::Mode;
use testkit::rng::Rng;

/// Outcomes that are looked at for each failure.
const DRAWS: u64 = 3;
const THREADS: u64 = 2;

/// What a run is made of.
#[derive(Clone, Copy)]
struct Shape {
    modes: &'static [Mode],
    chunks: &'static [u64],
    /// Bytes of a store.
    store: u64,
    /// Which flushes of a store are lost on purpose.
    lie: Option<Lie>,
    /// Whether snapshots are merged right away.
    merges: bool,
}

const ALL: Shape = Shape {
    modes: &[Mode::Sync, Mode::Async, Mode::Deferred],
    chunks: &[512, 1024, 4096],
    store: STORE,
    lie: None,
    merges: false,
};

/// A flush that a store does not do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// The one between the copies and the exceptions: the fault of EVMS, exceptions that may be
    /// there before their data.
    BeforeExceptions,
    /// The one between the exceptions and the origin's write.
    AfterExceptions,
}

/// A store with chunks of 4 KiB that says it flushed where it did not.
struct Liar {
    inner: Arc<dyn BlockDevice>,
    lie: Lie,
    /// Whether exceptions were written since the last flush that was asked for.
    exceptions: AtomicBool,
}

impl BlockDevice for Liar {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn size(&self) -> ByteCount {
        self.inner.size()
    }
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        self.inner.read_at(buffer, at)
    }
    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        // The header and the first area.
        self.exceptions.fetch_or(at.get() < 8192, Ordering::SeqCst);
        self.inner.write_at(bytes, at)
    }
    fn zero(&self, range: ByteRange, mode: ZeroMode) -> Result<()> {
        self.inner.zero(range, mode)
    }
    fn discard(&self, range: ByteRange) -> Result<()> {
        self.inner.discard(range)
    }
    fn flush(&self) -> Result<()> {
        let after = self.exceptions.swap(false, Ordering::SeqCst);
        let lies = (self.lie == Lie::AfterExceptions) == after;
        if lies { Ok(()) } else { self.inner.flush() }
    }
    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        self.inner.extents(range, each)
    }
}

fn disks(world: &Arc<CrashWorld>, shape: Shape) -> Disks {
    let base = world.device("base", first_bytes());
    let stores = (0..STORES).map(|number| {
        let inner: Arc<dyn BlockDevice> =
            world.device(format!("store{number}"), vec![0; shape.store as usize]);
        match shape.lie {
            Some(lie) => Arc::new(Liar { inner, lie, exceptions: AtomicBool::new(false) }),
            None => inner,
        }
    });
    Disks { base, stores: stores.collect() }
}

/// Runs until the power fails, and looks at what may be left.
fn run(seed: u64, shape: Shape) -> std::result::Result<(), String> {
    let mut rng = Rng::new(seed);
    let world = CrashWorld::new(seed);
    let disks = disks(&world, shape);
    world.crash_at(rng.within(1..400));
    let mut model = Model::new(shape.modes, shape.chunks);
    model.tight = shape.store < STORE;
    let mut session = Session::new(disks).map_err(|error| error.to_string())?;
    let mut steps = 0;
    while !world.crashed() && steps < 400 {
        let done = if shape.merges && model.merging.is_none() && rng.chance(1, 20) {
            model.begin_merge(&mut session, &mut rng)
        } else if steps == 0 {
            model.take(&mut session, &mut rng)
        } else {
            model.step(&mut session, &mut rng)
        };
        if let Err(error) = done
            && !world.crashed()
            && !(model.tight && is_full(error.kind()))
        {
            return Err(format!("a failure without a power failure: {error}"));
        }
        if !world.crashed() {
            model.look_for_lost(&session);
        }
        steps += 1;
    }
    drop(session);
    (0..DRAWS).try_for_each(|draw| {
        recover(&world, draw, model.clone(), &mut rng.fork())
            .map_err(|problem| format!("draw {draw}: {problem}"))
    })
}

/// Whether it is the error of a snapshot whose store is too small.
fn is_full(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::OutOfSpace | ErrorKind::Stopped)
}

/// Opens what a crash left, holds it against the model, and goes on with it.
fn recover(
    world: &CrashWorld,
    draw: u64,
    mut model: Model,
    rng: &mut Rng,
) -> std::result::Result<(), String> {
    let mut images = world.images(draw).into_iter().map(|(name, bytes)| {
        Arc::new(MemoryDevice::from_bytes(name, bytes)) as Arc<dyn BlockDevice>
    });
    let base = images.next().expect("the base");
    let disks = Disks { base, stores: images.collect() };
    let mut session = model.survive(&disks)?;
    for _ in 0..15 {
        if let Err(error) = model.step(&mut session, rng)
            && !(model.tight && is_full(error.kind()))
        {
            return Err(format!("afterwards: {error}"));
        }
        model.look_for_lost(&session);
    }
    model.compare_live(&session);
    while session.merge.is_some() {
        model.go_on(&mut session).map_err(|error| format!("merging on: {error}"))?;
    }
    model.compare_live(&session);
    Ok(())
}

/// The seeds that fail, with what failed.
fn failures(seeds: u64, shape: Shape) -> Vec<String> {
    let long = std::env::var_os("FIRN_LONG").is_some();
    let seeds = if long { 10 * seeds } else { seeds };
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    let seeds = (thread..seeds).step_by(THREADS as usize);
                    let failed = seeds.filter_map(|seed| {
                        run(seed, shape).err().map(|problem| format!("seed {seed}: {problem}"))
                    });
                    failed.take(3).collect::<Vec<_>>()
                })
            })
            .collect();
        runs.into_iter().flat_map(|run| run.join().expect("no panic")).collect()
    })
}

#[track_caller]
fn survives(seeds: u64, shape: Shape) {
    let failed = failures(seeds, shape);
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn mode_sync_keeps_what_it_promises() {
    survives(500, Shape { modes: &[Mode::Sync], ..ALL });
}

#[test]
fn mode_deferred_keeps_what_it_promises() {
    survives(500, Shape { modes: &[Mode::Deferred], ..ALL });
}

#[test]
fn mode_async_keeps_what_it_promises() {
    survives(200, Shape { modes: &[Mode::Async], ..ALL });
}

#[test]
fn all_modes_keep_side_by_side_what_they_promise() {
    survives(300, ALL);
}

#[test]
fn a_full_store_is_invalid_on_disk_before_the_origin_is_written() {
    let modes = &[Mode::Sync, Mode::Deferred];
    survives(200, Shape { modes, chunks: &[512], store: 24 << 10, ..ALL });
}

#[test]
fn a_merge_resumes_after_a_power_failure() {
    survives(300, Shape { merges: true, ..ALL });
}

/// The fault of EVMS, put in on purpose: the simulator finds it, so it would find it in the code.
#[test]
fn an_exception_before_its_data_is_found() {
    let lie = Some(Lie::BeforeExceptions);
    for mode in [&[Mode::Sync][..], &[Mode::Deferred]] {
        let failed = failures(200, Shape { modes: mode, chunks: &[4096], lie, ..ALL });
        assert!(!failed.is_empty(), "{mode:?}: the fault was not found");
    }
}

#[test]
fn an_origin_written_before_its_exception_is_found() {
    let lie = Some(Lie::AfterExceptions);
    for mode in [&[Mode::Sync][..], &[Mode::Deferred]] {
        let failed = failures(200, Shape { modes: mode, chunks: &[4096], lie, ..ALL });
        assert!(!failed.is_empty(), "{mode:?}: the fault was not found");
    }
}
