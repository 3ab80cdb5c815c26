//! Keys made of secrets, and keys spread over much space so that little of it destroys them.

use block_types::{Error, ErrorKind, Result};
use pbkdf2::pbkdf2_hmac;
use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};
use zeroize::Zeroizing;

/// A key, wiped when it is dropped.
pub(super) type Key = Zeroizing<Vec<u8>>;

/// The hash that a LUKS header names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hash {
    Sha1,
    Sha256,
    Sha512,
    Ripemd160,
}

impl Hash {
    /// The hash called `name`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`].
    pub(super) fn named(object: &str, name: &str) -> Result<Self> {
        match name {
            "sha1" => Ok(Self::Sha1),
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            "ripemd160" => Ok(Self::Ripemd160),
            _ => {
                let problem = format!("makes its keys by {name}, which is not known here");
                Err(Error::new(ErrorKind::Unsupported, object, problem))
            }
        }
    }

    /// A key of `len` bytes made of `secret` (PBKDF2 with HMAC).
    pub(super) fn derive(self, secret: &[u8], salt: &[u8], iterations: u32, len: usize) -> Key {
        let mut key = Zeroizing::new(vec![0; len]);
        match self {
            Self::Sha1 => pbkdf2_hmac::<Sha1>(secret, salt, iterations, &mut key),
            Self::Sha256 => pbkdf2_hmac::<Sha256>(secret, salt, iterations, &mut key),
            Self::Sha512 => pbkdf2_hmac::<Sha512>(secret, salt, iterations, &mut key),
            Self::Ripemd160 => pbkdf2_hmac::<Ripemd160>(secret, salt, iterations, &mut key),
        }
        key
    }

    fn digest(self, number: u32, bytes: &[u8]) -> Vec<u8> {
        let number = number.to_be_bytes();
        match self {
            Self::Sha1 => Sha1::new().chain_update(number).chain_update(bytes).finalize().to_vec(),
            Self::Sha256 => {
                Sha256::new().chain_update(number).chain_update(bytes).finalize().to_vec()
            }
            Self::Sha512 => {
                Sha512::new().chain_update(number).chain_update(bytes).finalize().to_vec()
            }
            Self::Ripemd160 => {
                Ripemd160::new().chain_update(number).chain_update(bytes).finalize().to_vec()
            }
        }
    }

    fn digest_len(self) -> usize {
        match self {
            Self::Sha1 | Self::Ripemd160 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// Makes every bit of `bytes` depend on all bits of its piece, which is as long as a digest.
    fn diffuse(self, bytes: &mut [u8]) {
        for (number, piece) in (0..).zip(bytes.chunks_mut(self.digest_len())) {
            let digest = self.digest(number, piece);
            piece.copy_from_slice(&digest[..piece.len()]);
        }
    }

    /// The key that is spread over `material`, of which every byte is needed.
    pub(super) fn merge(self, material: &[u8], len: usize) -> Key {
        let mut key = Zeroizing::new(vec![0; len]);
        let mut stripes = material.chunks_exact(len).peekable();
        while let Some(stripe) = stripes.next() {
            key.iter_mut().zip(stripe).for_each(|(key, byte)| *key ^= byte);
            if stripes.peek().is_some() {
                self.diffuse(&mut key);
            }
        }
        key
    }

    /// Spreads `key` over `stripes` times its length, by random bytes.
    ///
    /// # Errors
    /// Where the system has no random bytes.
    pub(super) fn split(self, key: &[u8], stripes: usize) -> Result<Key> {
        let mut material = Zeroizing::new(vec![0; key.len() * stripes]);
        let (random, last) = material.split_at_mut(key.len() * (stripes - 1));
        fill_random(random)?;
        let mut so_far = Zeroizing::new(vec![0; key.len()]);
        for stripe in random.chunks_exact(key.len()) {
            so_far.iter_mut().zip(stripe).for_each(|(byte, with)| *byte ^= with);
            self.diffuse(&mut so_far);
        }
        for ((last, byte), key) in last.iter_mut().zip(so_far.iter()).zip(key) {
            *last = byte ^ key;
        }
        Ok(material)
    }
}

/// Fills `bytes` with what nobody can guess.
///
/// # Errors
/// Where the system has no random bytes.
pub(super) fn fill_random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|error| {
        Error::new(ErrorKind::Io, "random bytes", format!("cannot be had: {error}"))
    })
}

#[cfg(test)]
mod tests {
    use super::Hash;

    #[test]
    fn a_key_that_is_spread_is_found_again_and_every_byte_counts() {
        for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha512, Hash::Ripemd160] {
            let key: Vec<u8> = (0..64).collect();
            let mut material = hash.split(&key, 50).expect("random bytes");
            assert_eq!(*hash.merge(&material, 64), key);
            material[100] ^= 1;
            assert_ne!(*hash.merge(&material, 64), key);
        }
    }

    #[test]
    fn keys_are_those_of_rfc_6070() {
        let key = Hash::Sha1.derive(b"password", b"salt", 4096, 20);
        let expected = "4b007901b765489abead49d926f721d065a429c1";
        let text: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, expected);
    }
}
