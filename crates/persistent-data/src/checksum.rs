//! The seal of a block: its own number and a checksum over everything behind the checksum.
//!
//! All kinds keep the checksum in bytes 0 to 3 and their number in bytes 8 to 15. The checksum is
//! CRC-32C without the final inversion, mixed with the constant of the kind.

use block_types::{Error, ErrorKind, Result, crc32c_raw};

use crate::{BLOCK_SIZE, BlockKind, MetaBlock};

/// Writes the number and the checksum into a block that is otherwise complete.
///
/// # Panics
/// If `block` is not 4096 bytes long.
pub fn seal(block: &mut [u8], kind: BlockKind, at: MetaBlock) {
    assert_eq!(block.len(), BLOCK_SIZE, "a metadata block has 4096 bytes");
    block[8..16].copy_from_slice(&at.get().to_le_bytes());
    let checksum = crc32c_raw(&block[4..]) ^ kind.salt();
    block[..4].copy_from_slice(&checksum.to_le_bytes());
}

/// Checks that `block` is an intact block of `kind` that was written for `at`.
///
/// # Errors
/// [`ErrorKind::Corrupt`], saying which check failed.
pub fn verify(block: &[u8], kind: BlockKind, at: MetaBlock) -> Result<()> {
    problem(block, kind, at).map_or(Ok(()), |problem| Err(corrupt(at, problem)))
}

/// The kind of an intact block, found by its checksum alone; `None` if it is intact as no kind.
pub fn identify(block: &[u8]) -> Option<BlockKind> {
    if block.len() != BLOCK_SIZE {
        return None;
    }
    let salt = stored_checksum(block) ^ crc32c_raw(&block[4..]);
    BlockKind::ALL.into_iter().find(|kind| kind.salt() == salt)
}

/// The failure of a block that breaks the rules of the format.
pub(crate) fn corrupt(at: MetaBlock, problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, format!("metadata block {at}"), problem)
}

/// What is wrong with the seal of `block`, if anything is.
pub(crate) fn problem(block: &[u8], kind: BlockKind, at: MetaBlock) -> Option<String> {
    match identify(block) {
        Some(found) if found == kind => {}
        Some(found) => return Some(format!("is a {found} where a {kind} is expected")),
        None => return Some(format!("has a wrong checksum for a {kind}")),
    }
    let number = stored_number(block);
    (number != at.get()).then(|| format!("says that it is block {number}"))
}

fn stored_checksum(block: &[u8]) -> u32 {
    u32::from_le_bytes(block[..4].try_into().expect("four bytes"))
}

fn stored_number(block: &[u8]) -> u64 {
    u64::from_le_bytes(block[8..16].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::{identify, seal, verify};
    use crate::{Block, BlockKind, MetaBlock};

    #[test]
    fn a_sealed_block_is_intact_as_one_kind_at_one_place() {
        let at = MetaBlock::new(51);
        for kind in BlockKind::ALL {
            let mut block = Block::zeroed();
            block[100] = 7;
            seal(&mut block[..], kind, at);
            assert_eq!(identify(&block[..]), Some(kind));
            verify(&block[..], kind, at).expect("intact");
            let moved = verify(&block[..], kind, MetaBlock::new(52)).expect_err("moved");
            assert!(moved.problem().contains("block 51"), "{moved}");
            for other in BlockKind::ALL.into_iter().filter(|other| *other != kind) {
                assert!(verify(&block[..], other, at).is_err());
            }
            block[4095] ^= 1;
            assert_eq!(identify(&block[..]), None);
            assert!(verify(&block[..], kind, at).is_err());
        }
    }

    #[test]
    fn a_short_block_is_no_block() {
        assert_eq!(identify(&[0; 16]), None);
        assert!(verify(&[], BlockKind::Node, MetaBlock::new(0)).is_err());
    }
}
