//! Metadata packed for transport: the format of `thin_metadata_pack` 1.x, both ways.
//!
//! ```text
//!   magic, version 3, block size 4096, blocks of the device     four 64-bit words
//!   chunk: bytes, then as many bytes of a zlib stream           any number of them
//!     block: its number, then instructions that make its 4096 bytes
//! ```
//!
//! Only sound blocks of metadata are packed, by their checksums; everything else reads as zeros
//! when it is unpacked. Nodes are mostly arithmetic progressions, which instructions state in a few
//! bytes before zlib sees them. Integers are little endian.

mod decode;
mod encode;
mod reader;
mod writer;

use std::io::{Read, Write};

use block_io::BlockDevice;
use block_types::{Error, ErrorKind, Result};

/// What a pack begins with.
const MAGIC: u64 = 0xa537_a0aa_6309_ef77;
/// The only version in use.
const VERSION: u64 = 3;

/// What an instruction does; its number is the high half of its first byte. The low half is `n`.
///
/// A *width* is a number of bytes, 1, 2, 4 or 8, and an operand of so many follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    /// Take the operand of width n for the base, and emit it.
    Set = 0,
    /// Add n to the base and emit it.
    Add = 1,
    /// Add the operand of width n to the base and emit it.
    AddWide = 2,
    /// Subtract n from the base and emit it.
    Subtract = 3,
    /// Subtract the operand of width n from the base and emit it.
    SubtractWide = 4,
    /// Emit the base n times.
    Repeat = 5,
    /// Emit the base (n << 8 | next byte) times.
    RepeatLong = 6,
    /// Do the next instruction n times.
    Times = 7,
    /// Do the next instruction (n << 8 | next byte) times.
    TimesLong = 8,
    /// Emit the n bytes that follow.
    Bytes = 9,
    /// Emit as many of the bytes that follow as the operand of width n says.
    BytesLong = 10,
    /// Emit (n << 8 | next byte) words: instructions for their upper 40 bits follow, then others
    /// for the lower 24.
    Split = 11,
}

impl Op {
    const ALL: [Self; 12] = [
        Self::Set,
        Self::Add,
        Self::AddWide,
        Self::Subtract,
        Self::SubtractWide,
        Self::Repeat,
        Self::RepeatLong,
        Self::Times,
        Self::TimesLong,
        Self::Bytes,
        Self::BytesLong,
        Self::Split,
    ];
}

/// Bits of a packed mapping that [`Op::Split`] keeps apart: those of its time.
const LOW_BITS: u32 = 24;

/// Packs the metadata on `metadata` into `out`. The same metadata gives the same bytes.
///
/// # Errors
/// `Invalid` if the device is empty; its failures, and those of `out`.
pub fn pack(metadata: &dyn BlockDevice, out: impl Write) -> Result<()> {
    writer::pack(metadata, out)
}

/// Writes the metadata that was packed into `input` to `metadata`, which loses what it held and
/// grows if it can and has to. Its superblock is written last.
///
/// # Errors
/// `Invalid` for a pack that is none or broken, `OutOfSpace` if the device is too small; the
/// failures of both.
pub fn unpack(input: impl Read, metadata: &dyn BlockDevice) -> Result<()> {
    reader::unpack(input, metadata)
}

/// The failure of a pack that breaks the rules of the format.
fn broken(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, "packed metadata", problem)
}

/// How many threads pack or unpack.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(8))
}
