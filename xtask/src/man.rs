//! `man`: manual pages and shell completions, by the command itself.

use anyhow::{Context, Result};

use crate::step;

/// Writes them into `target/man`.
pub(crate) fn run() -> Result<()> {
    let folder = step::root().join("target/man");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let mut command =
        step::cargo(&["run", "--quiet", "--package", "cli", "--bin", "firn", "--", "generate-man"]);
    command.arg(&folder);
    step::run(command)?;
    println!("written to {}", folder.display());
    Ok(())
}
