//! Results on stdout: text for people, or JSON.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use crate::exit::{Failure, Outcome};

/// How results are printed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    verbose: bool,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool, verbose: bool) -> Self {
        Self { json, quiet, verbose }
    }

    /// Whether results are JSON.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Whether results that have a longer form are to have it.
    pub(crate) fn is_verbose(self) -> bool {
        self.verbose
    }

    /// Whether somebody watches who wants to see progress.
    pub(crate) fn shows_progress(self) -> bool {
        !self.json && !self.quiet && std::io::stderr().is_terminal()
    }

    /// Prints what was asked for, as `text` has it for people.
    pub(crate) fn result<T: Serialize>(
        self,
        report: &T,
        text: impl FnOnce() -> String,
    ) -> Outcome<()> {
        if self.json { print(&json(report)) } else { print(&text()) }
    }

    /// Confirms what was done, in a `sentence` for people, unless they want it quiet.
    pub(crate) fn done<T: Serialize>(
        self,
        report: &T,
        sentence: impl FnOnce() -> String,
    ) -> Outcome<()> {
        if self.quiet && !self.json {
            return Ok(());
        }
        self.result(report, || sentence() + "\n")
    }

    /// Tells people something that is no result, on stderr.
    pub(crate) fn note(self, sentence: &str) {
        if !self.quiet {
            eprintln!("firn: {sentence}");
        }
    }
}

/// Writes `text` to stdout.
pub(crate) fn print(text: &str) -> Outcome<()> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(Failure::of_output)
}

fn json<T: Serialize>(report: &T) -> String {
    let mut text = serde_json::to_string_pretty(report)
        .expect("reports are plain data, which always has a JSON form");
    text.push('\n');
    text
}
