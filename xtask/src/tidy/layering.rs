//! Which crate imports which: every `Cargo.toml` against the house of the design.

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::Finding;

/// Every crate and the crates of the workspace that it may import.
const HOUSE: &[(&str, &[&str])] = &[
    ("block-types", &[]),
    ("block-io", &["block-types"]),
    ("persistent-data", &["block-io", "block-types"]),
    ("dm-thin", &["persistent-data", "block-io", "block-types"]),
    ("dm-snapshot", &["block-io", "block-types"]),
    ("disk-image", &["block-io", "block-types"]),
    ("nbd", &["block-io", "block-types"]),
    ("volume", &["dm-thin", "dm-snapshot", "disk-image", "nbd", "block-io", "block-types"]),
    ("jobs", &["volume", "block-io", "block-types"]),
    ("repository", &["jobs", "volume", "disk-image", "block-io", "block-types"]),
    ("daemon", &["repository", "jobs", "volume", "dm-thin", "nbd", "block-io", "block-types"]),
    ("cli", SHIPPED),
    ("testkit", SHIPPED),
    ("xtask", &["testkit", "volume", "dm-thin", "block-io", "block-types"]),
];

/// What a user gets.
const SHIPPED: &[&str] = &[
    "block-types",
    "block-io",
    "persistent-data",
    "dm-thin",
    "dm-snapshot",
    "disk-image",
    "nbd",
    "volume",
    "jobs",
    "repository",
    "daemon",
    "cli",
];

/// What tests may use besides.
const FOR_TESTS: &str = "testkit";

/// The crates that may have an asynchronous runtime.
const ASYNCHRONOUS: &[&str] = &["daemon", "cli"];

/// The crates whose lints differ from the workspace's: block-io has the unsafe code.
const OWN_LINTS: &[&str] = &["block-io"];

/// Checks the manifest `text` of the crate `name`.
///
/// # Errors
/// If it is no TOML.
pub(super) fn check(name: &str, file: &str, text: &str) -> Result<Vec<Finding>> {
    let manifest: Table = text.parse().context(file.to_owned())?;
    let mut problems = Vec::new();
    match HOUSE.iter().find(|(known, _)| *known == name) {
        Some((_, allowed)) => imports(name, allowed, &manifest, &mut problems),
        None => problems.push(format!(
            "the crate {name} is not in the house: say in HOUSE (xtask/src/tidy/layering.rs) \
             and in the design what it may import"
        )),
    }
    let inherits = manifest.get("lints").and_then(|lints| lints.get("workspace"));
    if inherits != Some(&Value::Boolean(true)) && !OWN_LINTS.contains(&name) {
        problems.push("lacks the workspace's lints: [lints] workspace = true".to_owned());
    }
    let finding = |problem: String| Finding::new(file, line_of(text, &problem), problem);
    Ok(problems.into_iter().map(finding).collect())
}

/// Holds every dependency against what the crate may import.
fn imports(name: &str, allowed: &[&str], manifest: &Table, problems: &mut Vec<String>) {
    let sections = sections(manifest);
    for (section, dependency) in sections {
        let ours = HOUSE.iter().any(|(known, _)| *known == dependency);
        let in_tests = section == "dev-dependencies" && dependency == FOR_TESTS;
        // A crate's own tests may name it, to enable a feature.
        if ours && !in_tests && dependency != name && !allowed.contains(&dependency.as_str()) {
            problems.push(format!(
                "'{dependency}' does not stand below {name} in the house; turn the import round \
                 or move what is needed down"
            ));
        }
        if dependency == "tokio" && !ASYNCHRONOUS.contains(&name) {
            problems.push(format!(
                "'tokio' is for the daemon and the command alone; {name} is synchronous"
            ));
        }
    }
}

/// Every dependency of every section, also of sections for a target.
fn sections(manifest: &Table) -> Vec<(&'static str, String)> {
    let targets = manifest.get("target").and_then(Value::as_table);
    let tables = targets.into_iter().flat_map(Table::values).filter_map(Value::as_table);
    let mut found = Vec::new();
    for table in std::iter::once(manifest).chain(tables) {
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(dependencies) = table.get(section).and_then(Value::as_table) else { continue };
            for (key, value) in dependencies {
                // `x = { package = "y" }` imports y under the name x.
                let package = value.get("package").and_then(Value::as_str).unwrap_or(key);
                found.push((section, package.to_owned()));
            }
        }
    }
    found
}

/// The line of the dependency that `problem` quotes, or 0.
fn line_of(text: &str, problem: &str) -> usize {
    let Some(name) = problem.strip_prefix('\'').and_then(|rest| rest.split('\'').next()) else {
        return 0;
    };
    text.lines().position(|line| line.contains(name)).map_or(0, |line| line + 1)
}

#[cfg(test)]
mod tests {
    use super::check;

    fn problems(name: &str, text: &str) -> Vec<(usize, String)> {
        let text = format!("{text}\n[lints]\nworkspace = true\n");
        let findings = check(name, "Cargo.toml", &text).unwrap();
        findings.into_iter().map(|finding| (finding.line, finding.problem)).collect()
    }

    #[test]
    fn imports_go_down() {
        assert!(problems("dm-thin", "[dependencies]\nblock-io.workspace = true").is_empty());
        let found = problems("dm-thin", "[dependencies]\nserde = '1'\nvolume.workspace = true");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, 3);
        assert!(found[0].1.contains("'volume'"), "{found:?}");
    }

    #[test]
    fn a_renamed_import_and_one_for_a_target_count() {
        let renamed = "[dependencies]\nx = { path = '../volume', package = 'volume' }";
        assert_eq!(problems("nbd", renamed).len(), 1);
        let target = "[target.'cfg(unix)'.dependencies]\nvolume.workspace = true";
        assert_eq!(problems("nbd", target).len(), 1);
    }

    #[test]
    fn the_testkit_is_for_tests() {
        assert!(problems("dm-thin", "[dev-dependencies]\ntestkit.workspace = true").is_empty());
        assert_eq!(problems("dm-thin", "[dependencies]\ntestkit.workspace = true").len(), 1);
        assert_eq!(problems("dm-thin", "[dev-dependencies]\nvolume.workspace = true").len(), 1);
    }

    #[test]
    fn the_runtime_stays_in_the_daemon() {
        assert!(problems("daemon", "[dependencies]\ntokio.workspace = true").is_empty());
        assert_eq!(problems("nbd", "[dev-dependencies]\ntokio.workspace = true").len(), 1);
    }

    #[test]
    fn every_crate_has_its_place_and_the_lints() {
        assert_eq!(problems("newcomer", "").len(), 1);
        assert_eq!(check("nbd", "Cargo.toml", "[package]").unwrap().len(), 1);
        assert!(check("block-io", "Cargo.toml", "[package]").unwrap().is_empty());
    }
}
