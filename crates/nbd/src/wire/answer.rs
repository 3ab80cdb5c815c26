//! Answers to options.

use block_types::ByteCount;

use super::cursor::{Cursor, push_string};
use super::magic::{ANSWER, InfoType, OptionCode, ReplyType, TransmissionFlags};

/// One piece of information about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InfoItem {
    /// Size and abilities.
    Export {
        /// Size of the export.
        size: ByteCount,
        /// What it can do.
        flags: TransmissionFlags,
    },
    /// Canonical name.
    Name(String),
    /// Description for people.
    Description(String),
    /// Block sizes, in bytes.
    BlockSize {
        /// Requests are multiples of this.
        minimum: u32,
        /// Requests of this size are served best.
        preferred: u32,
        /// Longest payload of one request.
        maximum: u32,
    },
    /// Something newer.
    Other(InfoType),
}

impl InfoItem {
    /// The data of an INFO answer.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let code = match self {
            Self::Export { .. } => InfoType::EXPORT,
            Self::Name(_) => InfoType::NAME,
            Self::Description(_) => InfoType::DESCRIPTION,
            Self::BlockSize { .. } => InfoType::BLOCK_SIZE,
            Self::Other(code) => *code,
        };
        out.extend_from_slice(&code.0.to_be_bytes());
        match self {
            Self::Export { size, flags } => {
                out.extend_from_slice(&size.get().to_be_bytes());
                out.extend_from_slice(&flags.0.to_be_bytes());
            }
            Self::Name(text) | Self::Description(text) => out.extend_from_slice(text.as_bytes()),
            Self::BlockSize { minimum, preferred, maximum } => {
                for size in [minimum, preferred, maximum] {
                    out.extend_from_slice(&size.to_be_bytes());
                }
            }
            Self::Other(_) => {}
        }
        out
    }

    fn parse(data: &[u8]) -> Option<Self> {
        let mut fields = Cursor::new(data);
        let item = match InfoType(fields.u16()?) {
            InfoType::EXPORT => {
                let size = ByteCount::new(fields.u64()?);
                Self::Export { size, flags: TransmissionFlags(fields.u16()?) }
            }
            InfoType::NAME => Self::Name(fields.text(fields.rest().len())?.to_owned()),
            InfoType::DESCRIPTION => {
                Self::Description(fields.text(fields.rest().len())?.to_owned())
            }
            InfoType::BLOCK_SIZE => Self::BlockSize {
                minimum: fields.u32()?,
                preferred: fields.u32()?,
                maximum: fields.u32()?,
            },
            other => return Some(Self::Other(other)),
        };
        if !matches!(item, Self::Name(_) | Self::Description(_)) {
            fields.end()?;
        }
        Some(item)
    }
}

/// The head of an answer; `len` bytes of data follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerHead {
    /// The option that is answered.
    pub option: OptionCode,
    /// What the answer says.
    pub reply: ReplyType,
    /// Bytes of data.
    pub len: u32,
}

impl AnswerHead {
    /// Bytes of a head.
    pub const LEN: usize = 20;

    /// Reads a head; `None` if its magic is wrong.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let mut fields = Cursor::new(bytes);
        if fields.u64()? != ANSWER {
            return None;
        }
        let option = OptionCode(fields.u32()?);
        Some(Self { option, reply: ReplyType(fields.u32()?), len: fields.u32()? })
    }
}

/// An error answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorAnswer {
    /// Which error.
    pub reply: ReplyType,
    /// The server's words, perhaps none.
    pub message: String,
}

/// An answer with its data, as a client reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Ack,
    /// One export.
    Server {
        /// Its name.
        name: String,
        /// What else the server says about it.
        description: String,
    },
    /// One piece of information.
    Info(InfoItem),
    /// One metadata context.
    MetaContext {
        /// Its number in BLOCK_STATUS.
        id: u32,
        /// Its name.
        name: String,
    },
    /// Refused.
    Error(ErrorAnswer),
}

impl Answer {
    /// Reads the data of an answer; `None` if they do not have its form.
    pub fn parse(reply: ReplyType, data: &[u8]) -> Option<Self> {
        let mut fields = Cursor::new(data);
        match reply {
            ReplyType::ACK => fields.end().map(|()| Self::Ack),
            ReplyType::SERVER => {
                let name = fields.string()?.to_owned();
                let description = fields.text(fields.rest().len())?.to_owned();
                Some(Self::Server { name, description })
            }
            ReplyType::INFO => InfoItem::parse(data).map(Self::Info),
            ReplyType::META_CONTEXT => {
                let id = fields.u32()?;
                let name = fields.text(fields.rest().len())?.to_owned();
                Some(Self::MetaContext { id, name })
            }
            error if error.is_error() => {
                let message = String::from_utf8_lossy(data).into_owned();
                Some(Self::Error(ErrorAnswer { reply: error, message }))
            }
            _ => None,
        }
    }

    /// Appends the answer to `option`, head and data.
    pub fn push(&self, out: &mut Vec<u8>, option: OptionCode) {
        let mut data = Vec::new();
        let reply = match self {
            Self::Ack => ReplyType::ACK,
            Self::Server { name, description } => {
                push_string(&mut data, name);
                data.extend_from_slice(description.as_bytes());
                ReplyType::SERVER
            }
            Self::Info(item) => {
                data = item.to_bytes();
                ReplyType::INFO
            }
            Self::MetaContext { id, name } => {
                data.extend_from_slice(&id.to_be_bytes());
                data.extend_from_slice(name.as_bytes());
                ReplyType::META_CONTEXT
            }
            Self::Error(error) => {
                data.extend_from_slice(error.message.as_bytes());
                error.reply
            }
        };
        push_answer(out, option, reply, &data);
    }
}

/// Appends an answer's head and data.
pub fn push_answer(out: &mut Vec<u8>, option: OptionCode, reply: ReplyType, data: &[u8]) {
    let len = u32::try_from(data.len()).expect("answers are bounded by their strings");
    out.extend_from_slice(&ANSWER.to_be_bytes());
    out.extend_from_slice(&option.0.to_be_bytes());
    out.extend_from_slice(&reply.0.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(data);
}

/// Appends an error answer with words for people.
pub fn push_error(out: &mut Vec<u8>, option: OptionCode, reply: ReplyType, message: &str) {
    push_answer(out, option, reply, message.as_bytes());
}
