//! `firn serve`: a pool over NBD, and the control socket by which the other verbs reach it; or an
//! image over NBD.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use block_io::CacheMode;
use block_types::{ByteCount, Error, ErrorKind, Result};
use clap::{Args, ValueEnum};
use daemon::{ImageReady, ImageServeOptions, OriginReady, OriginServeOptions, Ready, ServeOptions};
use repository::Repository;
use serde::Serialize;
use volume::{
    CowOptions, CreateOptions, DeviceOptions, DiskImage, OpenOptions, PoolDirectory, VolumeName,
    open_device,
};

use crate::address::volume_name;
use crate::cow::{ServingOrigin, Stores};
use crate::exit::{FAILED, Outcome};
use crate::image::Access;
use crate::output::{Output, print};
use crate::size::{size, whole_sectors};

/// The block size of a pool that '--new' makes.
const BLOCK_SIZE: ByteCount = ByteCount::new(64 << 10);

/// Serve the volumes of a pool, the disks of a repository, or an image, over NBD.
///
/// Every volume is an export of its name, every snapshot a read-only one called NAME@SNAPSHOT.
/// While a pool is served, all other verbs reach it through this process. It ends on SIGINT and
/// SIGTERM, once everything is committed.
///
/// A repository's disks and snapshots are exports likewise, and its collector runs beside them:
/// within seconds of a deletion it merges what can be.
///
/// An image is one export, called as its file is, and the default one. What it stands on is opened
/// for reading; nobody else can change either meanwhile. Its control socket is
/// IMAGE.control.sock: by it 'firn image snapshot', 'commit', 'stream' and 'rebase' reach the image
/// while it is served, and 'firn job' their jobs.
///
/// A raw disk with snapshots, of which 'firn cow' or --cow tells, is an export too, and each
/// snapshot another, called NAME@SNAPSHOT; all of them can be written. 'firn cow' reaches them
/// while they are served. A snapshot is lost where its origin is written without it, so a disk is
/// served with all of them or not at all.
///
/// With --run, a command is run by the shell with the server's URI in $uri, as nbdkit does, and the
/// server ends with it, with its exit code.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn serve lab
  firn serve lab --new 100G --volume db=20G
  firn serve lab --run 'nbdinfo --list \"$uri\"'
  firn serve disk.qcow2 --socket disk.sock
  firn serve disk.img --cow past.cow")]
pub(crate) struct Serve {
    /// The directory of a pool or a repository, or the image.
    #[arg(value_name = "DIR|IMAGE")]
    dir: PathBuf,

    /// Create the pool first, for so much data, unless it is there.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    new: Option<ByteCount>,

    /// Create a volume first, unless it is there. May be repeated.
    #[arg(long, value_name = "NAME=SIZE", value_parser = named_size)]
    volume: Vec<(VolumeName, ByteCount)>,

    /// The Unix socket to listen at; DIR/nbd.sock or IMAGE.sock if not said otherwise.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,

    /// Listen at this address too. NBD has no passwords: mind who can reach it.
    #[arg(long, value_name = "ADDR:PORT")]
    tcp: Option<SocketAddr>,

    /// Whether data goes through the host's page cache.
    #[arg(long, value_enum, default_value_t = Cache::None)]
    cache: Cache,

    /// Refuse every write, and leave the pool or the image as it is.
    #[arg(long, conflicts_with_all = ["new", "volume"])]
    read_only: bool,

    /// Run a command, and serve until it ends.
    #[arg(long, value_name = "COMMAND")]
    run: Option<String>,

    #[command(flatten, next_help_heading = "Options for images")]
    image: Access,

    #[command(flatten, next_help_heading = "Options for origins")]
    stores: Stores,
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

/// Which image is being served, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ServingImage {
    image: String,
    nbd_uri: String,
    nbd_tcp_uri: Option<String>,
    control_socket: Option<String>,
}

/// Does what the verb says.
pub(crate) fn run(serve: &Serve, output: Output) -> Outcome {
    if serve.dir.exists() && !serve.dir.is_dir() {
        if serve.stores.concern(&serve.dir) {
            return serve.origin(output);
        }
        return serve.image(output);
    }
    let is_repository = Repository::is_at(&serve.dir);
    if !is_repository {
        serve.make_what_is_missing()?;
    }
    let options = ServeOptions {
        pool: serve.dir.clone(),
        cache: serve.cache.mode(),
        read_only: serve.read_only,
        socket: serve.socket.clone(),
        tcp: serve.tcp,
        run: serve.run.clone(),
        listen_fds: std::env::var_os("LISTEN_FDS").is_some(),
    };
    let ready = |ready: &Ready| serve.announce(ready, output);
    let code = if is_repository {
        daemon::serve_repository(&options, ready)?
    } else {
        daemon::serve(&options, ready)?
    };
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

    /// Serves an image.
    fn image(&self, output: Output) -> Outcome {
        self.refuse_pool_options()?;
        let options = self.image.options(self.read_only, self.cache.mode());
        let image = Arc::new(DiskImage::open(&self.dir, &options)?);
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let options = ImageServeOptions {
            name,
            read_only: self.read_only,
            socket: self.socket.clone().unwrap_or_else(|| self.beside(".sock")),
            tcp: self.tcp,
            run: self.run.clone(),
            listen_fds: std::env::var_os("LISTEN_FDS").is_some(),
        };
        let ready = |ready: &ImageReady| self.announce_image(ready, output);
        let code = daemon::serve_image(&image, &options, ready)?;
        Ok(u8::try_from(code).unwrap_or(FAILED))
    }

    /// Refuses what is for pools only.
    fn refuse_pool_options(&self) -> Result<()> {
        if self.new.is_some() || !self.volume.is_empty() {
            let problem = "is an image, and --new and --volume are for pools";
            let object = self.dir.display().to_string();
            return Err(Error::new(ErrorKind::Invalid, object, problem)
                .advise("name the pool's directory, or leave them out"));
        }
        Ok(())
    }

    /// Serves an origin with its snapshots.
    fn origin(&self, output: Output) -> Outcome {
        self.refuse_pool_options()?;
        let wanted = self.stores.wanted(&self.dir, self.size_of_disk()?)?;
        let options = OriginServeOptions {
            origin: self.dir.clone(),
            open: CowOptions {
                read_only: self.read_only,
                cache: self.cache.mode(),
                trust: self.stores.trust_origin,
                control: None,
                stores: self.stores.paths(),
            },
            snapshots: wanted.snapshots,
            merge: wanted.merge,
            socket: self.socket.clone().unwrap_or_else(|| self.beside(".sock")),
            control: self.beside(".control.sock"),
            tcp: self.tcp,
            run: self.run.clone(),
            listen_fds: std::env::var_os("LISTEN_FDS").is_some(),
        };
        let ready = |ready: &OriginReady| self.announce_origin(ready, output);
        let code = daemon::serve_origin(&options, ready)?;
        Ok(u8::try_from(code).unwrap_or(FAILED))
    }

    /// The size of the disk that is the origin.
    fn size_of_disk(&self) -> Result<ByteCount> {
        let options = DeviceOptions { read_only: true, cache: CacheMode::Cached };
        Ok(open_device(&self.dir.to_string_lossy(), &options)?.size())
    }

    /// A name beside the file that is served.
    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.dir.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    /// Says where the origin is served, once it is.
    fn announce_origin(&self, ready: &OriginReady, output: Output) {
        if !output.is_json() {
            self.note(&ready.nbd_uri, ready.nbd_tcp_uri.as_deref(), output);
            return ready.snapshots.iter().for_each(|uri| self.note(uri, None, output));
        }
        print_line(&ServingOrigin {
            origin: self.dir.display().to_string(),
            nbd_uri: ready.nbd_uri.clone(),
            nbd_tcp_uri: ready.nbd_tcp_uri.clone(),
            snapshot_uris: ready.snapshots.clone(),
            control_socket: ready.control_socket.display().to_string(),
        });
    }

    /// Says where the image is served, once it is.
    fn announce_image(&self, ready: &ImageReady, output: Output) {
        if !output.is_json() {
            return self.note(&ready.nbd_uri, ready.nbd_tcp_uri.as_deref(), output);
        }
        print_line(&ServingImage {
            image: self.dir.display().to_string(),
            nbd_uri: ready.nbd_uri.clone(),
            nbd_tcp_uri: ready.nbd_tcp_uri.clone(),
            control_socket: ready.control_socket.as_ref().map(|path| path.display().to_string()),
        });
    }

    /// Says for people where it is served.
    fn note(&self, uri: &str, tcp: Option<&str>, output: Output) {
        let uris: Vec<&str> = [Some(uri), tcp].into_iter().flatten().collect();
        output.note(&format!("{}: served at {}", self.dir.display(), uris.join(" and ")));
    }

    /// Says where the pool is served, once it is.
    fn announce(&self, ready: &Ready, output: Output) {
        if !output.is_json() {
            return self.note(&ready.nbd_uri, ready.nbd_tcp_uri.as_deref(), output);
        }
        print_line(&Serving {
            pool: self.dir.display().to_string(),
            nbd_uri: ready.nbd_uri.clone(),
            nbd_tcp_uri: ready.nbd_tcp_uri.clone(),
            control_socket: ready.control_socket.display().to_string(),
        });
    }
}

/// Prints what is served in a line of JSON.
fn print_line<T: Serialize>(serving: &T) {
    let line = serde_json::to_string(serving).expect("plain data has a JSON form");
    // Who started the server and does not listen may still want to be served.
    let _ = print(&(line + "\n"));
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
