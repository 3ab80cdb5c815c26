//! `setup`: the peers' packages and the cargo tools, installed where they are missing.

use std::collections::BTreeSet;
use std::io::{IsTerminal, stdin};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use testkit::peer;

use crate::step;

/// Packages that bring files rather than programs: a file each, and its package.
const FILES: &[(&str, &str)] = &[("/usr/include/stdio.h", "libc6-dev")];

const FUZZ: CargoTool = CargoTool { name: "cargo-fuzz", word: "fuzz", version: "0.13.2" };
const DENY: CargoTool = CargoTool { name: "cargo-deny", word: "deny", version: "0.20.2" };

/// A tool that cargo builds and installs: a minute for cargo-fuzz, three for cargo-deny on two
/// processors, once per machine.
struct CargoTool {
    name: &'static str,
    word: &'static str,
    version: &'static str,
}

/// Installs what the tests need; returns at once if everything is there.
pub(crate) fn run() -> Result<()> {
    let missing = missing_packages();
    if !missing.is_empty() {
        install_packages(&missing)?;
        let still = missing_packages();
        if !still.is_empty() {
            bail!("these packages are still missing: {}", words(&still));
        }
    }
    FUZZ.install()?;
    DENY.install()
}

/// `deny`: licences, bans and sources of the dependencies. Advisories are left out: they need a
/// database from the network, and change without a change here.
pub(crate) fn deny() -> Result<()> {
    DENY.install()?;
    step::run(step::cargo(&["deny", "check", "licenses", "bans", "sources"]))
}

/// The packages whose programs and files are not on this machine.
fn missing_packages() -> BTreeSet<&'static str> {
    let programs = peer::PACKAGES.iter().filter(|(program, _)| peer::find(program).is_err());
    let files = FILES.iter().filter(|(file, _)| !Path::new(file).exists());
    programs.chain(files).map(|&(_, package)| package).collect()
}

/// Installs `packages` by apt-get, as root or through sudo.
fn install_packages(packages: &BTreeSet<&'static str>) -> Result<()> {
    let names = words(packages);
    let by_hand = format!(
        "these Debian packages are missing: {names}\n\
         install them by hand: sudo apt-get install {names}"
    );
    if peer::find("apt-get").is_err() {
        bail!("{by_hand}\n(this machine has no apt-get)");
    }
    let Some(prefix) = privilege() else {
        bail!("{by_hand}\n(neither root nor sudo here)");
    };
    // A source that cannot be reached need not be the one that has the packages.
    if let Err(error) = step::run(apt(&prefix, &["update", "-q"])) {
        eprintln!("xtask: {error:#}; going on with the lists that are here");
    }
    let mut install = apt(&prefix, &["install", "-q", "-y", "--no-install-recommends"]);
    install.args(packages);
    step::run(install).context(by_hand)
}

/// The words before a command that make it run as root.
fn privilege() -> Option<Vec<&'static str>> {
    if rustix::process::geteuid().is_root() {
        return Some(Vec::new());
    }
    peer::find("sudo").ok()?;
    // Without a terminal nobody can type a password: rather fail than wait.
    Some(if stdin().is_terminal() { vec!["sudo"] } else { vec!["sudo", "-n"] })
}

/// apt-get that asks nothing, behind the words of [`privilege`].
fn apt(prefix: &[&str], arguments: &[&str]) -> Command {
    let line = [prefix, &["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"], arguments].concat();
    let mut command = Command::new(line[0]);
    command.args(&line[1..]);
    command
}

fn words(packages: &BTreeSet<&'static str>) -> String {
    packages.iter().copied().collect::<Vec<_>>().join(" ")
}

impl CargoTool {
    /// Builds and installs the tool unless some version of it is there.
    fn install(&self) -> Result<()> {
        if step::succeeds(step::cargo(&[self.word, "--version"])) {
            return Ok(());
        }
        step::run(step::cargo(&["install", "--locked", self.name, "--version", self.version]))
            .with_context(|| format!("install it by hand: cargo install --locked {}", self.name))
    }
}
