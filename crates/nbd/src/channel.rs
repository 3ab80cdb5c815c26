//! A socket during the handshake: whole messages, and a moment by which all has to be over.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Bytes that are read at once where a length was only claimed.
const STEP: usize = 64 << 10;

/// A socket on which whole messages are exchanged before a deadline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channel<'s> {
    socket: BorrowedFd<'s>,
    deadline: Option<Instant>,
}

impl<'s> Channel<'s> {
    /// Everything has to be over in `timeout`.
    pub(crate) fn until(socket: BorrowedFd<'s>, timeout: Duration) -> Self {
        Self { socket, deadline: Some(Instant::now() + timeout) }
    }

    /// Waits as long as it takes.
    pub(crate) fn patient(socket: BorrowedFd<'s>) -> Self {
        Self { socket, deadline: None }
    }

    /// Fills `buffer`; an end of the stream before that is `UnexpectedEof`.
    pub(crate) fn read_exact(&self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            let wait =
                if self.deadline.is_some() { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
            match recv(self.socket, &mut *buffer, wait) {
                Ok((_, 0)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((_, count)) => buffer = &mut buffer[count..],
                Err(error) => self.await_ready(error, PollFlags::IN)?,
            }
        }
        Ok(())
    }

    /// Reads `len` bytes. Memory grows with what arrives, not with what was claimed.
    pub(crate) fn read_vec(&self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let start = bytes.len();
            bytes.resize(len.min(start + STEP), 0);
            self.read_exact(&mut bytes[start..])?;
        }
        Ok(bytes)
    }

    /// Reads `len` bytes and forgets them.
    pub(crate) fn skip(&self, mut len: usize) -> io::Result<()> {
        let mut scratch = [0; 4096];
        while len > 0 {
            let step = len.min(scratch.len());
            self.read_exact(&mut scratch[..step])?;
            len -= step;
        }
        Ok(())
    }

    /// Sends all of `bytes`.
    pub(crate) fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        let wait = if self.deadline.is_some() { SendFlags::DONTWAIT } else { SendFlags::empty() };
        while !bytes.is_empty() {
            match send(self.socket, bytes, wait | SendFlags::NOSIGNAL) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) => self.await_ready(error, PollFlags::OUT)?,
            }
        }
        Ok(())
    }

    /// After `error` of a call that did not wait: waits until it is worth another try.
    fn await_ready(&self, error: rustix::io::Errno, interest: PollFlags) -> io::Result<()> {
        match error {
            rustix::io::Errno::INTR => return Ok(()),
            rustix::io::Errno::AGAIN => {}
            other => return Err(other.into()),
        }
        let left = match self.deadline {
            Some(deadline) => Some(
                deadline.checked_duration_since(Instant::now()).ok_or(io::ErrorKind::TimedOut)?,
            ),
            None => None,
        };
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        match poll(&mut [PollFd::from_borrowed_fd(self.socket, interest)], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
