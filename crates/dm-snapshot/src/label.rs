//! The label of a store: whose past it holds, in a part of the header that the kernel neither reads
//! nor, while the store is valid, writes.
//!
//! The kernel's header is 16 bytes of chunk 0. It writes that chunk when it makes a store and when
//! it marks one invalid, and then the rest becomes zero; a store without a label is as good as one
//! with it. Nothing of a snapshot's content depends on the label.

use block_types::crc32c;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Where the label begins in the header's sector.
pub(crate) const LABEL_AT: usize = 64;

const MAGIC: [u8; 8] = *b"FIRNCOW\x01";
/// The longest name of an origin.
const LONGEST: usize = 416;

/// What a store says of itself to whoever keeps stores and origins together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// The store's own identity, in whatever place it lies.
    pub id: [u8; 16],
    /// What the origin was called, as bytes of a path; empty where that is too long to be kept.
    pub origin: Vec<u8>,
}

/// The label on disk; with what is before it, one sector.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct LabelLayout {
    magic: [u8; 8],
    /// CRC-32C of all that follows.
    checksum: U32,
    len: U16,
    unused: U16,
    id: [u8; 16],
    origin: [u8; LONGEST],
}

const _: () = assert!(LABEL_AT + size_of::<LabelLayout>() == 512);

impl Label {
    /// A label; an origin's name of more than 416 bytes is left out.
    pub fn new(id: [u8; 16], origin: &[u8]) -> Self {
        let origin = if origin.len() <= LONGEST { origin.to_vec() } else { Vec::new() };
        Self { id, origin }
    }

    /// The label in the header's first sector, if there is a sound one.
    pub(crate) fn parse(sector: &[u8]) -> Option<Self> {
        let layout = LabelLayout::read_from_prefix(sector.get(LABEL_AT..)?).ok()?.0;
        let sound = layout.magic == MAGIC && layout.checksum.get() == checksum(&layout);
        let origin = layout.origin.get(..usize::from(layout.len.get())).filter(|_| sound)?;
        Some(Self { id: layout.id, origin: origin.to_vec() })
    }

    /// Puts the label into the header's first sector.
    pub(crate) fn put(&self, sector: &mut [u8]) {
        let len = self.origin.len().min(LONGEST);
        let mut layout = LabelLayout {
            magic: MAGIC,
            checksum: 0.into(),
            len: u16::try_from(len).unwrap_or(0).into(),
            unused: 0.into(),
            id: self.id,
            origin: [0; LONGEST],
        };
        layout.origin[..len].copy_from_slice(&self.origin[..len]);
        layout.checksum = checksum(&layout).into();
        sector[LABEL_AT..LABEL_AT + size_of::<LabelLayout>()].copy_from_slice(layout.as_bytes());
    }
}

fn checksum(layout: &LabelLayout) -> u32 {
    crc32c(&layout.as_bytes()[12..])
}

#[cfg(test)]
mod tests {
    use super::{LABEL_AT, Label};

    #[test]
    fn comes_back_and_is_not_believed_when_damaged() {
        let label = Label::new([7; 16], b"/disks/disk.img");
        let mut sector = [0; 512];
        label.put(&mut sector);
        assert_eq!(Label::parse(&sector), Some(label));
        assert!(sector[..LABEL_AT].iter().all(|&byte| byte == 0), "the kernel's part");
        for at in LABEL_AT..512 {
            let mut damaged = sector;
            damaged[at] ^= 1;
            assert_eq!(Label::parse(&damaged), None, "byte {at}");
        }
        assert_eq!(Label::parse(&[0; 512]), None);
        assert_eq!(Label::parse(&sector[..100]), None);
    }

    #[test]
    fn names_that_are_too_long_are_left_out() {
        assert_eq!(Label::new([1; 16], &[b'x'; 417]).origin, b"");
        assert_eq!(Label::new([1; 16], &[b'x'; 416]).origin.len(), 416);
    }
}
