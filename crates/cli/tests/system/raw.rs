//! An NBD client of bare bytes, without a line of the `nbd` crate: it does what no honest client
//! does, and sends many requests before it reads a reply.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long it waits for a server at most.
const LIMIT: Duration = Duration::from_secs(20);

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const FLUSH: u16 = 3;

/// Bytes of a reply without payload.
const REPLY: usize = 16;

pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
}

/// The answer to a request: its mark, and the error number, 0 for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Reply {
    pub(crate) cookie: u64,
    pub(crate) error: u32,
}

impl Raw {
    /// A connection on which nothing was said yet.
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Self { stream }
    }

    /// A connection to `export`, with simple replies.
    pub(crate) fn open(socket: &Path, export: &str) -> Self {
        let mut raw = Self::connect(socket);
        assert_eq!(raw.take::<18>()[..16], *b"NBDMAGICIHAVEOPT");
        // Fixed newstyle, no zeroes; NBD_OPT_EXPORT_NAME.
        let mut hello = vec![0, 0, 0, 3];
        hello.extend_from_slice(b"IHAVEOPT\0\0\0\x01");
        hello.extend_from_slice(&u32::try_from(export.len()).unwrap().to_be_bytes());
        hello.extend_from_slice(export.as_bytes());
        raw.stream.write_all(&hello).unwrap();
        // Size and flags.
        raw.take::<10>();
        raw
    }

    /// The next `N` bytes.
    pub(crate) fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads replies without payload up to the end of the connection, or until `most` are there.
    pub(crate) fn replies(&mut self, most: usize) -> Vec<Reply> {
        let mut replies = Vec::new();
        while replies.len() < most {
            let mut bytes = [0; REPLY];
            match self.stream.read(&mut bytes[..1]) {
                Ok(0) => break,
                Ok(_) => self.stream.read_exact(&mut bytes[1..]).unwrap(),
                Err(error) => panic!("no reply: {error}"),
            }
            assert_eq!(bytes[..4], 0x6744_6698_u32.to_be_bytes(), "the magic of a simple reply");
            replies.push(Reply {
                error: u32::from_be_bytes(bytes[4..8].try_into().unwrap()),
                cookie: u64::from_be_bytes(bytes[8..].try_into().unwrap()),
            });
        }
        replies
    }
}

/// The bytes of a request.
pub(crate) fn request(command: u16, cookie: u64, offset: u64, len: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&0u16.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}
