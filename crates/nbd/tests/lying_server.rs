//! Servers that break the protocol: the client says so, touches nothing outside its buffer, and
//! uses the connection no more.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it has to be")]

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use nbd::Client;
use nbd::wire::{
    Answer, Chunk, ChunkKind, Dialect, Errno, ErrorAnswer, Greeting, InfoItem, OptionCode,
    OptionHead, ReplyType, Request, StatusExtent, TransmissionFlags, data_header, push_ack,
    push_error_reply, push_hole, push_status,
};

const LEN: usize = 4096;
const START: u64 = 8192;

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(ByteOffset::new(start), ByteCount::new(len))
}

/// Appends a reply to a request.
type Lie = fn(&Request, &mut Vec<u8>);

/// Answers one option as a server with structured replies and `base:allocation` does.
fn answers(code: OptionCode, size: InfoItem) -> Vec<Answer> {
    match code {
        OptionCode::EXTENDED_HEADERS => {
            let reply = ReplyType::ERR_UNSUP;
            vec![Answer::Error(ErrorAnswer { reply, message: String::new() })]
        }
        OptionCode::SET_META_CONTEXT => {
            vec![Answer::MetaContext { id: 1, name: "base:allocation".to_owned() }, Answer::Ack]
        }
        OptionCode::GO => vec![Answer::Info(size), Answer::Ack],
        _ => vec![Answer::Ack],
    }
}

/// A server that is honest until transmission begins, and answers the first request with what
/// `reply` makes of it.
fn server(
    reply: impl FnOnce(&Request) -> Vec<u8> + Send + 'static,
) -> (UnixStream, JoinHandle<()>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let size = InfoItem::Export { size: ByteCount::new(1 << 20), flags: TransmissionFlags(0x65) };
    let thread = std::thread::spawn(move || {
        theirs.write_all(&Greeting { no_zeroes: true }.to_bytes()).unwrap();
        theirs.read_exact(&mut [0; 4]).unwrap();
        loop {
            let mut head = [0; 16];
            theirs.read_exact(&mut head).unwrap();
            let head = OptionHead::parse(&head).unwrap();
            theirs.read_exact(&mut vec![0; head.len as usize]).unwrap();
            let mut out = Vec::new();
            for answer in answers(head.code, size.clone()) {
                answer.push(&mut out, head.code);
            }
            theirs.write_all(&out).unwrap();
            if head.code == OptionCode::GO {
                break;
            }
        }
        let mut head = [0; 28];
        theirs.read_exact(&mut head).unwrap();
        let request = Request::parse(Dialect::Structured, &head).unwrap().unwrap();
        theirs.write_all(&reply(&request)).unwrap();
    });
    (ours, thread)
}

fn client(stream: UnixStream) -> Client {
    Client::over(stream.into(), "", "liar", Dialect::Extended).unwrap()
}

fn read(client: &Client) -> Result<Vec<u8>> {
    let mut buffer = vec![0xAA; LEN];
    client.read_at(&mut buffer, ByteOffset::new(START)).map(|()| buffer)
}

/// What the client makes of such a reply to a READ.
fn read_from(reply: impl FnOnce(&Request, &mut Vec<u8>) + Send + 'static) -> Result<Vec<u8>> {
    let (stream, thread) = server(|request| {
        let mut out = Vec::new();
        reply(request, &mut out);
        out
    });
    let client = client(stream);
    let result = read(&client);
    thread.join().unwrap();
    if let Err(error) = &result
        && error.kind() == ErrorKind::Corrupt
    {
        assert_eq!(read(&client).unwrap_err().kind(), ErrorKind::Stopped, "{error}");
    }
    result
}

fn data(out: &mut Vec<u8>, request: &Request, start: u64, len: u64, done: bool) {
    let header = data_header(Dialect::Structured, request, range(start, len), done);
    out.extend_from_slice(&header);
    out.resize(out.len() + len as usize, 7);
}

fn hole(out: &mut Vec<u8>, request: &Request, start: u64, len: u64, done: bool) {
    push_hole(out, Dialect::Structured, request, range(start, len), done);
}

#[test]
fn chunks_in_any_order_are_put_together() {
    let bytes = read_from(|request, out| {
        data(out, request, START + 3072, 1024, false);
        hole(out, request, START + 1024, 2048, false);
        data(out, request, START, 1024, false);
        push_ack(out, Dialect::Structured, request);
    })
    .unwrap();
    let expected: Vec<u8> =
        (0..LEN).map(|at| if (1024..3072).contains(&at) { 0 } else { 7 }).collect();
    assert_eq!(bytes, expected);
}

#[test]
fn an_error_chunk_voids_the_data_and_the_connection_goes_on() {
    let (stream, thread) = server(|request| {
        let mut out = Vec::new();
        data(&mut out, request, START, 1024, false);
        push_error_reply(&mut out, Dialect::Structured, request, Errno::Io, "bad sector");
        out
    });
    let client = client(stream);
    let error: Error = read(&client).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains("bad sector"), "{error}");
    thread.join().unwrap();
    assert_ne!(read(&client).unwrap_err().kind(), ErrorKind::Stopped, "tried again");
}

#[test]
fn replies_that_are_no_answer_to_the_request() {
    let cases: [(&str, Lie); 12] = [
        ("another cookie", |request, out| {
            let other = Request { cookie: request.cookie + 1, ..*request };
            data(out, &other, START, LEN as u64, true);
        }),
        ("before the request", |request, out| data(out, request, START - 512, 4096, true)),
        ("behind the request", |request, out| data(out, request, START + 512, 4096, true)),
        ("a hole at the end of the world", |request, out| {
            let chunk = Chunk { kind: ChunkKind::OFFSET_HOLE, payload: 12, done: true };
            chunk.push(out, Dialect::Structured, request);
            out.extend_from_slice(&[0xff; 12]);
        }),
        ("the same bytes twice", |request, out| {
            data(out, request, START, 2048, false);
            data(out, request, START + 1024, 3072, true);
        }),
        ("a hole over data", |request, out| {
            data(out, request, START, 4096, false);
            hole(out, request, START + 512, 512, true);
        }),
        ("not all", |request, out| data(out, request, START, 4095, true)),
        ("nothing", |request, out| push_ack(out, Dialect::Structured, request)),
        ("data of a huge length", |request, out| {
            let chunk = Chunk { kind: ChunkKind::OFFSET_DATA, payload: 0xffff_ffff, done: true };
            chunk.push(out, Dialect::Structured, request);
            out.extend_from_slice(&START.to_be_bytes());
        }),
        ("block status", |request, out| {
            let extent = StatusExtent { length: ByteCount::new(4096), flags: 0 };
            push_status(out, Dialect::Structured, request, 1, &[extent], true);
        }),
        ("an unknown chunk", |request, out| {
            Chunk { kind: ChunkKind(77), payload: 0, done: true }.push(
                out,
                Dialect::Structured,
                request,
            );
        }),
        ("a simple reply", |request, out| {
            push_ack(out, Dialect::Simple, request);
            out.resize(out.len() + LEN, 7);
        }),
    ];
    for (what, reply) in cases {
        let error = read_from(reply).expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
}

#[test]
fn a_server_that_leaves_is_an_io_error() {
    let error = read_from(|_, out| out.extend_from_slice(&[0x66, 0x8e])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
}

#[test]
fn block_status_that_says_nothing_or_never_ends() {
    let extents: [&[u64]; 3] = [&[], &[0], &[4096, 0]];
    for lengths in extents {
        let (stream, thread) = server(|request| {
            let extent = |&len| StatusExtent { length: ByteCount::new(len), flags: 0 };
            let extents: Vec<_> = lengths.iter().map(extent).collect();
            let mut out = Vec::new();
            push_status(&mut out, Dialect::Structured, request, 1, &extents, true);
            out
        });
        let client = client(stream);
        let error = client
            .extents(range(0, 1 << 20), &mut |_| ControlFlow::Continue(()))
            .expect_err("nonsense");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{lengths:?}: {error}");
        thread.join().unwrap();
    }
}

#[test]
fn servers_that_are_none() {
    for greeting in [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], &[0; 18], b"NBDMAGICIHAVEOPT\0\0"] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(greeting).unwrap();
        let error = Client::over(ours.into(), "", "liar", Dialect::Extended).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}
