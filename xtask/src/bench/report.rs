//! `docs/benchmarks.md`: targets beside what was reached, missed ones named as missed.
//!
//! A row that was not measured this time keeps the line that it has in the file.

use std::fs;
use std::path::Path;

use anyhow::{Context, Error, Result};

use super::notes::note;
use super::table;

/// A row with its target.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) what: String,
    /// The opponent, or the condition.
    pub(super) against: String,
    pub(super) target: String,
    pub(super) reached: String,
    pub(super) figures: String,
    pub(super) met: bool,
}

/// The tables: title, and the head of the second column.
const TABLES: [(&str, &str); 3] = [
    ("## Against the peers", "against"),
    ("## What snapshots cost", "under"),
    ("## The tools for metadata", "against"),
];
const LIMITS: &str = "## What limits the rows that were missed";

/// A row that could not be measured.
pub(super) fn failed(what: &str, against: &str, error: &Error) -> Line {
    Line {
        what: what.to_owned(),
        against: against.to_owned(),
        target: String::new(),
        reached: "not measured".to_owned(),
        figures: format!("{error:#}").lines().collect::<Vec<_>>().join(" "),
        met: false,
    }
}

impl Line {
    /// As a line of the table.
    pub(super) fn text(&self) -> String {
        let Self { what, against, target, reached, figures, met } = self;
        let verdict = if *met { "met" } else { MISSED };
        format!("| {what} | {against} | {target} | **{reached}** | {verdict} | {figures} |")
    }
}

/// How a row that misses its target is marked.
const MISSED: &str = "**missed**";

/// The whole document.
pub(super) fn render(words: &[&str], tables: &[Vec<String>; 3]) -> String {
    let mut text = format!("# Benchmarks\n\n{}{EXPLAINED}", table::head(words));
    for ((title, second), lines) in TABLES.iter().zip(tables) {
        let head = format!("| what | {second} | to reach | reached | | figures |");
        let lines = lines.join("\n");
        text += &format!("{title}\n\n{head}\n|---|---|---|---|---|---|\n{lines}\n\n");
    }
    let missed: Vec<_> = tables.iter().flatten().filter(|line| is_missed(line)).collect();
    if !missed.is_empty() {
        text += &format!("{LIMITS}\n\n");
    }
    for line in missed {
        let (what, against) = key(line).unwrap_or_default();
        let sentence = note(what, against).unwrap_or("what limits it has not been measured yet.");
        text += &format!("- **{what}, {against}**: {sentence}\n");
    }
    text.trim_end().to_owned() + "\n"
}

const EXPLAINED: &str = "\
Volumes are mapped all over and unshared unless a row says otherwise. *lean* is the bench's own \
client, which sends and receives in batches; fio is its nbd engine. *cached* goes through the \
page cache, which holds all data in single pages when a row begins; *direct* goes past it. A \
bare file is driven by fio: blocking calls where cached, io_uring where direct.

In *snapshot-stall* the volume's metadata maps all of it over a sparse file, and a client writes \
4 KiB at random, nearly always to a block that an earlier snapshot shares: as fast as it can, 32 \
at a time (*qd32*, which fills the disk with copies of blocks), or one at a time, 2,000 a second. \
The figure is the median over the snapshots of the longest time from a request to its answer in \
the half second around a snapshot, beside the same in half seconds without one. A *silence* is a \
time without any answer. In *snapshot-read* both volumes lie on the disk in the same way: the one \
without snapshots is a copy of the other whose snapshots were deleted. In *first-write* every \
request goes to another block that a snapshot shares.

The tools work on the metadata of a pool with a volume of 10 million mappings, in runs of eight, \
and 100 snapshots that share 99 of 100 leaves with it: 344 MiB, in the page cache. Times are those \
of the whole program and of bringing what it wrote to the disk, which ours do themselves; memory \
is the most that it had at once. *pool rmap* names every device that maps a block, thin_rmap one \
of them.

";

/// Writes the document to `path`, with the lines that it has for rows not among the new ones.
pub(super) fn write(path: &Path, words: &[&str], tables: &[Vec<Line>; 3]) -> Result<()> {
    let old = fs::read_to_string(path).unwrap_or_default();
    let merged = std::array::from_fn(|table| merge(section(&old, TABLES[table].0), &tables[table]));
    let text = render(words, &merged);
    fs::write(path, text).with_context(|| path.display().to_string())
}

/// The rows of the section `title`.
fn section<'t>(text: &'t str, title: &str) -> Vec<&'t str> {
    let lines = text.lines().skip_while(|line| *line != title).skip(1);
    let lines = lines.take_while(|line| !line.starts_with("## "));
    // The head of the table and the line under it are no rows.
    lines.filter(|line| line.starts_with("| ")).skip(1).collect()
}

/// The old lines, the new ones in the places of theirs; then what is new altogether.
fn merge(old: Vec<&str>, new: &[Line]) -> Vec<String> {
    let mut new: Vec<String> = new.iter().map(Line::text).collect();
    let mut lines = Vec::new();
    for line in old {
        let same = new.iter().position(|other| key(other) == key(line));
        lines.push(same.map_or_else(|| line.to_owned(), |index| new.remove(index)));
    }
    lines.extend(new);
    lines
}

/// The two cells that name a row.
fn key(line: &str) -> Option<(&str, &str)> {
    let mut cells = line.strip_prefix("| ")?.split(" | ");
    Some((cells.next()?, cells.next()?))
}

fn is_missed(line: &str) -> bool {
    line.contains(MISSED)
}

#[cfg(test)]
mod tests {
    use super::{Line, MISSED, TABLES, merge, render, section};

    fn line(what: &str, reached: &str, met: bool) -> Line {
        Line {
            what: what.to_owned(),
            against: "nbdkit".to_owned(),
            target: ">= 2x".to_owned(),
            reached: reached.to_owned(),
            figures: "figures".to_owned(),
            met,
        }
    }

    #[test]
    fn rows_that_were_not_measured_again_stay() {
        let first = [line("reads", "1.9x", false).text(), line("writes", "3x", true).text()];
        let promises = vec![line("memory", "1 MiB", true).text()];
        let text = render(&[], &[first.to_vec(), promises, Vec::new()]);
        let section = |table: usize| section(&text, TABLES[table].0);
        assert_eq!(section(0), first);
        assert_eq!((section(1).len(), section(2).len()), (1, 0));
        let merged = merge(section(0), &[line("reads", "2.1x", true)]);
        assert_eq!(merged, [line("reads", "2.1x", true).text(), first[1].clone()]);
    }

    #[test]
    fn a_missed_target_is_told_and_named() {
        let alone = |line: Line| render(&[], &[vec![line.text()], Vec::new(), Vec::new()]);
        let text = alone(line("reads", "1.9x", false));
        assert!(text.contains(&format!("**1.9x** | {MISSED}")), "{text}");
        assert!(text.contains("- **reads, nbdkit**: "), "{text}");
        let text = alone(line("reads", "2x", true));
        assert!(!text.contains("missed"), "{text}");
    }
}
