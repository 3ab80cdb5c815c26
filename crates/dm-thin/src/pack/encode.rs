//! The instructions that make a block.

use persistent_data::btree::{HEADER_SIZE, KEY_SIZE, LEAF, NodeHeader};
use persistent_data::{BLOCK_SIZE, BlockKind};
use zerocopy::FromBytes;

use super::{LOW_BITS, Op};

/// Adds the instructions that make `block` to `out`.
pub(super) fn encode(block: &[u8], kind: BlockKind, out: &mut Vec<u8>) {
    match kind {
        BlockKind::Node => encode_node(block, out),
        BlockKind::Superblock | BlockKind::Index | BlockKind::Bitmap => bytes(block, out),
    }
}

/// Keys ascend, and so do the values of internal nodes and of mappings as a rule. The room behind
/// the entries is packed as well, since the checksum covers whatever is left there.
fn encode_node(block: &[u8], out: &mut Vec<u8>) {
    let head = NodeHeader::ref_from_prefix(block).expect("a block is longer than a node's head").0;
    let max = head.max_entries.get() as usize;
    let value_size = head.value_size.get() as usize;
    // A node may have any head as long as its checksum is right.
    let room = max.checked_mul(KEY_SIZE.saturating_add(value_size));
    if room.is_none_or(|room| room > BLOCK_SIZE - HEADER_SIZE) {
        bytes(block, out);
        return;
    }
    let (head_bytes, rest) = block.split_at(HEADER_SIZE);
    let (keys, rest) = rest.split_at(max * KEY_SIZE);
    bytes(head_bytes, out);
    numbers(words(keys), out);
    if value_size != KEY_SIZE {
        bytes(rest, out);
        return;
    }
    let (values, rest) = rest.split_at(max * KEY_SIZE);
    if head.flags.get() == LEAF {
        let count = max as u16;
        out.extend([tag(Op::Split, (count >> 8) as u8), count as u8]);
        numbers(words(values).map(|value| value >> LOW_BITS), out);
        numbers(words(values).map(|value| value & ((1 << LOW_BITS) - 1)), out);
    } else {
        numbers(words(values), out);
    }
    if !rest.is_empty() {
        bytes(rest, out);
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + Clone + '_ {
    bytes
        .chunks_exact(KEY_SIZE)
        .map(|word| u64::from_le_bytes(word.try_into().expect("a word has eight bytes")))
}

/// Adds instructions that emit `numbers`: one for each stretch with equal steps.
fn numbers(mut numbers: impl Iterator<Item = u64>, out: &mut Vec<u8>) {
    let Some(mut base) = numbers.next() else { return };
    wide(Op::Set, base, out);
    let mut next = numbers.next();
    while let Some(first) = next {
        // Steps wrap around, so that one from any number to any other is a step up or down.
        let step = first.wrapping_sub(base);
        let mut count: u16 = 0;
        while next.is_some_and(|number| number == base.wrapping_add(step)) {
            base = base.wrapping_add(step);
            count += 1;
            next = numbers.next();
        }
        if step == 0 {
            long(Op::Repeat, Op::RepeatLong, count, out);
            continue;
        }
        if count > 1 {
            long(Op::Times, Op::TimesLong, count, out);
        }
        if step <= u64::MAX / 2 {
            step_by(Op::Add, Op::AddWide, step, out);
        } else {
            step_by(Op::Subtract, Op::SubtractWide, step.wrapping_neg(), out);
        }
    }
}

fn bytes(bytes: &[u8], out: &mut Vec<u8>) {
    match u8::try_from(bytes.len()) {
        Ok(len @ 0..16) => out.push(tag(Op::Bytes, len)),
        _ => wide(Op::BytesLong, bytes.len() as u64, out),
    }
    out.extend_from_slice(bytes);
}

fn step_by(short: Op, wider: Op, step: u64, out: &mut Vec<u8>) {
    match step {
        0..16 => out.push(tag(short, step as u8)),
        _ => wide(wider, step, out),
    }
}

/// An instruction with a count below 4096: a node has fewer entries.
fn long(short: Op, longer: Op, count: u16, out: &mut Vec<u8>) {
    match count {
        0..16 => out.push(tag(short, count as u8)),
        _ => out.extend([tag(longer, (count >> 8) as u8), count as u8]),
    }
}

/// An instruction with an operand of as few bytes as hold it.
fn wide(op: Op, operand: u64, out: &mut Vec<u8>) {
    let width = [1, 2, 4].into_iter().find(|width| operand >> (8 * width) == 0).unwrap_or(8);
    out.push(tag(op, width));
    out.extend_from_slice(&operand.to_le_bytes()[..usize::from(width)]);
}

fn tag(op: Op, low: u8) -> u8 {
    debug_assert!(low < 16, "half a byte");
    (op as u8) << 4 | low
}
