//! The tables, as Markdown.

use std::process::Command;

use super::contender::Contender;
use super::pairs::{Outcome, Spread};
use super::rows::Row;

/// What stands before the tables: where and how.
pub(super) fn head(words: &[&str]) -> String {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let mut text = format!(
        "Made by `cargo xtask bench {}` on Linux {kernel}, {processors} processors \
         ({}).\n\
         Median (least to most) of the rounds; a ratio is taken within a round. CPU is the \
         server's processor time per request.\n\n",
        words.join(" "),
        model()
    );
    for (program, flag) in [("qemu-nbd", "--version"), ("nbdkit", "--version"), ("fio", "-v")] {
        if let Ok(output) = Command::new(program).arg(flag).output() {
            let said = String::from_utf8_lossy(&output.stdout);
            text += &format!("- {}\n", said.lines().next().unwrap_or(program));
        }
    }
    text + "\n"
}

/// What the processor calls itself.
fn model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or("unknown", |rest| rest.trim_start_matches([':', ' ', '\t'])).to_owned()
}

/// A table: A against B.
pub(super) fn render(a: &Contender, b: &Contender, lines: &[String]) -> String {
    let (a, b) = (a.name(), b.name());
    format!(
        "### {a} against {b}\n\n\
         | | unit | {a} | {b} | ratio | CPU {a}, us | CPU {b}, us | CPU ratio |\n\
         |---|---|---|---|---|---|---|---|\n{}\n\n",
        lines.join("\n")
    )
}

/// A line of the table.
pub(super) fn line(row: &Row, outcome: &Outcome) -> String {
    let cells = [
        row.name.to_owned(),
        row.figure.unit().to_owned(),
        cell(&outcome.a),
        cell(&outcome.b),
        format!("**{}**", cell(&outcome.ratio)),
        cell(&outcome.cpu_a),
        cell(&outcome.cpu_b),
        cell(&outcome.cpu_ratio),
    ];
    format!("| {} |", cells.join(" | "))
}

/// A spread.
pub(super) fn cell(spread: &Spread) -> String {
    let [median, least, most] = [spread.median, spread.least, spread.most].map(figure);
    format!("{median} ({least} to {most})")
}

/// Three digits that count.
pub(super) fn figure(value: f64) -> String {
    match value {
        _ if value >= 99.95 => format!("{value:.0}"),
        _ if value >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn figures_have_three_digits() {
        let text: Vec<_> = [1234.5, 99.96, 12.34, 9.999, 0.333].map(super::figure).to_vec();
        assert_eq!(text, ["1234", "100", "12.3", "10.0", "0.33"]);
    }
}
