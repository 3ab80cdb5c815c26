//! `firn image compare`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Error, Result};
use clap::Args;
use serde::Serialize;
use volume::{DiskImage, ImageFormat, ImageOptions};

use super::Access;
use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// The disks differ.
const DIFFERENT: u8 = 1;
/// They could not be compared: more than [`DIFFERENT`], as of qemu-img.
const NOT_COMPARED: u8 = 2;

/// Bytes of which is asked at once whether they are zeros.
const WINDOW: ByteCount = ByteCount::new(64 << 20);
/// Bytes that are read at once.
const PIECE: ByteCount = ByteCount::new(1 << 20);

/// Compare what two images hold.
///
/// Formats, backing files and what takes space make no difference. Where one is longer, what the
/// other lacks counts as zeros. Exit codes, as of 'qemu-img compare': 0 the same, 1 different, 2
/// could not compare.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn image compare disk.raw disk.qcow2")]
pub(crate) struct Compare {
    /// One image.
    #[arg(value_name = "IMAGE")]
    first: PathBuf,

    /// The other.
    #[arg(value_name = "OTHER")]
    second: PathBuf,

    #[command(flatten)]
    access: Access,

    /// The other's format.
    #[arg(short = 'F', long, value_name = "FORMAT")]
    other_format: Option<ImageFormat>,

    /// Different sizes are a difference.
    #[arg(short = 's', long)]
    strict: bool,
}

/// How they compare, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Compared {
    identical: bool,
    /// The first byte that differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    sizes: [u64; 2],
}

impl Compare {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let report = match self.compare() {
            Ok(report) => report,
            Err(error) => return Ok(failed(&error, NOT_COMPARED)),
        };
        output.result(&report, || describe(&report))?;
        Ok(if report.identical { DONE } else { DIFFERENT })
    }

    fn compare(&self) -> Result<Compared> {
        let open = |path: &Path, options: &ImageOptions| DiskImage::open(path, options);
        let options = self.access.reading();
        let first = open(&self.first, &options)?;
        let second = open(&self.second, &ImageOptions { format: self.other_format, ..options })?;
        let (first, second) = (first.device(), second.device());
        let sizes = [first.size().get(), second.size().get()];
        if self.strict && sizes[0] != sizes[1] {
            return Ok(Compared { identical: false, offset: None, sizes });
        }
        let offset = first_difference(&*first, &*second)?.map(ByteOffset::get);
        Ok(Compared { identical: offset.is_none(), offset, sizes })
    }
}

/// Tells of an error here, for an exit code of its own.
pub(super) fn failed(error: &Error, code: u8) -> u8 {
    eprintln!("firn: {}", error.to_string().replace('\n', " "));
    code
}

fn describe(report: &Compared) -> String {
    let [first, second] = report.sizes;
    let mut text = String::new();
    if first != second {
        text.push_str(&format!("sizes differ: {first} and {second} bytes\n"));
    }
    match report.offset {
        Some(offset) => text.push_str(&format!("different from byte {offset} on\n")),
        None if report.identical => text.push_str("the same\n"),
        None => {}
    }
    text
}

/// The first byte in which two disks differ, the shorter one continued by zeros.
fn first_difference(
    first: &dyn BlockDevice,
    second: &dyn BlockDevice,
) -> Result<Option<ByteOffset>> {
    let longer = ByteCount::new(first.size().get().max(second.size().get()));
    let mut buffers = [vec![0; PIECE.as_usize()], vec![0; PIECE.as_usize()]];
    for window in ByteRange::new(ByteOffset::ZERO, longer).pieces(WINDOW) {
        let mut data = data_of(first, window)?;
        data.extend(data_of(second, window)?);
        data.sort_unstable_by_key(|range| range.start);
        let mut done = window.start;
        for range in data {
            // What both hold is read once.
            let rest = ByteRange::between(range.start.max(done).min(range.end()), range.end());
            for piece in rest.pieces(PIECE) {
                let [ours, theirs] = &mut buffers;
                let len = piece.len.as_usize();
                read(first, &mut ours[..len], piece)?;
                read(second, &mut theirs[..len], piece)?;
                let differs = ours[..len].iter().zip(&theirs[..len]).position(|(a, b)| a != b);
                if let Some(at) = differs {
                    return Ok(Some(piece.start.plus(ByteCount::new(at as u64))));
                }
            }
            done = done.max(range.end());
        }
    }
    Ok(None)
}

/// The parts of `range` that are not known to be zeros.
fn data_of(device: &dyn BlockDevice, range: ByteRange) -> Result<Vec<ByteRange>> {
    let mut data = Vec::new();
    let inside = range.intersect(ByteRange::new(ByteOffset::ZERO, device.size()));
    if inside.is_empty() {
        return Ok(data);
    }
    device.extents(inside, &mut |extent| {
        if !extent.state.reads_zero() {
            data.push(extent.range);
        }
        ControlFlow::Continue(())
    })?;
    Ok(data)
}

/// Reads `range`, with zeros for what lies behind the end.
fn read(device: &dyn BlockDevice, buffer: &mut [u8], range: ByteRange) -> Result<()> {
    let inside = range.intersect(ByteRange::new(ByteOffset::ZERO, device.size()));
    let (here, behind) = buffer.split_at_mut(inside.len.as_usize());
    behind.fill(0);
    if here.is_empty() { Ok(()) } else { device.read_at(here, inside.start) }
}

#[cfg(test)]
mod tests {
    use super::first_difference;
    use block_io::{BlockDevice, MemoryDevice};
    use block_types::{ByteCount, ByteOffset};

    /// A disk of `size` bytes with a one at each of `ones`.
    fn disk(size: u64, ones: &[u64]) -> MemoryDevice {
        let device = MemoryDevice::new("disk", ByteCount::new(size));
        for &at in ones {
            device.write_at(&[1], ByteOffset::new(at)).expect("written");
        }
        device
    }

    #[test]
    fn the_first_difference_is_found() {
        let find = |first: &MemoryDevice, second: &MemoryDevice| {
            let found = [first_difference(first, second), first_difference(second, first)];
            let found = found.map(|found| found.expect("read").map(ByteOffset::get));
            assert_eq!(found[0], found[1]);
            found[0]
        };
        let size = 80 << 20;
        let base = disk(size, &[5, 70 << 20]);
        assert_eq!(find(&base, &disk(size, &[5, 70 << 20])), None);
        assert_eq!(find(&base, &disk(size, &[5, (70 << 20) + 1])), Some(70 << 20));
        assert_eq!(find(&base, &disk(size, &[])), Some(5));
        assert_eq!(find(&base, &disk((70 << 20) + 1, &[5, 70 << 20])), None);
        assert_eq!(find(&base, &disk(70 << 20, &[5])), Some(70 << 20));
        assert_eq!(find(&disk(0, &[]), &disk(513, &[512])), Some(512));
    }
}
