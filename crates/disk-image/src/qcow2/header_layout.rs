//! The header laid out anew: for a change of its extensions, its version or the backing file's
//! name.
//!
//! Everything that counts comes before the table of feature names, and so within the first sector,
//! which a disk writes whole or not at all. The table, which is for messages only, is the one part
//! that may reach beyond it. Where it has to move, the header is without it for a moment:
//!
//! 1. a new name of the backing file is written where nothing is, and flushed with what else is
//!    new;
//! 2. the first sector is written, without the table: from here on the new header counts;
//! 3. the rest of the table is written, where nothing counts any more; flushed;
//! 4. the first sector is written with the table.

use std::os::unix::ffi::OsStringExt;

use block_types::{ByteOffset, Error, ErrorKind, Result};

use super::extension::Extensions;
use super::header::{BACKING_LIMIT, Compression, Header, SECTOR_ZERO, V2_LENGTH, V3_LENGTH};
use super::layout::extension;

/// What makes a header another one.
pub(super) struct HeaderChange {
    /// What nothing names yet.
    pub(super) ahead: Option<(ByteOffset, Vec<u8>)>,
    /// The first sector that makes the new header count.
    pub(super) sector: Vec<u8>,
    /// The bytes behind the first sector and the sector that counts them in, where the table of
    /// feature names moves.
    pub(super) names: Option<(Vec<u8>, Vec<u8>)>,
}

impl Header {
    /// Bytes of the header proper, unknown fields included.
    fn length(&self) -> usize {
        if self.version == 2 {
            return V2_LENGTH;
        }
        match self.area.get(100..104).and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) if self.stood_as_v3() => u32::from_be_bytes(bytes) as usize,
            _ => V3_LENGTH + 8,
        }
    }

    /// Whether the header in the file is of version 3.
    fn stood_as_v3(&self) -> bool {
        self.area.get(4..8) == Some(&3u32.to_be_bytes())
    }

    /// What has to be written for the header to be as its fields say, where it stood in the file as
    /// `old`.
    ///
    /// # Errors
    /// As [`Self::lay_out`].
    pub(super) fn change_from(&mut self, old: &Self, object: &str) -> Result<HeaderChange> {
        let same = self.extensions == old.extensions
            && self.backing == old.backing
            && self.version == old.version
            && self.geometry == old.geometry;
        if same {
            return Ok(HeaderChange { ahead: None, sector: self.sector_zero(), names: None });
        }
        self.lay_out(old, object)
    }

    /// What has to be written for the header to be as its fields, extensions and names say, where
    /// it stood in the file as `old`; it is laid out so from now on.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where that does not fit, with nothing changed.
    pub(super) fn lay_out(&mut self, old: &Self, object: &str) -> Result<HeaderChange> {
        let full = |problem: &str| {
            Err(Error::new(ErrorKind::Unsupported, object, format!("has no room for {problem}"))
                .advise("convert the image to one with larger clusters and shorter names"))
        };
        let cluster = self.geometry.cluster().as_usize();
        let bare = self.with_extensions(&self.extensions.without(extension::FEATURE_NAMES));
        if bare.len() > SECTOR_ZERO {
            return full("more in the first sector, where its header is");
        }
        let named = self.with_extensions(&self.extensions.names_last());
        let name = self.backing.clone().map(OsStringExt::into_vec).unwrap_or_default();
        if name.len() > BACKING_LIMIT as usize {
            return full("a name of the backing file of more than 1023 bytes");
        }
        let stays = (self.backing == old.backing && !name.is_empty()).then(|| old.name_at());
        let stays = stays.filter(|&at| at >= bare.len().max(SECTOR_ZERO));
        let behind = named.len().max(old.area.len()).max(SECTOR_ZERO).next_multiple_of(8);
        let name_at = match stays {
            _ if name.is_empty() => None,
            Some(at) => Some(at),
            None if behind + name.len() <= cluster => Some(behind),
            // In the first sector it is written together with what names it.
            None if bare.len() + name.len() <= SECTOR_ZERO => Some(bare.len()),
            None => return full("the backing file's name"),
        };
        let room = name_at.unwrap_or(cluster).min(cluster);
        let has_table = self.extensions.get(extension::FEATURE_NAMES).is_some();
        let fits = has_table && named.len() <= room;
        let ahead = name_at.filter(|&at| at >= SECTOR_ZERO && stays.is_none());
        let ahead = ahead.map(|at| (ByteOffset::new(at as u64), name.clone()));
        let whole = |mut bytes: Vec<u8>| {
            let end = name_at.map_or(0, |at| at + name.len());
            bytes.resize(bytes.len().max(end), 0);
            if let Some(at) = name_at {
                bytes[at..end].copy_from_slice(&name);
            }
            self.put_names(&mut bytes, name_at, name.len());
            bytes
        };
        let (bare, named) = (whole(bare), whole(named));
        let rest = |bytes: &[u8]| bytes.get(SECTOR_ZERO..).unwrap_or_default().to_vec();
        let stands = old.area.get(SECTOR_ZERO..).unwrap_or_default();
        let change = if !fits {
            HeaderChange { ahead, sector: sector(&bare), names: None }
        } else if rest(&named).is_empty() || (ahead.is_none() && stands == rest(&named)) {
            HeaderChange { ahead, sector: sector(&named), names: None }
        } else {
            let names = Some((rest(&named), sector(&named)));
            HeaderChange { ahead, sector: sector(&bare), names }
        };
        if !fits {
            self.extensions = self.extensions.without(extension::FEATURE_NAMES);
        }
        self.area = if fits { named } else { bare };
        Ok(change)
    }

    /// Where the backing file's name stands.
    fn name_at(&self) -> usize {
        let bytes = self.area.get(8..16).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, |bytes| u64::from_be_bytes(bytes) as usize)
    }

    /// The header with these extensions and without a name.
    fn with_extensions(&self, extensions: &Extensions) -> Vec<u8> {
        let length = self.length();
        let mut bytes = self.area[..self.area.len().min(length)].to_vec();
        if !self.stood_as_v3() {
            bytes.truncate(V2_LENGTH);
        }
        bytes.resize(length, 0);
        bytes[4..8].copy_from_slice(&self.version.to_be_bytes());
        if self.version > 2 {
            bytes[100..104].copy_from_slice(&(length as u32).to_be_bytes());
            if length > V3_LENGTH {
                bytes[V3_LENGTH] = u8::from(self.compression == Compression::Zstd);
            }
        }
        self.patch(&mut bytes);
        bytes.extend_from_slice(&extensions.encode());
        bytes
    }

    fn put_names(&self, bytes: &mut [u8], at: Option<usize>, len: usize) {
        bytes[8..16].copy_from_slice(&(at.unwrap_or(0) as u64).to_be_bytes());
        bytes[16..20].copy_from_slice(&(len as u32).to_be_bytes());
    }
}

/// The first sector of `bytes`.
fn sector(bytes: &[u8]) -> Vec<u8> {
    let mut first = bytes[..bytes.len().min(SECTOR_ZERO)].to_vec();
    first.resize(SECTOR_ZERO, 0);
    first
}
