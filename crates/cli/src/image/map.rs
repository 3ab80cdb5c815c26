//! `firn image map`.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use block_types::ByteOffset;
use clap::Args;
use serde::Serialize;
use volume::{ImageMap, ImageOptions, MapRun};

use super::{Access, Sharing};
use crate::exit::{DONE, Failure, Outcome};
use crate::output::Output;

/// Show where the parts of an image lie, in it and in what it stands on.
///
/// With --json the fields are those of 'qemu-img map': start, length, depth, present, zero, data,
/// compressed, offset.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn image map overlay.qcow2 --json")]
pub(crate) struct Map {
    /// The image.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,

    #[command(flatten)]
    access: Access,

    #[command(flatten)]
    sharing: Sharing,
}

/// A run, as JSON has it.
#[derive(Serialize)]
struct Run {
    start: u64,
    length: u64,
    depth: u32,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
}

/// Prints a map.
struct Writer<W: Write> {
    stdout: W,
    json: bool,
    runs: u64,
}

impl Map {
    /// Prints run by run, for there may be millions.
    pub(super) fn run(&self, output: Output) -> Outcome {
        let options =
            ImageOptions { force_share: self.sharing.force_share, ..self.access.reading() };
        let map = ImageMap::open(&self.path, &options)?;
        let stdout = BufWriter::new(io::stdout().lock());
        let mut writer = Writer { stdout, json: output.is_json(), runs: 0 };
        writer.begin().map_err(Failure::of_output)?;
        let mut written = Ok(());
        map.for_each(&mut |run| {
            written = writer.run(run);
            if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        written.and_then(|()| writer.end()).map_err(Failure::of_output)?;
        Ok(DONE)
    }
}

impl<W: Write> Writer<W> {
    fn begin(&mut self) -> io::Result<()> {
        if self.json {
            return self.stdout.write_all(b"[");
        }
        writeln!(
            self.stdout,
            "{:>20} {:>20} {:>6} {:>20}  STATE",
            "START", "LENGTH", "DEPTH", "OFFSET"
        )
    }

    fn run(&mut self, run: MapRun) -> io::Result<()> {
        let (start, length) = (run.range.start.get(), run.range.len.get());
        let offset = run.offset.map(ByteOffset::get);
        if self.json {
            let separator = if self.runs == 0 { "\n" } else { ",\n" };
            self.stdout.write_all(separator.as_bytes())?;
            let MapRun { depth, present, zero, data, compressed, .. } = run;
            let run = Run { start, length, depth, present, zero, data, compressed, offset };
            serde_json::to_writer(&mut self.stdout, &run).map_err(io::Error::from)?;
        } else {
            let offset = offset.map_or_else(|| "-".to_owned(), |offset| offset.to_string());
            let depth = run.depth;
            let state = state(run);
            writeln!(self.stdout, "{start:>20} {length:>20} {depth:>6} {offset:>20}  {state}")?;
        }
        self.runs += 1;
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        if self.json {
            self.stdout.write_all(if self.runs == 0 { b"]\n" } else { b"\n]\n" })?;
        }
        self.stdout.flush()
    }
}

fn state(run: MapRun) -> &'static str {
    match run {
        MapRun { compressed: true, .. } => "compressed",
        MapRun { data: true, .. } => "data",
        MapRun { present: true, .. } => "zero",
        MapRun { .. } => "hole",
    }
}
