use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::test_runner::Config;

use super::{Bits, DirtyBitmap, Granularity, PartContent, restore};
use crate::{ByteCount, ByteOffset, ByteRange};

const UNIT: u64 = 512;

/// How often threads are let loose on each other.
const ROUNDS: u64 = 5000;

fn bitmap(bytes: u64, unit: u64) -> DirtyBitmap {
    DirtyBitmap::new(ByteCount::new(bytes), Granularity::new(ByteCount::new(unit)).unwrap())
        .unwrap()
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::between(ByteOffset::new(start), ByteOffset::new(end))
}

fn runs(bitmap: &DirtyBitmap) -> Vec<(u64, u64)> {
    bitmap.dirty_runs().map(|run| (run.start.get(), run.end().get())).collect()
}

/// What a set of granules says of the same questions.
struct Model {
    size: u64,
    unit: u64,
    dirty: BTreeSet<u64>,
}

impl Model {
    fn granules(&self) -> u64 {
        self.size.div_ceil(self.unit)
    }

    fn set(&mut self, start: u64, end: u64) {
        self.dirty.extend((0..self.granules()).filter(|granule| {
            start < end && granule * self.unit < end && (granule + 1) * self.unit > start
        }));
    }

    fn clear(&mut self, start: u64, end: u64) {
        let (size, unit) = (self.size, self.unit);
        self.dirty.retain(|granule| {
            !(granule * unit >= start && ((granule + 1) * unit).min(size) <= end)
        });
    }

    fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for granule in &self.dirty {
            let (start, end) = (granule * self.unit, ((granule + 1) * self.unit).min(self.size));
            match runs.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => runs.push((start, end)),
            }
        }
        runs
    }

    fn holds(&self, bitmap: &DirtyBitmap) {
        let expected = self.runs();
        assert_eq!(runs(bitmap), expected);
        assert_eq!(bitmap.dirty().get(), expected.iter().map(|(start, end)| end - start).sum());
        assert_eq!(bitmap.is_clean(), expected.is_empty());
        for granule in 0..self.granules() {
            let start = granule * self.unit;
            let found = bitmap.is_dirty(range(start, (start + 1).min(self.size)));
            assert_eq!(found, self.dirty.contains(&granule));
        }
        let clean = (0..self.granules()).find(|granule| !self.dirty.contains(granule));
        let found = bitmap.next_clean(ByteOffset::ZERO).map(ByteOffset::get);
        assert_eq!(found, clean.map(|granule| granule * self.unit));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Set(u64, u64),
    Clear(u64, u64),
}

fn steps(size: u64) -> impl Strategy<Value = Vec<Step>> {
    let place = move || {
        prop_oneof![0..=size, Just(0), Just(size), (0..=size / UNIT).prop_map(|n| n * UNIT)]
    };
    let step = (any::<bool>(), place(), place()).prop_map(|(set, a, b)| {
        let (start, end) = (a.min(b), a.max(b));
        if set { Step::Set(start, end) } else { Step::Clear(start, end) }
    });
    proptest::collection::vec(step, 1..24)
}

proptest! {
    #![proptest_config(Config { cases: 96, ..Config::default() })]

    #[test]
    fn agrees_with_a_set_of_granules(
        size in prop_oneof![1..3 * UNIT, 1..200 * UNIT, 4000 * UNIT..9000 * UNIT],
        seed in steps(9000 * UNIT),
    ) {
        let bitmap = bitmap(size, UNIT);
        let mut model = Model { size, unit: UNIT, dirty: BTreeSet::new() };
        for step in seed {
            match step {
                Step::Set(start, end) => {
                    let before = model.dirty.len();
                    model.set(start.min(size), end.min(size));
                    let changed = bitmap.set(range(start.min(size), end.min(size)));
                    assert_eq!(changed, model.dirty.len() > before);
                }
                Step::Clear(start, end) => {
                    model.clear(start.min(size), end.min(size));
                    bitmap.clear(range(start.min(size), end.min(size)));
                }
            }
            assert_eq!(runs(&bitmap), model.runs());
        }
        for (start, end) in model.runs() {
            assert!(bitmap.is_all_dirty(range(start, end)));
            assert_eq!(bitmap.is_all_dirty(range(start, size)), end == size);
        }
        model.holds(&bitmap);
        let copy = bitmap.clone();
        assert_eq!(copy, bitmap);
        copy.set(range(0, 1));
        assert_eq!(copy == bitmap, bitmap.is_dirty(range(0, 1)));
    }

    #[test]
    fn parts_say_what_the_bitmap_says(seed in steps(9000 * UNIT), part in 1..20u64) {
        let bitmap = bitmap(9000 * UNIT - 5, UNIT);
        for step in &seed {
            match *step {
                Step::Set(start, end) => { bitmap.set(range(start, end)); }
                Step::Clear(start, end) => bitmap.clear(range(start, end)),
            }
        }
        let copy = self::bitmap(9000 * UNIT - 5, UNIT);
        let len = part * 8;
        let mut bytes = vec![0xff; len as usize];
        for at in (0..bitmap.byte_len()).step_by(len as usize) {
            bitmap.export(at, &mut bytes);
            let clean = bytes.iter().all(|&byte| byte == 0);
            match bitmap.content(at..at + len) {
                PartContent::Clean => assert!(clean),
                PartContent::Dirty => {
                    assert!(!clean);
                    copy.set_part(at..at + len);
                }
                PartContent::Mixed => {
                    assert!(!clean);
                    copy.import(at, &bytes);
                }
            }
        }
        assert_eq!(runs(&copy), runs(&bitmap));
    }

    #[test]
    fn merging_takes_everything_and_little_more(
        seed in steps(600 * UNIT),
        units in proptest::sample::select(vec![(512, 512), (512, 4096), (4096, 512), (8192, 1024)]),
        sizes in (300..600u64, 300..600u64),
    ) {
        let from = bitmap(sizes.0 * UNIT - 9, units.0);
        for step in &seed {
            if let Step::Set(start, end) = *step { from.set(range(start, end)); }
        }
        let into = bitmap(sizes.1 * UNIT - 100, units.1);
        into.merge(&from);
        let mut model =
            Model { size: sizes.1 * UNIT - 100, unit: units.1, dirty: BTreeSet::new() };
        for (start, end) in runs(&from) {
            model.set(start, end.min(model.size));
        }
        model.holds(&into);
    }
}

#[test]
fn granularities_are_powers_of_two() {
    assert!(Granularity::new(ByteCount::new(511)).is_err());
    assert!(Granularity::new(ByteCount::new(256)).is_err());
    assert!(Granularity::new(ByteCount::new(1 << 32)).is_err());
    assert_eq!(Granularity::new(ByteCount::new(65536)).unwrap().exponent(), 16);
    assert_eq!(Granularity::from_exponent(8), None);
    assert_eq!(Granularity::from_exponent(31), Some(Granularity::LARGEST));
}

#[test]
fn empty_and_huge_disks() {
    let none = bitmap(0, UNIT);
    none.set_all();
    assert!(none.is_clean() && none.next_clean(ByteOffset::ZERO).is_none());
    assert_eq!((none.byte_len(), none.dirty().get()), (0, 0));
    let most = Granularity::SMALLEST.bytes().get() << 32;
    assert!(DirtyBitmap::new(ByteCount::new(most + 1), Granularity::SMALLEST).is_err());
    // Takes no memory to speak of: a page here and there.
    let huge = bitmap(most, UNIT);
    huge.set(range(most - 1, most));
    assert_eq!(runs(&huge), [(most - 512, most)]);
    huge.set(range(0, 1));
    huge.clear(range(0, most - 1));
    assert_eq!(runs(&huge), [(most - 512, most)]);
}

#[test]
fn growth_is_dirty() {
    let small = bitmap(10 * 4096 + 100, 4096);
    small.set(range(4096, 8192));
    let large = small.resized(ByteCount::new(20 * 4096)).unwrap();
    assert_eq!(runs(&large), [(4096, 8192), (10 * 4096, 20 * 4096)]);
    let cut = large.resized(ByteCount::new(5000)).unwrap();
    assert_eq!(runs(&cut), [(4096, 5000)]);
    assert_eq!(runs(&cut.resized(ByteCount::new(8192)).unwrap()), [(4096, 8192)]);
}

/// Lets two threads begin a round at the same moment.
#[derive(Default)]
struct Start(AtomicU64);

impl Start {
    fn wait(&self, round: u64) {
        self.0.fetch_add(1, Ordering::SeqCst);
        let mut spins = 0;
        while self.0.load(Ordering::SeqCst) < (round + 1) * 2 {
            spins += 1;
            if spins < 200 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

/// Lets the other thread go on where one has failed.
struct Release<'s>(&'s [Start; 2]);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        for start in self.0 {
            start.0.store(u64::MAX / 2, Ordering::SeqCst);
        }
    }
}

/// Runs `round` over and over in threads of the numbers 0 and 1, side by side, and `between` in one
/// of them after each.
fn side_by_side(rounds: u64, round: impl Fn(u64, u64) + Sync, between: impl Fn() + Sync) {
    let starts = [Start::default(), Start::default()];
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (starts, round, between) = (&starts, &round, &between);
            scope.spawn(move || {
                let _release = Release(starts);
                for number in 0..rounds {
                    starts[0].wait(number);
                    round(thread, number);
                    starts[1].wait(number);
                    if thread == 0 {
                        between();
                    }
                }
            });
        }
    });
}

/// A bit that is set while its word is being cleared is either gone or found, by way of the
/// summaries: never there without them.
#[test]
fn nothing_is_lost_between_setting_and_clearing() {
    let bitmap = bitmap(64 * 64 * 64 * UNIT, UNIT);
    let one = range(5 * UNIT, 6 * UNIT);
    bitmap.set(one);
    let round = |thread, _| match thread {
        0 => bitmap.clear(one),
        _ => drop(bitmap.set(range(7 * UNIT, 8 * UNIT))),
    };
    side_by_side(ROUNDS, round, || {
        let mut word = [0; 8];
        bitmap.export(0, &mut word);
        assert_eq!(word != [0; 8], bitmap.next_dirty(ByteOffset::ZERO).is_some());
        bitmap.clear_all();
        bitmap.set(one);
    });
}

/// Whoever has set a bit finds it, also while another is on its way with the same word.
#[test]
fn what_is_set_is_found_at_once() {
    let bitmap = bitmap(64 * 64 * 64 * UNIT, UNIT);
    let round = |thread, number| {
        let at = ((number * 64 * 64) % (64 * 64 * 64) + thread * (number % 2)) * UNIT;
        bitmap.set(range(at, at + 1));
        assert_eq!(bitmap.next_dirty(ByteOffset::new(at)).unwrap().get(), at);
    };
    side_by_side(ROUNDS, round, || {
        bitmap.clear_all();
        assert!(bitmap.is_clean());
    });
}

/// The same two moments, held still: another thread has set a bit and not its summaries yet.
#[test]
fn summaries_follow_bits_that_others_set() {
    let bitmap = bitmap(64 * 64 * 64 * UNIT, UNIT);
    let bit = Bits { start: 4711, end: 4712 };
    bitmap.levels[0].set(bit);
    assert!(bitmap.is_clean(), "found without a summary");
    assert!(!bitmap.set(range(4711 * UNIT, 4712 * UNIT)), "it was set before");
    assert_eq!(runs(&bitmap), [(4711 * UNIT, 4712 * UNIT)]);
    // Whoever clears finds the word set again behind it.
    bitmap.levels[1].clear(bit.words());
    restore(&bitmap.levels[0], &bitmap.levels[1], Bits { start: 0, end: 4096 });
    assert_eq!(runs(&bitmap), [(4711 * UNIT, 4712 * UNIT)]);
}
