//! The help of every verb, against a golden file: what users read changes on purpose only.
//!
//! `FIRN_UPDATE_GOLDEN=1 cargo test -p cli` writes the file anew.

use std::fs;
use std::path::Path;

use crate::lab::{Lab, run};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/help.txt");

/// The help of `object` and of everything below it, in the order in which help lists it.
fn collect(lab: &Lab, object: &str, all: &mut String) {
    let words = format!("help {object}");
    let help = lab.ok(&words);
    all.push_str(&format!("$ firn {}\n", words.trim_end()));
    for line in help.lines() {
        all.push_str(line.trim_end());
        all.push('\n');
    }
    all.push('\n');
    for verb in verbs(&help) {
        collect(lab, format!("{object} {verb}").trim_start(), all);
    }
}

/// The names under "Commands:".
fn verbs(help: &str) -> Vec<String> {
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let name = line.strip_prefix("  ")?;
        (!name.starts_with(' ')).then(|| name.split_whitespace().next().unwrap().to_owned())
    });
    names.filter(|name| name != "help").collect()
}

#[test]
fn help_is_as_it_was() {
    let lab = Lab::new();
    let mut all = String::new();
    collect(&lab, "", &mut all);
    assert!(all.lines().filter(|line| line.starts_with("$ ")).count() > 20);
    if std::env::var_os("FIRN_UPDATE_GOLDEN").is_some() {
        fs::create_dir_all(Path::new(GOLDEN).parent().unwrap()).unwrap();
        fs::write(GOLDEN, &all).unwrap();
    }
    let golden = fs::read_to_string(GOLDEN).unwrap_or_default();
    for (number, (found, expected)) in all.lines().zip(golden.lines()).enumerate() {
        assert_eq!(found, expected, "line {} of {GOLDEN}", number + 1);
    }
    assert!(all == golden, "help and {GOLDEN} differ in length; see the head of this file");
}

#[test]
fn every_verb_has_an_example() {
    let lab = Lab::new();
    let root = lab.ok("--help");
    for object in verbs(&root) {
        let help = lab.ok(&format!("{object} --help"));
        let below = verbs(&help);
        if below.is_empty() {
            assert!(help.contains("\nEXAMPLE\n  firn "), "{object}");
        }
        for verb in below {
            let help = lab.ok(&format!("{object} {verb} --help"));
            let example = format!("\nEXAMPLE\n  firn {object} {verb} ");
            assert!(help.contains(&example), "{object} {verb}");
            assert_eq!(lab.ok(&format!("help {object} {verb}")), help);
        }
    }
}

#[test]
fn the_version_is_told() {
    let lab = Lab::new();
    assert_eq!(lab.ok("--version"), format!("firn {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn bad_usage_is_64_and_one_line() {
    let lab = Lab::new();
    for (words, part) in [
        ("volume frob", "'frob'"),
        ("frob", "'frob'"),
        ("volume create lab/db", "--size"),
        ("volume list", "<DIR>"),
        ("volume list lab --frob", "'--frob'"),
        ("serve lab --cache fast", "writeback"),
        ("serve lab --tcp nowhere", "nowhere"),
        ("serve lab --read-only --new 1G", "--new"),
        ("completions tcsh", "bash"),
    ] {
        let sentence = lab.refused(words, 64);
        assert!(sentence.contains(part), "firn {words}: {sentence}");
    }
    for words in ["", "pool", "volume", "snapshot"] {
        let ran = run(&mut lab.command(words));
        assert_eq!((ran.code, ran.stdout.as_str()), (64, ""), "firn {words}");
        assert!(ran.stderr.contains("Usage: "), "firn {words}");
    }
}

#[test]
fn pages_and_completions_cover_every_verb() {
    let lab = Lab::new();
    lab.ok("generate-man man");
    for name in ["firn.1", "firn-pool-create.1", "firn-snapshot-rollback.1", "firn-serve.1"] {
        let page = fs::read_to_string(lab.path("man").join(name)).expect(name);
        assert!(page.starts_with(".ie") && page.contains(".SH NAME"), "{name}");
    }
    assert!(!lab.path("man/firn-generate-man.1").exists(), "a hidden verb has a page");
    for shell in ["bash", "zsh", "fish"] {
        let script = lab.ok(&format!("completions {shell}"));
        assert!(script.contains("rollback"), "{shell}");
    }
    for name in ["firn.bash", "_firn", "firn.fish"] {
        assert!(lab.path("man").join(name).exists(), "{name}");
    }
}
