//! Walks over whole recorded streams, of either side. They use the parsers exactly as the server
//! and the client do, so they are the entries for fuzzing.

use super::answer::{Answer, AnswerHead};
use super::handshake::{CLIENT_FLAGS_LEN, ClientFlags, GREETING_LEN, Greeting};
use super::magic::{Dialect, MAX_PAYLOAD};
use super::meta::parse_status;
use super::option::{ClientOption, MAX_OPTION_DATA, OPTION_HEAD_LEN, OptionHead};
use super::reply::{ChunkKind, ReplyHead, parse_data_offset, parse_error, parse_hole};
use super::request::{Command, Request};

/// Reads a client's flags and options until the bytes end or break the protocol; the options that
/// could be read.
pub fn client_options(bytes: &[u8]) -> Vec<ClientOption> {
    let mut options = Vec::new();
    let Some((flags, mut rest)) = bytes.split_first_chunk::<CLIENT_FLAGS_LEN>() else {
        return options;
    };
    if ClientFlags::parse(*flags).is_none() {
        return options;
    }
    while let Some((head, behind)) = rest.split_first_chunk::<OPTION_HEAD_LEN>() {
        let Some(head) = OptionHead::parse(head) else { break };
        let Some((data, behind)) = behind.split_at_checked(head.len as usize) else { break };
        if head.len <= MAX_OPTION_DATA {
            options.extend(ClientOption::parse(head.code, data));
        }
        rest = behind;
    }
    options
}

/// Reads a client's requests until the bytes end or break the protocol; each with its payload.
pub fn client_requests(dialect: Dialect, bytes: &[u8]) -> Vec<(Request, &[u8])> {
    let mut requests = Vec::new();
    let mut rest = bytes;
    while let Ok(Some(request)) = Request::parse(dialect, rest) {
        let payload = request.payload_len(dialect);
        if payload.get() > MAX_PAYLOAD.into() {
            break;
        }
        let behind = &rest[Request::wire_len(dialect)..];
        let Some((payload, behind)) = behind.split_at_checked(payload.as_usize()) else { break };
        requests.push((request, payload));
        rest = behind;
        if request.command == Command::DISC {
            break;
        }
    }
    requests
}

/// Reads a server's greeting and answers to options; the answers that could be read.
pub fn server_answers(bytes: &[u8]) -> Vec<Answer> {
    let mut answers = Vec::new();
    if Greeting::parse(bytes).is_none() {
        return answers;
    }
    let mut rest = &bytes[GREETING_LEN..];
    while let Some((head, behind)) = rest.split_first_chunk::<{ AnswerHead::LEN }>() {
        let Some(head) = AnswerHead::parse(head) else { break };
        let Some((data, behind)) = behind.split_at_checked(head.len as usize) else { break };
        answers.extend(Answer::parse(head.reply, data));
        rest = behind;
    }
    answers
}

/// Reads a server's replies, none of which carries simple data; the heads whose payload made sense.
pub fn server_replies(dialect: Dialect, bytes: &[u8]) -> Vec<ReplyHead> {
    let mut heads = Vec::new();
    let mut rest = bytes;
    while let Ok(Some((head, len))) = ReplyHead::parse(dialect, rest) {
        rest = &rest[len..];
        if let ReplyHead::Chunk(chunk) = head {
            let Ok(length) = usize::try_from(chunk.length.get()) else { break };
            let Some((payload, behind)) = rest.split_at_checked(length) else { break };
            let sound = match chunk.kind {
                ChunkKind::NONE => payload.is_empty(),
                ChunkKind::OFFSET_DATA => parse_data_offset(payload).is_some(),
                ChunkKind::OFFSET_HOLE => parse_hole(payload).is_some(),
                ChunkKind::BLOCK_STATUS | ChunkKind::BLOCK_STATUS_EXT => {
                    parse_status(chunk.kind, payload).is_ok()
                }
                kind => kind.is_error() && parse_error(payload).is_some(),
            };
            if !sound {
                break;
            }
            rest = behind;
        }
        heads.push(head);
    }
    heads
}
