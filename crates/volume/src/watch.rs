//! What a pool tells of itself, and how it is kept from filling.

use std::time::Duration;

use block_types::{ByteCount, Result};
use dm_thin::{Event, EventKind};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{AutoGrow, PoolDirectory, PoolReport, Settings};

/// Something that has happened to a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EventInfo {
    /// Its number, counted from 1 since the pool was opened.
    pub sequence: u64,
    /// When, in RFC 3339.
    pub at: String,
    /// `low-water`, `autogrow`, `metadata-low`, `mode`, `no-space-timeout`, `data-grown` or
    /// `metadata-grown`.
    pub event: String,
    /// The same in a sentence.
    pub text: String,
}

/// Events in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct EventList {
    /// The events.
    pub events: Vec<EventInfo>,
    /// How many before them were forgotten before anybody asked.
    pub lost: u64,
    /// Whether there will be no more.
    pub ended: bool,
}

impl From<Event> for EventInfo {
    fn from(event: Event) -> Self {
        let (name, text) = describe(&event.kind);
        let at = Timestamp::try_from(event.at).unwrap_or_default();
        Self { sequence: event.sequence, at: at.to_string(), event: name.to_owned(), text }
    }
}

fn describe(kind: &EventKind) -> (&'static str, String) {
    match kind {
        EventKind::LowWater { free, mark } => {
            ("low-water", format!("{free} data blocks are free, the low water mark is {mark}"))
        }
        EventKind::Alarm { free, .. } => {
            ("autogrow", format!("{free} data blocks are free, it is time to grow"))
        }
        EventKind::MetadataLow { free, mark } => {
            ("metadata-low", format!("{free} metadata blocks are free, fewer than {mark}"))
        }
        EventKind::Mode { from, to, reason } => {
            let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            ("mode", format!("from {} to {}{reason}", from.name(), to.name()))
        }
        EventKind::NoSpaceTimeout => {
            ("no-space-timeout", "writes have waited for too long and fail now".to_owned())
        }
        EventKind::DataGrown { from, to } => {
            ("data-grown", format!("from {from} to {to} data blocks"))
        }
        EventKind::MetadataGrown { from, to } => {
            ("metadata-grown", format!("from {from} to {to} metadata blocks"))
        }
    }
}

impl PoolDirectory {
    /// How the pool is to behave.
    pub fn settings(&self) -> Settings {
        self.settings.lock().clone()
    }

    /// Behaves by `settings` from now on, also when it is opened next.
    ///
    /// # Errors
    /// `Invalid` where they make no sense; `Unsupported` for what cannot change while the pool is
    /// open; `ReadOnly` where it is open for reading only.
    pub fn configure(&self, settings: &Settings) -> Result<Settings> {
        settings.check()?;
        self.check_own()?;
        let mut kept = self.settings.lock();
        self.pool.configure(settings.of_pool())?;
        settings.store(&self.path)?;
        *kept = settings.clone();
        drop(kept);
        self.set_alarm();
        Ok(settings.clone())
    }

    /// The events after number `after`; waits for one for `patience` at most.
    pub fn events(&self, after: u64, patience: Duration) -> EventList {
        let page = self.pool.events(after, patience);
        let events = page.events.into_iter().map(EventInfo::from).collect();
        EventList { events, lost: page.lost, ended: page.ended }
    }

    /// There are no more events, and nobody waits for them any longer.
    pub fn end_events(&self) {
        self.pool.end_events();
    }

    /// Makes room for more metadata.
    ///
    /// # Errors
    /// As [`Pool::grow_metadata`](dm_thin::Pool::grow_metadata).
    pub fn grow_metadata(&self, size: ByteCount) -> Result<PoolReport> {
        self.pool.grow_metadata(size)?;
        Ok(self.status())
    }

    /// Grows as the policy says, if it is time to; and sees to it that an event says when the next
    /// time is.
    ///
    /// # Errors
    /// As growing.
    pub fn grow_by_policy(&self) -> Result<()> {
        let Some(policy) = self.settings.lock().autogrow else { return Ok(()) };
        loop {
            let status = self.pool.status();
            let block = status.block_size.get();
            let wanted = next_size(&policy, status.data_used, status.data_total, block);
            let Some(blocks) = wanted else { break };
            self.pool.grow_data(ByteCount::new(blocks * block))?;
            tracing::info!(pool = %self.path.display(), blocks, "grown by the policy");
        }
        self.set_alarm();
        Ok(())
    }

    fn set_alarm(&self) {
        let policy = self.settings.lock().autogrow;
        let total = self.pool.status().data_total;
        self.pool.set_alarm(policy.map(|policy| total - total * policy.threshold / 100));
    }
}

/// The blocks that a pool with so many in use should have, unless it has enough.
fn next_size(policy: &AutoGrow, used: u64, total: u64, block: u64) -> Option<u64> {
    if used * 100 < total * policy.threshold {
        return None;
    }
    let most = policy.max.map_or(u64::MAX, |max| max / block);
    let next = (total + (total * policy.step / 100).max(1)).min(most);
    (next > total).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::next_size;
    use crate::AutoGrow;

    #[test]
    fn a_policy_grows_in_steps_up_to_its_maximum() {
        let policy = AutoGrow { threshold: 80, step: 20, max: Some(110 * 65536) };
        assert_eq!(next_size(&policy, 79, 100, 65536), None);
        assert_eq!(next_size(&policy, 80, 100, 65536), Some(110));
        assert_eq!(next_size(&policy, 110, 110, 65536), None);
        let policy = AutoGrow { max: None, ..policy };
        assert_eq!(next_size(&policy, 80, 100, 65536), Some(120));
        assert_eq!(next_size(&policy, 2, 2, 65536), Some(3), "one block at least");
    }
}
