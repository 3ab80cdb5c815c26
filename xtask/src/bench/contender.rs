//! Who is measured: Firn, the peers, the bare file, or any NBD server by its command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use testkit::peer;
use testkit::server::{Listens, Server};

use super::lab::{Lab, POOL_DATA, VOLUME, serve};
use super::rows::{Cache, Row};
use super::{Options, cache};

/// A contender, not started yet.
pub(super) struct Contender {
    name: String,
    kind: Kind,
}

enum Kind {
    Firn,
    /// Firn on a volume with a thousand snapshots.
    FirnAged,
    /// Firn on the same blocks without the snapshots.
    FirnScattered,
    QemuNbd(Format),
    Nbdkit,
    Bare,
    Command(String),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Raw,
    Qcow2,
}

/// A contender that answers requests; its server ends when this is dropped.
pub(super) struct Running {
    target: Target,
    server: Option<Server>,
    _sockets: TempDir,
}

/// Where requests go.
pub(super) enum Target {
    /// To a file, without a server.
    File(PathBuf),
    /// To an export of the server with this process number.
    Server { pid: u32, socket: PathBuf, export: String, uri: String },
}

impl Target {
    /// The server's process.
    pub(super) const fn server(&self) -> Option<u32> {
        match self {
            Self::File(_) => None,
            Self::Server { pid, .. } => Some(*pid),
        }
    }
}

impl Running {
    /// Where requests go.
    pub(super) const fn target(&self) -> &Target {
        &self.target
    }

    /// Lets the server end in its own way.
    pub(super) fn stop(self) -> Result<()> {
        if let Some(server) = self.server {
            let status = server.stop()?;
            ensure!(status.success(), "the server ended with {status}");
        }
        Ok(())
    }
}

impl Contender {
    /// The contender of this name.
    pub(super) fn named(name: &str, options: &Options) -> Result<Self> {
        let kind = match name {
            "firn" => Kind::Firn,
            "firn-aged" => Kind::FirnAged,
            "firn-scattered" => Kind::FirnScattered,
            "qemu-nbd-raw" => Kind::QemuNbd(Format::Raw),
            "qemu-nbd-qcow2" => Kind::QemuNbd(Format::Qcow2),
            "nbdkit" => Kind::Nbdkit,
            "bare" => Kind::Bare,
            "command" => {
                Kind::Command(options.command.clone().context("--command says what to start")?)
            }
            _ => bail!("no such contender: {name}"),
        };
        Ok(Self { name: name.to_owned(), kind })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the contender can be asked for `row`: nbdkit's file plugin has no direct I/O.
    pub(super) fn plays(&self, row: &Row) -> bool {
        !(matches!(self.kind, Kind::Nbdkit) && row.cache == Cache::Direct)
    }

    /// Starts it on its disk, and sets the page cache's state.
    pub(super) fn start(&self, lab: &Lab, cache: Cache, options: &Options) -> Result<Running> {
        let disk = match &self.kind {
            Kind::Firn => lab.pool()?.join(POOL_DATA),
            Kind::FirnAged => lab.aged_pool()?.join(POOL_DATA),
            Kind::FirnScattered => lab.scattered_pool()?.join(POOL_DATA),
            Kind::QemuNbd(Format::Qcow2) => lab.qcow2()?,
            _ => lab.raw()?,
        };
        set_cache(&disk, cache)?;
        self.start_on(disk, cache, options)
    }

    /// Starts it on `disk`, for Firn a pool's data, as the page cache has it.
    pub(super) fn start_on(
        &self,
        disk: PathBuf,
        cache: Cache,
        options: &Options,
    ) -> Result<Running> {
        // Sockets have short paths; the lab may be anywhere.
        let sockets = tempfile::tempdir()?;
        let socket = sockets.path().join("nbd");
        if matches!(self.kind, Kind::Bare) {
            return Ok(Running { target: Target::File(disk), server: None, _sockets: sockets });
        }
        let line = self.command(&disk, &socket, cache, options)?;
        let (program, arguments) = line.split_first().context("an empty command")?;
        let server = Server::start(program, arguments, Listens::Unix(socket.clone()))?;
        let is_firn = matches!(self.kind, Kind::Firn | Kind::FirnAged | Kind::FirnScattered);
        let export = if is_firn { VOLUME } else { "" };
        let uri = format!("nbd+unix:///{export}?socket={}", socket.display());
        let target = Target::Server { pid: server.pid(), socket, export: export.to_owned(), uri };
        Ok(Running { target, server: Some(server), _sockets: sockets })
    }

    /// The words that start the server.
    fn command(
        &self,
        disk: &Path,
        socket: &Path,
        cache: Cache,
        options: &Options,
    ) -> Result<Vec<String>> {
        let mode = match cache {
            Cache::Small => "writeback",
            Cache::Direct => "none",
        };
        let socket = socket.display();
        Ok(match &self.kind {
            Kind::Firn | Kind::FirnAged | Kind::FirnScattered => {
                let pool = disk.parent().context("data lies in a pool")?;
                serve(pool, &socket.to_string(), mode)?
            }
            Kind::QemuNbd(format) => vec![
                program("qemu-nbd")?,
                "--persistent".to_owned(),
                "--shared=4".to_owned(),
                format!("--format={}", format.name()),
                format!("--cache={mode}"),
                format!("--aio={}", options.aio),
                format!("--socket={socket}"),
                disk.display().to_string(),
            ],
            Kind::Nbdkit => {
                let words = ["-f", "-U", &socket.to_string(), "file", &disk.display().to_string()];
                [vec![program("nbdkit")?], words.map(str::to_owned).to_vec()].concat()
            }
            Kind::Command(line) => line
                .replace("{socket}", &socket.to_string())
                .replace("{file}", &disk.display().to_string())
                .replace("{cache}", mode)
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            Kind::Bare => bail!("a bare file has no server"),
        })
    }
}

/// Sets the state of the page cache for `disk`.
pub(super) fn set_cache(disk: &Path, cache: Cache) -> Result<()> {
    match cache {
        Cache::Small => cache::set_small(disk),
        Cache::Direct => cache::set_cold(disk),
    }
}

fn program(name: &str) -> Result<String> {
    Ok(peer::find(name)?.display().to_string())
}

impl Format {
    const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}
