//! `firn cow create`.

use std::path::PathBuf;

use block_types::{ByteCount, Error, ErrorKind, Result, format_size};
use clap::Args;
use volume::{
    ChunkSize, CowMode, ImageFormat, ImageInfo, NewSnapshot, OnFull, SnapshotName, StoreSource,
};

use super::place::with;
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::size::size;

/// Take a snapshot of a raw disk, whose past goes to a store from now on.
///
/// The origin stays where it is. The store is a file of its own, in the format of the kernel's
/// persistent snapshots, and grows as it fills, up to what the whole origin may need or --max-size.
/// Works while the origin is served. Whether it is served or not, write to it through Firn only
/// from now on: 'ORIGIN.snapshots' beside it says which stores it has, and 'firn serve ORIGIN'
/// opens them all.
///
/// In mode sync a write that first touches a chunk waits until its copy and its entry are durable;
/// in mode deferred writes are buffered, and copies made at the next flush, with the same safety;
/// in mode async a crash loses the snapshot, and says so.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn cow create disk.img --store past.cow
  firn cow create disk.img --store past.cow --mode deferred --chunk-size 4K
  firn cow create disk.img --store linux.cow --existing
  firn cow create disk.img --store all.cow --shared --name monday")]
pub(crate) struct Create {
    /// The disk: a raw file or a block device.
    #[arg(value_name = "ORIGIN")]
    origin: PathBuf,

    /// The store: a file that does not exist yet, or a block device that begins with zeros.
    #[arg(long, value_name = "FILE")]
    store: PathBuf,

    /// The snapshot's name; that of the store, without its ending, if not said.
    #[arg(long, value_name = "NAME", value_parser = SnapshotName::parse)]
    name: Option<SnapshotName>,

    /// When a write to the origin goes ahead: sync, async or deferred.
    #[arg(long, value_name = "MODE", default_value = "sync")]
    mode: CowMode,

    /// The unit that is copied: a power of two from 512 bytes to 1G.
    #[arg(long, value_name = "SIZE", value_parser = chunk, default_value = "16K")]
    chunk_size: ChunkSize,

    /// How large the store is at first; 64M, or what the whole origin may need, if not said.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    size: Option<ByteCount>,

    /// How large the store may grow; what the whole origin may need if not said.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_size: Option<ByteCount>,

    /// Keep the table in memory: nothing of the snapshot outlives the server.
    #[arg(long)]
    transient: bool,

    /// The store is there, made by Linux or kept from before, and goes on.
    #[arg(long, conflicts_with_all = ["transient", "shared", "size"])]
    existing: bool,

    /// Share the store with other snapshots of the origin, so that one copy serves all of them:
    /// one that was made with --shared before, or a new one. Linux does not read such stores, and a
    /// snapshot in one cannot be merged.
    #[arg(long, conflicts_with = "transient", requires = "name")]
    shared: bool,

    /// A full store makes the snapshot invalid, instead of only taking no more writes to it.
    #[arg(long)]
    invalidate_when_full: bool,

    /// Discards of the snapshot make chunks zero that its store has.
    #[arg(long)]
    discard_zeroes: bool,

    /// Discards of the snapshot go on to the origin, as far as no other snapshot needs it.
    #[arg(long, requires = "discard_zeroes")]
    discard_passdown: bool,

    /// The origin is raw, whatever it seems to be: raw is all that is taken.
    #[arg(short = 'f', long, value_name = "FORMAT")]
    format: Option<ImageFormat>,

    /// Take the origin as it is, though it was written past its snapshots.
    #[arg(long)]
    trust_origin: bool,
}

impl Create {
    pub(super) fn run(&self, output: Output) -> Outcome {
        self.check_raw()?;
        let new = self.new_snapshot();
        let origin = self.origin.display();
        let report = with(&self.origin, self.trust_origin, false, |access| {
            if self.transient && access.report()?.served_by.is_none() {
                let problem = "is not being served, and a transient snapshot ends with its server";
                return Err(Error::new(ErrorKind::Unsupported, origin.to_string(), problem)
                    .advise("serve it first, or leave --transient out"));
            }
            access.create(&new)
        })?;
        output.done(&report, || {
            let limit = report
                .grow_limit
                .map(|limit| format!(", which grows up to {}", format_size(ByteCount::new(limit))));
            format!(
                "{origin}@{}: taken, {} in {}{}",
                report.name,
                report.mode,
                report.store,
                limit.unwrap_or_default()
            )
        })?;
        Ok(DONE)
    }

    fn new_snapshot(&self) -> NewSnapshot {
        let (chunk, size) = (self.chunk_size, self.size);
        let source = match (self.existing, self.shared, self.transient) {
            (true, ..) => StoreSource::There,
            (_, true, _) => StoreSource::Shared { chunk, size },
            (.., true) => StoreSource::Transient { chunk, size },
            _ => StoreSource::Made { chunk, size },
        };
        NewSnapshot {
            source,
            name: self.name.clone(),
            mode: self.mode,
            on_full: if self.invalidate_when_full { OnFull::Invalidate } else { OnFull::Overflow },
            discard_zeroes: self.discard_zeroes,
            discard_passdown: self.discard_passdown,
            grow_limit: self.max_size,
            ..NewSnapshot::new(&self.store)
        }
    }

    /// Refuses what is an image of another format: its snapshot would be one of the container, not
    /// of the disk in it.
    fn check_raw(&self) -> Result<()> {
        let format = match self.format {
            Some(format) => format.qemu_name(),
            None => ImageInfo::read(&self.origin, None)?.format,
        };
        if format == ImageFormat::Raw.qemu_name() {
            return Ok(());
        }
        let problem = format!("is a {format} image, and an origin is a raw disk");
        Err(Error::new(ErrorKind::Unsupported, self.origin.display().to_string(), problem).advise(
            "use 'firn image snapshot' or an overlay; if it is a raw disk that only looks like \
             that, say '-f raw'",
        ))
    }
}

/// Reads the size of a chunk.
fn chunk(text: &str) -> Result<ChunkSize> {
    ChunkSize::new(size(text)?)
}
