//! Replies of the transmission phase: simple, structured, extended.

use std::ops::Deref;

use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::cursor::Cursor;
use super::magic::{CHUNK, Dialect, EXTENDED_CHUNK, Errno, MAX_STRING, SIMPLE_REPLY};
use super::request::Request;

/// Longest payload of an error chunk that is read: code, length, message, offset.
pub const MAX_ERROR_PAYLOAD: usize = 4 + 2 + MAX_STRING + 8;

const DONE: u16 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Simple {
    magic: U32,
    error: U32,
    cookie: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Structured {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    length: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Extended {
    magic: U32,
    flags: U16,
    kind: U16,
    cookie: U64,
    offset: U64,
    length: U64,
}

const _: () = assert!(
    size_of::<Simple>() == 16 && size_of::<Structured>() == 20 && size_of::<Extended>() == 32
);

/// What a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChunkKind(pub u16);

impl ChunkKind {
    /// Nothing; only says that the reply is done.
    pub const NONE: Self = Self(0);
    /// Bytes of the export.
    pub const OFFSET_DATA: Self = Self(1);
    /// A run of zeros.
    pub const OFFSET_HOLE: Self = Self(2);
    /// Extents of one metadata context, 32 bits each.
    pub const BLOCK_STATUS: Self = Self(5);
    /// Extents of one metadata context, 64 bits each.
    pub const BLOCK_STATUS_EXT: Self = Self(6);
    /// The command failed.
    pub const ERROR: Self = Self((1 << 15) + 1);
    /// The command failed from an offset on.
    pub const ERROR_OFFSET: Self = Self((1 << 15) + 2);

    /// Whether it reports a failure, also one that is not known by number.
    pub const fn is_error(self) -> bool {
        self.0 & (1 << 15) != 0
    }
}

/// The head of a chunk; `length` bytes of payload follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHead {
    /// The last chunk of its reply.
    pub done: bool,
    /// What follows.
    pub kind: ChunkKind,
    /// The mark of the request.
    pub cookie: u64,
    /// Bytes of payload.
    pub length: ByteCount,
}

/// A reply's first bytes, as a client reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHead {
    /// A simple reply; data follow a READ that succeeded.
    Simple {
        /// The failure, if it is one.
        error: Option<Errno>,
        /// The mark of the request.
        cookie: u64,
    },
    /// One chunk.
    Chunk(ChunkHead),
}

impl ReplyHead {
    /// The fewest bytes of any head.
    pub const SHORTEST: usize = size_of::<Simple>();

    /// Reads the head at the front of `bytes` and says how long it is; `None` if it is not whole.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if the magic is none of the dialect's.
    pub fn parse(dialect: Dialect, bytes: &[u8]) -> Result<Option<(Self, usize)>> {
        let Some(magic) = Cursor::new(bytes).u32() else { return Ok(None) };
        match (magic, dialect) {
            (SIMPLE_REPLY, Dialect::Simple | Dialect::Structured) => {
                let Ok((raw, _)) = Simple::ref_from_prefix(bytes) else { return Ok(None) };
                let error = Errno::from_code(raw.error.get());
                let head = Self::Simple { error, cookie: raw.cookie.get() };
                Ok(Some((head, size_of::<Simple>())))
            }
            (CHUNK, Dialect::Structured) => {
                let Ok((raw, _)) = Structured::ref_from_prefix(bytes) else { return Ok(None) };
                let head = ChunkHead {
                    done: raw.flags.get() & DONE != 0,
                    kind: ChunkKind(raw.kind.get()),
                    cookie: raw.cookie.get(),
                    length: ByteCount::new(raw.length.get().into()),
                };
                Ok(Some((Self::Chunk(head), size_of::<Structured>())))
            }
            (EXTENDED_CHUNK, Dialect::Extended) => {
                let Ok((raw, _)) = Extended::ref_from_prefix(bytes) else { return Ok(None) };
                let head = ChunkHead {
                    done: raw.flags.get() & DONE != 0,
                    kind: ChunkKind(raw.kind.get()),
                    cookie: raw.cookie.get(),
                    length: ByteCount::new(raw.length.get()),
                };
                Ok(Some((Self::Chunk(head), size_of::<Extended>())))
            }
            _ => Err(Error::new(ErrorKind::Corrupt, "NBD reply", "has a wrong magic number")),
        }
    }
}

/// The bytes of a reply up to its data, of a length that depends on the dialect.
#[derive(Clone, Copy, Debug)]
pub struct HeaderBytes {
    bytes: [u8; Self::LONGEST],
    len: usize,
}

impl HeaderBytes {
    /// The most bytes of any such header.
    pub const LONGEST: usize = size_of::<Extended>() + 8;

    fn of(parts: [&[u8]; 2]) -> Self {
        let mut bytes = [0; Self::LONGEST];
        let mut len = 0;
        for part in parts {
            bytes[len..len + part.len()].copy_from_slice(part);
            len += part.len();
        }
        Self { bytes, len }
    }
}

impl Deref for HeaderBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A chunk that a server is about to write: which, and whether it is the last.
#[derive(Clone, Copy, Debug)]
pub struct Chunk {
    /// What it holds.
    pub kind: ChunkKind,
    /// Bytes of its payload.
    pub payload: usize,
    /// The last chunk of its reply.
    pub done: bool,
}

impl Chunk {
    /// Appends the chunk's head as part of the reply to `request`.
    ///
    /// # Panics
    /// In the simple dialect, which has no chunks.
    pub fn push(self, out: &mut Vec<u8>, dialect: Dialect, request: &Request) {
        if dialect == Dialect::Extended {
            out.extend_from_slice(self.extended(request).as_bytes());
        } else {
            assert!(dialect == Dialect::Structured, "simple replies have no chunks");
            out.extend_from_slice(self.structured(request).as_bytes());
        }
    }

    fn structured(self, request: &Request) -> Structured {
        Structured {
            magic: CHUNK.into(),
            flags: u16::from(self.done).into(),
            kind: self.kind.0.into(),
            cookie: request.cookie.into(),
            // Payloads are bounded far below 4 GiB.
            length: (self.payload as u32).into(),
        }
    }

    fn extended(self, request: &Request) -> Extended {
        Extended {
            magic: EXTENDED_CHUNK.into(),
            flags: u16::from(self.done).into(),
            kind: self.kind.0.into(),
            cookie: request.cookie.into(),
            offset: request.offset.get().into(),
            length: (self.payload as u64).into(),
        }
    }
}

/// What stands before the bytes of `range` in the reply to a READ that succeeded.
pub fn data_header(
    dialect: Dialect,
    request: &Request,
    range: ByteRange,
    done: bool,
) -> HeaderBytes {
    let offset = range.start.get().to_be_bytes();
    let payload = range.len.as_usize() + offset.len();
    let chunk = Chunk { kind: ChunkKind::OFFSET_DATA, payload, done };
    match dialect {
        Dialect::Simple => HeaderBytes::of([simple(request, 0).as_bytes(), &[]]),
        Dialect::Structured => HeaderBytes::of([chunk.structured(request).as_bytes(), &offset]),
        Dialect::Extended => HeaderBytes::of([chunk.extended(request).as_bytes(), &offset]),
    }
}

/// Appends a chunk that says that `range` is zeros.
pub fn push_hole(
    out: &mut Vec<u8>,
    dialect: Dialect,
    request: &Request,
    range: ByteRange,
    done: bool,
) {
    Chunk { kind: ChunkKind::OFFSET_HOLE, payload: 12, done }.push(out, dialect, request);
    out.extend_from_slice(&range.start.get().to_be_bytes());
    // A READ is bounded by the maximum payload, so the length fits.
    out.extend_from_slice(&(range.len.get() as u32).to_be_bytes());
}

/// Appends the reply to a request that succeeded and has nothing to return.
pub fn push_ack(out: &mut Vec<u8>, dialect: Dialect, request: &Request) {
    match dialect {
        Dialect::Simple => out.extend_from_slice(simple(request, 0).as_bytes()),
        Dialect::Structured | Dialect::Extended => {
            Chunk { kind: ChunkKind::NONE, payload: 0, done: true }.push(out, dialect, request);
        }
    }
}

/// Appends the reply to a request that failed; the words go along where the dialect has room.
pub fn push_error_reply(
    out: &mut Vec<u8>,
    dialect: Dialect,
    request: &Request,
    errno: Errno,
    message: &str,
) {
    if dialect == Dialect::Simple {
        out.extend_from_slice(simple(request, errno.code()).as_bytes());
        return;
    }
    let mut end = message.len().min(MAX_STRING);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    Chunk { kind: ChunkKind::ERROR, payload: 6 + end, done: true }.push(out, dialect, request);
    out.extend_from_slice(&errno.code().to_be_bytes());
    out.extend_from_slice(&(end as u16).to_be_bytes());
    out.extend_from_slice(&message.as_bytes()[..end]);
}

/// The offset at the front of an OFFSET_DATA chunk.
pub fn parse_data_offset(payload: &[u8]) -> Option<ByteOffset> {
    Cursor::new(payload).u64().map(ByteOffset::new)
}

/// The range of an OFFSET_HOLE chunk.
pub fn parse_hole(payload: &[u8]) -> Option<ByteRange> {
    let mut fields = Cursor::new(payload);
    let start = ByteOffset::new(fields.u64()?);
    let len = ByteCount::new(fields.u32()?.into());
    fields.end()?;
    ByteRange::checked(start, len)
}

/// The error and the words of an error chunk. An unknown kind of error chunk begins alike.
pub fn parse_error(payload: &[u8]) -> Option<(Errno, String)> {
    let mut fields = Cursor::new(payload);
    // Zero is no error; a chunk that reports it all the same counts as EINVAL.
    let errno = Errno::from_code(fields.u32()?).unwrap_or(Errno::Invalid);
    let len = usize::from(fields.u16()?);
    let message = fields.rest().get(..len)?;
    Some((errno, String::from_utf8_lossy(message).into_owned()))
}

fn simple(request: &Request, error: u32) -> Simple {
    Simple { magic: SIMPLE_REPLY.into(), error: error.into(), cookie: request.cookie.into() }
}
