//! The wire format, without I/O: bytes to types and types to bytes.
//!
//! Everything is big-endian. Each parser takes a slice, checks every length against what is there
//! and against its limit before it allocates, and never reads on. [`walk`] strings the parsers
//! together over a whole recorded stream, which is also what fuzzing drives.

mod answer;
mod cursor;
mod handshake;
mod magic;
mod meta;
mod option;
mod reply;
mod request;
pub mod walk;

#[cfg(test)]
mod tests;

pub use answer::{Answer, AnswerHead, ErrorAnswer, InfoItem, push_answer, push_error};
pub use handshake::{
    CLIENT_FLAGS_LEN, ClientFlags, EXPORT_ANSWER_LEN, ExportAnswer, GREETING_LEN, Greeting,
};
pub use magic::{
    CommandFlags, Dialect, Errno, InfoType, MAX_PAYLOAD, MAX_STATUS_EXTENTS, MAX_STRING,
    OptionCode, ReplyType, TransmissionFlags,
};
pub use meta::{BASE_ALLOCATION, StatusExtent, parse_status, push_status, query_lists};
pub use option::{
    ClientOption, InfoQuery, MAX_OPTION_DATA, MetaQuery, OPTION_HEAD_LEN, OptionFault, OptionHead,
};
pub use reply::{
    Chunk, ChunkHead, ChunkKind, HeaderBytes, MAX_ERROR_PAYLOAD, ReplyHead, data_header,
    parse_data_offset, parse_error, parse_hole, push_ack, push_error_reply, push_hole,
};
pub use request::{Command, Request};
