//! The look of a source file.

use super::Finding;
use super::scrub::scrub;

/// Columns of a line.
const COLUMNS: usize = 100;

/// Lines of a file that needs no reason.
const LINES: usize = 500;

/// Longer files, each with the reason why it is one noun all the same.
const LONG_FILES: &[(&str, &str)] = &[];

/// The folder of the only crate with unsafe code.
const UNSAFE_CODE: &str = "crates/block-io/";

/// Words of unfinished work. (Put together here, so that this file does not hold them.)
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Macros of unfinished work.
const UNFINISHED_MACROS: &[&str] = &["todo", "unimplemented", "dbg"];

/// Checks the file `file` with this text.
pub(super) fn check(file: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |line, problem: String| findings.push(Finding::new(file, line, problem));
    for (line, content) in (1..).zip(text.lines()) {
        look(content, |problem| found(line, problem));
    }
    let code = scrub(text);
    for (line, content) in (1..).zip(code.lines()) {
        names(file, content, |problem| found(line, problem));
    }
    for line in glob_imports(&code) {
        found(line, "imports everything of a module; name what is used".to_owned());
    }
    let lines = text.lines().count();
    if lines > LINES && !LONG_FILES.iter().any(|(listed, _)| *listed == file) {
        found(
            0,
            format!(
                "has {lines} lines, more than {LINES}; divide it, or give the reason in LONG_FILES \
                 (xtask/src/tidy/source.rs)"
            ),
        );
    }
    findings
}

/// Files that are listed as long must be there.
pub(super) fn check_list_of_long_files(files: &[String]) -> Vec<Finding> {
    let gone = LONG_FILES.iter().filter(|(listed, _)| !files.iter().any(|file| file == listed));
    gone.map(|(file, _)| Finding::new(file, 0, "is listed in LONG_FILES but is not there"))
        .collect()
}

/// Rules on a line as it stands.
fn look(line: &str, mut found: impl FnMut(String)) {
    let columns = line.chars().count();
    if columns > COLUMNS {
        found(format!("has {columns} columns, more than {COLUMNS}"));
    }
    if line.contains('\t') {
        found("has a tab; indent by four blanks".to_owned());
    }
    if line.ends_with([' ', '\t', '\r']) {
        found("ends with a blank".to_owned());
    }
    for word in words(line) {
        if UNFINISHED.contains(&word) {
            found(format!("says {word}; finish it, or write down what is missing as an issue"));
        }
    }
}

/// Rules on the names in a line of code.
fn names(file: &str, code: &str, mut found: impl FnMut(String)) {
    for word in words(code) {
        if matches!(word, "unsafe" | "unsafe_code") && !file.starts_with(UNSAFE_CODE) {
            found(format!("has '{word}'; unsafe code is for {UNSAFE_CODE} alone"));
        }
        let asynchronous = ["crates/daemon/", "crates/cli/"].iter().any(|at| file.starts_with(at));
        if word == "tokio" && !asynchronous {
            found("has 'tokio'; only the daemon and the command are asynchronous".to_owned());
        }
        if UNFINISHED_MACROS.contains(&word) && code.contains(&format!("{word}!")) {
            found(format!("calls {word}!; finish it, or return an error"));
        }
    }
}

/// The lines of `code` at which an import takes everything of a module.
fn glob_imports(code: &str) -> Vec<usize> {
    let mut lines = Vec::new();
    let mut statement_begun = true;
    let mut at = 0;
    while at < code.len() {
        let rest = &code[at..];
        if statement_begun && is_import(rest) {
            let end = rest.find(';').unwrap_or(rest.len());
            let stars = rest[..end].match_indices('*').map(|(star, _)| at + star);
            lines.extend(stars.map(|star| code[..star].matches('\n').count() + 1));
            at += end;
            continue;
        }
        let character = rest.chars().next().expect("the rest is not empty");
        statement_begun = matches!(character, ';' | '{' | '}' | ']')
            || (statement_begun && character.is_whitespace());
        at += character.len_utf8();
    }
    lines
}

/// Whether a statement is a `use`, perhaps with a visibility before it.
fn is_import(statement: &str) -> bool {
    let after_pub = statement.strip_prefix("pub").map_or(statement, |rest| {
        let rest = rest.trim_start();
        match rest.strip_prefix('(').and_then(|inside| inside.split_once(')')) {
            Some((_, behind)) => behind.trim_start(),
            None => rest,
        }
    });
    after_pub.strip_prefix("use").is_some_and(|rest| rest.starts_with(char::is_whitespace))
}

/// The names and words of a line.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::{LINES, UNFINISHED, check};

    /// The lines at which rules are broken.
    fn lines(file: &str, text: &str) -> Vec<usize> {
        check(file, text).iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn unsafe_code_has_its_crate() {
        let code = "fn f() {\n    unsafe { g() }\n}\n";
        assert_eq!(lines("crates/nbd/src/wire.rs", code), [2]);
        assert!(lines("crates/block-io/src/ring.rs", code).is_empty());
        assert_eq!(lines("xtask/src/main.rs", "#![allow(unsafe_code)]\n"), [1]);
        assert!(lines("xtask/src/main.rs", "// no unsafe here: \"unsafe\"\n").is_empty());
    }

    #[test]
    fn imports_are_named() {
        let glob = |text| lines("xtask/src/main.rs", text);
        assert_eq!(glob("use std::io::*;\n"), [1]);
        assert_eq!(glob("mod a {\n    pub(crate) use super::*;\n}\n"), [2]);
        assert_eq!(glob("#[cfg(test)]\nuse std::{\n    fmt,\n    io::*,\n};\n"), [4]);
        assert_eq!(glob("pub use a::*;\n"), [1]);
        assert!(
            glob("use a::b;\nlet product = 2 * 3; // use a::*;\nlet use_all = a * b;\n").is_empty()
        );
    }

    #[test]
    fn lines_have_their_width_and_no_stray_blanks() {
        let wide = format!("//{}\n", "x".repeat(99));
        assert_eq!(lines("a.rs", &wide), [1]);
        assert!(lines("a.rs", &wide[1..]).is_empty());
        assert!(lines("a.rs", &format!("//{}\n", "\u{e9}".repeat(98))).is_empty());
        assert_eq!(lines("a.rs", "a\n\tb\nc \n"), [2, 3]);
    }

    #[test]
    fn nothing_is_left_unfinished() {
        for word in UNFINISHED {
            assert_eq!(lines("a.rs", &format!("// {word}: later\n")), [1]);
            assert!(lines("a.rs", &format!("// {word}S\n")).is_empty());
        }
        assert_eq!(lines("a.rs", "let x = dbg!(1);\n"), [1]);
        assert!(lines("a.rs", "let dbg = 1;\n").is_empty());
    }

    #[test]
    fn the_runtime_stays_in_the_daemon() {
        assert_eq!(lines("crates/nbd/src/server.rs", "use tokio::net;\n"), [1]);
        assert!(lines("crates/daemon/src/server.rs", "use tokio::net;\n").is_empty());
    }

    #[test]
    fn a_long_file_needs_a_reason() {
        assert!(lines("a.rs", &"a\n".repeat(LINES)).is_empty());
        assert_eq!(lines("a.rs", &"a\n".repeat(LINES + 1)), [0]);
    }
}
