//! A client of bare bytes, which can do what no honest client does, and pipelines.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use block_types::{ByteCount, ByteOffset};
use nbd::wire::{
    Answer, AnswerHead, ChunkKind, ClientFlags, ClientOption, Command, CommandFlags, Dialect,
    Errno, GREETING_LEN, InfoQuery, MetaQuery, ReplyHead, ReplyType, Request, StatusExtent,
    parse_error, parse_hole, parse_status,
};

pub struct Raw {
    pub stream: UnixStream,
    pub dialect: Dialect,
    pub cookie: u64,
}

/// What a request was answered with.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reply {
    pub error: Option<Errno>,
    pub message: String,
    /// Runs of data and of holes, with their offsets.
    pub data: Vec<(u64, Vec<u8>)>,
    pub holes: Vec<(u64, u64)>,
    pub status: Vec<(u32, Vec<StatusExtent>)>,
}

impl Reply {
    /// The bytes of a READ of `len` bytes at `offset`.
    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        assert_eq!(self.error, None, "{}", self.message);
        let mut bytes = vec![0; len];
        let mut covered = 0;
        for (start, data) in &self.data {
            let start = (start - offset) as usize;
            bytes[start..start + data.len()].copy_from_slice(data);
            covered += data.len();
        }
        covered += self.holes.iter().map(|(_, len)| *len as usize).sum::<usize>();
        assert_eq!(covered, len, "the reply covers the request");
        bytes
    }
}

impl Raw {
    /// A socket that has sent nothing yet.
    pub fn connect(socket: &Path) -> UnixStream {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// A connection in transmission, to the export `disk`, with `contexts`.
    pub fn begin(socket: &Path, dialect: Dialect, contexts: &[&str]) -> Self {
        let mut stream = Self::connect(socket);
        let mut greeting = [0; GREETING_LEN];
        stream.read_exact(&mut greeting).unwrap();
        stream.write_all(&ClientFlags { no_zeroes: true }.to_bytes()).unwrap();
        match dialect {
            Dialect::Simple => {}
            Dialect::Structured => ack(&mut stream, &ClientOption::StructuredReply),
            Dialect::Extended => ack(&mut stream, &ClientOption::ExtendedHeaders),
        }
        if dialect != Dialect::Simple {
            let queries = contexts.iter().map(|&name| name.to_owned()).collect();
            let query = MetaQuery { name: "disk".to_owned(), queries };
            ack(&mut stream, &ClientOption::SetMetaContext(query));
        }
        let go = InfoQuery { name: "disk".to_owned(), wanted: Vec::new() };
        ack(&mut stream, &ClientOption::Go(go));
        Self { stream, dialect, cookie: 0 }
    }

    /// The bytes of a request, and its mark.
    pub fn request(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> (u64, Vec<u8>) {
        self.cookie += 1;
        let extra = if self.dialect == Dialect::Extended && command == Command::WRITE {
            CommandFlags::PAYLOAD_LEN
        } else {
            CommandFlags::NONE
        };
        let request = Request {
            flags: CommandFlags(flags).with(extra),
            command,
            cookie: self.cookie,
            offset: ByteOffset::new(offset),
            length: ByteCount::new(length),
        };
        let mut bytes = Vec::new();
        request.push(&mut bytes, self.dialect);
        bytes.extend_from_slice(payload);
        (self.cookie, bytes)
    }

    /// Sends a request and reads its reply.
    pub fn call(&mut self, command: Command, flags: u16, offset: u64, length: u64) -> Reply {
        self.call_with(command, flags, offset, length, &[])
    }

    pub fn call_with(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Reply {
        let (cookie, bytes) = self.request(command, flags, offset, length, payload);
        self.stream.write_all(&bytes).unwrap();
        let reads = if command == Command::READ {
            HashMap::from([(cookie, (offset, length as usize))])
        } else {
            HashMap::new()
        };
        self.replies(1, &reads).remove(&cookie).expect("the reply to this request")
    }

    /// Reads the replies to `count` requests; `reads` has offset and length of every READ.
    pub fn replies(
        &mut self,
        count: usize,
        reads: &HashMap<u64, (u64, usize)>,
    ) -> HashMap<u64, Reply> {
        let mut open: HashMap<u64, Reply> = HashMap::new();
        let mut done = HashMap::new();
        while done.len() < count {
            let (cookie, last) = match self.head() {
                ReplyHead::Simple { error, cookie } => {
                    let reply = open.entry(cookie).or_default();
                    reply.error = error;
                    if let (None, Some(&(offset, len))) = (error, reads.get(&cookie)) {
                        reply.data.push((offset, read(&mut self.stream, len)));
                    }
                    (cookie, true)
                }
                ReplyHead::Chunk(chunk) => {
                    let payload = read(&mut self.stream, chunk.length.as_usize());
                    let reply = open.entry(chunk.cookie).or_default();
                    add(reply, chunk.kind, &payload);
                    (chunk.cookie, chunk.done)
                }
            };
            if last {
                let reply = open.remove(&cookie).expect("just inserted");
                assert_eq!(done.insert(cookie, reply), None, "two replies to one request");
            }
        }
        done
    }

    fn head(&mut self) -> ReplyHead {
        let mut bytes = [0; 32];
        let mut here = 0;
        for len in [16, 20, 32] {
            self.stream.read_exact(&mut bytes[here..len]).unwrap();
            here = len;
            if let Some((head, used)) = ReplyHead::parse(self.dialect, &bytes[..here]).unwrap() {
                assert_eq!(used, here);
                return head;
            }
        }
        unreachable!("no head is longer");
    }

    /// Whether the server has closed the connection; waits for it.
    pub fn is_closed(&mut self) -> bool {
        closed(&mut self.stream)
    }
}

/// Whether the other end has closed; waits for it, and forgets what comes before.
pub fn closed(stream: &mut UnixStream) -> bool {
    let mut scratch = [0; 4096];
    loop {
        match stream.read(&mut scratch) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

fn add(reply: &mut Reply, kind: ChunkKind, payload: &[u8]) {
    match kind {
        ChunkKind::NONE => assert!(payload.is_empty()),
        ChunkKind::OFFSET_DATA => {
            let offset = u64::from_be_bytes(payload[..8].try_into().unwrap());
            reply.data.push((offset, payload[8..].to_vec()));
        }
        ChunkKind::OFFSET_HOLE => {
            let hole = parse_hole(payload).unwrap();
            reply.holes.push((hole.start.get(), hole.len.get()));
        }
        ChunkKind::BLOCK_STATUS | ChunkKind::BLOCK_STATUS_EXT => {
            reply.status.push(parse_status(kind, payload).unwrap());
        }
        ChunkKind::ERROR => {
            let (errno, message) = parse_error(payload).unwrap();
            (reply.error, reply.message) = (Some(errno), message);
        }
        other => panic!("unexpected chunk {other:?}"),
    }
}

fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Sends an option and reads answers until it is done.
fn ack(stream: &mut UnixStream, option: &ClientOption) {
    let mut bytes = Vec::new();
    option.push(&mut bytes);
    stream.write_all(&bytes).unwrap();
    assert_eq!(answers(stream).last(), Some(&Answer::Ack), "{option:?}");
}

/// Reads the answers to one option, the last one included.
pub fn answers(stream: &mut UnixStream) -> Vec<Answer> {
    let mut answers = Vec::new();
    loop {
        let head = read(stream, AnswerHead::LEN);
        let head = AnswerHead::parse(head.first_chunk().unwrap()).unwrap();
        let data = read(stream, head.len as usize);
        answers.push(Answer::parse(head.reply, &data).unwrap());
        if head.reply == ReplyType::ACK || head.reply.is_error() {
            return answers;
        }
    }
}
