//! Jobs that wait for what their device lacks: space, say. They wait here, without a worker, so
//! that everything else goes on.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use block_io::Ticket;
use block_types::{Error, ErrorKind, Result};
use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex};

use super::slow::Job;
use super::workers::{Mailbox, Task};

/// How often the attendant looks for clients that leave, and for the devices that it does not wait
/// at.
const ROUND: Duration = Duration::from_millis(100);

/// The jobs that wait, of all connections.
#[derive(Debug, Default)]
pub(super) struct Parking {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    jobs: Vec<Parked>,
    ended: bool,
}

#[derive(Debug)]
struct Parked {
    job: Job,
    ticket: Ticket,
    mailbox: Arc<Mailbox>,
}

/// What becomes of a job now.
enum Next {
    Retry,
    Cancel,
    Wait,
}

impl Parking {
    /// Starts the thread that looks after parked jobs and gives them back to `workers`.
    pub(super) fn attend(self: &Arc<Self>, workers: Sender<Task>) -> Result<JoinHandle<()>> {
        let parking = Arc::clone(self);
        std::thread::Builder::new()
            .name("nbd-parking".to_owned())
            .spawn(move || while parking.round(&workers) {})
            .map_err(|error| Error::io("NBD server", "cannot start a thread", error))
    }

    /// Keeps a job until its device says that it is worth another try.
    pub(super) fn park(&self, job: Job, ticket: Ticket, mailbox: Arc<Mailbox>) {
        let parked = Parked { job, ticket, mailbox };
        let mut state = self.state.lock();
        if state.ended {
            drop(state);
            return parked.cancel();
        }
        state.jobs.push(parked);
        drop(state);
        self.changed.notify_all();
    }

    /// Cancels all jobs, those that would come later too.
    pub(super) fn end(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        let jobs = std::mem::take(&mut state.jobs);
        drop(state);
        self.changed.notify_all();
        jobs.into_iter().for_each(Parked::cancel);
    }

    /// Waits for a change at the device of the first job, and looks at all; whether to go on.
    fn round(&self, workers: &Sender<Task>) -> bool {
        let mut state = self.state.lock();
        while state.jobs.is_empty() && !state.ended {
            self.changed.wait(&mut state);
        }
        let Some(first) = state.jobs.first() else { return false };
        let (export, ticket) = (Arc::clone(&first.job.export), first.ticket);
        drop(state);
        if let Some(device) = export.device().stall() {
            device.await_change(ticket, ROUND);
        }
        let jobs = std::mem::take(&mut self.state.lock().jobs);
        let mut waiting = Vec::new();
        for parked in jobs {
            match parked.next() {
                Next::Retry => parked.retry(workers),
                Next::Cancel => parked.cancel(),
                Next::Wait => waiting.push(parked),
            }
        }
        let mut state = self.state.lock();
        // In the order in which they came, before those that came meanwhile.
        waiting.append(&mut state.jobs);
        state.jobs = waiting;
        let ended = state.ended;
        drop(state);
        if ended {
            self.end();
        }
        !ended
    }
}

impl Parked {
    fn next(&self) -> Next {
        if self.mailbox.is_left() {
            return Next::Cancel;
        }
        match self.job.export.device().stall() {
            Some(device) if !device.await_change(self.ticket, Duration::ZERO) => Next::Wait,
            _ => Next::Retry,
        }
    }

    fn retry(self, workers: &Sender<Task>) {
        let task = Task::one(self.job, self.mailbox);
        if let Err(refused) = workers.send(task) {
            refused.into_inner().fail();
        }
    }

    fn cancel(self) {
        let object = self.job.export.name().to_owned();
        let error = Error::new(ErrorKind::Cancelled, object, "is given up before there was space");
        self.mailbox.put(self.job.fail(error));
    }
}
