//! `firn volume map` and `firn volume discard`: what of a volume takes space, and giving it back.

use std::io::{BufWriter, Write};
use std::ops::ControlFlow;

use block_io::BlockDevice;
use block_types::parse_size;
use block_types::{
    ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Extent, ExtentState, Result,
};
use clap::Args;
use serde::Serialize;
use volume::NodeName;

use crate::access::change;
use crate::address::{NodeAddress, VolumeAddress, node, volume};
use crate::exit::{DONE, Failure, Outcome};
use crate::output::Output;

/// Show which parts of a volume or a snapshot hold data.
///
/// With --json the fields are those of 'qemu-img map': start, length, depth, present, zero, data.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn volume map lab/db@monday --json")]
pub(crate) struct Map {
    /// The volume or snapshot.
    #[arg(value_name = "DIR/NAME[@SNAPSHOT]", value_parser = node)]
    node: NodeAddress,
}

/// Give the space of a volume, or of a part of it, back to the pool.
///
/// What is given back is lost and reads as zeros. Blocks that are only partly within the range keep
/// their space. Snapshots keep what they hold.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn volume discard lab/db --offset 10G --length 2G")]
pub(crate) struct Discard {
    /// The volume.
    #[arg(value_name = "DIR/NAME", value_parser = volume)]
    volume: VolumeAddress,

    /// Where to begin.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "0")]
    offset: ByteCount,

    /// How much; without it, everything up to the end.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    length: Option<ByteCount>,
}

/// A run of a volume in one state, in the words of 'qemu-img map'.
#[derive(Serialize)]
struct Run {
    start: u64,
    length: u64,
    /// Layers below the topmost: a volume of a pool has none.
    depth: u32,
    present: bool,
    zero: bool,
    data: bool,
}

/// What was discarded, as JSON has it.
#[derive(Serialize)]
struct Discarded {
    name: String,
    start: u64,
    length: u64,
}

impl Map {
    /// Prints run by run, for there may be millions.
    pub(crate) fn run(&self, output: Output) -> Outcome {
        let pool = daemon::access(&self.node.pool, true)?;
        let device = pool.open_device(&self.node.node, true)?;
        let mut writer = Writer {
            stdout: BufWriter::new(std::io::stdout().lock()),
            json: output.is_json(),
            runs: 0,
        };
        writer.begin().map_err(Failure::of_output)?;
        for_each_run(&*device, |run| writer.run(run))??;
        writer.end().map_err(Failure::of_output)?;
        Ok(DONE)
    }
}

/// Calls `each` with the extents of `device`, neighbours in the same state joined, until it fails;
/// returns how that ended, or the failure of the device.
fn for_each_run(
    device: &dyn BlockDevice,
    mut each: impl FnMut(Extent) -> std::io::Result<()>,
) -> Result<Outcome<()>> {
    let mut open: Option<Extent> = None;
    let mut result = Ok(());
    device.extents(ByteRange::new(ByteOffset::ZERO, device.size()), &mut |next| {
        if let Some(run) = &mut open {
            if run.state == next.state {
                run.range = ByteRange::between(run.range.start, next.range.end());
                return ControlFlow::Continue(());
            }
            result = each(*run);
        }
        open = Some(next);
        if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    if result.is_ok()
        && let Some(run) = open
    {
        result = each(run);
    }
    Ok(result.map_err(Failure::of_output))
}

/// Prints a map.
struct Writer<W: Write> {
    stdout: W,
    json: bool,
    runs: u64,
}

impl<W: Write> Writer<W> {
    fn begin(&mut self) -> std::io::Result<()> {
        if self.json {
            self.stdout.write_all(b"[")
        } else {
            writeln!(self.stdout, "{:>20} {:>20}  STATE", "START", "LENGTH")
        }
    }

    fn run(&mut self, run: Extent) -> std::io::Result<()> {
        let (start, length) = (run.range.start.get(), run.range.len.get());
        if self.json {
            let separator = if self.runs == 0 { "\n" } else { ",\n" };
            self.stdout.write_all(separator.as_bytes())?;
            serde_json::to_writer(&mut self.stdout, &Run::of(run)).map_err(std::io::Error::from)?;
        } else {
            let state = match run.state {
                ExtentState::Data => "data",
                ExtentState::Zero => "zero",
                ExtentState::Hole => "hole",
            };
            writeln!(self.stdout, "{start:>20} {length:>20}  {state}")?;
        }
        self.runs += 1;
        Ok(())
    }

    fn end(&mut self) -> std::io::Result<()> {
        if self.json {
            self.stdout.write_all(if self.runs == 0 { b"]\n" } else { b"\n]\n" })?;
        }
        self.stdout.flush()
    }
}

impl Run {
    fn of(run: Extent) -> Self {
        Self {
            start: run.range.start.get(),
            length: run.range.len.get(),
            depth: 0,
            present: run.state != ExtentState::Hole,
            zero: run.state.reads_zero(),
            data: run.state == ExtentState::Data,
        }
    }
}

impl Discard {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        let node = NodeName { volume: self.volume.volume.clone(), snapshot: None };
        let range = change(&self.volume.pool, |pool| {
            let device = pool.open_device(&node, false)?;
            let range = self.range(device.size())?;
            device.discard(range)?;
            device.flush()?;
            Ok(range)
        })?;
        let (start, length) = (range.start.get(), range.len.get());
        let report = Discarded { name: self.volume.to_string(), start, length };
        output.done(&report, || format!("{}: discarded {range}", self.volume))?;
        Ok(DONE)
    }

    /// The range that is meant, of a volume of `size`.
    fn range(&self, size: ByteCount) -> Result<ByteRange> {
        let start = ByteOffset::new(self.offset.get());
        let rest = ByteCount::new(size.get().saturating_sub(self.offset.get()));
        let range = ByteRange::checked(start, self.length.unwrap_or(rest));
        range.filter(|range| range.end().get() <= size.get()).ok_or_else(|| {
            let problem = format!("ends at {} bytes, before the range does", size.get());
            Error::new(ErrorKind::Invalid, self.volume.to_string(), problem)
                .advise("say a smaller --offset or --length")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Writer, for_each_run};
    use block_io::{BlockDevice, MemoryDevice};
    use block_types::{ByteCount, ByteOffset};

    fn map(device: &MemoryDevice, json: bool) -> String {
        let mut writer = Writer { stdout: Vec::new(), json, runs: 0 };
        writer.begin().unwrap();
        for_each_run(device, |run| writer.run(run)).unwrap().unwrap();
        writer.end().unwrap();
        String::from_utf8(writer.stdout).unwrap()
    }

    #[test]
    fn runs_are_joined_and_json_is_whole() {
        let device = MemoryDevice::new("memory", ByteCount::new(8 * 4096));
        device.write_at(&[1; 8192], ByteOffset::new(8192)).unwrap();
        let found: serde_json::Value = serde_json::from_str(&map(&device, true)).unwrap();
        let run = |start: u64, length: u64, data: bool| {
            serde_json::json!({
                "start": start, "length": length, "depth": 0,
                "present": true, "zero": !data, "data": data,
            })
        };
        let expected = [run(0, 8192, false), run(8192, 8192, true), run(16384, 16384, false)];
        assert_eq!(found, serde_json::Value::from(expected.to_vec()));
        assert_eq!(map(&device, false).lines().count(), 4);
    }

    #[test]
    fn an_empty_map_is_json_too() {
        let device = MemoryDevice::new("memory", ByteCount::ZERO);
        assert_eq!(map(&device, true), "[]\n");
    }
}
