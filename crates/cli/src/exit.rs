//! How the command ends: its exit codes, and the one line that says why it failed.

use std::io;
use std::process::ExitCode;

use block_types::{Error, ErrorKind};
use clap::error::ErrorKind as ParseError;

/// Done.
pub(crate) const DONE: u8 = 0;

/// Failed, or could not check.
pub(crate) const FAILED: u8 = 1;

/// A check found what is corrupt.
pub(crate) const CORRUPT: u8 = 2;

/// A check found leaks and nothing else.
pub(crate) const LEAKS: u8 = 3;

/// Bad usage: EX_USAGE of sysexits.h. Not clap's 2, which means corrupt.
pub(crate) const USAGE: u8 = 64;

/// The exit code of a verb that ran, or why it could not.
pub(crate) type Outcome<T = u8> = Result<T, Failure>;

/// Why a verb ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something is wrong.
    Error(Error),
    /// Nobody reads the results any more, as in `firn volume list lab | head -1`: no reason to
    /// complain.
    NoReader,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Failure {
    /// The failure of writing results.
    pub(crate) fn of_output(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::NoReader,
            _ => Self::Error(Error::io("standard output", "cannot be written", error)),
        }
    }
}

/// Tells of a failure, and says the exit code.
pub(crate) fn code(outcome: Outcome) -> ExitCode {
    let code = match outcome {
        Ok(code) => code,
        Err(Failure::NoReader) => DONE,
        Err(Failure::Error(error)) => {
            complain(&error.to_string());
            // Arguments that make no sense are bad usage, whoever found that out.
            if error.kind() == ErrorKind::Invalid { USAGE } else { FAILED }
        }
    };
    ExitCode::from(code)
}

/// Tells what clap found wrong with the command line, or prints the help that was asked for.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ParseError::DisplayHelp | ParseError::DisplayVersion) {
        return code(error.print().map(|()| DONE).map_err(Failure::of_output));
    }
    if error.kind() == ParseError::DisplayHelpOnMissingArgumentOrSubcommand {
        // To stderr. Whether that arrives makes no difference to the exit code.
        let _ = error.print();
        return ExitCode::from(USAGE);
    }
    complain(&sentence(error));
    ExitCode::from(USAGE)
}

fn complain(sentence: &str) {
    eprintln!("firn: {}", sentence.replace('\n', " "));
}

/// clap's complaint in one line. A value that the engine refused is told in the engine's words.
fn sentence(error: &clap::Error) -> String {
    if let Some(cause) = std::error::Error::source(error).and_then(|it| it.downcast_ref::<Error>())
    {
        return cause.to_string();
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let mut sentence = String::new();
    for line in text.lines().map(str::trim) {
        // Of the usage the line itself is enough; the pointer to --help comes last anyway.
        if line.is_empty() {
            continue;
        }
        let hint = line.strip_prefix("tip: ");
        if line.starts_with("Usage: ") || line.starts_with("For more information") || hint.is_some()
        {
            sentence.push_str("; ");
        } else if !sentence.is_empty() {
            sentence.push(' ');
        }
        sentence.push_str(hint.unwrap_or(line).trim_end_matches('.'));
    }
    sentence.replace("; Usage: ", "; usage: ").replace("; For more", "; for more")
}
