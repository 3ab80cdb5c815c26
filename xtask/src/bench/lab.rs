//! The disks that contenders serve, made once and kept between runs.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testkit::peer::Peer;
use testkit::rng::Rng;
use testkit::server::{Listens, Server};

use super::client::Client;
use super::rows::{Access, Load};
use super::{Options, control, hollow};
use crate::step;

/// Snapshots of a volume that counts as aged.
pub(super) const AGE: u32 = 1000;

/// The disks, kept between runs.
pub(super) struct Lab {
    folder: PathBuf,
    size: u64,
}

/// The volume of Firn's pool.
pub(super) const VOLUME: &str = "disk";

/// The file of a pool's folder that holds the blocks of its volumes.
pub(super) const POOL_DATA: &str = "data";

impl Lab {
    pub(super) fn new(options: &Options) -> Result<Self> {
        let folder = options.folder.join((options.size >> 20).to_string());
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self { folder, size: options.size })
    }

    /// A raw file full of random bytes.
    pub(super) fn raw(&self) -> Result<PathBuf> {
        self.made("disk.raw", |path| {
            let mut file = File::create(path)?;
            let mut rng = Rng::new(1);
            let mut piece = vec![0; 1 << 20];
            for _ in 0..self.size >> 20 {
                rng.fill(&mut piece);
                file.write_all(&piece)?;
            }
            Ok(file.sync_all()?)
        })
    }

    /// The same as qcow2.
    pub(super) fn qcow2(&self) -> Result<PathBuf> {
        let raw = self.raw()?;
        self.made("disk.qcow2", |path| {
            let outcome = Peer::find("qemu-img")?
                .args(["convert", "-q", "-f", "raw", "-O", "qcow2"])
                .args([raw.as_path(), path])
                .limit(Duration::from_secs(600))
                .run();
            ensure!(outcome.code() == Some(0), "{outcome}");
            Ok(())
        })
    }

    /// A pool with one volume of that size, written all over.
    pub(super) fn pool(&self) -> Result<PathBuf> {
        self.made("pool", |path| self.fill_pool(path, self.size + (self.size >> 3)))
    }

    /// The same with [`AGE`] snapshots in the volume's past, blocks all over it written after each.
    pub(super) fn aged_pool(&self) -> Result<PathBuf> {
        self.made("aged-pool", |path| {
            self.fill_pool(path, 3 * self.size)?;
            serving(path, |client| {
                let load = Load { access: Access::Write, block: 4096, depth: 16 };
                let blocks = self.size / hollow::BLOCK;
                let mut rng = Rng::new(1);
                for snapshot in 0..AGE {
                    control::snapshot(path, VOLUME, &format!("old{snapshot}"))?;
                    let count = (blocks / u64::from(AGE)).max(1);
                    client.each(load, (0..count).map(|_| rng.within(0..blocks) * hollow::BLOCK))?;
                }
                Ok(())
            })
        })
    }

    /// A copy of the aged pool whose snapshots are deleted: every block lies where it lies there.
    pub(super) fn scattered_pool(&self) -> Result<PathBuf> {
        let aged = self.aged_pool()?;
        self.made("scattered-pool", |path| {
            copy_pool(&aged, path)?;
            serving(path, |_| {
                let mut names = (0..AGE).map(|snapshot| format!("old{snapshot}"));
                names.try_for_each(|name| control::delete_snapshot(path, VOLUME, &name))
            })
        })
    }

    /// Makes a pool for `capacity` bytes with a volume that is written all over.
    fn fill_pool(&self, path: &Path, capacity: u64) -> Result<()> {
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
        let pool = path.display().to_string();
        run_firn(&["pool", "create", &pool, "--size", &capacity.to_string()])?;
        let volume = format!("{pool}/{VOLUME}");
        run_firn(&["volume", "create", &volume, "--size", &self.size.to_string()])?;
        serving(path, |client| {
            ensure!(client.size() == self.size, "the volume has {} bytes", client.size());
            client.fill()
        })
    }

    /// A folder for what nobody needs after a run.
    pub(super) fn scratch(&self) -> Result<TempDir> {
        Ok(tempfile::tempdir_in(&self.folder)?)
    }

    /// The disk `name`, made under another name first, so that a broken one is never taken.
    pub(super) fn made(
        &self,
        name: &str,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let path = self.folder.join(name);
        if !path.exists() {
            let unfinished = self.folder.join(format!("{name}.unfinished"));
            eprintln!("making {}", path.display());
            make(&unfinished).with_context(|| path.display().to_string())?;
            fs::rename(unfinished, &path)?;
        }
        Ok(path)
    }
}

/// Copies a pool that nobody serves, holes as holes.
pub(super) fn copy_pool(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    let outcome = Peer::at("cp").args(["-r", "--sparse=auto"]).args([from, to]);
    let outcome = outcome.limit(Duration::from_secs(600)).run();
    ensure!(outcome.code() == Some(0), "{outcome}");
    Ok(())
}

/// Runs `work` with a client of the volume in `pool`, and lets the server end.
fn serving(pool: &Path, work: impl FnOnce(&mut Client) -> Result<()>) -> Result<()> {
    let sockets = tempfile::tempdir()?;
    let socket = sockets.path().join("nbd");
    let line = serve(pool, &socket.display().to_string(), "none")?;
    let server = Server::start(&line[0], &line[1..], Listens::Unix(socket.clone()))?;
    work(&mut Client::connect(&socket, VOLUME)?)?;
    let status = server.stop()?;
    ensure!(status.success(), "firn serve ended with {status}");
    Ok(())
}

/// Runs `firn` with these words.
pub(super) fn run_firn(words: &[&str]) -> Result<()> {
    let outcome = Peer::at(firn()?).args(words).run();
    ensure!(outcome.code() == Some(0), "{outcome}");
    Ok(())
}

/// The words that serve `pool` at `socket`.
pub(super) fn serve(pool: &Path, socket: &str, cache: &str) -> Result<Vec<String>> {
    let pool = pool.display().to_string();
    let words = ["serve", &pool, "--socket", socket, "--cache", cache].map(str::to_owned);
    Ok([vec![firn()?], words.to_vec()].concat())
}

/// The release build of the command, made if it is not up to date.
pub(super) fn firn() -> Result<String> {
    step::run(step::cargo(&["build", "--quiet", "--release", "--package", "cli"]))?;
    Ok(step::root().join("target/release/firn").display().to_string())
}
