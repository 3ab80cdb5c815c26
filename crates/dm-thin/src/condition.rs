//! The condition of a pool: its mode, why, how it is to behave, and who waits for a better one.
//!
//! A write that finds no space reports what was lacking, and the pool is out of space from then on.
//! Whoever brings space (a commit that frees blocks, growing) ends that and counts the epoch up; a
//! write that waits remembers the epoch in which it was tried, so that it misses nothing. It holds
//! no lock of the pool meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use block_io::Ticket;
use block_types::{Error, ErrorKind, Result};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::events::{EventKind, EventQueue};
use crate::mode::{Lack, Why};
use crate::{PoolMode, PoolSettings};

/// How often room is asked for where nobody tells that there is some.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The condition of one pool.
pub(crate) struct Condition {
    name: String,
    /// Whether anybody else could provide what a write waits for.
    waits: bool,
    state: Mutex<State>,
    changed: Condvar,
    /// `state.halt` is none, for those who ask often.
    writable: AtomicBool,
    pub(crate) events: EventQueue,
}

struct State {
    mode: PoolMode,
    halt: Option<Halt>,
    settings: PoolSettings,
    shortage: Option<Shortage>,
    /// Counted up whenever a write that found no space should be tried again.
    epoch: u64,
}

/// Why no writes are taken.
#[derive(Clone)]
pub(crate) struct Halt {
    pub(crate) why: Why,
    pub(crate) text: String,
}

/// A want of space that a write has met.
struct Shortage {
    lack: Lack,
    since: Instant,
    /// When room was last asked for.
    asked: Instant,
    /// Writes have waited long enough.
    timed_out: bool,
}

/// The condition in a few words.
#[derive(Clone)]
pub(crate) struct Summary {
    pub(crate) mode: PoolMode,
    pub(crate) halt: Option<Halt>,
    pub(crate) settings: PoolSettings,
    /// Whether a write that finds no space fails at once: by choice, or since it took too long.
    pub(crate) fails_at_once: bool,
}

impl Halt {
    pub(crate) fn new(why: Why, text: impl Into<String>) -> Self {
        Self { why, text: text.into() }
    }

    /// The mode of a pool that is opened so. Who only reads sees it as a writer would.
    fn mode(halt: Option<&Self>, settings: &PoolSettings) -> PoolMode {
        match halt.map(|halt| halt.why) {
            Some(Why::Observed) if settings.features.read_only => PoolMode::ReadOnly,
            None | Some(Why::Observed) => PoolMode::Write,
            Some(_) => PoolMode::ReadOnly,
        }
    }
}

impl State {
    fn timed_out(&self) -> bool {
        self.shortage.as_ref().is_some_and(|shortage| shortage.timed_out)
    }

    /// When writes have waited long enough.
    fn deadline(&self) -> Option<Instant> {
        let shortage = self.shortage.as_ref().filter(|shortage| !shortage.timed_out)?;
        self.settings.no_space_timeout.map(|limit| shortage.since + limit)
    }

    fn fails_at_once(&self) -> bool {
        self.settings.features.error_if_no_space || self.timed_out()
    }
}

impl Condition {
    pub(crate) fn new(name: &str, settings: PoolSettings, waits: bool, halt: Option<Halt>) -> Self {
        let mode = Halt::mode(halt.as_ref(), &settings);
        Self {
            name: name.to_owned(),
            waits,
            writable: AtomicBool::new(halt.is_none()),
            state: Mutex::new(State { mode, halt, settings, shortage: None, epoch: 0 }),
            changed: Condvar::new(),
            events: EventQueue::default(),
        }
    }

    /// Whether writes are taken, as far as there is space.
    pub(crate) fn is_writable(&self) -> bool {
        self.writable.load(Ordering::SeqCst)
    }

    /// Checks that writes are taken.
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.is_writable() {
            return Ok(());
        }
        let halt = self.state.lock().halt.clone();
        let Halt { why, text } = halt.unwrap_or_else(|| Halt::new(Why::Closed, "it is closed"));
        Err(Error::new(why.kind(), &*self.name, format!("the pool takes no writes: {text}")))
    }

    /// Checks that what was accepted may be committed: also once writes are refused by choice.
    pub(crate) fn check_commits(&self) -> Result<()> {
        let state = self.state.lock();
        if state.halt.as_ref().is_some_and(|halt| halt.why == Why::Chosen) {
            return Ok(());
        }
        drop(state);
        self.check_writable()
    }

    pub(crate) fn summary(&self) -> Summary {
        let mut state = self.state.lock();
        self.expire(&mut state);
        Summary {
            mode: state.mode,
            halt: state.halt.clone(),
            settings: state.settings,
            fails_at_once: state.fails_at_once(),
        }
    }

    pub(crate) fn settings(&self) -> PoolSettings {
        self.state.lock().settings
    }

    /// Behaves by `settings` from now on. Writes that wait look at them, and begin to wait anew.
    pub(crate) fn configure(&self, settings: PoolSettings) {
        let mut state = self.state.lock();
        state.settings = settings;
        if let Some(shortage) = &mut state.shortage {
            (shortage.since, shortage.timed_out) = (Instant::now(), false);
        }
        self.try_again(state);
    }

    /// Takes no more writes because of `halt`. The first reason stays.
    pub(crate) fn halt(&self, halt: Halt) {
        let mut state = self.state.lock();
        state.halt.get_or_insert(halt);
        self.writable.store(false, Ordering::SeqCst);
        self.try_again(state);
    }

    /// Takes writes again, if it was by choice that it took none.
    pub(crate) fn resume(&self) {
        let mut state = self.state.lock();
        if state.halt.as_ref().is_some_and(|halt| halt.why == Why::Chosen) {
            state.halt = None;
            state.shortage = None;
            self.enter(&mut state, PoolMode::Write);
            self.writable.store(true, Ordering::SeqCst);
            self.try_again(state);
        }
    }

    /// Enters the mode `to`, which a pool that failed never leaves.
    pub(crate) fn enter_mode(&self, to: PoolMode) {
        self.enter(&mut self.state.lock(), to);
    }

    fn enter(&self, state: &mut State, to: PoolMode) {
        let from = state.mode;
        if from == to || from == PoolMode::Fail {
            return;
        }
        state.mode = to;
        let reason = state.halt.as_ref().map(|halt| halt.text.clone());
        // Whoever wants space is told so by an answer of its own (FULL-IS-NOT-BROKEN).
        let (from_name, to_name) = (from.name(), to.name());
        match to {
            PoolMode::Write | PoolMode::OutOfDataSpace | PoolMode::OutOfMetadataSpace => {
                tracing::info!(pool = self.name, from = from_name, to = to_name, "mode");
            }
            _ => {
                tracing::warn!(pool = self.name, from = from_name, to = to_name, ?reason, "mode");
            }
        }
        self.events.push(EventKind::Mode { from, to, reason });
    }

    /// The moment, for a request that is about to be tried.
    pub(crate) fn ticket(&self) -> Ticket {
        Ticket(self.state.lock().epoch)
    }

    /// Notes that a request which got `ticket` found no space, unless that has changed meanwhile.
    pub(crate) fn lacks(&self, lack: Lack, ticket: Ticket) {
        let mut state = self.state.lock();
        let worst = state.mode.max(lack.mode());
        if state.epoch != ticket.0 || state.halt.is_some() {
            return;
        }
        if worst == lack.mode() {
            let now = Instant::now();
            let since = state.shortage.as_ref().map_or(now, |shortage| shortage.since);
            let timed_out = state.timed_out();
            state.shortage = Some(Shortage { lack, since, asked: now, timed_out });
        }
        self.enter(&mut state, worst);
    }

    /// What makes it vain to look for the space of `lack`, if that is known.
    pub(crate) fn is_hopeless(&self, lack: Lack) -> Option<Lack> {
        let mut state = self.state.lock();
        let mode = state.mode;
        let shortage = state.shortage.as_mut().filter(|_| mode >= lack.mode())?;
        if shortage.lack == Lack::DataBelow && shortage.asked.elapsed() >= ASK_AGAIN {
            shortage.asked = Instant::now();
            return None;
        }
        Some(shortage.lack)
    }

    /// Whether the pool is out of data blocks.
    pub(crate) fn is_out_of_data(&self) -> bool {
        self.state.lock().mode == PoolMode::OutOfDataSpace
    }

    /// Whether the pool is out of metadata blocks.
    pub(crate) fn is_out_of_metadata(&self) -> bool {
        self.state.lock().mode == PoolMode::OutOfMetadataSpace
    }

    /// There are free blocks: of data, or of metadata as `lack` says.
    pub(crate) fn provide(&self, lack: Lack) {
        let mut state = self.state.lock();
        if state.mode == lack.mode() {
            state.shortage = None;
            self.enter(&mut state, PoolMode::Write);
            self.try_again(state);
        }
    }

    /// Whether a request that got `ticket` and failed with `error` should wait and be tried again.
    pub(crate) fn should_wait(&self, ticket: Ticket, error: &Error) -> bool {
        if error.kind() != ErrorKind::OutOfSpace || !self.waits {
            return false;
        }
        let mut state = self.state.lock();
        self.expire(&mut state);
        if state.fails_at_once() {
            return false;
        }
        state.mode.is_out_of_space() || state.epoch != ticket.0
    }

    /// Waits until a request that got `ticket` should be tried again, for `limit` at most; whether
    /// it should.
    pub(crate) fn await_change(&self, ticket: Ticket, limit: Duration) -> bool {
        let give_up = Instant::now() + limit;
        let mut state = self.state.lock();
        loop {
            self.expire(&mut state);
            if state.epoch != ticket.0 {
                return true;
            }
            let now = Instant::now();
            let ask = state.shortage.as_ref().filter(|it| it.lack == Lack::DataBelow);
            let ask = ask.map(|shortage| shortage.asked + ASK_AGAIN);
            if ask.is_some_and(|ask| ask <= now) {
                return true;
            }
            if give_up <= now {
                return false;
            }
            let until = [state.deadline(), ask].into_iter().flatten().fold(give_up, Instant::min);
            self.changed.wait_until(&mut state, until);
        }
    }

    /// Ends the patience of writes that have waited for as long as they may.
    pub(crate) fn look_at_the_clock(&self) {
        self.expire(&mut self.state.lock());
    }

    fn expire(&self, state: &mut State) {
        let is_due = self.waits
            && !state.settings.features.error_if_no_space
            && state.deadline().is_some_and(|deadline| deadline <= Instant::now());
        if let (true, Some(shortage)) = (is_due, &mut state.shortage) {
            shortage.timed_out = true;
            state.epoch += 1;
            tracing::warn!(pool = self.name, "no space for too long: writes fail from now on");
            self.events.push(EventKind::NoSpaceTimeout);
            self.changed.notify_all();
        }
    }

    fn try_again(&self, mut state: MutexGuard<'_, State>) {
        state.epoch += 1;
        drop(state);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::{Condition, Halt};
    use crate::mode::{Lack, Why};
    use crate::{EventKind, PoolFeatures, PoolMode, PoolSettings};
    use block_types::{Error, ErrorKind};
    use std::time::Duration;

    fn condition(limit: Option<Duration>) -> Condition {
        let settings = PoolSettings { no_space_timeout: limit, ..PoolSettings::default() };
        Condition::new("pool", settings, true, None)
    }

    fn full() -> Error {
        Error::new(ErrorKind::OutOfSpace, "pool", "is full")
    }

    fn modes(condition: &Condition) -> Vec<PoolMode> {
        let events = condition.events.after(0, Duration::ZERO).events;
        let mode = |kind| match kind {
            EventKind::Mode { to, .. } => Some(to),
            _ => None,
        };
        events.into_iter().filter_map(|event| mode(event.kind)).collect()
    }

    #[test]
    fn space_that_came_between_the_attempt_and_its_report_is_not_missed() {
        let condition = condition(None);
        condition.lacks(Lack::Data, condition.ticket());
        let ticket = condition.ticket();
        condition.provide(Lack::Data);
        condition.lacks(Lack::Data, ticket);
        assert_eq!(condition.summary().mode, PoolMode::Write);
        assert!(condition.should_wait(ticket, &full()));
        assert!(condition.await_change(ticket, Duration::ZERO), "nothing to wait for");
    }

    #[test]
    fn patience_ends_once_and_begins_anew_with_space() {
        let condition = condition(Some(Duration::from_millis(20)));
        let ticket = condition.ticket();
        condition.lacks(Lack::Data, ticket);
        assert!(condition.should_wait(ticket, &full()));
        assert!(condition.await_change(ticket, Duration::from_secs(60)));
        assert!(!condition.should_wait(condition.ticket(), &full()));
        assert!(condition.summary().fails_at_once);
        let events = condition.events.after(0, Duration::ZERO).events;
        let timeouts = events.iter().filter(|event| event.kind == EventKind::NoSpaceTimeout);
        assert_eq!(timeouts.count(), 1);
        condition.provide(Lack::Data);
        assert!(!condition.summary().fails_at_once);
        assert_eq!(modes(&condition), [PoolMode::OutOfDataSpace, PoolMode::Write]);
    }

    #[test]
    fn the_worse_want_decides_the_mode() {
        let condition = condition(None);
        condition.lacks(Lack::Data, condition.ticket());
        condition.lacks(Lack::Metadata, condition.ticket());
        condition.lacks(Lack::Data, condition.ticket());
        assert!(condition.is_out_of_metadata());
        condition.provide(Lack::Data);
        assert!(condition.is_out_of_metadata());
        condition.provide(Lack::Metadata);
        assert_eq!(condition.summary().mode, PoolMode::Write);
    }

    #[test]
    fn halting_wakes_who_waits_and_the_first_reason_stays() {
        let condition = condition(None);
        let ticket = condition.ticket();
        condition.lacks(Lack::Data, ticket);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| condition.await_change(ticket, Duration::from_secs(60)));
            condition.halt(Halt::new(Why::Stopped, "a flush failed"));
            assert!(waits.join().expect("returned"));
        });
        condition.halt(Halt::new(Why::Closed, "it is closed"));
        let error = condition.check_writable().expect_err("halted");
        assert!(error.to_string().contains("a flush failed"), "{error}");
    }

    #[test]
    fn only_a_choice_is_taken_back_and_failing_is_for_good() {
        let condition = condition(None);
        condition.halt(Halt::new(Why::Chosen, "read_only"));
        condition.enter_mode(PoolMode::ReadOnly);
        condition.resume();
        assert!(condition.is_writable());
        condition.halt(Halt::new(Why::Stopped, "broken"));
        condition.enter_mode(PoolMode::Fail);
        condition.resume();
        condition.enter_mode(PoolMode::ReadOnly);
        assert_eq!(condition.summary().mode, PoolMode::Fail);
        assert!(!condition.is_writable());
    }

    #[test]
    fn who_may_not_wait_is_told_at_once() {
        let features = PoolFeatures { error_if_no_space: true, ..PoolFeatures::default() };
        let settings = PoolSettings { features, ..PoolSettings::default() };
        for (settings, waits) in [(settings, true), (PoolSettings::default(), false)] {
            let condition = Condition::new("pool", settings, waits, None);
            condition.lacks(Lack::Data, condition.ticket());
            assert!(!condition.should_wait(condition.ticket(), &full()));
        }
    }
}
