//! A small deterministic generator of random numbers: the same seed, the same test, everywhere.

use std::ops::Range;

/// A SplitMix64 generator (Steele, Lea, Flood 2014): 64 bits of state, no bad seeds.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
}

impl Rng {
    /// The generator that `seed` names.
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.state)
    }

    /// A number from `range`, all equally likely (but for a bias far below what a test can see).
    ///
    /// # Panics
    /// If the range is empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        assert!(!range.is_empty(), "a number from an empty range");
        let width = u128::from(range.end - range.start);
        let scaled = (u128::from(self.bits()) * width) >> 64;
        // The product is below 2^64 * width, so what is left is below the width, a u64.
        range.start + scaled as u64
    }

    /// An index of something with `len` elements.
    pub fn index(&mut self, len: usize) -> usize {
        self.within(0..len as u64) as usize
    }

    /// True in `numerator` of `denominator` cases.
    pub fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.within(0..denominator) < numerator
    }

    /// One of `choices`.
    pub fn pick<'c, T>(&mut self, choices: &'c [T]) -> &'c T {
        &choices[self.index(choices.len())]
    }

    /// One of `choices`, each as likely as its weight says.
    pub fn weighted<T: Copy>(&mut self, choices: &[(u64, T)]) -> T {
        let total = choices.iter().map(|(weight, _)| weight).sum();
        let mut left = self.within(0..total);
        for &(weight, choice) in choices {
            if left < weight {
                return choice;
            }
            left -= weight;
        }
        unreachable!("the number drawn is below the sum of the weights")
    }

    /// Fills `buffer` with random bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            let bytes = self.bits().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }

    /// A generator of its own for a part of the test, so that one part's draws do not shift
    /// another's.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.bits())
    }
}

/// The output function of SplitMix64: every bit of `z` moves half of the result's.
pub(crate) const fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::Rng;

    #[test]
    fn is_the_published_generator() {
        let mut rng = Rng::new(1_234_567);
        assert_eq!(rng.bits(), 6_457_827_717_110_365_317);
        assert_eq!(rng.bits(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn stays_in_range_and_reaches_all_of_it() {
        let mut rng = Rng::new(7);
        let mut seen = [0u32; 5];
        for _ in 0..1000 {
            seen[rng.within(10..15) as usize - 10] += 1;
        }
        assert!(seen.iter().all(|&count| (100..300).contains(&count)), "{seen:?}");
        assert_eq!(rng.within(u64::MAX - 1..u64::MAX), u64::MAX - 1);
    }

    #[test]
    fn weights_weigh() {
        let mut rng = Rng::new(7);
        let heavy = (0..1000).filter(|_| rng.weighted(&[(9, true), (1, false)])).count();
        assert!((850..950).contains(&heavy), "{heavy}");
        assert!((0..100).all(|_| rng.weighted(&[(0, false), (1, true)])));
    }

    #[test]
    fn fills_to_the_last_byte() {
        let mut buffer = [0u8; 13];
        Rng::new(3).fill(&mut buffer);
        assert!(buffer[8..].iter().any(|&byte| byte != 0));
    }
}
