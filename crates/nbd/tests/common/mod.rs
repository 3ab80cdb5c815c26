//! What the tests share: a server on a socket in a directory of its own, and raw clients.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "every test file uses another part of this"
)]

pub mod patchwork;
pub mod raw;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use block_io::{BlockDevice, CacheMode, HostFile, QueueChoice};
use block_types::{ByteCount, ByteOffset};
use nbd::wire::Dialect;
use nbd::{Client, Export, ExportTable, Listener, Server, ServerOptions, Uri};
use tempfile::TempDir;

pub const DIALECTS: [Dialect; 3] = [Dialect::Simple, Dialect::Structured, Dialect::Extended];
pub const QUEUES: [QueueChoice; 2] = [QueueChoice::Uring, QueueChoice::Blocking];

/// A server with one export, called `disk`.
pub struct Served {
    pub server: Server,
    pub exports: Arc<ExportTable>,
    pub dir: TempDir,
}

impl Served {
    pub fn new(device: Arc<dyn BlockDevice>, queue: QueueChoice) -> Self {
        Self::with(Export::new("disk", device).unwrap(), options(queue))
    }

    pub fn with(export: Export, options: ServerOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let exports = Arc::new(ExportTable::single(export));
        let listener = Listener::unix(dir.path().join("nbd.sock")).unwrap();
        let server = Server::start(vec![listener], exports.clone(), options).unwrap();
        Self { server, exports, dir }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd.sock")
    }

    pub fn uri(&self) -> Uri {
        Uri::unix(self.socket(), "disk")
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.uri()).unwrap()
    }

    pub fn client_of(&self, dialect: Dialect) -> Client {
        let socket = std::os::unix::net::UnixStream::connect(self.socket()).unwrap();
        let client = Client::over(socket.into(), "disk", "test", dialect).unwrap();
        assert_eq!(client.dialect(), dialect);
        client
    }

    pub fn raw(&self, dialect: Dialect) -> raw::Raw {
        raw::Raw::begin(&self.socket(), dialect, &["base:allocation"])
    }

    /// Waits until no client is connected.
    pub fn wait_until_alone(&self) {
        wait_for("the connections to end", || self.server.clients().is_empty());
    }
}

pub fn options(queue: QueueChoice) -> ServerOptions {
    ServerOptions { queue, handshake_timeout: Duration::from_secs(2), ..ServerOptions::default() }
}

/// Waits until `done`, at most ten seconds.
pub fn wait_for(what: &str, done: impl Fn() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("waited in vain for {what}");
}

pub fn file(dir: &Path, name: &str, size: u64, cache: CacheMode) -> HostFile {
    HostFile::create(&dir.join(name), ByteCount::new(size), cache).unwrap()
}

pub fn at(offset: u64) -> ByteOffset {
    ByteOffset::new(offset)
}

/// Bytes that tell where they belong: no two blocks of 512 are equal.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed | 1);
    let mut bytes = vec![0; len];
    for chunk in bytes.chunks_mut(8) {
        chunk.copy_from_slice(&random.next().to_le_bytes()[..chunk.len()]);
    }
    bytes
}

/// A small deterministic generator (xorshift64*).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
