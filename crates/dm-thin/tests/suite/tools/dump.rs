//! `dump` against `thin_dump`: equal to the byte.

use block_types::ErrorKind;
use dm_thin::dump::{Dialect, Form, Options, View, dump};
use persistent_data::MetaBlock;
use testkit::fixture;
use testkit::peer::peer;

use super::{IMAGES, Metadata, expanded, same};
use crate::common::id;

#[test]
fn every_image_dumps_as_thin_dump_has_it() {
    for image in IMAGES {
        let metadata = Metadata::image(image);
        same(&metadata.dump(&expanded()), &metadata.peer("thin_dump", &[]), image);
        let human = Options { form: Form::HumanReadable, ..expanded() };
        let theirs = metadata.peer("thin_dump", &["-f", "human_readable"]);
        same(&metadata.dump(&human), &theirs, image);
        let heads = Options { skip_mappings: true, ..expanded() };
        same(&metadata.dump(&heads), &metadata.peer("thin_dump", &["--skip-mappings"]), image);
    }
}

/// What thin_dump 1.3.3 makes of an image.
fn golden(name: &str) -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/thin-1.3.3");
    peer("gzip").arg("-dc").arg(format!("{folder}/{name}.gz")).ok()
}

#[test]
fn every_image_dumps_with_its_sharing_as_thin_dump_1_3_has_it() {
    for image in IMAGES {
        let ours = Metadata::image(image).dump(&Options::default());
        same(&ours, &golden(&format!("{image}.dump.xml")), image);
    }
    let human = Options { form: Form::HumanReadable, ..Options::default() };
    let ours = Metadata::image("k61-m2.snaps").dump(&human);
    same(&ours, &golden("k61-m2.snaps.dump.txt"), "for people");
}

#[test]
fn chosen_devices_are_dumped_alone() {
    let metadata = Metadata::image("k61-m2.snaps");
    let options = Options { devices: Some(vec![id(3), id(1)]), ..expanded() };
    let ours = metadata.dump(&options);
    assert_eq!(ours.matches("<device ").count(), 2);
    let one = Options { devices: Some(vec![id(1)]), ..expanded() };
    same(&metadata.dump(&one), &metadata.peer("thin_dump", &["--dev-id", "1"]), "device 1");
    // What only one of the chosen devices has is not shared.
    let shared = Options { dialect: Dialect::Tools1, ..one };
    assert!(!metadata.dump(&shared).contains("<def"));

    let missing = Options { devices: Some(vec![id(77)]), ..expanded() };
    let error = dump(metadata.device.clone(), &missing, Vec::new()).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.to_string(), "metadata, device 77: does not exist");
}

#[test]
fn metadata_snapshots_are_dumped() {
    let metadata = Metadata::image("k61-m2.snaps");
    let theirs = metadata.peer("thin_dump", &["--metadata-snap=55"]);
    for view in [View::Snapshot, View::SnapshotAt(MetaBlock::new(55))] {
        same(&metadata.dump(&Options { view, ..expanded() }), &theirs, "the metadata snapshot");
    }
    let refused = |image: &str, view: View| {
        let metadata = Metadata::image(image);
        let options = Options { view, ..expanded() };
        dump(metadata.device.clone(), &options, Vec::new()).expect_err("refused").kind()
    };
    assert_eq!(refused("k61-m1.thin", View::Snapshot), ErrorKind::NotFound);
    let elsewhere = View::SnapshotAt(MetaBlock::new(33));
    assert_eq!(refused("k61-m2.snaps", elsewhere), ErrorKind::Corrupt);
    let outside = View::SnapshotAt(MetaBlock::new(u64::MAX));
    assert_eq!(refused("k61-m2.snaps", outside), ErrorKind::OutOfRange);
}

#[test]
fn broken_leaves_are_named() {
    let mut bytes = fixture::bytes("thin/k61-m1.thin.md.gz");
    let metadata = Metadata::new(bytes.clone());
    let whole = metadata.dump(&expanded()).len();
    let mut refused = 0;
    for block in 0..40 {
        let place = block * 4096 + 100;
        bytes[place] ^= 1;
        let mut out = Vec::new();
        match dump(Metadata::new(bytes.clone()).device, &expanded(), &mut out) {
            Ok(()) => assert_eq!(out.len(), whole, "block {block} was not needed"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
                assert!(block == 0 || error.to_string().contains(&format!("block {block}")));
                refused += 1;
            }
        }
        bytes[place] ^= 1;
    }
    // The superblock, the two trees of devices, and the device's tree: a root and two leaves.
    assert_eq!(refused, 6);
}

/// Holds a generated pool against `thin_dump`.
pub(super) fn compare(metadata: &Metadata, what: &str) {
    same(&metadata.dump(&expanded()), &metadata.peer("thin_dump", &[]), what);
}
