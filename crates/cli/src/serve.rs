//! `firn serve`: a pool over NBD, and the control socket by which the other verbs reach it.

use std::net::SocketAddr;
use std::path::PathBuf;

use block_io::CacheMode;
use block_types::{ByteCount, Error, ErrorKind, Result};
use clap::{Args, ValueEnum};
use daemon::{Ready, ServeOptions};
use serde::Serialize;
use volume::{CreateOptions, OpenOptions, PoolDirectory, VolumeName};

use crate::address::volume_name;
use crate::exit::{FAILED, Outcome};
use crate::output::{Output, print};
use crate::size::{size, whole_sectors};

/// The block size of a pool that '--new' makes.
const BLOCK_SIZE: ByteCount = ByteCount::new(64 << 10);

/// Serve the volumes of a pool over NBD.
///
/// Every volume is an export of its name, every snapshot a read-only one called NAME@SNAPSHOT.
/// While a pool is served, all other verbs reach it through this process. It ends on SIGINT and
/// SIGTERM, once everything is committed.
///
/// With --run, a command is run by the shell with the server's URI in $uri, as nbdkit does, and the
/// server ends with it, with its exit code.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn serve lab
  firn serve lab --new 100G --volume db=20G
  firn serve lab --run 'nbdinfo --list \"$uri\"'")]
pub(crate) struct Serve {
    /// The pool's directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Create the pool first, for so much data, unless it is there.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    new: Option<ByteCount>,

    /// Create a volume first, unless it is there. May be repeated.
    #[arg(long, value_name = "NAME=SIZE", value_parser = named_size)]
    volume: Vec<(VolumeName, ByteCount)>,

    /// The Unix socket to listen at; DIR/nbd.sock if not said otherwise.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Listen at this address too. NBD has no passwords: mind who can reach it.
    #[arg(long, value_name = "ADDR:PORT")]
    tcp: Option<SocketAddr>,

    /// Whether data goes through the host's page cache.
    #[arg(long, value_enum, default_value_t = Cache::None)]
    cache: Cache,

    /// Refuse every write, and leave the pool as it is.
    #[arg(long, conflicts_with_all = ["new", "volume"])]
    read_only: bool,

    /// Run a command, and serve until it ends.
    #[arg(long, value_name = "COMMAND")]
    run: Option<String>,
}

/// Caching, in QEMU's words.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Cache {
    /// Straight to the disk.
    None,
    /// Through the page cache; durable after a flush, as ever.
    Writeback,
}

/// What is being served, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Serving {
    pool: String,
    nbd_uri: String,
    nbd_tcp_uri: Option<String>,
    control_socket: String,
}

/// Does what the verb says.
pub(crate) fn run(serve: &Serve, output: Output) -> Outcome {
    serve.make_what_is_missing()?;
    let options = ServeOptions {
        pool: serve.dir.clone(),
        cache: serve.cache.mode(),
        read_only: serve.read_only,
        socket: serve.socket.clone(),
        tcp: serve.tcp,
        run: serve.run.clone(),
        listen_fds: std::env::var_os("LISTEN_FDS").is_some(),
    };
    let code = daemon::serve(&options, |ready| serve.announce(ready, output))?;
    Ok(u8::try_from(code).unwrap_or(FAILED))
}

impl Serve {
    /// Creates the pool and the volumes that are to be there.
    fn make_what_is_missing(&self) -> Result<()> {
        if !self.dir.exists() && self.new.is_none() {
            let problem = "there is no such directory";
            let dir = self.dir.display();
            return Err(Error::new(ErrorKind::NotFound, dir.to_string(), problem).advise(format!(
                "make the pool with 'firn pool create {dir} --size 100G', or say --new 100G here"
            )));
        }
        if let Some(size) = self.new.filter(|_| !self.dir.join("metadata").exists()) {
            PoolDirectory::create(&self.dir, &CreateOptions { size, block_size: BLOCK_SIZE })?;
        }
        if self.volume.is_empty() {
            return Ok(());
        }
        let holder = "firn serve".to_owned();
        let options = OpenOptions { read_only: false, cache: self.cache.mode(), holder };
        let pool = PoolDirectory::open(&self.dir, &options)?;
        for (name, size) in &self.volume {
            match pool.create_volume(name, *size) {
                Err(error) if error.kind() == ErrorKind::Exists => {}
                result => result.map(|_| ())?,
            }
        }
        pool.close()
    }

    /// Says where the pool is served, once it is.
    fn announce(&self, ready: &Ready, output: Output) {
        if !output.is_json() {
            let uris = [Some(&ready.nbd_uri), ready.nbd_tcp_uri.as_ref()];
            let uris: Vec<&str> = uris.into_iter().flatten().map(String::as_str).collect();
            return output.note(&format!(
                "{}: served at {}",
                self.dir.display(),
                uris.join(" and ")
            ));
        }
        let serving = Serving {
            pool: self.dir.display().to_string(),
            nbd_uri: ready.nbd_uri.clone(),
            nbd_tcp_uri: ready.nbd_tcp_uri.clone(),
            control_socket: ready.control_socket.display().to_string(),
        };
        let line = serde_json::to_string(&serving).expect("plain data has a JSON form");
        // Who started the server and does not listen may still want to be served.
        let _ = print(&(line + "\n"));
    }
}

impl Cache {
    fn mode(self) -> CacheMode {
        match self {
            Self::None => CacheMode::Direct,
            Self::Writeback => CacheMode::Cached,
        }
    }
}

/// Reads `NAME=SIZE`.
fn named_size(text: &str) -> Result<(VolumeName, ByteCount)> {
    let (name, bytes) = text.split_once('=').ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("'{text}'"), "says no size")
            .advise("write NAME=SIZE, as in db=20G")
    })?;
    Ok((volume_name(name)?, whole_sectors(bytes)?))
}
