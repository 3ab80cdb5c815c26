//! `tidy`: what the compiler and clippy do not hold: which crate imports which, and the look of the
//! source. A rule that is broken is told with file and line, and with what to do instead.

mod layering;
mod scrub;
mod source;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::step;

/// One place where a rule is broken.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    /// Relative to the repository's root.
    file: String,
    /// From 1; 0 for the file as a whole.
    line: usize,
    problem: String,
}

/// Checks the repository.
pub(crate) fn run() -> Result<()> {
    let findings = check(&step::root())?;
    for finding in &findings {
        eprintln!("{finding}");
    }
    ensure!(findings.is_empty(), "tidy: {} findings", findings.len());
    Ok(())
}

/// Every broken rule below `root`.
fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut folders = children(&root.join("crates"))?;
    folders.push(root.join("xtask"));
    for folder in &folders {
        let name = folder.file_name().expect("a crate has a folder").to_string_lossy();
        let manifest = folder.join("Cargo.toml");
        if !manifest.is_file() {
            continue;
        }
        findings.extend(layering::check(&name, &relative(root, &manifest), &read(&manifest)?)?);
        findings.extend(crate_docs(root, folder)?);
    }
    folders.extend(["fuzz/src", "fuzz/fuzz_targets"].map(|folder| root.join(folder)));
    let mut files = Vec::new();
    for folder in &folders {
        rust_files(folder, &mut files)?;
    }
    for file in &files {
        findings.extend(source::check(&relative(root, file), &read(file)?));
    }
    let names: Vec<_> = files.iter().map(|file| relative(root, file)).collect();
    findings.extend(source::check_list_of_long_files(&names));
    Ok(findings)
}

/// Every crate says what it is at the head of its root.
fn crate_docs(root: &Path, folder: &Path) -> Result<Option<Finding>> {
    let heads = ["src/lib.rs", "src/main.rs"].map(|name| folder.join(name));
    let Some(head) = heads.iter().find(|path| path.is_file()) else { return Ok(None) };
    let documented = read(head)?.starts_with("//!");
    let problem = "the crate has no documentation: begin with //! and what it is";
    Ok((!documented).then(|| Finding::new(&relative(root, head), 1, problem)))
}

/// The Rust files below `folder`, without what cargo builds.
fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for path in children(folder)? {
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                rust_files(&path, files)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

/// The entries of `folder`, sorted.
fn children(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

impl Finding {
    fn new(file: &str, line: usize, problem: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, problem: problem.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.problem)
    }
}

#[cfg(test)]
mod tests {
    use super::{Finding, check};
    use std::fs;

    #[test]
    fn the_repository_is_tidy() {
        let findings = check(&crate::step::root()).unwrap();
        let list: Vec<_> = findings.iter().map(ToString::to_string).collect();
        assert!(list.is_empty(), "{}", list.join("\n"));
    }

    #[test]
    fn a_crate_without_a_head_is_found() {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("crates/nbd/Cargo.toml", "[package]\n[lints]\nworkspace = true\n"),
            ("crates/nbd/src/lib.rs", "use std::fmt;\n"),
            ("crates/nbd/target/junk.rs", "\t"),
            ("xtask/Cargo.toml", "[package]\n[lints]\nworkspace = true\n"),
            ("xtask/src/main.rs", "//! What it is.\n"),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let findings = check(root.path()).unwrap();
        let places: Vec<_> =
            findings.iter().map(|Finding { file, line, .. }| (file.as_str(), *line)).collect();
        assert_eq!(places, [("crates/nbd/src/lib.rs", 1)]);
    }
}
