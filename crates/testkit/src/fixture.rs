//! The golden images under `tests/fixtures`, kept compressed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::peer::peer;

/// The path of a fixture: `path("thin/a.xml")`.
///
/// # Panics
/// If there is no such fixture.
#[track_caller]
pub fn path(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name);
    assert!(path.is_file(), "no fixture {}", path.display());
    path
}

/// The content of the fixture `name`, unpacked if it ends in `.gz`.
///
/// # Panics
/// If there is no such fixture, or it does not unpack.
#[track_caller]
pub fn bytes(name: &str) -> Vec<u8> {
    let path = path(name);
    if path.extension().is_none_or(|extension| extension != "gz") {
        return fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let outcome = peer("gzip").arg("-dc").arg(path).run();
    assert!(outcome.code() == Some(0), "{outcome}");
    outcome.stdout
}

/// The content of the fixture `name` as a file of its own in `folder`, to be written to at will.
///
/// # Panics
/// If there is no such fixture, or the folder takes no file.
#[track_caller]
pub fn copy(name: &str, folder: &Path) -> PathBuf {
    let file = Path::new(name).file_name().expect("a fixture is a file");
    let copy = folder.join(Path::new(file).with_extension(""));
    fs::write(&copy, bytes(name)).unwrap_or_else(|error| panic!("{}: {error}", copy.display()));
    copy
}

#[cfg(test)]
mod tests {
    use crate::peer::peer;

    /// The sums that the fixtures' README gives for the unpacked files.
    #[test]
    fn the_thin_fixtures_are_what_their_table_says() {
        let readme = String::from_utf8(super::bytes("thin/README.md")).unwrap();
        let (_, tables) = readme.split_once("## Expected values").unwrap();
        let rows = tables.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
        let mut seen = 0;
        // The rows of the first table have five cells, between outer bars.
        for cells in rows.filter(|cells| cells.len() == 7 && cells[2].len() == 64) {
            let image = super::bytes(&format!("thin/{}.md.gz", cells[1]));
            let sum = peer("sha256sum").input(image).ok();
            assert_eq!(sum.split_whitespace().next(), Some(cells[2]), "{}", cells[1]);
            seen += 1;
        }
        assert_eq!(seen, 8);
    }

    #[test]
    fn a_copy_is_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        let copy = super::copy("thin/k61-m0.fresh.md.gz", folder.path());
        assert_eq!(copy.file_name().unwrap(), "k61-m0.fresh.md");
        assert_eq!(copy.metadata().unwrap().len(), 4 << 20);
    }
}
