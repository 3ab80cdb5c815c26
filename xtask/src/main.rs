//! The project's own commands, run as `cargo xtask COMMAND`.

mod bench;
mod man;
mod setup;
mod step;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::{Result, bail};

const HELP: &str = "\
usage: cargo xtask COMMAND

  setup                    install the peers and tools that the tests need (Debian, apt-get)
  test [--long] [FILTER]   everything that has to hold: setup, fmt, clippy, tidy, doc, tests, fuzz;
                           with FILTER, only the tests whose names contain it
  tidy                     hold the crates against the layering and the source against the style
  fuzz [TARGET [SECONDS]]  run the fuzz targets, FIRN_FUZZ_SECONDS (60) in all
  deny                     licences, bans and sources of the dependencies, by cargo-deny
  man                      manual pages and shell completions, into target/man
  bench [OPTIONS]          Firn against its peers; bench --help lists the options";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["setup"] => setup::run(),
        ["test", rest @ ..] => test::run(&test::Options::parse(rest)?),
        ["tidy"] => tidy::run(),
        ["fuzz", rest @ ..] => test::fuzz::run(rest),
        ["deny"] => setup::deny(),
        ["bench", rest @ ..] => bench::run(rest),
        ["man"] => man::run(),
        [] | ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            Ok(())
        }
        _ => bail!("no such command: {}\n{HELP}", words.join(" ")),
    }
}
