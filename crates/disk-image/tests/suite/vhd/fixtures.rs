//! Images that vhd-util, libvhd and vhd-lib wrote (`tests/fixtures/vhd`).

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::vhd::common::{content, open_read_only, sha256};
use block_io::{BlockDevice, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ByteRange};
use disk_image::vhd::{BatmapState, Kind, Parent, Timestamp, VhdImage, probe_parent};
use testkit::peer::peer;

/// The unpacked bytes of a fixture.
pub(crate) fn bytes(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vhd");
    let outcome = peer("gzip").arg("-dc").arg(folder.join(format!("{name}.gz"))).run();
    assert_eq!(outcome.code(), Some(0), "{outcome}");
    outcome.stdout
}

fn image(name: &str, parent: Option<&Arc<VhdImage>>) -> Arc<VhdImage> {
    let file = Arc::new(MemoryDevice::from_bytes(name, bytes(name)));
    open_read_only(file, parent.map(Parent::vhd))
}

fn chain() -> [Arc<VhdImage>; 3] {
    let base = image("base.vhd", None);
    let mid = image("mid.vhd", Some(&base));
    let leaf = image("leaf.vhd", Some(&mid));
    [base, mid, leaf]
}

const BASE: &str = "13bf008b2d51ccbc749ffc0195a6bc82ecc5a63cb83193177d64cfb355881955";
const MID: &str = "9395dd4546f86abe3927c2b84f8415d0c096df471e395d6197afd19746ca5543";
const LEAF: &str = "b842fc2d90dbedc50639f6963674521a38c7bb4288f13dc8a7a79baaa269c5ad";

#[test]
fn contents_have_the_sums_of_the_readme() {
    let [base, mid, leaf] = chain();
    for (image, expected) in [(base, BASE), (mid, MID), (leaf, LEAF)] {
        assert_eq!(sha256(content(&*image)), expected, "{}", image.name());
    }
    for (name, expected) in [
        ("noendfooter.vhd", BASE),
        ("marker-broken.vhd", BASE),
        ("leaf-flattened-by-vhdlib.vhd", LEAF),
    ] {
        assert_eq!(sha256(content(&*image(name, None))), expected, "{name}");
    }
}

#[test]
fn what_the_images_say_of_themselves() {
    let [base, mid, leaf] = chain();
    let info = base.info().expect("read");
    assert_eq!(info.kind, Kind::Dynamic);
    assert_eq!(info.size, ByteCount::new(64 << 20));
    assert!(info.hidden && !leaf.is_hidden());
    assert_eq!(info.id.to_string(), "33c92111-f576-470a-ac40-35e4f0b5983a");
    assert_eq!(info.created, Timestamp::new(848_503_208));
    let sparse = info.sparse.expect("is dynamic");
    assert_eq!((sparse.allocated, sparse.batmap), (3, BatmapState::Trusted));
    assert_eq!(sparse.largest, ByteCount::new(128 << 20));
    let parent = mid.info().expect("read").parent.expect("has one");
    assert_eq!((parent.id, parent.name.as_str()), (Some(info.id), "base.vhd"));
    assert!(parent.is_unchanged_since(info.created));
    let paths: Vec<_> = parent.locators.iter().map(|one| one.path.as_str()).collect();
    assert_eq!(paths, ["file://./base.vhd", ".\\base.vhd", ".\\base.vhd"]);
    let file = MemoryDevice::from_bytes("leaf.vhd", bytes("leaf.vhd"));
    let parent = probe_parent(&file).expect("read").expect("has one");
    assert_eq!(parent.id, Some(mid.id()));
}

#[test]
fn what_an_image_holds_itself() {
    let [_, mid, leaf] = chain();
    let own = |image: &VhdImage| {
        let mut found = Vec::new();
        let whole = ByteRange::new(ByteOffset::ZERO, image.size());
        let each = &mut |range: ByteRange| {
            found.push((range.start.get(), range.len.get()));
            ControlFlow::Continue(())
        };
        image.own_extents(whole, each).expect("read");
        found
    };
    const BLOCK: u64 = 2 << 20;
    assert_eq!(own(&mid), [(BLOCK, 16 * 512)]);
    assert_eq!(own(&leaf), [(BLOCK + 4 * 512, 4 * 512), (15 * BLOCK, BLOCK)]);
}

#[test]
fn a_wrong_parent_is_refused_and_a_missing_one_leaves_what_is_there() {
    let [base, _, leaf] = chain();
    let file: Arc<dyn BlockDevice> =
        Arc::new(MemoryDevice::from_bytes("leaf.vhd", bytes("leaf.vhd")));
    let options = disk_image::vhd::OpenOptions { read_only: true, ..Default::default() };
    let error = VhdImage::open(Arc::clone(&file), Some(Parent::vhd(&base)), options);
    let error = error.err().expect("refused").to_string();
    assert!(error.contains("5d82d1f0-b252-4ce9-958a-10abf8586bf1"), "{error}");
    assert!(error.contains(&base.id().to_string()), "{error}");
    let alone = VhdImage::open(file, None, options).expect("opened");
    let at = ByteOffset::new(15 << 21);
    let mut read = [0; 512];
    alone.read_at(&mut read, at).expect("its own");
    assert_eq!(read, [0x32; 512]);
    let error = alone.read_at(&mut read, ByteOffset::ZERO).expect_err("its parent's");
    assert!(error.to_string().contains("parent"), "{error}");
    assert_eq!(leaf.size(), alone.size());
}

#[test]
fn batmaps_that_cannot_be_trusted() {
    for (name, why) in
        [("marker-broken.vhd", "sum"), ("leaf-flattened-by-vhdlib.vhd", "there is none")]
    {
        match image(name, None).info().expect("read").sparse.expect("is dynamic").batmap {
            BatmapState::Distrusted(reason) => assert!(reason.contains(why), "{reason}"),
            state => panic!("{name}: {state:?}"),
        }
    }
}

#[test]
fn the_readme_is_that_of_the_files() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vhd/README.md");
    let readme = fs::read_to_string(readme).expect("there");
    for sum in [BASE, MID, LEAF] {
        assert!(readme.contains(sum));
    }
    for name in ["base", "mid", "leaf", "noendfooter", "marker-broken"] {
        let sum = sha256(bytes(&format!("{name}.vhd")));
        assert!(readme.contains(&sum), "{name}");
    }
}
