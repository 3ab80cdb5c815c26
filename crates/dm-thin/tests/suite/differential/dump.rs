//! Dumps without the numbers of data blocks.

use std::collections::HashMap;
use std::fs;

use testkit::peer::peer;
use testkit::thin_tools;

/// What `thin_dump` says of the metadata, and of the metadata snapshot that is held, after
/// `thin_check` and our own check found it sound. Data blocks have numbers by the order in which
/// they appear.
pub(super) fn of(metadata: &[u8]) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("metadata");
    fs::write(&file, metadata).expect("written");
    thin_tools::check(&file);
    let device = std::sync::Arc::new(block_io::MemoryDevice::from_bytes("it", metadata.to_vec()));
    let report = dm_thin::check(device).expect("checked");
    assert!(report.errors.is_empty() && report.leaks.is_empty(), "{report:#?}");
    let mut names = HashMap::new();
    let mut lines = normalised(&thin_tools::dump(&file), &mut names);
    // The block of the metadata snapshot, of which there may be none.
    if metadata[0x38..0x40] != [0; 8] {
        lines.push("metadata snapshot".to_owned());
        lines.extend(normalised(&peer("thin_dump").arg("-m").arg(&file).ok(), &mut names));
    }
    lines
}

/// One line for a device and for each mapping.
fn normalised(xml: &str, names: &mut HashMap<u64, usize>) -> Vec<String> {
    let mut lines = Vec::new();
    for element in xml.lines().map(str::trim) {
        let mut words = element.split('"').skip(1).step_by(2);
        let mut number = || words.next().and_then(|word| word.parse().ok()).expect("a number");
        let (from, to, len, time) = match element.split(' ').next() {
            Some("<single_mapping") => (number(), number(), 1, number()),
            Some("<range_mapping") => (number(), number(), number(), number()),
            _ => {
                lines.push(element.to_owned());
                continue;
            }
        };
        for block in 0..len {
            let next = names.len();
            let name = names.entry(to + block).or_insert(next);
            lines.push(format!("{}: {name} at time {time}", from + block));
        }
    }
    lines
}

#[test]
fn sharing_is_told_and_places_are_not() {
    let xml = |data: [u64; 3]| {
        format!(
            "<device dev_id=\"1\">\n\
             <range_mapping origin_begin=\"5\" data_begin=\"{}\" length=\"2\" time=\"3\"/>\n\
             </device>\n<single_mapping origin_block=\"0\" data_block=\"{}\" time=\"{}\"/>",
            data[0], data[1], data[2]
        )
    };
    let lines = |data| normalised(&xml(data), &mut HashMap::new());
    assert_eq!(lines([10, 11, 1]), lines([70, 71, 1]));
    assert_ne!(lines([10, 11, 1]), lines([10, 12, 1]), "another block is shared");
    assert_ne!(lines([10, 11, 1]), lines([10, 11, 2]), "another time");
}
