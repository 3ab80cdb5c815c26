//! `firn image snapshot`: internal snapshots.

use std::path::PathBuf;

use block_types::{ByteCount, Result, format_size};
use clap::{Args, Subcommand};
use daemon::ImageAccess;
use serde::Serialize;
use volume::{ImageFormat, ImageInfo, ImageSettings, ImageSnapshot, Secret};

use super::Access;
use super::access::secret;
use super::convert::Convert;
use super::create::settings;
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::table::{Table, moment};

/// The verbs of internal snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotVerb {
    /// Take a snapshot of the disk as it is.
    #[command(after_long_help = "EXAMPLE\n  firn image snapshot create disk.qcow2 monday")]
    Create(Named),
    List(List),
    /// Delete a snapshot.
    #[command(after_long_help = "EXAMPLE\n  firn image snapshot delete disk.qcow2 monday")]
    Delete(Named),
    /// Make the disk what a snapshot is. What was written since is lost; the snapshot stays.
    #[command(after_long_help = "EXAMPLE\n  firn image snapshot revert disk.qcow2 monday")]
    Revert(Named),
    Clone(CloneOf),
}

/// A snapshot of an image.
#[derive(Args, Debug)]
pub(crate) struct Named {
    /// The image.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,

    /// The snapshot's name, or its id if it is there already.
    #[arg(value_name = "SNAPSHOT")]
    name: String,

    #[command(flatten)]
    access: Access,
}

/// Make a new image of a snapshot, which can be written.
///
/// It is a copy that stands by itself: the format has no way for an image to stand on a snapshot
/// inside another. Zeros and what was never written take no time and no space.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn image snapshot clone disk.qcow2 monday test.qcow2")]
pub(crate) struct CloneOf {
    #[command(flatten)]
    named: Named,

    /// The new image.
    #[arg(value_name = "NEW")]
    target: PathBuf,

    /// Options of the new image, as 'firn image create' has them. May be repeated.
    #[arg(short = 'o', value_name = "OPTIONS", value_parser = settings)]
    options: Vec<ImageSettings>,

    /// The file that holds the secret of an encrypted new image, of which every byte counts.
    #[arg(long, value_name = "FILE", value_parser = secret)]
    target_secret_file: Option<Secret>,
}

/// List the snapshots of an image.
///
/// With --json the fields are those of 'qemu-img info'.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn image snapshot list disk.qcow2")]
pub(crate) struct List {
    /// The image.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,
}

/// What was done to which snapshot, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Done {
    filename: String,
    name: String,
}

/// Does what a verb says.
pub(super) fn run(verb: &SnapshotVerb, output: Output) -> Outcome {
    match verb {
        SnapshotVerb::Create(named) => named.create(output),
        SnapshotVerb::List(list) => list.run(output),
        SnapshotVerb::Delete(named) => {
            named.change(output, "deleted", |image| image.delete_snapshot(&named.name))
        }
        SnapshotVerb::Clone(clone) => clone.run(output),
        SnapshotVerb::Revert(named) => named.change(output, "is what the disk is now", |image| {
            image.revert_to_snapshot(&named.name)
        }),
    }
}

impl Named {
    fn create(&self, output: Output) -> Outcome {
        let image = daemon::access_image(&self.path, &self.access.changing())?;
        let snapshot = image.create_snapshot(&self.name)?;
        image.close()?;
        output.done(&snapshot, || {
            let (path, id) = (self.path.display(), &snapshot.id);
            format!("{path}: snapshot '{}' taken, id {id}", self.name)
        })?;
        Ok(DONE)
    }

    fn change(
        &self,
        output: Output,
        done: &str,
        work: impl FnOnce(&dyn ImageAccess) -> Result<()>,
    ) -> Outcome {
        let image = daemon::access_image(&self.path, &self.access.changing())?;
        work(&*image)?;
        image.close()?;
        let report = Done { filename: self.path.display().to_string(), name: self.name.clone() };
        output.done(&report, || format!("{}: snapshot '{}' {done}", report.filename, self.name))?;
        Ok(DONE)
    }
}

impl CloneOf {
    fn run(&self, output: Output) -> Outcome {
        let convert = Convert {
            source: self.named.path.clone(),
            target: self.target.clone(),
            access: self.named.access.clone(),
            target_format: Some(ImageFormat::Qcow2),
            options: self.options.clone(),
            compress: false,
            snapshot: Some(self.named.name.clone()),
            snapshots: false,
            bitmaps: false,
            skip_broken_bitmaps: false,
            target_secret_file: self.target_secret_file.clone(),
            force: false,
        };
        convert.run(output)
    }
}

impl List {
    fn run(&self, output: Output) -> Outcome {
        let info = ImageInfo::read(&self.path, None)?;
        output.result(&info.snapshots, || list(&info.snapshots))?;
        Ok(DONE)
    }
}

/// A table of snapshots.
pub(super) fn list(snapshots: &[ImageSnapshot]) -> String {
    let mut table = Table::new(&["ID", "SNAPSHOT", "SIZE", "VM STATE", "CREATED"], &[2, 3]);
    for snapshot in snapshots {
        table.add([
            snapshot.id.clone(),
            snapshot.name.clone(),
            format_size(ByteCount::new(snapshot.disk_size)),
            format_size(ByteCount::new(snapshot.vm_state_size)),
            moment(snapshot.created().as_deref()),
        ]);
    }
    table.render()
}
