//! `firn image bitmap`: dirty bitmaps that lie in an image.

use std::path::PathBuf;

use block_types::{ByteCount, Result, format_size};
use clap::{Args, Subcommand};
use serde::Serialize;
use volume::{DiskImage, ImageBitmap, ImageOptions};

use super::Access;
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::size::size;
use crate::table::Table;

/// The verbs of bitmaps in an image that nobody uses.
#[derive(Debug, Subcommand)]
pub(crate) enum BitmapVerb {
    Add(Add),
    /// Remove a bitmap.
    #[command(after_long_help = "EXAMPLE\n  firn image bitmap remove disk.qcow2 daily")]
    Remove(Named),
    /// Make a bitmap clean.
    #[command(after_long_help = "EXAMPLE\n  firn image bitmap clear disk.qcow2 daily")]
    Clear(Named),
    /// Make a bitmap record what is written from now on.
    #[command(after_long_help = "EXAMPLE\n  firn image bitmap enable disk.qcow2 daily")]
    Enable(Named),
    /// Make a bitmap stay as it is.
    #[command(after_long_help = "EXAMPLE\n  firn image bitmap disable disk.qcow2 daily")]
    Disable(Named),
    Merge(Merge),
    List(List),
}

/// A bitmap of an image.
#[derive(Args, Debug)]
pub(crate) struct Named {
    /// The image.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,

    /// The bitmap.
    #[arg(value_name = "BITMAP")]
    name: String,

    #[command(flatten)]
    access: Access,
}

/// Add a bitmap, which is clean.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn image bitmap add disk.qcow2 daily")]
pub(crate) struct Add {
    #[command(flatten)]
    named: Named,

    /// Bytes of the disk for each bit: a power of two from 512 to 2G.
    #[arg(short = 'g', long, value_name = "SIZE", value_parser = size)]
    granularity: Option<ByteCount>,

    /// Do not record what is written.
    #[arg(long)]
    disabled: bool,
}

/// Make dirty in one bitmap what is dirty in another.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn image bitmap merge disk.qcow2 weekly daily
  firn image bitmap merge base.qcow2 daily daily -b top.qcow2")]
pub(crate) struct Merge {
    #[command(flatten)]
    named: Named,

    /// The bitmap that is merged into it; it stays.
    #[arg(value_name = "SOURCE")]
    source: String,

    /// The image that has it, if that is another one.
    #[arg(short = 'b', long, value_name = "OTHER")]
    source_image: Option<PathBuf>,
}

/// List the bitmaps of an image.
///
/// With --json the fields are those of 'qemu-img info'.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn image bitmap list disk.qcow2")]
pub(crate) struct List {
    /// The image.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,
}

/// What was done to which bitmap, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Done {
    filename: String,
    name: String,
}

/// Does what a verb says.
pub(super) fn run(verb: &BitmapVerb, output: Output) -> Outcome {
    match verb {
        BitmapVerb::Add(add) => {
            let name = &add.named.name;
            let add_to = |image: &DiskImage| image.add_bitmap(name, add.granularity, !add.disabled);
            add.named.change(output, "added", add_to)
        }
        BitmapVerb::Remove(named) => {
            named.change(output, "removed", |image| image.remove_bitmap(&named.name))
        }
        BitmapVerb::Clear(named) => {
            named.change(output, "is clean", |image| image.clear_bitmap(&named.name))
        }
        BitmapVerb::Enable(named) => {
            named.change(output, "records", |image| image.record_in_bitmap(&named.name, true))
        }
        BitmapVerb::Disable(named) => named
            .change(output, "stays as it is", |image| image.record_in_bitmap(&named.name, false)),
        BitmapVerb::Merge(merge) => merge.run(output),
        BitmapVerb::List(list) => list.run(output),
    }
}

impl Named {
    fn change(
        &self,
        output: Output,
        done: &str,
        work: impl FnOnce(&DiskImage) -> Result<()>,
    ) -> Outcome {
        let image = DiskImage::open(&self.path, &self.access.changing())?;
        work(&image)?;
        image.close()?;
        let report = Done { filename: self.path.display().to_string(), name: self.name.clone() };
        output.done(&report, || format!("{}: bitmap '{}' {done}", report.filename, self.name))?;
        Ok(DONE)
    }
}

impl Merge {
    fn run(&self, output: Output) -> Outcome {
        let options = ImageOptions { format: None, ..self.named.access.reading() };
        let other = self.source_image.as_ref().map(|path| DiskImage::open(path, &options));
        let other = other.transpose()?;
        self.named.change(output, "holds both", |image| {
            image.merge_bitmap(&self.named.name, &self.source, other.as_ref())
        })
    }
}

impl List {
    fn run(&self, output: Output) -> Outcome {
        let bitmaps = ImageBitmap::list(&self.path, None)?;
        output.result(&bitmaps, || list(&bitmaps))?;
        Ok(DONE)
    }
}

/// A table of bitmaps.
pub(super) fn list(bitmaps: &[ImageBitmap]) -> String {
    let mut table = Table::new(&["BITMAP", "GRANULARITY", "FLAGS"], &[1]);
    for bitmap in bitmaps {
        table.add([
            bitmap.name.clone(),
            format_size(ByteCount::new(bitmap.granularity)),
            bitmap.flags.join(", "),
        ]);
    }
    table.render()
}
