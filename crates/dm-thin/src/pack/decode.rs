//! Doing the instructions that make a block.

use persistent_data::BLOCK_SIZE;

use super::{LOW_BITS, Op};

/// Words of a block.
const WORDS: usize = BLOCK_SIZE / WORD;
const WORD: usize = 8;

/// What went wrong; whoever calls knows where.
pub(super) type Problem = &'static str;

/// Instructions, and how far they were done.
pub(super) struct Machine<'i> {
    input: &'i [u8],
    base: u64,
}

/// Words on their way to where they belong.
struct Words<'o> {
    out: &'o mut [u64],
    len: usize,
}

impl Words<'_> {
    fn emit(&mut self, word: u64) -> Result<(), Problem> {
        *self.out.get_mut(self.len).ok_or("makes more words than there is room for")? = word;
        self.len += 1;
        Ok(())
    }
}

impl<'i> Machine<'i> {
    pub(super) fn new(input: &'i [u8]) -> Self {
        Self { input, base: 0 }
    }

    /// Whether all input was used.
    pub(super) fn is_done(&self) -> bool {
        self.input.is_empty()
    }

    /// The next 64-bit word of the input.
    pub(super) fn word(&mut self) -> Result<u64, Problem> {
        self.operand(8)
    }

    /// Does instructions until `block` is full.
    pub(super) fn block(&mut self, block: &mut [u8; BLOCK_SIZE]) -> Result<(), Problem> {
        self.base = 0;
        let mut len = 0;
        let mut scratch = [0; WORDS];
        while len < BLOCK_SIZE {
            let rest = &mut block[len..];
            let (op, low) = self.instruction()?;
            let count = match op {
                Op::Bytes => low.into(),
                Op::BytesLong => self.operand(low)?,
                _ => {
                    let words = if op == Op::Split {
                        let count = self.long(low)?;
                        self.split(count, &mut scratch)?
                    } else {
                        let mut words = Words { out: &mut scratch, len: 0 };
                        self.number(op, low, &mut words)?;
                        words.len
                    };
                    let room = rest.get_mut(..words * WORD).ok_or("makes too long a block")?;
                    for (bytes, word) in room.chunks_exact_mut(WORD).zip(&scratch) {
                        bytes.copy_from_slice(&word.to_le_bytes());
                    }
                    len += words * WORD;
                    continue;
                }
            };
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            let room = rest.get_mut(..count).ok_or("makes too long a block")?;
            room.copy_from_slice(self.take(count)?);
            len += count;
        }
        Ok(())
    }

    /// Makes `count` words of upper and lower parts.
    fn split(&mut self, count: usize, out: &mut [u64; WORDS]) -> Result<usize, Problem> {
        let mut low = [0; WORDS];
        let room = "makes more words than there is room for";
        self.numbers(out.get_mut(..count).ok_or(room)?)?;
        self.numbers(&mut low[..count])?;
        for (word, low) in out[..count].iter_mut().zip(low) {
            *word = *word << LOW_BITS | low & ((1 << LOW_BITS) - 1);
        }
        Ok(count)
    }

    /// Does instructions that emit words until `out` is full.
    fn numbers(&mut self, out: &mut [u64]) -> Result<(), Problem> {
        let mut words = Words { out, len: 0 };
        while words.len < words.out.len() {
            let (op, low) = self.instruction()?;
            self.number(op, low, &mut words)?;
        }
        Ok(())
    }

    /// Does one instruction that emits words.
    fn number(&mut self, op: Op, low: u8, words: &mut Words<'_>) -> Result<(), Problem> {
        let times = match op {
            Op::Times => low.into(),
            Op::TimesLong => self.long(low)?,
            Op::Repeat | Op::RepeatLong => {
                let count = if op == Op::Repeat { low.into() } else { self.long(low)? };
                return (0..count).try_for_each(|_| words.emit(self.base));
            }
            _ => return self.step(op, low, 1, words),
        };
        let (op, low) = self.instruction()?;
        self.step(op, low, times, words)
    }

    /// Does an instruction that changes the base, so many times.
    fn step(
        &mut self,
        op: Op,
        low: u8,
        times: usize,
        words: &mut Words<'_>,
    ) -> Result<(), Problem> {
        let step = match op {
            Op::Set => {
                self.base = self.operand(low)?;
                0
            }
            Op::Add => low.into(),
            Op::AddWide => self.operand(low)?,
            Op::Subtract => u64::from(low).wrapping_neg(),
            Op::SubtractWide => self.operand(low)?.wrapping_neg(),
            _ => return Err("has an instruction that cannot stand where it does"),
        };
        for _ in 0..times {
            self.base = self.base.wrapping_add(step);
            words.emit(self.base)?;
        }
        Ok(())
    }

    fn instruction(&mut self) -> Result<(Op, u8), Problem> {
        let byte = self.take(1)?[0];
        let op = Op::ALL.get(usize::from(byte >> 4)).ok_or("has an unknown instruction")?;
        Ok((*op, byte & 0xf))
    }

    /// A count of twelve bits.
    fn long(&mut self, high: u8) -> Result<usize, Problem> {
        Ok(usize::from(high) << 8 | usize::from(self.take(1)?[0]))
    }

    fn operand(&mut self, width: u8) -> Result<u64, Problem> {
        if !matches!(width, 1 | 2 | 4 | 8) {
            return Err("has an operand of an impossible width");
        }
        let mut bytes = [0; WORD];
        bytes[..usize::from(width)].copy_from_slice(self.take(width.into())?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn take(&mut self, count: usize) -> Result<&'i [u8], Problem> {
        let (taken, rest) = self.input.split_at_checked(count).ok_or("ends inside a block")?;
        self.input = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::super::encode::encode;
    use super::Machine;
    use persistent_data::{BLOCK_SIZE, BlockKind};

    fn decode(input: &[u8]) -> Result<[u8; BLOCK_SIZE], &'static str> {
        let mut block = [0xa5; BLOCK_SIZE];
        Machine::new(input).block(&mut block).map(|()| block)
    }

    /// A node with this head and words that `word` makes, all the way to the end.
    fn node(flags: u32, max: u32, value_size: u32, word: impl Fn(u64) -> u64) -> Vec<u8> {
        let mut block = vec![7; BLOCK_SIZE];
        block[4..8].copy_from_slice(&flags.to_le_bytes());
        block[20..24].copy_from_slice(&max.to_le_bytes());
        block[24..28].copy_from_slice(&value_size.to_le_bytes());
        for (bytes, index) in block[32..].chunks_exact_mut(8).zip(0..) {
            bytes.copy_from_slice(&word(index).to_le_bytes());
        }
        block
    }

    #[test]
    fn blocks_come_back_as_they_were() {
        let scrambled = |index: u64| index.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (index % 64);
        let words: [&dyn Fn(u64) -> u64; 7] = [
            &|index| index,
            &|index| u64::MAX - 3 * index,
            &|_| 42,
            &|index| index % 5,
            &scrambled,
            &|index| if index % 2 == 0 { 0 } else { u64::MAX },
            &|index| (index << 24) | (index % 3),
        ];
        for word in words {
            for (flags, max, size) in [
                (2, 252, 8),
                (1, 252, 8),
                (2, 126, 24),
                (2, 336, 4),
                (2, 0, 0),
                (2, 508, 0),
                (1, 254, 8),
                (2, u32::MAX, u32::MAX),
                (9, 252, 8),
            ] {
                let block = node(flags, max, size, word);
                let mut packed = Vec::new();
                encode(&block, BlockKind::Node, &mut packed);
                assert!(decode(&packed).as_ref().map(|block| &block[..]) == Ok(&block));
            }
        }
        let mut packed = Vec::new();
        encode(&node(2, 252, 8, |index| index << 24), BlockKind::Node, &mut packed);
        assert!(packed.len() < 100, "{} bytes", packed.len());
    }

    #[test]
    fn broken_instructions_are_refused() {
        for (input, problem) in [
            (&[][..], "ends inside a block"),
            (&[0xc0], "has an unknown instruction"),
            (&[0xf0], "has an unknown instruction"),
            (&[0x03, 0, 0, 0], "has an operand of an impossible width"),
            (&[0x01], "ends inside a block"),
            (&[0x98, 1], "ends inside a block"),
            (&[0x6f, 0xff], "makes more words than there is room for"),
            (&[0x8f, 0xff, 0x11], "makes more words than there is room for"),
            (&[0xbf, 0xff], "makes more words than there is room for"),
            (&[0x7f, 0x75, 0x11], "has an instruction that cannot stand where it does"),
            (&[0xb0, 0x01, 0x91, 0], "has an instruction that cannot stand where it does"),
            (&[0xa2, 0x00, 0x20], "makes too long a block"),
            (&[0xa8, 255, 255, 255, 255, 255, 255, 255, 255], "makes too long a block"),
        ] {
            assert_eq!(decode(input).map(|_| ()), Err(problem), "{input:02x?}");
        }
        // 511 words, and then two more.
        let long = [0x51, 0x61, 0xfe, 0x52];
        assert_eq!(decode(&long).map(|_| ()), Err("makes too long a block"));
    }
}
