//! `firn snapshot`: create, list, delete, rollback, clone, diff.

use std::io::BufWriter;
use std::path::{Path, PathBuf};

use block_types::{ByteCount, Error, ErrorKind, Result, format_size};
use clap::{Args, Subcommand};
use serde::Serialize;
use volume::{SnapshotInfo, VolumeInfo};

use crate::access::{ask, change};
use crate::address::{NodeAddress, SnapshotAddress, VolumeAddress, node, snapshot, volume};
use crate::changes::Changes;
use crate::exit::{DONE, Outcome};
use crate::metadata::sink;
use crate::output::Output;
use crate::table::{Table, moment};
use crate::volume::Deleted;

/// The verbs of snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotVerb {
    Create(Create),
    List(List),
    Delete(Delete),
    Rollback(Rollback),
    Clone(CloneVerb),
    Diff(Diff),
}

/// Take a snapshot of a volume, also while it is written.
///
/// It takes a moment whatever the volume's size, and holds every write that was answered before.
/// Its content never changes.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn snapshot create lab/db@monday")]
pub(crate) struct Create {
    /// The volume, and the name that its snapshot is to have.
    #[arg(value_name = "DIR/NAME@SNAPSHOT", value_parser = snapshot)]
    snapshot: SnapshotAddress,
}

/// List the snapshots of a volume, or of all volumes of a pool, oldest first.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn snapshot list lab/db")]
pub(crate) struct List {
    /// The volume, or the pool's directory.
    #[arg(value_name = "DIR[/NAME]")]
    of: String,
}

/// Delete a snapshot.
///
/// Its volume, other snapshots and clones keep what they share with it. A snapshot that clients use
/// is not deleted, unless by force.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn snapshot delete lab/db@monday")]
pub(crate) struct Delete {
    /// The snapshot.
    #[arg(value_name = "DIR/NAME@SNAPSHOT", value_parser = snapshot)]
    snapshot: SnapshotAddress,

    /// Disconnect the clients that use it.
    #[arg(long)]
    force: bool,
}

/// Make a volume again what it was when a snapshot of it was taken.
///
/// What was written since then is lost, unless another snapshot holds it. All snapshots stay, later
/// ones as well. Works while the volume is served; who has it mounted must not.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn snapshot rollback lab/db@monday")]
pub(crate) struct Rollback {
    /// The snapshot.
    #[arg(value_name = "DIR/NAME@SNAPSHOT", value_parser = snapshot)]
    snapshot: SnapshotAddress,
}

/// Make a new volume that begins as a snapshot is.
///
/// It takes a moment and no space. The two go their own ways from there on.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn snapshot clone lab/db@monday lab/db-test")]
pub(crate) struct CloneVerb {
    /// The snapshot.
    #[arg(value_name = "DIR/NAME@SNAPSHOT", value_parser = snapshot)]
    snapshot: SnapshotAddress,

    /// The new volume, in the same pool.
    #[arg(value_name = "DIR/NEW", value_parser = volume)]
    new: VolumeAddress,
}

/// Show where two volumes or snapshots of a pool differ.
///
/// Found from the metadata alone, in units of the pool's block size: 'data' where the second holds
/// something else than the first, 'discarded' where the second no longer holds anything. Both are
/// compared as they were at one moment; clients of a pool that is served go on meanwhile.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn snapshot diff lab/db@monday lab/db --json")]
pub(crate) struct Diff {
    /// The older one.
    #[arg(value_name = "FROM", value_parser = node)]
    from: NodeAddress,

    /// The newer one.
    #[arg(value_name = "TO", value_parser = node)]
    to: NodeAddress,
}

/// A snapshot with its volume, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Listed {
    volume: String,
    #[serde(flatten)]
    snapshot: SnapshotInfo,
}

/// Does what a verb says.
pub(crate) fn run(verb: &SnapshotVerb, output: Output) -> Outcome {
    match verb {
        SnapshotVerb::Create(create) => create.run(output),
        SnapshotVerb::List(list) => list.run(output),
        SnapshotVerb::Delete(delete) => delete.run(output),
        SnapshotVerb::Rollback(rollback) => rollback.run(output),
        SnapshotVerb::Clone(clone) => clone.run(output),
        SnapshotVerb::Diff(diff) => diff.run(output),
    }
}

impl Create {
    fn run(&self, output: Output) -> Outcome {
        let SnapshotAddress { pool, volume, snapshot } = &self.snapshot;
        let info = change(pool, |pool| pool.create_snapshot(volume, snapshot))?;
        let report = Listed { volume: volume.to_string(), snapshot: info };
        output.done(&report, || format!("{}: created", self.snapshot))?;
        Ok(DONE)
    }
}

impl List {
    fn run(&self, output: Output) -> Outcome {
        let snapshots: Vec<_> = self.volumes()?.into_iter().flat_map(listed).collect();
        output.result(&snapshots, || list(&snapshots))?;
        Ok(DONE)
    }

    /// The volumes whose snapshots are meant: what is a directory is a pool.
    fn volumes(&self) -> Result<Vec<VolumeInfo>> {
        let path = Path::new(&self.of);
        if path.is_dir() || !self.of.contains('/') {
            return ask(path, |pool| pool.volumes());
        }
        let VolumeAddress { pool, volume } = volume(&self.of)?;
        ask(&pool, |pool| Ok(vec![pool.volume(&volume)?]))
    }
}

impl Delete {
    fn run(&self, output: Output) -> Outcome {
        let SnapshotAddress { pool, volume, snapshot } = &self.snapshot;
        change(pool, |pool| {
            if self.force {
                pool.delete_snapshot_by_force(volume, snapshot)
            } else {
                pool.delete_snapshot(volume, snapshot)
            }
        })?;
        let report = Deleted { deleted: self.snapshot.to_string() };
        output.done(&report, || format!("{}: deleted", self.snapshot))?;
        Ok(DONE)
    }
}

impl Rollback {
    fn run(&self, output: Output) -> Outcome {
        let SnapshotAddress { pool, volume, snapshot } = &self.snapshot;
        let info = change(pool, |pool| {
            pool.rollback(volume, snapshot)?;
            pool.volume(volume)
        })?;
        output.done(&info, || format!("{}: its volume is as it was then", self.snapshot))?;
        Ok(DONE)
    }
}

impl CloneVerb {
    fn run(&self, output: Output) -> Outcome {
        let SnapshotAddress { pool, volume, snapshot } = &self.snapshot;
        check_same_pool(pool, &self.new.pool, "a clone")?;
        let new = &self.new.volume;
        let info = change(pool, |pool| pool.clone_snapshot(volume, snapshot, new))?;
        output.done(&info, || format!("{}: created, a clone of {}", self.new, self.snapshot))?;
        Ok(DONE)
    }
}

impl Diff {
    fn run(&self, output: Output) -> Outcome {
        check_same_pool(&self.from.pool, &self.to.pool, "a difference")?;
        let pool = daemon::access(&self.from.pool, true)?;
        sink::write(None, false, |out| {
            let mut list = Changes::new(BufWriter::new(out), output);
            pool.diff(&self.from.node, &self.to.node, &mut |range| list.add(&range))?;
            list.end()
        })?;
        pool.close()?;
        Ok(DONE)
    }
}

/// Checks that two paths mean one pool.
pub(crate) fn check_same_pool(one: &Path, other: &Path, what: &str) -> Result<()> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| PathBuf::from(path));
    if real(one) == real(other) {
        return Ok(());
    }
    let problem = format!("is not {}: {what} stays within one pool", one.display());
    Err(Error::new(ErrorKind::Invalid, other.display().to_string(), problem)
        .advise("use 'firn volume export' and 'firn volume import' between pools"))
}

fn listed(volume: VolumeInfo) -> impl Iterator<Item = Listed> {
    let name = volume.name;
    let with_volume = move |snapshot| Listed { volume: name.clone(), snapshot };
    volume.snapshots.into_iter().map(with_volume)
}

fn bytes(count: u64) -> String {
    format_size(ByteCount::new(count))
}

fn list(snapshots: &[Listed]) -> String {
    let mut table = Table::new(&["NAME", "SIZE", "MAPPED", "CREATED"], &[1, 2]);
    for Listed { volume, snapshot } in snapshots {
        table.add([
            format!("{volume}@{}", snapshot.name),
            bytes(snapshot.size),
            bytes(snapshot.mapped),
            moment(snapshot.created.as_deref()),
        ]);
    }
    table.render()
}
