//! `firn pool repair`: new metadata from what survives of the old.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, Error, ErrorKind, Result, format_size};
use clap::Args;
use dm_thin::repair::{LostRange, RepairReport, RepairedDevice, Roots, repair};
use dm_thin::restore::Overrides;
use dm_thin::{CheckDepth, CheckOptions, check_with};
use serde::Serialize;
use volume::{MetadataTarget, MetadataUse, TargetOptions};

use super::source::{Figures, open};
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::table::Table;

/// Who repairs, as others are told.
const HOLDER: &str = "firn pool repair";

/// Make new metadata from whatever survives of a pool's damaged metadata.
///
/// What is damaged is only read: every block of it, so that much is found even where the
/// superblock is gone. In a pool directory the new metadata is checked and takes the place of the
/// damaged one, which is kept as 'metadata.damaged'; with -o the pool stays as it is. What was
/// lost is listed.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn pool repair lab
  firn pool repair /dev/vg/pool_meta0 -o repaired.bin")]
pub(crate) struct Repair {
    /// A pool's directory, or a file or block device that holds a pool's metadata.
    #[arg(value_name = "SOURCE")]
    source: PathBuf,

    /// The file to make, or a block device; a pool directory is repaired without it.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Replace a file that exists, or 'metadata.damaged'; write to a block device.
    #[arg(long)]
    force: bool,

    #[command(flatten)]
    figures: Figures,
}

/// What a repair has done, as JSON has it. Sizes are bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Report {
    source: String,
    output: String,
    /// Where the damaged metadata of a pool directory is.
    kept: Option<String>,
    /// Whether nothing is lost, as far as can be known.
    complete: bool,
    /// Whether the pool's trees were found by searching, so that they may be some commits old.
    searched: bool,
    devices: Vec<Device>,
    /// What else is worth knowing.
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Device {
    id: u32,
    mapped: u64,
    /// What it mapped before, where that is known.
    mapped_before: Option<u64>,
    lost: Vec<Lost>,
    /// Mappings that led behind the end of the data.
    dropped: u64,
    /// Whether it may be in a state some commits old.
    doubtful: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Lost {
    start: u64,
    /// `null` where all is lost to the end of the device.
    length: Option<u64>,
}

impl Repair {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        let report = match &self.output {
            Some(file) => self.repair_to(file)?,
            None => self.repair_pool()?,
        };
        output.result(&report, || describe(&report))?;
        Ok(DONE)
    }

    /// Repairs the source to another place.
    fn repair_to(&self, file: &Path) -> Result<Report> {
        let source = open(&self.source, MetadataUse::Read, "repair")?;
        let target = MetadataTarget::open(file, &self.target_options())?;
        self.repair(&source.device(), target, file, &self.figures.overrides())
    }

    /// Repairs a pool directory, which gets the new metadata in the end.
    fn repair_pool(&self) -> Result<Report> {
        let source = open(&self.source, MetadataUse::Read, "repair")?;
        let dir = source.dir().map(Path::to_owned).ok_or_else(|| {
            let problem = "is no pool directory, and metadata is never repaired in place";
            Error::new(ErrorKind::Invalid, self.name(), problem)
                .advise("say with -o which file is to be made")
        })?;
        // From here on the pool is claimed for writing.
        drop(source);
        let target = MetadataTarget::open(&dir, &self.target_options())?;
        let damaged = target.present()?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, self.name(), "is no pool directory any more")
        })?;
        let mut overrides = self.figures.overrides();
        let depth = CheckDepth::Superblock;
        if check_with(Arc::clone(&damaged), CheckOptions { depth, ..Default::default() }).is_err() {
            overrides.transaction = overrides.transaction.or(target.transaction_of_names()?);
        }
        self.repair(&damaged, target, &self.source, &overrides)
    }

    fn repair(
        &self,
        damaged: &Arc<dyn BlockDevice>,
        target: MetadataTarget,
        file: &Path,
        overrides: &Overrides,
    ) -> Result<Report> {
        let ((report, block), kept) = target.write(Some(damaged.size()), |metadata| {
            let report = repair(damaged, Arc::clone(&metadata), overrides).map_err(explain)?;
            let block = dm_thin::ls::list(metadata, dm_thin::dump::View::Live, false)?.block_size;
            Ok((report, block))
        })?;
        Ok(Report {
            source: self.name(),
            output: file.display().to_string(),
            kept: kept.map(|path| path.display().to_string()),
            complete: report.is_complete(),
            searched: report.roots == Roots::Search,
            devices: report.devices.iter().map(|device| Device::new(device, block)).collect(),
            notes: notes(report),
        })
    }

    fn target_options(&self) -> TargetOptions<'static> {
        TargetOptions { holder: HOLDER, keep_as: "metadata.damaged", force: self.force }
    }

    fn name(&self) -> String {
        self.source.display().to_string()
    }
}

/// Says by which option a figure is given that is lost.
fn explain(error: Error) -> Error {
    if error.kind() != ErrorKind::Invalid {
        return error;
    }
    Error::new(ErrorKind::Corrupt, error.object(), error.problem())
        .advise("say how large data blocks are with --data-block-size")
}

fn notes(report: RepairReport) -> Vec<String> {
    let mut notes = report.notes;
    match report.details {
        Some(Roots::Superblock) => {}
        Some(Roots::Search) => notes.push("the details of devices may be old".to_owned()),
        None => notes.push("the details of devices are lost, and were made up".to_owned()),
    }
    notes
}

impl Device {
    fn new(device: &RepairedDevice, block: ByteCount) -> Self {
        let bytes = |blocks: u64| blocks.saturating_mul(block.get());
        let lost = |range: &LostRange| Lost {
            start: bytes(range.first.get()),
            length: range.last.map(|last| bytes(last.get() - range.first.get() + 1)),
        };
        Self {
            id: device.id.get(),
            mapped: bytes(device.mapped),
            mapped_before: device.stated.map(bytes),
            lost: device.lost.iter().map(lost).collect(),
            dropped: device.dropped,
            doubtful: device.doubtful,
        }
    }

    /// Whether something of it is lost, or may be.
    fn is_harmed(&self) -> bool {
        let fewer = self.mapped_before.is_some_and(|before| before != self.mapped);
        !self.lost.is_empty() || self.dropped > 0 || self.doubtful || fewer
    }

    /// Its rows of the table: one for each range that is lost.
    fn rows(&self) -> Vec<[String; 6]> {
        let mut note = Vec::new();
        if self.doubtful {
            note.push("may be some commits old".to_owned());
        }
        if self.dropped > 0 {
            note.push(format!("{} mappings led behind the data", self.dropped));
        }
        let size = |bytes| format_size(ByteCount::new(bytes));
        let mut head = [
            self.id.to_string(),
            size(self.mapped),
            self.mapped_before.map_or_else(|| "unknown".to_owned(), size),
        ];
        let mut note = note.join(", ");
        let mut row = |from: String, to: String| {
            let [id, mapped, before] = std::mem::take(&mut head);
            [id, mapped, before, from, to, std::mem::take(&mut note)]
        };
        if self.lost.is_empty() {
            return vec![row("-".to_owned(), "-".to_owned())];
        }
        let end = |lost: &Lost| match lost.length {
            Some(length) => (lost.start + (length - 1)).to_string(),
            None => "the end".to_owned(),
        };
        self.lost.iter().map(|lost| row(lost.start.to_string(), end(lost))).collect()
    }
}

/// What was lost, as a table for people, and what it comes to.
fn describe(report: &Report) -> String {
    let headings = ["DEVICE", "MAPPED", "BEFORE", "LOST FROM", "TO BYTE", "NOTE"];
    let mut table = Table::new(&headings, &[0, 1, 2, 3, 4]);
    let harmed: Vec<&Device> = report.devices.iter().filter(|device| device.is_harmed()).collect();
    harmed.iter().flat_map(|device| device.rows()).for_each(|row| table.add(row));
    let mut text = if harmed.is_empty() { String::new() } else { table.render() };
    report.notes.iter().for_each(|note| text.push_str(&format!("note: {note}\n")));
    let outcome = match (report.complete, harmed.len()) {
        (true, _) => "nothing is lost".to_owned(),
        (false, 0) => "no mappings are known to be lost".to_owned(),
        (false, count) => format!("{count} of {} devices lost mappings", report.devices.len()),
    };
    let place = match &report.kept {
        Some(kept) => format!("; the damaged metadata is {kept}"),
        None => format!(" to {}", report.output),
    };
    text.push_str(&format!("{}: repaired{place}; {outcome}\n", report.source));
    text
}

#[cfg(test)]
mod tests {
    use super::{Device, Lost, Report, describe};

    #[test]
    fn what_is_lost_is_listed_by_device_and_range() {
        let lost = vec![
            Lost { start: 65536, length: Some(131_072) },
            Lost { start: 1 << 20, length: None },
        ];
        let harmed = Device {
            id: 7,
            mapped: 1 << 20,
            mapped_before: Some(2 << 20),
            lost,
            dropped: 0,
            doubtful: true,
        };
        let whole = Device {
            id: 8,
            mapped: 0,
            mapped_before: Some(0),
            lost: Vec::new(),
            dropped: 0,
            doubtful: false,
        };
        let mut report = Report {
            source: "lab".to_owned(),
            output: "lab".to_owned(),
            kept: Some("lab/metadata.damaged".to_owned()),
            complete: false,
            searched: true,
            devices: vec![harmed, whole],
            notes: Vec::new(),
        };
        let end = "lab: repaired; the damaged metadata is lab/metadata.damaged; ";
        assert_eq!(
            describe(&report),
            format!(
                "DEVICE  MAPPED  BEFORE  LOST FROM  TO BYTE  NOTE\n\
                 \u{20}    7   1 MiB   2 MiB      65536   196607  may be some commits old\n\
                 \u{20}                         1048576  the end\n\
                 {end}1 of 2 devices lost mappings\n"
            )
        );
        report.devices.remove(0);
        report.complete = true;
        assert_eq!(describe(&report), format!("{end}nothing is lost\n"));
    }
}
