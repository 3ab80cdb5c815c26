//! Holding both space maps against what was counted.

use persistent_data::bulk::{Bitmaps, Counted, Forest, Mismatches, NodeProblem, inspect};
use persistent_data::space_map::{COUNTS_PER_BITMAP, IndexEntry};
use persistent_data::{BlockKind, MetaBlock, SpaceMapRoot, Transaction};
use zerocopy::FromBytes;

use super::census::{Census, DATA_COUNTS, METADATA_COUNTS};
use super::report::{CheckReport, LISTED, and_more};

/// Counts that are wrong, of each sort, that are kept: more than anybody reads, and enough to
/// repair leaks in few steps.
const KEPT: usize = 1 << 20;

/// Where the index of the metadata space map lists bitmaps.
const INDEX_HEAD: usize = 16;

/// What comparing large counts brought one thread.
struct Large {
    mismatches: Mismatches,
    problems: Vec<String>,
}

/// Compares the data space map with the mappings that were counted.
pub(super) fn data(
    census: &mut Census,
    root: &SpaceMapRoot,
    report: &mut CheckReport,
) -> Mismatches {
    let mut found = Mismatches::new(KEPT);
    let places = data_bitmaps(census, root, report);
    let (bitmaps, problems) =
        Bitmaps::read(census.forest.reader(), &places, census.data.len().min(in_bitmaps(&places)));
    broken(&problems, "a bitmap of the data space map", report);
    bitmaps.compare(&census.data, &mut found);
    let large = MetaBlock::new(root.ref_count_root.get());
    let new = || Large { mismatches: Mismatches::new(KEPT), problems: Vec::new() };
    let data = &census.data;
    let walked = census.forest.walk([large], DATA_COUNTS, new, |state, leaf| {
        for entry in leaf.entries::<u32>() {
            let problem = bitmaps.compare_large(entry, data, &mut state.mismatches);
            state.problems.extend(problem.map(|problem| format!("block {}: {problem}", leaf.at())));
        }
    });
    let whole = walked.problems.is_empty();
    census.blame(DATA_COUNTS, walked.problems);
    for state in walked.states {
        found.extend(state.mismatches);
        report.errors_of("broken large counts", state.problems);
    }
    if whole {
        missing(&bitmaps, "data", report);
    }
    warn_of_allocated("data", root, &bitmaps, report);
    found.sort();
    found
}

/// Where the bitmaps of the data space map lie.
fn data_bitmaps(census: &Census, root: &SpaceMapRoot, report: &mut CheckReport) -> Vec<MetaBlock> {
    let needed = root.nr_blocks.get().div_ceil(COUNTS_PER_BITMAP as u64);
    let listed = census.data_bitmaps.iter().zip(0..needed);
    let places: Vec<MetaBlock> =
        listed.take_while(|((key, _), number)| key == number).map(|((_, at), _)| *at).collect();
    if (places.len() as u64) < needed {
        report.error(format!(
            "the data space map lists {} bitmaps without a gap, {needed} are needed for {} blocks",
            places.len(),
            root.nr_blocks.get()
        ));
    }
    places
}

/// Compares the metadata space map with the references that were counted. It comes last: its own
/// blocks are among them.
pub(super) fn metadata(
    census: &mut Census,
    root: &SpaceMapRoot,
    report: &mut CheckReport,
) -> Mismatches {
    let mut found = Mismatches::new(KEPT);
    let len = root.nr_blocks.get();
    let most = census.forest.blocks().min(Transaction::MAX_BLOCKS);
    if len > most {
        report.error(format!(
            "the metadata space map counts {len} blocks where the device has {most}"
        ));
    }
    let len = len.min(most);
    let places = metadata_bitmaps(&census.forest, root, len, report);
    places.iter().for_each(|at| _ = census.forest.refer(*at));
    let large = MetaBlock::new(root.ref_count_root.get());
    let walked = census.forest.walk([large], METADATA_COUNTS, Vec::new, |entries, leaf| {
        entries.extend(leaf.entries::<u32>());
    });
    let whole = walked.problems.is_empty();
    census.blame(METADATA_COUNTS, walked.problems);
    let (bitmaps, problems) =
        Bitmaps::read(census.forest.reader(), &places, len.min(in_bitmaps(&places)));
    broken(&problems, "a bitmap of the metadata space map", report);
    bitmaps.compare(&census.forest, &mut found);
    let entries = walked.states.into_iter().flatten();
    let problems: Vec<String> = entries
        .filter_map(|entry| bitmaps.compare_large(entry, &census.forest, &mut found))
        .collect();
    report.errors_of("broken large counts", problems);
    if whole {
        missing(&bitmaps, "metadata", report);
    }
    if let Some(last) = census.forest.last_used().filter(|last| last.get() >= len) {
        report.error(format!("metadata block {last} is in use, but the space map ends at {len}"));
    }
    warn_of_allocated("metadata", root, &bitmaps, report);
    report.blocks = bitmaps.allocated();
    found.sort();
    found
}

/// Where the bitmaps of the metadata space map lie, by its index.
fn metadata_bitmaps(
    forest: &Forest,
    root: &SpaceMapRoot,
    len: u64,
    report: &mut CheckReport,
) -> Vec<MetaBlock> {
    let at = MetaBlock::new(root.bitmap_root.get());
    forest.refer(at);
    let read = forest.reader().for_each(
        &[at],
        || None,
        |found, at, block| {
            *found = Some(block.map(|block| {
                let entries = <[IndexEntry]>::ref_from_bytes(&block[INDEX_HEAD..]);
                let entries = entries.expect("an index is full of entries");
                let sound = inspect(block, at) == Some(BlockKind::Index);
                let needed = len.div_ceil(COUNTS_PER_BITMAP as u64) as usize;
                let places =
                    entries.iter().take(needed).map(|entry| MetaBlock::new(entry.bitmap.get()));
                sound.then(|| places.collect())
            }));
        },
    );
    match read.into_iter().flatten().next() {
        Some(Ok(Some(places))) => return places,
        Some(Err(error)) => report.error(format!("the index of the metadata space map: {error}")),
        _ => report.error(format!("metadata block {at} is no sound index of the space map")),
    }
    Vec::new()
}

/// How many counts these bitmaps have.
fn in_bitmaps(places: &[MetaBlock]) -> u64 {
    places.len() as u64 * COUNTS_PER_BITMAP as u64
}

fn broken(problems: &[NodeProblem], what: &str, report: &mut CheckReport) {
    report.errors_of(
        "broken bitmaps",
        problems.iter().map(|problem| format!("{}; {what}", problem.error)),
    );
}

/// Tells of large counts that are not there.
fn missing(bitmaps: &Bitmaps, what: &str, report: &mut CheckReport) {
    let (missing, count) = bitmaps.without_large(LISTED);
    for block in &missing {
        report.error(format!("{what} block {block} lacks its count of 3 or more"));
    }
    report.errors.extend(and_more(count - missing.len() as u64, "large counts that are missing"));
}

/// The number of blocks in use is a hint that some tools get wrong; nobody relies on it.
fn warn_of_allocated(what: &str, root: &SpaceMapRoot, bitmaps: &Bitmaps, report: &mut CheckReport) {
    let (said, counted) = (root.nr_allocated.get(), bitmaps.allocated());
    if said != counted {
        report.warn(format!(
            "the superblock says that {said} {what} blocks are in use, not {counted}"
        ));
    }
}

/// Adds wrong counts to the report.
pub(super) fn name(what: &str, found: &Mismatches, with_leaks: bool, report: &mut CheckReport) {
    let wrong = |one: &persistent_data::bulk::CountMismatch| {
        let (block, said, counted) = (one.block, one.said, one.counted);
        format!("{what} block {block} has count {said}, should have {counted}")
    };
    report.errors.extend(found.low.iter().take(LISTED).map(wrong));
    let more = found.lows.saturating_sub(LISTED as u64);
    report.errors.extend(and_more(more, &format!("{what} blocks with low counts")));
    if with_leaks {
        report.leaks.extend(found.high.iter().take(LISTED).map(wrong));
        let more = found.highs.saturating_sub(LISTED as u64);
        report.leaks.extend(and_more(more, &format!("{what} blocks")));
    }
}
