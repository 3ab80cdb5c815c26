//! Options: what a client may ask before transmission begins.

use super::cursor::{Cursor, push_string};
use super::magic::{InfoType, MAX_STRING, OPTION, OptionCode, ReplyType};

/// Bytes of an option's head.
pub const OPTION_HEAD_LEN: usize = 16;
/// Longest data of an option that is looked at; longer ones are answered with TOO_BIG.
pub const MAX_OPTION_DATA: u32 = 64 << 10;

/// The head of an option; `len` bytes of data follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHead {
    /// Which option.
    pub code: OptionCode,
    /// Bytes of data.
    pub len: u32,
}

impl OptionHead {
    /// Reads a head; `None` if its magic is wrong, after which nothing can be understood.
    pub fn parse(bytes: &[u8; OPTION_HEAD_LEN]) -> Option<Self> {
        let mut fields = Cursor::new(bytes);
        if fields.u64()? != OPTION {
            return None;
        }
        Some(Self { code: OptionCode(fields.u32()?), len: fields.u32()? })
    }
}

/// What INFO and GO ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InfoQuery {
    /// The export; empty for the default one.
    pub name: String,
    /// What the client would like to know besides size and flags.
    pub wanted: Vec<InfoType>,
}

/// What LIST_META_CONTEXT and SET_META_CONTEXT ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetaQuery {
    /// The export.
    pub name: String,
    /// Contexts, or in LIST prefixes that end with a colon.
    pub queries: Vec<String>,
}

/// An option with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientOption {
    /// Choose an export and begin.
    ExportName(String),
    /// End the session.
    Abort,
    /// Name all exports.
    List,
    /// Begin TLS.
    StartTls,
    /// Describe an export.
    Info(InfoQuery),
    /// Describe an export, choose it and begin.
    Go(InfoQuery),
    /// Agree on structured replies.
    StructuredReply,
    /// Name metadata contexts.
    ListMetaContext(MetaQuery),
    /// Choose metadata contexts.
    SetMetaContext(MetaQuery),
    /// Agree on extended headers.
    ExtendedHeaders,
    /// Anything else.
    Unknown(OptionCode),
}

/// Why an option's data were refused: the answer to give, and words for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionFault {
    /// The answer.
    pub reply: ReplyType,
    /// The reason.
    pub reason: &'static str,
}

impl ClientOption {
    /// Reads the data of option `code`.
    ///
    /// # Errors
    /// The fault to answer with; the stream is still in step.
    pub fn parse(code: OptionCode, data: &[u8]) -> Result<Self, OptionFault> {
        let option = match code {
            OptionCode::EXPORT_NAME => {
                Cursor::new(data).text(data.len()).map(|name| Self::ExportName(name.to_owned()))
            }
            OptionCode::ABORT => Some(Self::Abort),
            OptionCode::LIST => bare(data, Self::List),
            OptionCode::STARTTLS => bare(data, Self::StartTls),
            OptionCode::INFO => parse_info(data).map(Self::Info),
            OptionCode::GO => parse_info(data).map(Self::Go),
            OptionCode::STRUCTURED_REPLY => bare(data, Self::StructuredReply),
            OptionCode::LIST_META_CONTEXT => parse_meta(data).map(Self::ListMetaContext),
            OptionCode::SET_META_CONTEXT => parse_meta(data).map(Self::SetMetaContext),
            OptionCode::EXTENDED_HEADERS => bare(data, Self::ExtendedHeaders),
            other => Some(Self::Unknown(other)),
        };
        option.ok_or(OptionFault {
            reply: ReplyType::ERR_INVALID,
            reason: "the option's data do not have its form",
        })
    }

    /// Appends the whole option, head and data.
    ///
    /// # Panics
    /// If a name is longer than [`MAX_STRING`]; callers check names first.
    pub fn push(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&OPTION.to_be_bytes());
        out.extend_from_slice(&self.code().0.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        match self {
            Self::ExportName(name) => out.extend_from_slice(name.as_bytes()),
            Self::Info(query) | Self::Go(query) => push_info(out, query),
            Self::ListMetaContext(query) | Self::SetMetaContext(query) => push_meta(out, query),
            Self::Abort
            | Self::List
            | Self::StartTls
            | Self::StructuredReply
            | Self::ExtendedHeaders
            | Self::Unknown(_) => {}
        }
        let len = out.len() - start - OPTION_HEAD_LEN;
        assert!(len <= MAX_OPTION_DATA as usize, "an option is bounded by its strings");
        out[start + 12..start + 16].copy_from_slice(&(len as u32).to_be_bytes());
    }

    /// The option's code.
    pub fn code(&self) -> OptionCode {
        match self {
            Self::ExportName(_) => OptionCode::EXPORT_NAME,
            Self::Abort => OptionCode::ABORT,
            Self::List => OptionCode::LIST,
            Self::StartTls => OptionCode::STARTTLS,
            Self::Info(_) => OptionCode::INFO,
            Self::Go(_) => OptionCode::GO,
            Self::StructuredReply => OptionCode::STRUCTURED_REPLY,
            Self::ListMetaContext(_) => OptionCode::LIST_META_CONTEXT,
            Self::SetMetaContext(_) => OptionCode::SET_META_CONTEXT,
            Self::ExtendedHeaders => OptionCode::EXTENDED_HEADERS,
            Self::Unknown(code) => *code,
        }
    }
}

/// An option that has no data.
fn bare(data: &[u8], option: ClientOption) -> Option<ClientOption> {
    data.is_empty().then_some(option)
}

fn parse_info(data: &[u8]) -> Option<InfoQuery> {
    let mut fields = Cursor::new(data);
    let name = fields.string()?.to_owned();
    let count = fields.u16()?;
    // The claim is held against the bytes that are there before anything is allocated.
    if fields.rest().len() != usize::from(count) * 2 {
        return None;
    }
    let wanted = (0..count).map(|_| fields.u16().map(InfoType)).collect::<Option<_>>()?;
    Some(InfoQuery { name, wanted })
}

fn push_info(out: &mut Vec<u8>, query: &InfoQuery) {
    push_string(out, &query.name);
    let count = u16::try_from(query.wanted.len()).expect("few kinds of information exist");
    out.extend_from_slice(&count.to_be_bytes());
    for wanted in &query.wanted {
        out.extend_from_slice(&wanted.0.to_be_bytes());
    }
}

fn parse_meta(data: &[u8]) -> Option<MetaQuery> {
    let mut fields = Cursor::new(data);
    let name = fields.string()?.to_owned();
    let count = usize::try_from(fields.u32()?).ok()?;
    // Each query takes its length word at least.
    if count > fields.rest().len() / 4 {
        return None;
    }
    let queries = (0..count).map(|_| fields.string().map(str::to_owned)).collect::<Option<_>>()?;
    fields.end()?;
    Some(MetaQuery { name, queries })
}

fn push_meta(out: &mut Vec<u8>, query: &MetaQuery) {
    debug_assert!(query.name.len() <= MAX_STRING, "callers check names");
    push_string(out, &query.name);
    let count = u32::try_from(query.queries.len()).expect("few queries");
    out.extend_from_slice(&count.to_be_bytes());
    for text in &query.queries {
        push_string(out, text);
    }
}
