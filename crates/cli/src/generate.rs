//! Shell completions and manual pages, from the one definition of the command line.

use std::fs;
use std::path::{Path, PathBuf};

use block_types::Error;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::command::Firn;
use crate::exit::{DONE, Outcome};
use crate::output::print;

/// The shells whose completions are generated beside the manual pages.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// Print the completions of a shell.
///
/// Where they belong depends on the shell and the system, for bash on Debian
/// /usr/share/bash-completion/completions/firn.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn completions bash > firn.bash; . ./firn.bash")]
pub(crate) struct Completions {
    /// The shell.
    shell: Shell,
}

/// Write the manual pages and the completions into a directory.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn generate-man target/man")]
pub(crate) struct GenerateMan {
    /// The directory; it is made where it does not exist.
    dir: PathBuf,
}

/// `firn completions`
pub(crate) fn completions(of: &Completions) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(of.shell, &mut Firn::command(), "firn", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(DONE)
}

/// `firn generate-man`
pub(crate) fn pages(into: &GenerateMan) -> Outcome {
    write_all(&into.dir).map_err(|error| {
        Error::io(into.dir.display().to_string(), "cannot be filled with pages", error)
    })?;
    Ok(DONE)
}

fn write_all(dir: &Path) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    clap_mangen::generate_to(Firn::command(), dir)?;
    for shell in SHELLS {
        clap_complete::generate_to(shell, &mut Firn::command(), "firn", dir)?;
    }
    Ok(())
}
