//! `firn repo create, add, snapshot, clone, delete`.

use std::path::PathBuf;

use block_types::{ByteCount, Error, ErrorKind, Result};
use clap::Args;
use repository::Repository;
use serde::Serialize;
use volume::{NodeName, SnapshotName, VolumeName};

use super::{Target, with};
use crate::address::{NodeAddress, VolumeAddress, node, volume};
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::size::size;

/// Create a repository, or an empty disk in one.
///
/// A repository is a directory; VHDs that are in it already become its disks. A disk takes next to
/// no space until it is written.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn repo create sr
  firn repo create sr --disk base=20G")]
pub(crate) struct Create {
    #[command(flatten)]
    target: Target,

    /// Create an empty disk, in a repository that is there or is created with it. May be repeated.
    #[arg(long, value_name = "NAME=SIZE", value_parser = disk)]
    disk: Vec<(VolumeName, ByteCount)>,
}

/// Copy a VHD into a repository.
///
/// A differencing disk keeps its parent, which must be in the repository already.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn repo add sr base.vhd
  firn repo add sr disk.vhd --name web")]
pub(crate) struct Add {
    #[command(flatten)]
    target: Target,

    /// The VHD.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    /// The name that it is to have; the file's, without its ending, if not said.
    #[arg(long, value_name = "NAME", value_parser = crate::address::volume_name)]
    name: Option<VolumeName>,
}

/// Take a snapshot of a disk, also while it is written.
///
/// The disk goes on as a new, empty child of what it was; the snapshot is another. What it was is
/// hidden from users, until the collector can merge it.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn repo snapshot sr/base
  firn repo snapshot sr/base@monday")]
pub(crate) struct Snapshot {
    /// The disk, and the snapshot's name; that is the present time if not said.
    #[arg(value_name = "DIR/NAME[@SNAPSHOT]", value_parser = node)]
    disk: NodeAddress,
}

/// Make a new disk that begins as another is: a disk, a snapshot, or a base with children.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn repo clone sr/base@monday sr/test")]
pub(crate) struct CloneVerb {
    /// What it is to be like.
    #[arg(value_name = "DIR/NAME[@SNAPSHOT]", value_parser = node)]
    source: NodeAddress,

    /// The new disk, in the same repository.
    #[arg(value_name = "DIR/NEW", value_parser = volume)]
    new: VolumeAddress,
}

/// Delete a disk or a snapshot.
///
/// Its file goes, with all that nobody needs any more. A disk that others stand on is only hidden:
/// they keep what they share with it. What can be merged then is merged by the daemon, or by
/// 'firn repo gc'.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn repo delete sr/base@monday")]
pub(crate) struct Delete {
    /// The disk or the snapshot.
    #[arg(value_name = "DIR/NAME[@SNAPSHOT]", value_parser = node)]
    disk: NodeAddress,
}

/// What was done, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Done {
    repository: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

impl Done {
    fn to(address: &NodeAddress, name: &NodeName) -> Self {
        Self { repository: address.pool.display().to_string(), name: Some(name.to_string()) }
    }
}

impl Create {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let dir = &self.target.dir;
        if self.disk.is_empty() || !Repository::is_at(dir) {
            Repository::create(dir)?;
        }
        with(dir, false, |repository| {
            self.disk.iter().try_for_each(|(name, size)| {
                repository.create_disk(&NodeName { volume: name.clone(), snapshot: None }, *size)
            })
        })?;
        let report = Done { repository: dir.display().to_string(), name: None };
        output.done(&report, || format!("{}: created", dir.display()))?;
        Ok(DONE)
    }
}

impl Add {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let dir = &self.target.dir;
        let name = NodeName { volume: self.name()?, snapshot: None };
        with(dir, false, |repository| repository.add(&self.file, &name))?;
        let report = Done { repository: dir.display().to_string(), name: Some(name.to_string()) };
        output.done(&report, || format!("{}/{name}: added", dir.display()))?;
        Ok(DONE)
    }

    fn name(&self) -> Result<VolumeName> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let stem = self.file.file_stem().unwrap_or_default().to_string_lossy();
        VolumeName::parse(&stem).map_err(|error| error.advise("say --name NAME"))
    }
}

impl Snapshot {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let volume = NodeName { volume: self.disk.node.volume.clone(), snapshot: None };
        let snapshot = match &self.disk.node.snapshot {
            Some(snapshot) => snapshot.clone(),
            None => now()?,
        };
        let name = NodeName { volume: volume.volume.clone(), snapshot: Some(snapshot.clone()) };
        with(&self.disk.pool, false, |repository| repository.snapshot(&volume, &snapshot))?;
        let text = format!("{}/{name}: created", self.disk.pool.display());
        output.done(&Done::to(&self.disk, &name), || text)?;
        Ok(DONE)
    }
}

impl CloneVerb {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let dir = &self.source.pool;
        crate::snapshot::check_same_pool(dir, &self.new.pool, "a clone")?;
        let new = NodeName { volume: self.new.volume.clone(), snapshot: None };
        with(dir, false, |repository| repository.clone_disk(&self.source.node, &new))?;
        let text = format!("{}: created, a clone of {}", self.new, self.source);
        output.done(&Done::to(&self.source, &new), || text)?;
        Ok(DONE)
    }
}

impl Delete {
    pub(super) fn run(&self, output: Output) -> Outcome {
        with(&self.disk.pool, false, |repository| repository.delete(&self.disk.node))?;
        let text = format!("{}: deleted", self.disk);
        output.done(&Done::to(&self.disk, &self.disk.node), || text)?;
        Ok(DONE)
    }
}

/// The present time as a snapshot's name.
fn now() -> Result<SnapshotName> {
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    SnapshotName::parse(&format!("t{}", since.as_millis()))
}

/// Reads `NAME=SIZE`.
fn disk(text: &str) -> Result<(VolumeName, ByteCount)> {
    let (name, bytes) = text.split_once('=').ok_or_else(|| {
        Error::new(ErrorKind::Invalid, format!("'{text}'"), "says no size")
            .advise("write NAME=SIZE, as in base=20G")
    })?;
    Ok((crate::address::volume_name(name)?, size(bytes)?))
}
