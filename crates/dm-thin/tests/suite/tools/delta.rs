//! `delta` against `thin_delta`: equal to the byte; and without what is the same.

use block_types::{Error, ErrorKind};
use dm_thin::DeviceId;
use dm_thin::delta::{Detail, Kind, Options, Range, Side, delta, write_delta};
use dm_thin::dump::View;
use persistent_data::MetaBlock;
use testkit::rng::Rng;

use super::{IMAGES, Metadata, same};
use crate::common::id;

fn options(left: DeviceId, right: DeviceId) -> Options {
    let (left, right) = (Side::Device(left), Side::Device(right));
    Options { left, right, view: View::Live, same: true }
}

fn text(metadata: &Metadata, options: &Options, detail: Detail) -> String {
    let mut out = Vec::new();
    write_delta(metadata.device.clone(), options, detail, &mut out).expect("compared");
    String::from_utf8(out).expect("text")
}

fn ranges(metadata: &Metadata, options: &Options) -> Vec<Range> {
    let mut found = Vec::new();
    delta(metadata.device.clone(), options, &mut |range| {
        found.push(range);
        Ok(())
    })
    .expect("compared");
    found
}

/// Compares two devices as `thin_delta` does.
fn compare_devices(metadata: &Metadata, left: DeviceId, right: DeviceId, what: &str) {
    let (one, other) = (left.to_string(), right.to_string());
    let args = ["--thin1", &one, "--thin2", &other];
    let options = options(left, right);
    let what = format!("{what}, {left} and {right}");
    same(&text(metadata, &options, Detail::Simple), &metadata.peer("thin_delta", &args), &what);
    let verbose = [&args[..], &["--verbose"]].concat();
    let theirs = metadata.peer("thin_delta", &verbose);
    same(&text(metadata, &options, Detail::Verbose), &theirs, &what);
    // Without what is the same, the rest is the same.
    let mut differing = ranges(metadata, &options);
    differing.retain(|range| range.kind != Kind::Same);
    assert_eq!(ranges(metadata, &Options { same: false, ..options }), differing, "{what}");
}

/// Compares two devices of a generated pool.
pub(super) fn compare(metadata: &Metadata, rng: &mut Rng, what: &str) {
    let devices = super::device_ids(metadata);
    compare_devices(metadata, *rng.pick(&devices), *rng.pick(&devices), what);
}

#[test]
fn every_image_compares_as_thin_delta_has_it() {
    for image in IMAGES {
        let metadata = Metadata::image(image);
        let devices = super::device_ids(&metadata);
        for pair in devices.windows(2).step_by(4) {
            compare_devices(&metadata, pair[0], pair[1], image);
        }
        if let (Some(&first), Some(&last)) = (devices.first(), devices.last()) {
            compare_devices(&metadata, last, first, image);
            compare_devices(&metadata, first, first, image);
        }
    }
}

#[test]
fn a_metadata_snapshot_is_compared() {
    let metadata = Metadata::image("k61-m2.snaps");
    let args = ["--metadata-snap=55", "--snap1", "0", "--snap2", "1"];
    let options = Options { view: View::Snapshot, ..options(id(0), id(1)) };
    let ours = text(&metadata, &options, Detail::Simple);
    same(&ours, &metadata.peer("thin_delta", &args), "the metadata snapshot");
}

/// Trees by their roots, as thin_delta 1.3 takes them: block 33 is the tree of devices 0, 2, 3, 4,
/// block 35 that of device 1.
#[test]
fn trees_are_compared_by_their_roots() {
    let metadata = Metadata::image("k61-m2.snaps");
    let (left, right) = (Side::Root(MetaBlock::new(33)), Side::Root(MetaBlock::new(35)));
    let by_root = Options { left, right, view: View::Live, same: true };
    let by_device = options(id(0), id(1));
    assert_eq!(ranges(&metadata, &by_root), ranges(&metadata, &by_device));
    assert!(
        text(&metadata, &by_root, Detail::Simple)
            .contains("<diff left_root=\"33\" right_root=\"35\">")
    );
}

#[test]
fn what_is_shared_is_not_read() {
    let mut bytes = Metadata::image("k61-m2.snaps").bytes();
    let plain = options(id(0), id(2));
    // The leaves of device 0, which shares its root with device 2.
    for leaf in [22, 34] {
        bytes[leaf * 4096 + 50] ^= 1;
    }
    let metadata = Metadata::new(bytes);
    assert_eq!(ranges(&metadata, &Options { same: false, ..plain }), []);
    let error = delta(metadata.device.clone(), &plain, &mut |_| Ok(())).expect_err("broken");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn failures_come_back() {
    let metadata = Metadata::image("k61-m2.snaps");
    let missing = options(id(0), id(77));
    let mut out = Vec::new();
    let error = write_delta(metadata.device.clone(), &missing, Detail::Simple, &mut out);
    assert_eq!(error.expect_err("missing").kind(), ErrorKind::NotFound);
    assert!(out.is_empty());

    let mut calls = 0;
    let error = delta(metadata.device.clone(), &options(id(0), id(1)), &mut |_| {
        calls += 1;
        Err(Error::new(ErrorKind::Cancelled, "test", "has seen enough"))
    });
    assert_eq!(error.expect_err("cancelled").kind(), ErrorKind::Cancelled);
    assert_eq!(calls, 1);
}
