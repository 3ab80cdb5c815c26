//! `rmap` against `thin_rmap`: equal line by line; and with every device that shares.

use block_types::ErrorKind;
use dm_thin::DataBlock;
use dm_thin::dump::View;
use dm_thin::rmap::{Naming, Options, rmap, write_rmap};
use testkit::rng::Rng;

use super::{IMAGES, Metadata, same};

/// The first data block, and the one behind the last.
type Region = (u64, u64);

fn options(regions: &[Region], naming: Naming) -> Options {
    let block = DataBlock::new;
    let regions = regions.iter().map(|&(start, end)| block(start)..block(end)).collect();
    Options { regions, view: View::Live, naming }
}

fn text(metadata: &Metadata, options: &Options) -> String {
    let mut out = Vec::new();
    write_rmap(metadata.device.clone(), options, &mut out).expect("mapped back");
    String::from_utf8(out).expect("text")
}

fn compare_regions(metadata: &Metadata, regions: &[Region], what: &str) {
    let mut args = Vec::new();
    for (start, end) in regions {
        args.extend(["--region".to_owned(), format!("{start}..{end}")]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let what = format!("{what}, {regions:?}");
    let ours = text(metadata, &options(regions, Naming::First));
    // 0.9 leaves the order of uses that begin with the same data block to its sort, which is not
    // a stable one; 1.3 has our order.
    same(&sorted(&ours), &sorted(&metadata.peer("thin_rmap", &args)), &what);
    assert_eq!(every_use(metadata, regions), dumped_uses(metadata, regions), "{what}");
}

fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// The device, guest and data block of every use.
fn every_use(metadata: &Metadata, regions: &[Region]) -> Vec<(u32, u64, u64)> {
    let mut uses = Vec::new();
    for item in rmap(metadata.device.clone(), &options(regions, Naming::Every)).expect("found") {
        let (from, guest) = (item.from.get(), item.guest.get());
        uses.extend(
            (from..item.end.get()).map(|block| (item.device.get(), guest + (block - from), block)),
        );
    }
    uses.sort_unstable();
    uses
}

/// The same, from the mappings of all devices.
fn dumped_uses(metadata: &Metadata, regions: &[Region]) -> Vec<(u32, u64, u64)> {
    let mappings = super::mappings(metadata);
    let inside = |block: u64| regions.iter().any(|&(start, end)| (start..end).contains(&block));
    mappings.into_iter().filter(|(_, _, block)| inside(*block)).collect()
}

/// Compares some regions of a generated pool.
pub(super) fn compare(metadata: &Metadata, rng: &mut Rng, what: &str) {
    let mut region = || {
        let start = rng.within(0..3_000);
        (start, start + rng.within(1..3_000))
    };
    compare_regions(metadata, &[region(), region()], what);
}

#[test]
fn every_image_is_mapped_back_as_thin_rmap_has_it() {
    for image in IMAGES {
        let metadata = Metadata::image(image);
        compare_regions(&metadata, &[(0, 5)], image);
        compare_regions(&metadata, &[(290, 500), (3, 7), (5, 9)], image);
        compare_regions(&metadata, &[(0, 1 << 40)], image);
    }
}

#[test]
fn regions_that_hold_nothing_are_refused() {
    let metadata = Metadata::image("k61-m1.thin");
    for regions in [&[][..], &[(5, 5)], &[(1, 2), (7, 6)]] {
        let result = rmap(metadata.device.clone(), &options(regions, Naming::Every));
        assert_eq!(result.expect_err("refused").kind(), ErrorKind::Invalid);
    }
}
