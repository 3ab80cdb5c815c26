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

const PEERS: &str = "## Against the peers";
const PROMISES: &str = "## What snapshots cost";
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
pub(super) fn render(words: &[&str], peers: &[String], promises: &[String]) -> String {
    let table = |title: &str, second: &str, lines: &[String]| {
        let head = format!("| what | {second} | to reach | reached | | figures |");
        format!("{title}\n\n{head}\n|---|---|---|---|---|---|\n{}\n\n", lines.join("\n"))
    };
    let mut text = format!("# Benchmarks\n\n{}{EXPLAINED}", table::head(words));
    text += &table(PEERS, "against", peers);
    text += &table(PROMISES, "under", promises);
    let missed: Vec<_> = peers.iter().chain(promises).filter(|line| is_missed(line)).collect();
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

";

/// Writes the document to `path`, with the lines that it has for rows not among the new ones.
pub(super) fn write(path: &Path, words: &[&str], peers: &[Line], promises: &[Line]) -> Result<()> {
    let old = fs::read_to_string(path).unwrap_or_default();
    let peers = merge(section(&old, PEERS), peers);
    let promises = merge(section(&old, PROMISES), promises);
    let text = render(words, &peers, &promises);
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
    use super::{Line, MISSED, PEERS, PROMISES, merge, render, section};

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
        let text = render(&[], &first, &[line("memory", "1 MiB", true).text()]);
        assert_eq!(section(&text, PEERS), first);
        assert_eq!(section(&text, PROMISES).len(), 1);
        let merged = merge(section(&text, PEERS), &[line("reads", "2.1x", true)]);
        assert_eq!(merged, [line("reads", "2.1x", true).text(), first[1].clone()]);
    }

    #[test]
    fn a_missed_target_is_told_and_named() {
        let text = render(&[], &[line("reads", "1.9x", false).text()], &[]);
        assert!(text.contains(&format!("**1.9x** | {MISSED}")), "{text}");
        assert!(text.contains("- **reads, nbdkit**: "), "{text}");
        let text = render(&[], &[line("reads", "2x", true).text()], &[]);
        assert!(!text.contains("missed"), "{text}");
    }
}
