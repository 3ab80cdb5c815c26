//! Sectors of 512 bytes, each encrypted for itself under its number.

use aes::cipher::consts::U16;
use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes192, Aes256};
use block_types::{Error, ErrorKind, Result, SECTOR};
use sha2::{Digest, Sha256};

/// Bytes of a cipher's block.
const BLOCK: usize = 16;
/// Blocks of a sector.
const BLOCKS: usize = SECTOR as usize / BLOCK;

type Block = Array<u8, U16>;

/// A key that is ready to use.
trait BlockKey: Send + Sync {
    fn encrypt(&self, blocks: &mut [Block]);
    fn decrypt(&self, blocks: &mut [Block]);
}

impl<C> BlockKey for C
where
    C: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt<BlockSize = U16> + Send + Sync,
{
    fn encrypt(&self, blocks: &mut [Block]) {
        self.encrypt_blocks(blocks);
    }

    fn decrypt(&self, blocks: &mut [Block]) {
        self.decrypt_blocks(blocks);
    }
}

/// How the blocks of a sector depend on its number and on each other.
enum Mode {
    /// XTS (IEEE 1619): by a tweak, which the second key makes of the number.
    Xts(Box<dyn BlockKey>),
    /// Each on the block before it, the first on the number.
    Cbc,
    /// The same, the first on what another key makes of the number.
    CbcEssiv(Box<dyn BlockKey>),
}

/// What of a sector's number counts.
#[derive(Clone, Copy)]
enum Number {
    /// 64 bits.
    Plain64,
    /// 32 bits.
    Plain,
}

/// A cipher with its key.
pub(crate) struct SectorCipher {
    key: Box<dyn BlockKey>,
    mode: Mode,
    number: Number,
}

impl SectorCipher {
    /// The cipher that a LUKS header calls `name` and `mode`, with `key`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for any but AES, in modes XTS and CBC.
    pub(crate) fn new(object: &str, name: &str, mode: &str, key: &[u8]) -> Result<Self> {
        let unknown = || {
            let problem = format!("is encrypted by {name}-{mode}, which is not known here");
            Error::new(ErrorKind::Unsupported, object, problem)
                .advise("convert it with 'qemu-img convert' to one with aes-xts-plain64")
        };
        if name != "aes" {
            return Err(unknown());
        }
        let whole = || block_key(key).ok_or_else(unknown);
        let half = key.len() / 2;
        let number = if mode.ends_with("-plain") { Number::Plain } else { Number::Plain64 };
        let (key, mode) = match mode {
            "xts-plain64" | "xts-plain" => {
                let (first, second) = key.split_at(half);
                let pair = block_key(first).zip(block_key(second)).filter(|_| half != 24);
                let (first, tweak) = pair.ok_or_else(unknown)?;
                (first, Mode::Xts(tweak))
            }
            "cbc-plain64" | "cbc-plain" => (whole()?, Mode::Cbc),
            "cbc-essiv:sha256" => {
                let tweak = block_key(&Sha256::digest(key)).ok_or_else(unknown)?;
                (whole()?, Mode::CbcEssiv(tweak))
            }
            _ => return Err(unknown()),
        };
        Ok(Self { key, mode, number })
    }

    /// Encrypts whole sectors, of which the first has the number `first`.
    pub(crate) fn encrypt(&self, sectors: &mut [u8], first: u64) {
        for (number, sector) in (first..).zip(sectors.chunks_exact_mut(SECTOR as usize)) {
            let mut blocks = load(sector);
            let start = self.start(number);
            match &self.mode {
                Mode::Xts(_) => {
                    let tweaks = tweaks(start);
                    mix(&mut blocks, &tweaks);
                    self.key.encrypt(&mut blocks);
                    mix(&mut blocks, &tweaks);
                }
                Mode::Cbc | Mode::CbcEssiv(_) => {
                    let mut before = start;
                    for block in &mut blocks {
                        mix(std::slice::from_mut(block), &[before]);
                        self.key.encrypt(std::slice::from_mut(block));
                        before = *block;
                    }
                }
            }
            store(sector, &blocks);
        }
    }

    /// Decrypts whole sectors, of which the first has the number `first`.
    pub(crate) fn decrypt(&self, sectors: &mut [u8], first: u64) {
        for (number, sector) in (first..).zip(sectors.chunks_exact_mut(SECTOR as usize)) {
            let mut blocks = load(sector);
            let start = self.start(number);
            match &self.mode {
                Mode::Xts(_) => {
                    let tweaks = tweaks(start);
                    mix(&mut blocks, &tweaks);
                    self.key.decrypt(&mut blocks);
                    mix(&mut blocks, &tweaks);
                }
                Mode::Cbc | Mode::CbcEssiv(_) => {
                    let mut before = [start; BLOCKS];
                    before[1..].copy_from_slice(&blocks[..BLOCKS - 1]);
                    self.key.decrypt(&mut blocks);
                    mix(&mut blocks, &before);
                }
            }
            store(sector, &blocks);
        }
    }

    /// What the first block of a sector depends on.
    fn start(&self, number: u64) -> Block {
        let number = match self.number {
            Number::Plain64 => number,
            Number::Plain => number & u64::from(u32::MAX),
        };
        let mut start = Block::default();
        start[..8].copy_from_slice(&number.to_le_bytes());
        match &self.mode {
            Mode::Xts(tweak) | Mode::CbcEssiv(tweak) => {
                tweak.encrypt(std::slice::from_mut(&mut start));
            }
            Mode::Cbc => {}
        }
        start
    }
}

fn block_key(key: &[u8]) -> Option<Box<dyn BlockKey>> {
    Some(match key.len() {
        16 => Box::new(Aes128::new_from_slice(key).ok()?),
        24 => Box::new(Aes192::new_from_slice(key).ok()?),
        32 => Box::new(Aes256::new_from_slice(key).ok()?),
        _ => return None,
    })
}

/// The tweaks of a sector's blocks: each is the one before times x in GF(2^128).
fn tweaks(first: Block) -> [Block; BLOCKS] {
    let mut tweak = u128::from_le_bytes(first.into());
    std::array::from_fn(|_| {
        let this = Block::from(tweak.to_le_bytes());
        let carry = tweak >> 127;
        tweak = (tweak << 1) ^ (carry * 0x87);
        this
    })
}

fn mix(blocks: &mut [Block], with: &[Block]) {
    for (block, with) in blocks.iter_mut().zip(with) {
        let mixed = u128::from_ne_bytes((*block).into()) ^ u128::from_ne_bytes((*with).into());
        *block = mixed.to_ne_bytes().into();
    }
}

fn load(sector: &[u8]) -> [Block; BLOCKS] {
    let (chunks, _) = sector.as_chunks::<BLOCK>();
    let mut blocks = [Block::default(); BLOCKS];
    blocks.iter_mut().zip(chunks).for_each(|(block, bytes)| *block = (*bytes).into());
    blocks
}

fn store(sector: &mut [u8], blocks: &[Block; BLOCKS]) {
    let (chunks, _) = sector.as_chunks_mut::<BLOCK>();
    chunks.iter_mut().zip(blocks).for_each(|(bytes, block)| *bytes = (*block).into());
}

#[cfg(test)]
mod tests {
    use super::SectorCipher;

    fn hex(text: &str) -> Vec<u8> {
        let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("a number");
        (0..text.len()).step_by(2).map(digit).collect()
    }

    /// IEEE 1619-2007, annex B, vectors 4 (128 bits) and 10 (256 bits): the first and the last
    /// block.
    #[test]
    fn xts_is_that_of_the_standard() {
        let plain: Vec<u8> = (0..512).map(|at| at as u8).collect();
        let vectors = [
            (
                "27182818284590452353602874713526",
                "31415926535897932384626433832795",
                0,
                "27a7479befa1d476489f308cd4cfa6e2",
                "c4d36afc6f7e5a5dd8a2a7d8d6c2d9a4",
            ),
            (
                "2718281828459045235360287471352662497757247093699959574966967627",
                "3141592653589793238462643383279502884197169399375105820974944592",
                0xff,
                "1c3b3a102f770386e4836c99e370cf9b",
                "",
            ),
        ];
        for (first, second, number, head, _) in vectors {
            let key = [hex(first), hex(second)].concat();
            let cipher = SectorCipher::new("it", "aes", "xts-plain64", &key).expect("known");
            let mut sector = plain.clone();
            cipher.encrypt(&mut sector, number);
            assert_eq!(sector[..16], hex(head));
            cipher.decrypt(&mut sector, number);
            assert_eq!(sector, plain);
        }
    }

    #[test]
    fn every_mode_takes_back_what_it_does_and_depends_on_the_number() {
        for mode in ["xts-plain64", "xts-plain", "cbc-plain64", "cbc-plain", "cbc-essiv:sha256"] {
            let cipher = SectorCipher::new("it", "aes", mode, &[7; 32]).expect("known");
            let plain: Vec<u8> = (0..2048).map(|at| (at / 7) as u8).collect();
            let mut sectors = plain.clone();
            cipher.encrypt(&mut sectors, 5);
            let mut third = plain[1024..1536].to_vec();
            cipher.encrypt(&mut third, 7);
            assert_eq!(third, sectors[1024..1536], "{mode}");
            assert_ne!(plain, sectors);
            cipher.decrypt(&mut sectors[512..], 6);
            assert_eq!(sectors[512..], plain[512..], "{mode}");
        }
        for (name, mode, len) in [
            ("serpent", "xts-plain64", 64),
            ("aes", "ctr-plain", 32),
            ("aes", "xts-plain64", 48),
            ("aes", "cbc-plain64", 20),
        ] {
            assert!(SectorCipher::new("it", name, mode, &vec![1; len]).is_err(), "{name}-{mode}");
        }
    }
}
