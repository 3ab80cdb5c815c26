//! Requests and replies, one at a time.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};

use crate::channel::Channel;
use crate::wire::{
    ChunkHead, ChunkKind, Command, CommandFlags, Dialect, Errno, MAX_ERROR_PAYLOAD,
    MAX_STATUS_EXTENTS, ReplyHead, Request, StatusExtent, parse_data_offset, parse_error,
    parse_hole, parse_status,
};

/// Payloads up to this size are sent together with their heads.
const SENT_TOGETHER: usize = 64 << 10;

/// A connection in transmission.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    dialect: Dialect,
    cookie: u64,
    /// The stream is out of step, or the server is gone.
    broken: bool,
    scratch: Vec<u8>,
}

/// A command with what it takes along and brings back.
pub(super) struct Call<'c> {
    pub(super) command: Command,
    pub(super) flags: CommandFlags,
    pub(super) range: ByteRange,
    pub(super) data: Data<'c>,
}

/// What goes with a command.
pub(super) enum Data<'c> {
    /// Nothing.
    None,
    /// Bytes to write, as long as the range.
    Send(&'c [u8]),
    /// Room for the bytes of the range.
    Fill(&'c mut [u8]),
    /// Room for the extents of the context of this number.
    Extents(u32, &'c mut Vec<StatusExtent>),
}

/// What was wrong with an exchange.
enum Fault {
    /// The server says that the command failed; the stream is in step.
    Failed(Errno, String),
    /// The connection is broken.
    Broken(io::Error),
    /// The server broke the protocol.
    Nonsense(&'static str),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// The reply to a READ so far: what of the buffer is filled.
#[derive(Default)]
struct Coverage {
    parts: Vec<(u64, u64)>,
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, dialect: Dialect) -> Self {
        Self { socket, dialect, cookie: 0, broken: false, scratch: Vec::new() }
    }

    /// Executes `call` for the device called `name`.
    pub(super) fn execute(&mut self, name: &str, mut call: Call<'_>) -> Result<()> {
        if self.broken {
            let problem = "has lost its connection";
            return Err(Error::new(ErrorKind::Stopped, name, problem));
        }
        let fault = match self.exchange(&mut call) {
            Ok(()) => return Ok(()),
            Err(fault) => fault,
        };
        self.broken = !matches!(fault, Fault::Failed(..));
        Err(match fault {
            Fault::Failed(errno, message) => failure(name, errno, message),
            Fault::Broken(error) => Error::io(name, "has lost its connection", error),
            Fault::Nonsense(problem) => Error::new(ErrorKind::Corrupt, name, problem),
        })
    }

    /// Says good-bye, if the server is still there.
    pub(super) fn disconnect(&mut self) {
        if !self.broken {
            let range = ByteRange::default();
            let data = Data::None;
            let call = Call { command: Command::DISC, flags: CommandFlags::NONE, range, data };
            // There is no answer to wait for, and nothing to do about a failure.
            let _ = self.send(&call);
        }
    }

    fn exchange(&mut self, call: &mut Call<'_>) -> std::result::Result<(), Fault> {
        let request = self.send(call)?;
        let mut coverage = Coverage::default();
        let mut failure = None;
        loop {
            match self.read_head()? {
                ReplyHead::Simple { cookie, .. } if cookie != request.cookie => {
                    return Err(Fault::Nonsense("answers another request"));
                }
                ReplyHead::Simple { error: Some(errno), .. } => {
                    return Err(Fault::Failed(errno, String::new()));
                }
                ReplyHead::Simple { error: None, .. } => return self.read_simple(call),
                ReplyHead::Chunk(chunk) => {
                    if chunk.cookie != request.cookie {
                        return Err(Fault::Nonsense("answers another request"));
                    }
                    if let Some(error) = self.read_chunk(chunk, call, &mut coverage)? {
                        failure.get_or_insert(error);
                    }
                    if chunk.done {
                        break;
                    }
                }
            }
        }
        if let Some((errno, message)) = failure {
            return Err(Fault::Failed(errno, message));
        }
        match &call.data {
            Data::Fill(buffer) if !coverage.is_whole(buffer.len()) => {
                Err(Fault::Nonsense("leaves out part of the data"))
            }
            Data::Extents(_, extents) if extents.is_empty() => {
                Err(Fault::Nonsense("leaves out the block status"))
            }
            _ => Ok(()),
        }
    }

    fn send(&mut self, call: &Call<'_>) -> io::Result<Request> {
        self.cookie += 1;
        let mut flags = call.flags;
        let payload = if let Data::Send(bytes) = call.data { bytes } else { &[] };
        if self.dialect == Dialect::Extended && call.command == Command::WRITE {
            flags = flags.with(CommandFlags::PAYLOAD_LEN);
        }
        let request = Request {
            flags,
            command: call.command,
            cookie: self.cookie,
            offset: call.range.start,
            length: call.range.len,
        };
        self.scratch.clear();
        request.push(&mut self.scratch, self.dialect);
        let channel = Channel::patient(self.socket.as_fd());
        if payload.len() <= SENT_TOGETHER {
            self.scratch.extend_from_slice(payload);
            channel.write_all(&self.scratch)?;
        } else {
            channel.write_all(&self.scratch)?;
            channel.write_all(payload)?;
        }
        Ok(request)
    }

    fn read_head(&self) -> std::result::Result<ReplyHead, Fault> {
        let channel = Channel::patient(self.socket.as_fd());
        let mut bytes = [0; 32];
        let mut here = 0;
        // The lengths of a simple, a structured and an extended head.
        for len in [ReplyHead::SHORTEST, 20, 32] {
            channel.read_exact(&mut bytes[here..len])?;
            here = len;
            match ReplyHead::parse(self.dialect, &bytes[..here]) {
                Ok(Some((head, _))) => return Ok(head),
                Ok(None) => {}
                Err(_) => break,
            }
        }
        Err(Fault::Nonsense("sends a reply with a wrong magic number"))
    }

    /// Reads what follows the head of a simple reply that reports success.
    fn read_simple(&self, call: &mut Call<'_>) -> std::result::Result<(), Fault> {
        match &mut call.data {
            Data::None | Data::Send(_) => Ok(()),
            Data::Fill(buffer) if self.dialect == Dialect::Simple => {
                Ok(Channel::patient(self.socket.as_fd()).read_exact(buffer)?)
            }
            Data::Fill(_) | Data::Extents(..) => {
                Err(Fault::Nonsense("sends a simple reply where a structured one has to be"))
            }
        }
    }

    /// Reads the payload of a chunk; the failure, if it reports one.
    fn read_chunk(
        &self,
        chunk: ChunkHead,
        call: &mut Call<'_>,
        coverage: &mut Coverage,
    ) -> std::result::Result<Option<(Errno, String)>, Fault> {
        let channel = Channel::patient(self.socket.as_fd());
        let malformed = || Fault::Nonsense("sends a malformed chunk");
        let len = usize::try_from(chunk.length.get()).map_err(|_| malformed())?;
        let range = call.range;
        match (chunk.kind, &mut call.data) {
            (ChunkKind::NONE, _) if len == 0 && chunk.done => {}
            (ChunkKind::OFFSET_DATA, Data::Fill(buffer)) if len > 8 => {
                let mut offset = [0; 8];
                channel.read_exact(&mut offset)?;
                let start = parse_data_offset(&offset).ok_or_else(malformed)?;
                let part = coverage.claim(range, start, len - 8).ok_or_else(malformed)?;
                channel.read_exact(&mut buffer[part])?;
            }
            (ChunkKind::OFFSET_HOLE, Data::Fill(buffer)) if len == 12 => {
                let hole = parse_hole(&channel.read_vec(len)?).ok_or_else(malformed)?;
                let part =
                    coverage.claim(range, hole.start, hole.len.as_usize()).ok_or_else(malformed)?;
                buffer[part].fill(0);
            }
            (kind, Data::Extents(id, extents))
                if kind == self.status_kind() && len <= 8 + MAX_STATUS_EXTENTS * 16 =>
            {
                let payload = channel.read_vec(len)?;
                let (context, found) = parse_status(kind, &payload).map_err(|_| malformed())?;
                if context == *id {
                    **extents = found;
                }
            }
            (kind, _) if kind.is_error() && len <= MAX_ERROR_PAYLOAD => {
                let payload = channel.read_vec(len)?;
                return Ok(Some(parse_error(&payload).ok_or_else(malformed)?));
            }
            _ => return Err(malformed()),
        }
        Ok(None)
    }

    fn status_kind(&self) -> ChunkKind {
        if self.dialect == Dialect::Extended {
            ChunkKind::BLOCK_STATUS_EXT
        } else {
            ChunkKind::BLOCK_STATUS
        }
    }
}

impl Coverage {
    /// The part of the buffer that `len` bytes at `start` belong in, if they lie inside the request
    /// and nothing else came for them.
    fn claim(
        &mut self,
        request: ByteRange,
        start: ByteOffset,
        len: usize,
    ) -> Option<std::ops::Range<usize>> {
        let part = ByteRange::checked(start, ByteCount::new(len as u64))?;
        if part.is_empty() || part.intersect(request) != part {
            return None;
        }
        let (start, end) = (part.start.get(), part.end().get());
        let behind = self.parts.partition_point(|&(other, _)| other < start);
        let clear = self.parts.get(behind).is_none_or(|&(next, _)| end <= next)
            && behind.checked_sub(1).is_none_or(|before| self.parts[before].1 <= start);
        if !clear {
            return None;
        }
        self.parts.insert(behind, (start, end));
        let offset = part.start.since(request.start).as_usize();
        Some(offset..offset + len)
    }

    /// Whether everything of a request of `len` bytes was claimed.
    fn is_whole(&self, len: usize) -> bool {
        self.parts.iter().map(|(start, end)| end - start).sum::<u64>() == len as u64
    }
}

/// What the server's error number means here.
fn failure(name: &str, errno: Errno, message: String) -> Error {
    let (kind, problem) = match errno {
        Errno::Perm => (ErrorKind::ReadOnly, "does not permit it"),
        Errno::Io => (ErrorKind::Io, "reports an I/O error"),
        Errno::NoMemory => (ErrorKind::Io, "is out of memory"),
        Errno::Invalid => (ErrorKind::Invalid, "refuses the request"),
        Errno::NoSpace => (ErrorKind::OutOfSpace, "has no space left"),
        Errno::Overflow => (ErrorKind::Invalid, "says that the request is too large"),
        Errno::NotSupported => (ErrorKind::Unsupported, "does not support it"),
        Errno::Shutdown => (ErrorKind::Stopped, "is shutting down"),
    };
    let error = Error::new(kind, name, problem);
    if message.is_empty() { error } else { error.because(message) }
}
