//! The threads that do what may block, for all connections of a server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use block_io::Event;
use block_types::{Error, ErrorKind, Result};
use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use super::parking::Parking;
use super::slow::{Done, Job, Run};

/// A few threads that execute jobs.
#[derive(Debug)]
pub(super) struct Workers {
    /// `None` only while the threads are being stopped.
    tasks: Option<Sender<Task>>,
    threads: Vec<JoinHandle<()>>,
    parking: Arc<Parking>,
    attendant: Option<JoinHandle<()>>,
}

/// Some jobs of one connection.
#[derive(Debug)]
pub(super) struct Task {
    jobs: Vec<Job>,
    mailbox: Arc<Mailbox>,
}

/// Where a connection finds what was done for it.
#[derive(Debug)]
pub(super) struct Mailbox {
    done: Mutex<Vec<Done>>,
    event: Event,
    /// Set from outside when the connection is to end.
    stop: Arc<AtomicBool>,
    /// Nobody waits for answers any more.
    left: AtomicBool,
}

impl Mailbox {
    pub(super) fn new(stop: Arc<AtomicBool>) -> Result<Self> {
        let left = AtomicBool::new(false);
        Ok(Self { done: Mutex::new(Vec::new()), event: Event::new()?, stop, left })
    }

    /// The client has left, or is being made to: what waits is given up.
    pub(super) fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }

    /// Whether what waits is to be given up.
    pub(super) fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire) || self.stop.load(Ordering::Acquire)
    }

    /// Raised when something was done.
    pub(super) fn event(&self) -> &Event {
        &self.event
    }

    /// Moves all that was done to `into`, which is empty.
    pub(super) fn collect(&self, into: &mut Vec<Done>) {
        // Lowered first: what is put after the swap raises it again.
        self.event.clear();
        std::mem::swap(&mut *self.done.lock(), into);
    }

    pub(super) fn put(&self, done: Done) {
        let mut list = self.done.lock();
        list.push(done);
        // Whoever collects takes all, so only the first one has to wake it.
        let first = list.len() == 1;
        drop(list);
        if first {
            self.event.notify();
        }
    }
}

impl Workers {
    /// Starts `count` threads, at least one.
    pub(super) fn start(count: usize) -> Result<Self> {
        let (tasks, queue) = unbounded();
        let parking = Arc::new(Parking::default());
        let attendant = Some(parking.attend(tasks.clone())?);
        let mut workers = Self { tasks: Some(tasks), threads: Vec::new(), parking, attendant };
        for number in 0..count.max(1) {
            let queue: Receiver<Task> = queue.clone();
            let parking = Arc::clone(&workers.parking);
            let thread = std::thread::Builder::new()
                .name(format!("nbd-worker-{number}"))
                .spawn(move || queue.iter().for_each(|task: Task| task.run(&parking)))
                .map_err(|error| Error::io("NBD server", "cannot start a thread", error))?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// Hands `jobs` over; what comes of them goes to `mailbox`. Leaves `jobs` empty.
    pub(super) fn hand_over(&self, jobs: &mut Vec<Job>, mailbox: &Arc<Mailbox>) {
        // A batch is shared out, so that one that blocks does not hold up all behind it.
        let share = jobs.len().div_ceil(self.threads.len()).max(1);
        while !jobs.is_empty() {
            let rest = jobs.split_off(share.min(jobs.len()));
            let task = Task { jobs: std::mem::replace(jobs, rest), mailbox: Arc::clone(mailbox) };
            if let Err(refused) = self.tasks.as_ref().expect("only drop stops them").send(task) {
                refused.into_inner().fail();
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // The attendant first: it has a sender of its own.
        self.parking.end();
        let attendant = self.attendant.take();
        self.tasks = None;
        for thread in attendant.into_iter().chain(self.threads.drain(..)) {
            // A worker catches the panics of its jobs, so there is nothing to learn here.
            let _ = thread.join();
        }
    }
}

impl Task {
    /// The task of one job.
    pub(super) fn one(job: Job, mailbox: Arc<Mailbox>) -> Self {
        Self { jobs: vec![job], mailbox }
    }

    fn run(self, parking: &Parking) {
        for job in self.jobs {
            match job.run() {
                Run::Done(done) => self.mailbox.put(done),
                Run::Stalled(job, ticket) => parking.park(job, ticket, Arc::clone(&self.mailbox)),
            }
        }
    }

    pub(super) fn fail(self) {
        for job in self.jobs {
            let error = Error::new(ErrorKind::Cancelled, "NBD server", "is shutting down");
            self.mailbox.put(job.fail(error));
        }
    }
}
