//! A client that writes at random for as long as it is let, and keeps the history.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};

use block_io::{BlockDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use nbd::Client;
use testkit::rng::Rng;

use crate::history::{Change, History, SECTOR, Step, random_run};

/// A volume's history, shared between who writes and who looks.
pub(crate) type Shared = Arc<Mutex<History>>;

/// A writer on a thread of its own.
pub(crate) struct Writer {
    shared: Shared,
    /// Held during every request.
    turn: Arc<Mutex<()>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Writer {
    /// Starts to write to `client`.
    pub(crate) fn start(client: Client, shared: &Shared, mut rng: Rng) -> Self {
        let (turn, stop) = (Arc::new(Mutex::new(())), Arc::new(AtomicBool::new(false)));
        let (mine, gate, stopped) = (Arc::clone(shared), Arc::clone(&turn), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let _turn = gate.lock().unwrap();
                step(&client, &mine, &mut rng)?;
            }
            Ok(())
        });
        Self { shared: Arc::clone(shared), turn, stop, thread }
    }

    /// The number of the last request that was answered.
    pub(crate) fn done(&self) -> Step {
        self.shared.lock().unwrap().done
    }

    /// Lets no request begin until the guard is dropped; none is under way.
    pub(crate) fn pause(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap()
    }

    /// Lets it finish the request that is under way.
    pub(crate) fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.join().unwrap_or_else(|error| panic!("a request failed: {error}"));
    }

    /// Waits until it notices that its server is gone.
    pub(crate) fn fail(self) {
        self.join().expect_err("nobody told it to end");
    }

    fn join(self) -> Result<()> {
        self.thread.join().expect("the writer does not panic")
    }
}

/// One request.
fn step(client: &Client, shared: &Shared, rng: &mut Rng) -> Result<()> {
    if rng.chance(1, 12) {
        // One client, one request at a time: what is durable is what was answered before.
        let answered = shared.lock().unwrap().done;
        client.flush()?;
        shared.lock().unwrap().flushed = answered;
        return Ok(());
    }
    let change = rng.weighted(&[(8, Change::Write), (1, Change::Zero), (1, Change::Discard)]);
    let (first, count, bytes) = {
        let mut history = shared.lock().unwrap();
        let (first, count) = random_run(rng, history.sectors());
        let bytes = history.begin(change, first, count);
        (first, count, bytes)
    };
    let at = ByteOffset::new((first * SECTOR) as u64);
    let range = ByteRange::new(at, ByteCount::new((count * SECTOR) as u64));
    match change {
        Change::Write => client.write_at(&bytes, at)?,
        Change::Zero => {
            let mode = ZeroMode { may_unmap: rng.chance(1, 2), only_if_fast: false };
            client.zero(range, mode)?;
        }
        Change::Discard => client.discard(range)?,
    }
    shared.lock().unwrap().answered();
    Ok(())
}
