//! Debian's thin-provisioning-tools (0.9) on metadata in a file.

use std::fs::{self, File};
use std::path::Path;

use block_types::ByteCount;

use crate::peer::{Outcome, peer};

/// Checks the metadata in `file`.
///
/// # Panics
/// Unless `thin_check` finds it sound, with all that it said.
#[track_caller]
pub fn check(file: &Path) {
    let outcome = run_check(file);
    assert!(outcome.code() == Some(0), "{outcome}");
}

/// `thin_check` of the metadata in `file`, whatever it finds.
#[track_caller]
pub fn run_check(file: &Path) -> Outcome {
    peer("thin_check").arg(file).run()
}

/// The metadata in `file` as XML.
///
/// # Panics
/// If `thin_dump` fails, with all that it said.
#[track_caller]
pub fn dump(file: &Path) -> String {
    peer("thin_dump").arg(file).ok()
}

/// Makes metadata of `size` in `file` from `xml`.
///
/// # Panics
/// If `thin_restore` fails, with all that it said.
#[track_caller]
pub fn restore(xml: &str, file: &Path, size: ByteCount) {
    let folder = tempfile::tempdir().expect("the temporary folder can be written");
    let input = folder.path().join("xml");
    fs::write(&input, xml).expect("the temporary folder can be written");
    File::create(file)
        .and_then(|file| file.set_len(size.get()))
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    peer("thin_restore").arg("-q").arg("-i").arg(input).arg("-o").arg(file).ok();
}

/// The mappings of `device` as `thin_dump` has them: virtual block, data block, time.
///
/// # Panics
/// If `thin_dump` fails or does not know the device.
#[track_caller]
pub fn mappings(file: &Path, device: u32) -> Vec<(u64, u64, u32)> {
    let xml = dump(file);
    let head = format!("<device dev_id=\"{device}\" ");
    let (_, from_device) = xml.split_once(&head).unwrap_or_else(|| panic!("no {head} in\n{xml}"));
    let body = from_device.split("</device>").next().expect("a split has a first part");
    let mut mappings = Vec::new();
    for element in body.lines().map(str::trim) {
        let number = |name: &str| attribute(element, name);
        if element.starts_with("<single_mapping") {
            let time = u32::try_from(number("time")).expect("a time fits 32 bits");
            mappings.push((number("origin_block"), number("data_block"), time));
        } else if element.starts_with("<range_mapping") {
            let time = u32::try_from(number("time")).expect("a time fits 32 bits");
            let (from, to) = (number("origin_begin"), number("data_begin"));
            mappings.extend((0..number("length")).map(|block| (from + block, to + block, time)));
        }
    }
    mappings
}

/// The number that the attribute `name` of an XML element holds.
#[track_caller]
fn attribute(element: &str, name: &str) -> u64 {
    let value = element
        .split_once(&format!(" {name}=\""))
        .and_then(|(_, rest)| rest.split('"').next())
        .and_then(|value| value.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {element}"))
}

#[cfg(test)]
mod tests {
    use block_types::ByteCount;

    use crate::fixture;

    #[test]
    fn restores_checks_and_dumps() {
        let folder = tempfile::tempdir().unwrap();
        let meta = folder.path().join("meta");
        let xml = String::from_utf8(fixture::bytes("thin/a.xml")).unwrap();
        super::restore(&xml, &meta, ByteCount::new(4 << 20));
        super::check(&meta);
        assert!(super::dump(&meta).contains("nr_data_blocks=\"40000\""));
        let mappings = super::mappings(&meta, 3);
        assert_eq!(mappings.len(), 201);
        assert_eq!((mappings[0], mappings[200]), ((0, 0, 0), (200, 400, 2)));

        std::fs::write(&meta, vec![0xA5; 1 << 20]).unwrap();
        assert_eq!(super::run_check(&meta).code(), Some(1));
    }
}
