//! Requests of the transmission phase.

use block_types::{ByteCount, ByteOffset, Error, ErrorKind, Result};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::magic::{CommandFlags, Dialect, EXTENDED_REQUEST, REQUEST};

/// What a request wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Command(pub u16);

impl Command {
    /// Read a range.
    pub const READ: Self = Self(0);
    /// Write the payload at a range.
    pub const WRITE: Self = Self(1);
    /// Finish everything and close.
    pub const DISC: Self = Self(2);
    /// Make durable what was answered.
    pub const FLUSH: Self = Self(3);
    /// The range's content is not needed any more.
    pub const TRIM: Self = Self(4);
    /// The range will be read soon.
    pub const CACHE: Self = Self(5);
    /// Make a range read as zeros.
    pub const WRITE_ZEROES: Self = Self(6);
    /// What lies at a range, in the chosen metadata contexts.
    pub const BLOCK_STATUS: Self = Self(7);
}

/// A request, without its payload. Its range is not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// How to do it.
    pub flags: CommandFlags,
    /// What to do.
    pub command: Command,
    /// The client's mark, which the reply carries.
    pub cookie: u64,
    /// Where.
    pub offset: ByteOffset,
    /// How much: of the payload where one follows, else of the export.
    pub length: ByteCount,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Compact {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    length: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Extended {
    magic: U32,
    flags: U16,
    command: U16,
    cookie: U64,
    offset: U64,
    length: U64,
}

const _: () = assert!(size_of::<Compact>() == 28 && size_of::<Extended>() == 32);

impl Request {
    /// Bytes of a request without payload.
    pub const fn wire_len(dialect: Dialect) -> usize {
        match dialect {
            Dialect::Simple | Dialect::Structured => size_of::<Compact>(),
            Dialect::Extended => size_of::<Extended>(),
        }
    }

    /// Reads the request at the front of `bytes`; `None` if it is not whole yet.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if the magic is wrong: the stream is out of step for good.
    pub fn parse(dialect: Dialect, bytes: &[u8]) -> Result<Option<Self>> {
        let (magic, request) = if dialect == Dialect::Extended {
            let Ok((raw, _)) = Extended::ref_from_prefix(bytes) else { return Ok(None) };
            (raw.magic.get() == EXTENDED_REQUEST, raw.into())
        } else {
            let Ok((raw, _)) = Compact::ref_from_prefix(bytes) else { return Ok(None) };
            (raw.magic.get() == REQUEST, raw.into())
        };
        if !magic {
            return Err(Error::new(ErrorKind::Corrupt, "NBD request", "has a wrong magic number"));
        }
        Ok(Some(request))
    }

    /// Bytes of payload behind the request.
    pub fn payload_len(&self, dialect: Dialect) -> ByteCount {
        // A client of the extended dialect has to flag every payload. One that forgets the flag on
        // a write sends the payload all the same.
        let flagged =
            dialect == Dialect::Extended && self.flags.contains(CommandFlags::PAYLOAD_LEN);
        if self.command == Command::WRITE || flagged { self.length } else { ByteCount::ZERO }
    }

    /// Appends the request.
    ///
    /// # Panics
    /// If the length does not fit the dialect; callers cut requests to size first.
    pub fn push(&self, out: &mut Vec<u8>, dialect: Dialect) {
        if dialect == Dialect::Extended {
            let raw = Extended {
                magic: EXTENDED_REQUEST.into(),
                flags: self.flags.0.into(),
                command: self.command.0.into(),
                cookie: self.cookie.into(),
                offset: self.offset.get().into(),
                length: self.length.get().into(),
            };
            out.extend_from_slice(raw.as_bytes());
        } else {
            let length =
                u32::try_from(self.length.get()).expect("compact requests are cut to 4 GiB");
            let raw = Compact {
                magic: REQUEST.into(),
                flags: self.flags.0.into(),
                command: self.command.0.into(),
                cookie: self.cookie.into(),
                offset: self.offset.get().into(),
                length: length.into(),
            };
            out.extend_from_slice(raw.as_bytes());
        }
    }
}

impl From<&Compact> for Request {
    fn from(raw: &Compact) -> Self {
        Self {
            flags: CommandFlags(raw.flags.get()),
            command: Command(raw.command.get()),
            cookie: raw.cookie.get(),
            offset: ByteOffset::new(raw.offset.get()),
            length: ByteCount::new(raw.length.get().into()),
        }
    }
}

impl From<&Extended> for Request {
    fn from(raw: &Extended) -> Self {
        Self {
            flags: CommandFlags(raw.flags.get()),
            command: Command(raw.command.get()),
            cookie: raw.cookie.get(),
            offset: ByteOffset::new(raw.offset.get()),
            length: ByteCount::new(raw.length.get()),
        }
    }
}
