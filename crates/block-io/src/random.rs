//! A small generator of numbers that depend on a seed alone (SplitMix64).

/// A sequence of numbers.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The sequence of a seed, and of a stream within it.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut random = Self(seed);
        // Neighbouring seeds and streams must not give sequences that are shifts of each other.
        let mixed = random.next() ^ stream.wrapping_mul(0xD605_BBB5_8C8A_BBFD);
        Self(mixed)
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// True in `parts` of `whole` cases.
    pub(crate) fn chance(&mut self, parts: u64, whole: u64) -> bool {
        self.next() % whole < parts
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn depends_on_seed_and_stream_alone() {
        let draw = |seed, stream| {
            let mut random = Random::new(seed, stream);
            [random.next(), random.next(), random.next()]
        };
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(2, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
    }

    #[test]
    fn chances_are_about_right() {
        let mut random = Random::new(7, 0);
        let hits = (0..8000).filter(|_| random.chance(1, 8)).count();
        assert!((800..1200).contains(&hits), "{hits} of 8000");
    }
}
