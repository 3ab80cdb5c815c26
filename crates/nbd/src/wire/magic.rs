//! The protocol's numbers: magics, codes, flags, limits.

/// Greeting of the server: `NBDMAGIC`.
pub(super) const GREETING: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting, and head of every option: `IHAVEOPT`.
pub(super) const OPTION: u64 = 0x4948_4156_454f_5054;
/// Head of every answer to an option.
pub(super) const ANSWER: u64 = 0x0003_e889_0455_65a9;
/// Head of a request.
pub(super) const REQUEST: u32 = 0x2560_9513;
/// Head of a request with extended headers.
pub(super) const EXTENDED_REQUEST: u32 = 0x21e4_1c71;
/// Head of a simple reply.
pub(super) const SIMPLE_REPLY: u32 = 0x6744_6698;
/// Head of a chunk of a structured reply.
pub(super) const CHUNK: u32 = 0x668e_33ef;
/// Head of a chunk with extended headers.
pub(super) const EXTENDED_CHUNK: u32 = 0x6e8a_278c;

/// Longest payload of one message that every side accepts, in bytes.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// Longest string, in bytes.
pub const MAX_STRING: usize = 4096;
/// Most extents in one answer to BLOCK_STATUS.
pub const MAX_STATUS_EXTENTS: usize = 1 << 20;

/// Which form requests and replies have; agreed in the handshake.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dialect {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended requests and replies: lengths of 64 bits.
    Extended,
}

/// What an option is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OptionCode(pub u32);

impl OptionCode {
    /// Choose an export and begin, without an answer that could carry an error.
    pub const EXPORT_NAME: Self = Self(1);
    /// End the session.
    pub const ABORT: Self = Self(2);
    /// Name all exports.
    pub const LIST: Self = Self(3);
    /// Begin TLS.
    pub const STARTTLS: Self = Self(5);
    /// Describe an export.
    pub const INFO: Self = Self(6);
    /// Describe an export, choose it and begin.
    pub const GO: Self = Self(7);
    /// Agree on structured replies.
    pub const STRUCTURED_REPLY: Self = Self(8);
    /// Name the metadata contexts of an export.
    pub const LIST_META_CONTEXT: Self = Self(9);
    /// Choose metadata contexts of an export.
    pub const SET_META_CONTEXT: Self = Self(10);
    /// Agree on extended headers.
    pub const EXTENDED_HEADERS: Self = Self(11);
}

/// What an answer to an option says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplyType(pub u32);

impl ReplyType {
    /// Done.
    pub const ACK: Self = Self(1);
    /// One export's name.
    pub const SERVER: Self = Self(2);
    /// One piece of information about an export.
    pub const INFO: Self = Self(3);
    /// One metadata context.
    pub const META_CONTEXT: Self = Self(4);
    /// The option is not known or not offered.
    pub const ERR_UNSUP: Self = Self(0x8000_0001);
    /// The server's policy forbids it.
    pub const ERR_POLICY: Self = Self(0x8000_0002);
    /// The option makes no sense, here or at all.
    pub const ERR_INVALID: Self = Self(0x8000_0003);
    /// The server's machine cannot do it.
    pub const ERR_PLATFORM: Self = Self(0x8000_0004);
    /// TLS has to be begun first.
    pub const ERR_TLS_REQD: Self = Self(0x8000_0005);
    /// There is no such export.
    pub const ERR_UNKNOWN: Self = Self(0x8000_0006);
    /// The server is shutting down.
    pub const ERR_SHUTDOWN: Self = Self(0x8000_0007);
    /// The client has to ask for block sizes.
    pub const ERR_BLOCK_SIZE_REQD: Self = Self(0x8000_0008);
    /// The option is too long.
    pub const ERR_TOO_BIG: Self = Self(0x8000_0009);
    /// Extended headers are agreed, or needed.
    pub const ERR_EXT_HEADER_REQD: Self = Self(0x8000_000a);

    /// Whether it is an error, which ends the answer.
    pub const fn is_error(self) -> bool {
        self.0 & 0x8000_0000 != 0
    }
}

/// What a piece of information about an export is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InfoType(pub u16);

impl InfoType {
    /// Size and transmission flags.
    pub const EXPORT: Self = Self(0);
    /// Canonical name.
    pub const NAME: Self = Self(1);
    /// Description for people.
    pub const DESCRIPTION: Self = Self(2);
    /// Block sizes.
    pub const BLOCK_SIZE: Self = Self(3);
}

/// What an export can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmissionFlags(pub u16);

impl TransmissionFlags {
    /// Always set.
    pub const HAS_FLAGS: Self = Self(1);
    /// Writes are refused.
    pub const READ_ONLY: Self = Self(1 << 1);
    /// FLUSH is understood.
    pub const FLUSH: Self = Self(1 << 2);
    /// The FUA flag is understood.
    pub const FUA: Self = Self(1 << 3);
    /// TRIM is understood.
    pub const TRIM: Self = Self(1 << 5);
    /// WRITE_ZEROES is understood.
    pub const WRITE_ZEROES: Self = Self(1 << 6);
    /// The DF flag is understood.
    pub const DF: Self = Self(1 << 7);
    /// A flush on one connection covers the writes of all.
    pub const MULTI_CONN: Self = Self(1 << 8);
    /// CACHE is understood.
    pub const CACHE: Self = Self(1 << 10);
    /// The FAST_ZERO flag is understood.
    pub const FAST_ZERO: Self = Self(1 << 11);

    /// Whether all flags of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags, and those of `other` if `on`.
    #[must_use]
    pub const fn with(self, other: Self, on: bool) -> Self {
        if on { Self(self.0 | other.0) } else { self }
    }
}

/// How a command is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandFlags(pub u16);

impl CommandFlags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Durable before the answer.
    pub const FUA: Self = Self(1);
    /// Zeros have to take space.
    pub const NO_HOLE: Self = Self(1 << 1);
    /// One chunk of content only.
    pub const DF: Self = Self(1 << 2);
    /// One extent only.
    pub const REQ_ONE: Self = Self(1 << 3);
    /// Fail rather than write zeros like data.
    pub const FAST_ZERO: Self = Self(1 << 4);
    /// The length is that of a payload that follows.
    pub const PAYLOAD_LEN: Self = Self(1 << 5);

    /// Whether all flags of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether nothing but flags of `allowed` is set.
    pub const fn within(self, allowed: Self) -> bool {
        self.0 & !allowed.0 == 0
    }

    /// These flags and those of `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Why a command failed, as the wire says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Errno {
    /// Not permitted: a write to something read-only.
    Perm,
    /// I/O error.
    Io,
    /// Out of memory.
    NoMemory,
    /// The arguments make no sense.
    Invalid,
    /// No space left, or a write past the end.
    NoSpace,
    /// The answer would be too large.
    Overflow,
    /// Not supported.
    NotSupported,
    /// The server is shutting down.
    Shutdown,
}

impl Errno {
    const TABLE: [(Self, u32); 8] = [
        (Self::Perm, 1),
        (Self::Io, 5),
        (Self::NoMemory, 12),
        (Self::Invalid, 22),
        (Self::NoSpace, 28),
        (Self::Overflow, 75),
        (Self::NotSupported, 95),
        (Self::Shutdown, 108),
    ];

    /// The number on the wire.
    pub fn code(self) -> u32 {
        Self::TABLE.iter().find(|(errno, _)| *errno == self).map_or(22, |(_, code)| *code)
    }

    /// What `code` stands for; an unknown number counts as EINVAL, and 0 is no error.
    pub fn from_code(code: u32) -> Option<Self> {
        if code == 0 {
            return None;
        }
        Self::TABLE
            .iter()
            .find(|(_, known)| *known == code)
            .map_or(Some(Self::Invalid), |(errno, _)| Some(*errno))
    }
}
