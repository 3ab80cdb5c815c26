//! The first words of both sides, and the bare answer to EXPORT_NAME.

use block_types::ByteCount;

use super::cursor::Cursor;
use super::magic::{GREETING, OPTION, TransmissionFlags};

/// Bytes of the server's greeting.
pub const GREETING_LEN: usize = 18;
/// Bytes of the client's flags.
pub const CLIENT_FLAGS_LEN: usize = 4;
/// Bytes of the answer to EXPORT_NAME without its padding.
pub const EXPORT_ANSWER_LEN: usize = 10;
/// Zeros behind the answer to EXPORT_NAME unless both sides agreed to leave them out.
const PADDING: usize = 124;

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;

/// The server's greeting, fixed newstyle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The server can do without the padding of EXPORT_NAME.
    pub no_zeroes: bool,
}

impl Greeting {
    /// The greeting's bytes.
    pub fn to_bytes(self) -> [u8; GREETING_LEN] {
        let flags = FIXED_NEWSTYLE | if self.no_zeroes { NO_ZEROES } else { 0 };
        let mut bytes = [0; GREETING_LEN];
        bytes[..8].copy_from_slice(&GREETING.to_be_bytes());
        bytes[8..16].copy_from_slice(&OPTION.to_be_bytes());
        bytes[16..].copy_from_slice(&flags.to_be_bytes());
        bytes
    }

    /// Reads a greeting; `None` if it is not that of a fixed newstyle server.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Cursor::new(bytes);
        let magics = (fields.u64()?, fields.u64()?);
        let flags = fields.u16()?;
        (magics == (GREETING, OPTION) && flags & FIXED_NEWSTYLE != 0)
            .then_some(Self { no_zeroes: flags & NO_ZEROES != 0 })
    }
}

/// The client's answer to the greeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientFlags {
    /// The padding of EXPORT_NAME is left out.
    pub no_zeroes: bool,
}

impl ClientFlags {
    /// The flags' bytes.
    pub fn to_bytes(self) -> [u8; CLIENT_FLAGS_LEN] {
        let flags = FIXED_NEWSTYLE | if self.no_zeroes { NO_ZEROES } else { 0 };
        u32::from(flags).to_be_bytes()
    }

    /// Reads the flags; `None` if there are unknown ones, or the client is not a fixed newstyle
    /// one: the server has to close then.
    pub fn parse(bytes: [u8; CLIENT_FLAGS_LEN]) -> Option<Self> {
        let flags = u32::from_be_bytes(bytes);
        let known = u32::from(FIXED_NEWSTYLE | NO_ZEROES);
        (flags & !known == 0 && flags & u32::from(FIXED_NEWSTYLE) != 0)
            .then_some(Self { no_zeroes: flags & u32::from(NO_ZEROES) != 0 })
    }
}

/// The answer to EXPORT_NAME, which has no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportAnswer {
    /// Size of the export.
    pub size: ByteCount,
    /// What it can do.
    pub flags: TransmissionFlags,
}

impl ExportAnswer {
    /// Appends the answer, padded unless `no_zeroes` was agreed.
    pub fn push(self, out: &mut Vec<u8>, no_zeroes: bool) {
        out.extend_from_slice(&self.size.get().to_be_bytes());
        out.extend_from_slice(&self.flags.0.to_be_bytes());
        if !no_zeroes {
            out.extend_from_slice(&[0; PADDING]);
        }
    }

    /// Reads the answer, without the padding.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields = Cursor::new(bytes);
        let size = ByteCount::new(fields.u64()?);
        Some(Self { size, flags: TransmissionFlags(fields.u16()?) })
    }
}
