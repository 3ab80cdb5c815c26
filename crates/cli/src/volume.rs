//! `firn volume`: create, list, show, resize, rename, delete. The verbs about what a volume holds
//! are in `map` and `transfer`.

use std::path::PathBuf;

use block_types::{ByteCount, Error, ErrorKind, format_size};
use clap::{Args, Subcommand};
use serde::Serialize;
use volume::{ImageFormat, OriginSource, VolumeInfo};

use crate::access::{ask, change};
use crate::activate::Activate;
use crate::address::{Device, DeviceAddress, VolumeAddress, volume, volume_or_device};
use crate::exit::{DONE, Outcome};
use crate::image::backing_policy;
use crate::map::{Discard, Map};
use crate::origin::{Hydrate, Merge};
use crate::output::Output;
use crate::pool::StatusLine;
use crate::size::{NewSize, new_size, whole_sectors};
use crate::snapshot::check_same_pool;
use crate::table::{Table, moment};
use crate::transfer::{Export, Import};

/// The verbs of volumes.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeVerb {
    Create(Create),
    Activate(Activate),
    List(List),
    Show(Show),
    Resize(Resize),
    Rename(Rename),
    Map(Map),
    Discard(Discard),
    Import(Import),
    Export(Export),
    Hydrate(Hydrate),
    Merge(Merge),
    Delete(Delete),
}

/// Create an empty volume, or one that begins as an image.
///
/// It reads as zeros, or as its origin, and takes space in its pool only where it is written. An
/// origin is read and never written; it must stay as it is while anything stands on it: the volume,
/// its snapshots and clones. As long as the pool is open for writing, Firn keeps other writers from
/// an origin that is a file. 'firn volume hydrate' frees a volume from its origin, 'firn volume
/// merge' writes it back. What is discarded never shows the origin again: it reads as zeros, or as
/// it did. Names are 1 to 128 letters, digits and . _ + -, and do not begin with . or -.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn volume create lab/db --size 20G
  firn volume create lab/web --origin debian.qcow2 --size 20G
  firn volume create lab/copy --origin 'nbd://server/disk'")]
pub(crate) struct Create {
    /// The pool's directory and the volume's name.
    #[arg(value_name = "DIR/NAME", value_parser = volume)]
    volume: VolumeAddress,

    /// Its size: a multiple of 512 bytes. That of the origin if there is one.
    #[arg(
        long,
        value_name = "SIZE",
        value_parser = whole_sectors,
        required_unless_present = "origin"
    )]
    size: Option<ByteCount>,

    /// What it begins as: an image, a raw file or a block device, or the URI of an NBD export.
    ///
    /// Behind its end a larger volume reads as zeros.
    #[arg(long, value_name = "FILE|URI")]
    origin: Option<String>,

    /// The origin's format: raw, qcow2 or vhd. Found out if not said, and noted.
    #[arg(long, value_name = "FORMAT", requires = "origin")]
    origin_format: Option<ImageFormat>,

    /// Let the origin name files in this folder as backing files, or 'any' file.
    ///
    /// Without it, only what lies in the origin's own folder, or below it, is opened. May be
    /// repeated.
    #[arg(long, value_name = "FOLDER", requires = "origin")]
    allow_backing: Vec<PathBuf>,
}

/// List the volumes of a pool.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn volume list lab")]
pub(crate) struct List {
    /// The pool's directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Show a volume and its snapshots.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn volume show lab/db")]
pub(crate) struct Show {
    /// The volume.
    #[arg(value_name = "DIR/NAME", value_parser = volume)]
    volume: VolumeAddress,

    /// Print the line that 'dmsetup status' would print.
    #[arg(long)]
    dm: bool,
}

/// Change the size of a volume.
///
/// Works while it is served. Snapshots keep their size. What lies behind a smaller size is lost, so
/// that has to be asked for.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn volume resize lab/db --size +10G")]
pub(crate) struct Resize {
    /// The volume.
    #[arg(value_name = "DIR/NAME", value_parser = volume)]
    volume: VolumeAddress,

    /// The new size, or how much more: 30G, +10G.
    #[arg(long, value_name = "SIZE", value_parser = new_size)]
    size: NewSize,

    /// Allow a smaller size.
    #[arg(long)]
    shrink: bool,
}

/// Give a volume another name, or a name to a device that has none.
///
/// Devices that messages or other programs make have no name, and are listed as #ID. Such a device
/// has no size either until it is given one with its name. A volume that clients use keeps its
/// name.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn volume rename lab/#7 lab/db --size 20G")]
pub(crate) struct Rename {
    /// The volume, or the device by its number.
    #[arg(value_name = "DIR/NAME", value_parser = volume_or_device)]
    device: DeviceAddress,

    /// Its new name, with the same pool.
    #[arg(value_name = "DIR/NEW", value_parser = volume)]
    new: VolumeAddress,

    /// The size of a device that has none.
    #[arg(long, value_name = "SIZE", value_parser = whole_sectors)]
    size: Option<ByteCount>,
}

/// Delete a volume.
///
/// Clones of its snapshots live on. A volume that clients use is not deleted, unless by force.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn volume delete lab/db-test")]
pub(crate) struct Delete {
    /// The volume.
    #[arg(value_name = "DIR/NAME", value_parser = volume)]
    volume: VolumeAddress,

    /// Delete its snapshots too.
    #[arg(long)]
    with_snapshots: bool,

    /// Disconnect the clients that use it.
    #[arg(long)]
    force: bool,
}

/// What was deleted, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Deleted {
    /// Its address.
    pub(crate) deleted: String,
}

/// Does what a verb says.
pub(crate) fn run(verb: &VolumeVerb, output: Output) -> Outcome {
    match verb {
        VolumeVerb::Create(create) => create.run(output),
        VolumeVerb::Activate(activate) => activate.run(output),
        VolumeVerb::List(list) => list.run(output),
        VolumeVerb::Show(show) => show.run(output),
        VolumeVerb::Resize(resize) => resize.run(output),
        VolumeVerb::Rename(rename) => rename.run(output),
        VolumeVerb::Map(map) => map.run(output),
        VolumeVerb::Discard(discard) => discard.run(output),
        VolumeVerb::Import(import) => import.run(output),
        VolumeVerb::Export(export) => export.run(output),
        VolumeVerb::Hydrate(hydrate) => hydrate.run(output),
        VolumeVerb::Merge(merge) => merge.run(output),
        VolumeVerb::Delete(delete) => delete.run(output),
    }
}

impl Create {
    fn run(&self, output: Output) -> Outcome {
        let VolumeAddress { pool, volume } = &self.volume;
        let policy = backing_policy(&self.allow_backing);
        let locate = |address: &String| OriginSource::locate(address, self.origin_format, &policy);
        let origin = self.origin.as_ref().map(locate).transpose()?;
        let info = change(pool, |pool| match (&origin, self.size) {
            (Some(origin), size) => pool.create_volume_over(volume, size, origin),
            (None, Some(size)) => pool.create_volume(volume, size),
            (None, None) => unreachable!("one of the two is required"),
        })?;
        output.done(&info, || {
            let over = info.origin.as_ref().map(|origin| format!(" over {}", origin.address));
            let over = over.unwrap_or_default();
            format!("{}: created, {}{over}", self.volume, bytes(info.size))
        })?;
        Ok(DONE)
    }
}

impl List {
    fn run(&self, output: Output) -> Outcome {
        let volumes = ask(&self.dir, |pool| pool.volumes())?;
        output.result(&volumes, || list(&volumes))?;
        Ok(DONE)
    }
}

impl Show {
    fn run(&self, output: Output) -> Outcome {
        let VolumeAddress { pool, volume } = &self.volume;
        if self.dm {
            let line = ask(pool, |pool| pool.volume_status_line(volume))?;
            output.result(&StatusLine { line: &line }, || format!("{line}\n"))?;
            return Ok(DONE);
        }
        let info = ask(pool, |pool| pool.volume(volume))?;
        output.result(&info, || describe(&self.volume, &info))?;
        Ok(DONE)
    }
}

impl Resize {
    fn run(&self, output: Output) -> Outcome {
        let VolumeAddress { pool, volume } = &self.volume;
        let info = change(pool, |pool| {
            let now = ByteCount::new(pool.volume(volume)?.size);
            let size = self.size.relative_to(now)?;
            if size < now && !self.shrink {
                return Err(self.refuse_to_shrink(now, size));
            }
            pool.resize_volume(volume, size)
        })?;
        output.done(&info, || format!("{}: {} now", self.volume, bytes(info.size)))?;
        Ok(DONE)
    }

    fn refuse_to_shrink(&self, now: ByteCount, size: ByteCount) -> Error {
        let problem = format!("{size} is less than its {now}, and what lies behind would be lost");
        Error::new(ErrorKind::Invalid, self.volume.to_string(), problem)
            .advise("say --shrink if that is meant")
    }
}

impl Rename {
    fn run(&self, output: Output) -> Outcome {
        let DeviceAddress { pool, device } = &self.device;
        check_same_pool(pool, &self.new.pool, "a new name")?;
        let new = &self.new.volume;
        let info = match (device, self.size) {
            (Device::Named(name), None) => change(pool, |pool| pool.rename_volume(name, new))?,
            (Device::Numbered(id), Some(size)) => {
                change(pool, |pool| pool.name_device(*id, new, size))?
            }
            (Device::Named(_), Some(_)) => {
                let advice = "leave out --size; 'firn volume resize' changes it";
                return Err(self.refuse("has a size already", advice).into());
            }
            (Device::Numbered(_), None) => {
                let advice = "say how large it is, as in --size 20G";
                return Err(self.refuse("has no size yet", advice).into());
            }
        };
        output.done(&info, || format!("{}: is {} now", self.device, self.new))?;
        Ok(DONE)
    }

    fn refuse(&self, problem: &str, advice: &str) -> Error {
        Error::new(ErrorKind::Invalid, self.device.to_string(), problem).advise(advice)
    }
}

impl Delete {
    fn run(&self, output: Output) -> Outcome {
        let VolumeAddress { pool, volume } = &self.volume;
        change(pool, |pool| {
            if self.force {
                pool.delete_volume_by_force(volume, self.with_snapshots)
            } else {
                pool.delete_volume(volume, self.with_snapshots)
            }
        })?;
        let report = Deleted { deleted: self.volume.to_string() };
        output.done(&report, || format!("{}: deleted", self.volume))?;
        Ok(DONE)
    }
}

fn bytes(count: u64) -> String {
    format_size(ByteCount::new(count))
}

fn list(volumes: &[VolumeInfo]) -> String {
    let mut heads = vec!["NAME", "SIZE", "MAPPED", "SNAPSHOTS", "PARENT"];
    let over_origins = volumes.iter().any(|volume| volume.origin.is_some());
    if over_origins {
        heads.push("ORIGIN");
    }
    let mut table = Table::new(&heads, &[1, 2, 3]);
    for volume in volumes {
        let mut row = vec![
            volume.name.clone(),
            bytes(volume.size),
            bytes(volume.mapped),
            volume.snapshots.len().to_string(),
            volume.parent.clone().unwrap_or_default(),
        ];
        if over_origins {
            row.push(volume.origin.as_ref().map_or_else(String::new, |it| it.address.clone()));
        }
        table.add(row);
    }
    table.render()
}

fn describe(address: &VolumeAddress, info: &VolumeInfo) -> String {
    let mut lines = vec![
        ("volume", address.to_string()),
        ("size", format!("{} ({} bytes)", bytes(info.size), info.size)),
        ("mapped", bytes(info.mapped)),
        ("device", info.id.to_string()),
        ("created", moment(info.created.as_deref())),
    ];
    if let Some(parent) = &info.parent {
        lines.push(("clone of", parent.clone()));
    }
    if let Some(origin) = &info.origin {
        let format = origin.format.as_deref().unwrap_or("nbd");
        lines.push(("origin", format!("{} ({format})", origin.address)));
        if origin.shown != info.size {
            lines.push(("shows", format!("the first {} of it", ByteCount::new(origin.shown))));
        }
    }
    let text = |(what, value): (&str, String)| format!("{:<9}{value}\n", format!("{what}:"));
    let mut text: String = lines.into_iter().map(text).collect();
    if !info.snapshots.is_empty() {
        let mut table = Table::new(&["SNAPSHOT", "SIZE", "MAPPED", "CREATED"], &[1, 2]);
        for snapshot in &info.snapshots {
            table.add([
                snapshot.name.clone(),
                bytes(snapshot.size),
                bytes(snapshot.mapped),
                moment(snapshot.created.as_deref()),
            ]);
        }
        text = format!("{text}\n{}", table.render());
    }
    text
}
