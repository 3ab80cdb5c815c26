//! LUKS, version 1: a key for the data, kept under up to eight secrets.
//!
//! Facts: the "LUKS On-Disk Format Specification", version 1.2. The data are encrypted by sectors
//! ([`SectorCipher`]) under a random key. Each slot of the header keeps that key, spread over 4000
//! times its length (so that wiping a part of it is enough), and encrypted by what is made of a
//! secret, slowly.

mod header;
mod key;
mod sector;

pub(crate) use header::{AREA, AREA_LIMIT, create, unlock};
pub(crate) use sector::SectorCipher;

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

/// What opens an encrypted image: bytes, all of which count. They are wiped when the last copy is
/// dropped, and not shown by `Debug`.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// A secret of these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }

    fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}
