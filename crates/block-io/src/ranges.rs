//! A set of byte ranges.

use std::collections::BTreeMap;

use block_types::{ByteOffset, ByteRange};

/// Bytes of one device, as maximal runs.
#[derive(Debug, Default)]
pub(crate) struct RangeSet {
    /// Start to end of each run; runs neither overlap nor touch.
    runs: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Whether every byte of `range` is in the set.
    pub(crate) fn contains(&self, range: ByteRange) -> bool {
        let before = self.runs.range(..=range.start.get()).next_back();
        range.is_empty() || before.is_some_and(|(_, &end)| end >= range.end().get())
    }

    /// Adds the bytes of `range`.
    pub(crate) fn insert(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start.get(), range.end().get());
        // Every run that overlaps or touches is swallowed.
        while let Some((&first, &last)) = self.runs.range(..=end).next_back() {
            if last < start {
                break;
            }
            self.runs.remove(&first);
            start = start.min(first);
            end = end.max(last);
        }
        self.runs.insert(start, end);
    }

    /// Removes the bytes of `range`.
    pub(crate) fn remove(&mut self, range: ByteRange) {
        if range.is_empty() {
            return;
        }
        let (start, end) = (range.start.get(), range.end().get());
        while let Some((&first, &last)) = self.runs.range(..end).next_back() {
            if last <= start {
                break;
            }
            self.runs.remove(&first);
            if last > end {
                self.runs.insert(end, last);
            }
            if first < start {
                self.runs.insert(first, start);
            }
        }
    }

    /// Removes every byte from `at` on.
    pub(crate) fn truncate(&mut self, at: ByteOffset) {
        self.remove(ByteRange::between(at, ByteOffset::new(u64::MAX).max(at)));
    }

    /// Removes everything.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
    }

    /// How many runs there are.
    pub(crate) fn runs(&self) -> usize {
        self.runs.len()
    }
}

#[cfg(test)]
mod tests {
    use super::RangeSet;
    use block_types::{ByteCount, ByteOffset, ByteRange};
    use proptest::prelude::{ProptestConfig, any, prop, proptest};
    use proptest::{prop_assert, prop_assert_eq};

    fn range(start: u64, len: u64) -> ByteRange {
        ByteRange::new(ByteOffset::new(start), ByteCount::new(len))
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn agrees_with_a_bit_per_byte(
            steps in prop::collection::vec((any::<bool>(), 0u64..64, 0u64..64), 1..40),
        ) {
            let mut set = RangeSet::default();
            let mut model = [false; 128];
            for (insert, start, len) in steps {
                if insert {
                    set.insert(range(start, len));
                } else {
                    set.remove(range(start, len));
                }
                model[start as usize..(start + len) as usize].fill(insert);
            }
            for start in 0..128u64 {
                prop_assert_eq!(set.contains(range(start, 1)), model[start as usize]);
                let run = model[start as usize..].iter().take_while(|&&in_set| in_set).count();
                prop_assert!(set.contains(range(start, run as u64)));
                prop_assert!(!set.contains(range(start, run as u64 + 1)));
            }
            let starts = (0..128).filter(|&i| model[i] && (i == 0 || !model[i - 1])).count();
            prop_assert_eq!(set.runs(), starts, "runs are maximal");
            set.truncate(ByteOffset::new(60));
            prop_assert!(!set.contains(range(60, 1)));
            prop_assert_eq!(set.contains(range(59, 1)), model[59]);
        }
    }
}
