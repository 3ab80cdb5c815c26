//! `firn volume import` and `firn volume export`: between volumes and files, devices, servers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, HostFile};
use block_types::{ByteCount, Error, ErrorKind, Result, SECTOR};
use clap::Args;
use daemon::PoolAccess;
use jobs::{CopyJob, CopyOptions, CopyReport, TargetContent};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Serialize;
use volume::{DeviceOptions, NodeName, VolumeInfo};

use crate::access::{ask, change};
use crate::address::{NodeAddress, VolumeAddress, node, volume};
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::progress;

/// What is appended to the name of a file that is being written.
const UNFINISHED: &str = ".part";

/// Fill a volume from a raw file, a block device or an NBD server.
///
/// The volume is created with the size of the source, rounded up to 512 bytes, unless it exists. In
/// one that exists and is larger, what lies behind the source's end stays as it is. Zeros take no
/// space.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn volume import lab/db disk.img
  firn volume import lab/db 'nbd+unix:///disk?socket=nbd.sock'")]
pub(crate) struct Import {
    /// The volume.
    #[arg(value_name = "DIR/NAME", value_parser = volume)]
    volume: VolumeAddress,

    /// A raw file, a block device, or an NBD URI.
    #[arg(value_name = "FILE")]
    file: String,
}

/// Write a volume or a snapshot to a raw file.
///
/// The file is sparse: zeros take no space. It has its name only once it is complete; until then it
/// is called FILE.part.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn volume export lab/db@monday monday.img")]
pub(crate) struct Export {
    /// The volume or snapshot.
    #[arg(value_name = "DIR/NAME[@SNAPSHOT]", value_parser = node)]
    node: NodeAddress,

    /// The file.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// Replace a file that exists.
    #[arg(long)]
    force: bool,
}

/// What was copied, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Transferred {
    /// The volume or snapshot.
    name: String,
    file: String,
    /// Bytes of the source.
    size: u64,
    /// Bytes written as data.
    copied: u64,
    /// Bytes of zeros, which were not.
    zeros: u64,
}

impl Import {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        let options = DeviceOptions { read_only: true, cache: CacheMode::Cached };
        let source = volume::open_device(&self.file, &options)?;
        let (info, report) = change(&self.volume.pool, |pool| self.fill(pool, source, output))?;
        output.done(&report, || {
            format!(
                "{}: {} imported, {} of it data",
                self.volume,
                ByteCount::new(info.size),
                ByteCount::new(report.copied)
            )
        })?;
        Ok(DONE)
    }

    /// Copies `source` into the volume, which is made if need be.
    fn fill(
        &self,
        pool: &dyn PoolAccess,
        source: Arc<dyn BlockDevice>,
        output: Output,
    ) -> Result<(VolumeInfo, Transferred)> {
        let (info, content) = self.prepare(pool, source.size())?;
        let result = self.copy(pool, source, content, output);
        if result.is_err() && content == TargetContent::Zeros {
            // It was not there before, and half of a disk is of no use. If it cannot be deleted,
            // the reason why the copy failed matters more.
            let _ = pool.delete_volume(&self.volume.volume, false);
        }
        Ok((info, result?))
    }

    /// The volume, made if need be, and what it holds.
    fn prepare(
        &self,
        pool: &dyn PoolAccess,
        source: ByteCount,
    ) -> Result<(VolumeInfo, TargetContent)> {
        let size = ByteCount::from_sectors(source.get().div_ceil(SECTOR));
        let info = match pool.volume(&self.volume.volume) {
            Ok(info) => info,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let info = pool.create_volume(&self.volume.volume, size)?;
                return Ok((info, TargetContent::Zeros));
            }
            Err(error) => return Err(error),
        };
        if info.size < size.get() {
            let problem = format!("its {} bytes are too few for {}", info.size, self.file);
            return Err(Error::new(ErrorKind::OutOfRange, self.volume.to_string(), problem)
                .advise(format!("make it larger with 'firn volume resize' to {}", size.get())));
        }
        Ok((info, TargetContent::Unknown))
    }

    fn copy(
        &self,
        pool: &dyn PoolAccess,
        source: Arc<dyn BlockDevice>,
        content: TargetContent,
        output: Output,
    ) -> Result<Transferred> {
        let node = NodeName { volume: self.volume.volume.clone(), snapshot: None };
        let target = pool.open_device(&node, false)?;
        let size = source.size();
        let job = CopyJob::new(source, target, CopyOptions::new(content))?;
        let report = progress::run(job, "importing", output)?;
        Ok(Transferred::new(self.volume.to_string(), self.file.clone(), size, report))
    }
}

impl Export {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        self.check_free()?;
        let report = ask(&self.node.pool, |pool| self.copy(pool, output))?;
        output.done(&report, || {
            format!(
                "{}: {} exported to {}, {} of it data",
                self.node,
                ByteCount::new(report.size),
                report.file,
                ByteCount::new(report.copied)
            )
        })?;
        Ok(DONE)
    }

    /// Copies the volume to the file, under another name until it is complete.
    fn copy(&self, pool: &dyn PoolAccess, output: Output) -> Result<Transferred> {
        let source = pool.open_device(&self.node.node, true)?;
        let size = source.size();
        let unfinished = Unfinished::new(&self.file);
        let target = HostFile::create(&unfinished.path, size, CacheMode::Cached)
            .map_err(|error| self.explain_left_over(error))?;
        let options = CopyOptions::new(TargetContent::Zeros);
        let report = CopyJob::new(source, Arc::new(target), options)
            .and_then(|job| progress::run(job, "exporting", output))
            .and_then(|report| unfinished.finish(&self.file, self.force).map(|()| report));
        if report.is_err() {
            unfinished.remove();
        }
        let file = self.file.display().to_string();
        Ok(Transferred::new(self.node.to_string(), file, size, report?))
    }

    /// Checks that the file may be written.
    fn check_free(&self) -> Result<()> {
        let name = || self.file.display().to_string();
        let Ok(found) = self.file.symlink_metadata() else {
            return Ok(());
        };
        if !found.is_file() {
            return Err(Error::new(ErrorKind::Exists, name(), "is there, and is no regular file")
                .advise("name another file"));
        }
        if !self.force {
            return Err(Error::new(ErrorKind::Exists, name(), "is there already")
                .advise("say --force to replace it, or name another file"));
        }
        Ok(())
    }

    fn explain_left_over(&self, error: Error) -> Error {
        if error.kind() == ErrorKind::Exists {
            return error
                .advise("another export is writing it, or was interrupted: then remove it");
        }
        error
    }
}

impl Transferred {
    fn new(name: String, file: String, size: ByteCount, report: CopyReport) -> Self {
        let zeros = report.skipped.get() + report.cleared.get();
        Self { name, file, size: size.get(), copied: report.copied.get(), zeros }
    }
}

/// A file that does not have its name yet.
struct Unfinished {
    path: PathBuf,
}

impl Unfinished {
    fn new(file: &Path) -> Self {
        let mut path = file.as_os_str().to_owned();
        path.push(UNFINISHED);
        Self { path: path.into() }
    }

    /// Gives it its name; takes that of another file only by `force`.
    fn finish(&self, name: &Path, force: bool) -> Result<()> {
        let flags = if force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        renameat_with(CWD, &self.path, CWD, name, flags).map_err(|error| {
            let object = self.path.display().to_string();
            Error::io(object, format!("cannot be renamed to {}", name.display()), error.into())
        })
    }

    /// Removes it. It is left over if that fails, and the next export says so.
    fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
