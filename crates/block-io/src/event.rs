//! A wake-up between threads that an [`IoQueue`](crate::IoQueue) can poll.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use block_types::{Error, Result};
use rustix::event::{EventfdFlags, eventfd};

/// A flag that one thread raises and another one's queue sees as readable.
#[derive(Debug)]
pub struct Event {
    fd: OwnedFd,
}

impl Event {
    /// A new event, not raised.
    ///
    /// # Errors
    /// If the system gives no more descriptors.
    pub fn new() -> Result<Self> {
        let fd = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|error| Error::io("event", "cannot be created", error.into()))?;
        Ok(Self { fd })
    }

    /// Raises it: whoever polls it wakes, now or when it next does. Raising it again changes
    /// nothing.
    pub fn notify(&self) {
        // Fails only with EAGAIN, when the counter is full: then it is raised.
        let _ = rustix::io::write(&self.fd, &1u64.to_ne_bytes());
    }

    /// Lowers it. To be called before looking at what it announces, so that nothing is missed.
    pub fn clear(&self) {
        // Fails only with EAGAIN, when it is not raised.
        let _ = rustix::io::read(&self.fd, &mut [0; 8]);
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::Event;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn raised(event: &Event) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(event, PollFlags::IN)], Some(&now)).unwrap() == 1
    }

    #[test]
    fn raised_until_cleared() {
        let event = Event::new().unwrap();
        event.clear();
        assert!(!raised(&event));
        event.notify();
        event.notify();
        assert!(raised(&event));
        event.clear();
        assert!(!raised(&event));
    }
}
