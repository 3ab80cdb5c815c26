//! Changed ranges as they are found: there may be more of them than fit into memory.

use std::io::{self, Write};

use block_types::{Error, Result};
use volume::ChangedRange;

use crate::output::Output;

/// A list that is written while it grows.
pub(crate) struct Changes<W> {
    out: W,
    json: bool,
    any: bool,
}

impl<W: Write> Changes<W> {
    /// A list: a table, or a JSON array with a range per line. Nothing is written before the first
    /// range is known, or that there is none.
    pub(crate) fn new(out: W, output: Output) -> Self {
        Self { out, json: output.is_json(), any: false }
    }

    /// Adds a range.
    pub(crate) fn add(&mut self, range: &ChangedRange) -> Result<()> {
        self.write(range).map_err(failed)
    }

    /// Ends the list.
    pub(crate) fn end(mut self) -> Result<()> {
        self.write_end().map_err(failed)
    }

    fn write(&mut self, range: &ChangedRange) -> io::Result<()> {
        let first = !std::mem::replace(&mut self.any, true);
        if self.json {
            let before = if first { "[\n  " } else { ",\n  " };
            let text = serde_json::to_string(range).map_err(io::Error::other)?;
            return write!(self.out, "{before}{text}");
        }
        if first {
            self.heading()?;
        }
        row(&mut self.out, &range.start.to_string(), &range.length.to_string(), &range.kind)
    }

    fn write_end(&mut self) -> io::Result<()> {
        match (self.json, self.any) {
            (true, true) => writeln!(self.out, "\n]")?,
            (true, false) => writeln!(self.out, "[]")?,
            (false, true) => {}
            (false, false) => self.heading()?,
        }
        self.out.flush()
    }

    fn heading(&mut self) -> io::Result<()> {
        row(&mut self.out, "START", "LENGTH", "KIND")
    }
}

/// A row of the table: its columns are as wide as offsets in volumes of some petabytes.
fn row(out: &mut impl Write, start: &str, length: &str, kind: &str) -> io::Result<()> {
    writeln!(out, "{start:>16}  {length:>16}  {kind}")
}

fn failed(error: io::Error) -> Error {
    Error::io("the list of changes", "cannot be written", error)
}

#[cfg(test)]
mod tests {
    use super::Changes;
    use crate::output::Output;
    use volume::ChangedRange;

    fn list(json: bool, count: u64) -> String {
        let mut text = Vec::new();
        let mut list = Changes::new(&mut text, Output::new(json, false, false));
        for start in 0..count {
            let range = ChangedRange { start, length: 5, kind: "data".into() };
            list.add(&range).expect("added");
        }
        list.end().expect("ended");
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn json_is_an_array_of_any_length() {
        for count in [0, 1, 3] {
            let found: serde_json::Value = serde_json::from_str(&list(true, count)).expect("JSON");
            let starts: Vec<_> = found.as_array().expect("an array").iter().collect();
            assert_eq!(starts.len() as u64, count);
            assert!((0..count).all(|at| starts[at as usize]["start"] == at));
        }
    }

    #[test]
    fn tables_have_a_row_per_range() {
        let table = list(false, 2);
        let rows: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows, [["START", "LENGTH", "KIND"], ["0", "5", "data"], ["1", "5", "data"]]);
    }
}
