//! `test`: everything that has to hold before a change goes in, in the order of its cost.

pub(crate) mod fuzz;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{setup, step, tidy};

/// What the command line asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    long: bool,
    filter: Option<String>,
}

/// A step: its name in the table, and what it does.
type Step<'o> = (&'static str, Box<dyn Fn() -> Result<()> + 'o>);

impl Options {
    /// Reads `[--long] [FILTER]`.
    pub(crate) fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        for &word in words {
            match word {
                "--long" => options.long = true,
                _ if word.starts_with('-') => bail!("no such option of test: {word}"),
                _ if options.filter.is_some() => bail!("only one filter: {word}"),
                _ => options.filter = Some(word.to_owned()),
            }
        }
        Ok(options)
    }
}

/// Runs the steps, stops at the first that fails, and prints what each took.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut table = Vec::new();
    let mut failure = None;
    for (name, action) in steps(options) {
        let begun = Instant::now();
        let result = action();
        table.push((name, begun.elapsed(), result.is_ok()));
        if let Err(error) = result {
            failure = Some(error.context(format!("step {name}")));
            break;
        }
    }
    print!("{}", render(&table));
    failure.map_or(Ok(()), Err)
}

/// The steps; with a filter, only what its tests need.
fn steps(options: &Options) -> Vec<Step<'_>> {
    let setup: Step<'_> = ("setup", Box::new(setup::run));
    let tests: Step<'_> = ("tests", Box::new(|| tests(options)));
    if options.filter.is_some() {
        return vec![setup, tests];
    }
    vec![
        setup,
        ("fmt", Box::new(fmt)),
        ("tidy", Box::new(tidy::run)),
        ("clippy", Box::new(clippy)),
        ("doc", Box::new(doc)),
        tests,
        ("fuzz", Box::new(|| fuzz::run(&[]))),
        ("deny", Box::new(setup::deny)),
    ]
}

fn fmt() -> Result<()> {
    step::run(step::cargo(&["fmt", "--all", "--check"]))?;
    step::run(step::cargo(&["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))
}

fn clippy() -> Result<()> {
    step::run(step::cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

fn doc() -> Result<()> {
    let mut command = step::cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    step::run(command)
}

/// The tests, by nextest where it is installed.
fn tests(options: &Options) -> Result<()> {
    if step::succeeds(step::cargo(&["nextest", "--version"])) {
        // Documentation tests are beyond nextest.
        tests_by(options, &["test", "--workspace", "--doc"])?;
        return tests_by(options, &["nextest", "run", "--workspace", "--no-tests", "pass"]);
    }
    tests_by(options, &["test", "--workspace"])
}

fn tests_by(options: &Options, words: &[&str]) -> Result<()> {
    let mut command = step::cargo(words);
    command.args(&options.filter);
    if options.long {
        command.env("FIRN_LONG", "1");
    }
    step::run(command)
}

/// The table of the steps that ran.
fn render(steps: &[(&str, Duration, bool)]) -> String {
    let total: Duration = steps.iter().map(|(_, took, _)| *took).sum();
    let mut text = String::from("\nstep      seconds\n");
    for (name, took, passed) in steps {
        let verdict = if *passed { "" } else { "  FAILED" };
        text += &format!("{name:<8} {:>8.1}{verdict}\n", took.as_secs_f64());
    }
    text + &format!("{:<8} {:>8.1}\n", "total", total.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::{Options, render};
    use std::time::Duration;

    #[test]
    fn reads_its_options() {
        let options = Options::parse(&["--long", "snapshot"]).unwrap();
        assert_eq!(options, Options { long: true, filter: Some("snapshot".to_owned()) });
        assert!(Options::parse(&["--lang"]).is_err());
        assert!(Options::parse(&["a", "b"]).is_err());
    }

    #[test]
    fn the_table_names_what_failed() {
        let steps = [
            ("fmt", Duration::from_millis(1500), true),
            ("tests", Duration::from_secs(100), false),
        ];
        let expected = "\nstep      seconds\nfmt           1.5\n\
                        tests       100.0  FAILED\ntotal       101.5\n";
        assert_eq!(render(&steps), expected);
    }
}
