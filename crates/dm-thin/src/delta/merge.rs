//! Mappings of both sides, held against each other, and what comes out as ranges.

use block_types::{Error, ErrorKind, Result};

use super::walk::Whose;
use super::{Kind, Range};
use crate::dump::Leaf;
use crate::{DataBlock, GuestBlock, Mapping};

/// Mappings of one side that the other has not caught up with.
#[derive(Default)]
struct Waiting {
    entries: Vec<(u64, u64)>,
    /// How many of them are done with.
    done: usize,
    /// The last key that was taken.
    last: Option<u64>,
}

impl Waiting {
    fn next(&self, limit: Option<u64>) -> Option<(u64, u64)> {
        let entry = self.entries.get(self.done).copied()?;
        limit.is_none_or(|limit| entry.0 < limit).then_some(entry)
    }

    fn take(&mut self, leaf: Leaf<'_>) -> Result<()> {
        self.entries.drain(..self.done);
        self.done = 0;
        self.entries.extend(leaf.entries());
        self.note(leaf)
    }

    /// Checks that leaves come in order, since a range is only known by what follows it.
    fn note(&mut self, leaf: Leaf<'_>) -> Result<()> {
        let Some((first, last)) = leaf.ends() else { return Ok(()) };
        if self.last.is_some_and(|before| first <= before) {
            let problem = "is mapped by a leaf in the wrong place of its tree";
            let object = format!("guest block {first}");
            return Err(Error::new(ErrorKind::Corrupt, object, problem));
        }
        self.last = Some(last);
        Ok(())
    }
}

/// Turns leaves of both sides into ranges.
pub(super) struct Merge<'e> {
    left: Waiting,
    right: Waiting,
    next: Whose,
    ranges: Ranges<'e>,
}

impl<'e> Merge<'e> {
    pub(super) fn new(each: &'e mut dyn FnMut(Range) -> Result<()>, same: bool) -> Self {
        let ranges = Ranges { each, same, pending: None };
        Self { left: Waiting::default(), right: Waiting::default(), next: Whose::Both(0), ranges }
    }

    /// The next leaf is that side's; no leaf from here on has a lesser key.
    pub(super) fn expect(&mut self, whose: Whose) -> Result<()> {
        self.next = whose;
        let (Whose::Left(low) | Whose::Right(low) | Whose::Both(low)) = whose;
        self.settle(Some(low))
    }

    pub(super) fn leaf(&mut self, leaf: Leaf<'_>) -> Result<()> {
        match self.next {
            Whose::Left(_) => self.left.take(leaf),
            Whose::Right(_) => self.right.take(leaf),
            Whose::Both(_) => {
                self.left.note(leaf)?;
                self.right.note(leaf)?;
                for (key, value) in leaf.entries() {
                    self.ranges.add(key, Some(value), Some(value))?;
                }
                Ok(())
            }
        }
    }

    pub(super) fn finish(&mut self) -> Result<()> {
        self.settle(None)?;
        self.ranges.flush()
    }

    /// Compares what both sides have below `limit`.
    fn settle(&mut self, limit: Option<u64>) -> Result<()> {
        loop {
            let (left, right) = (self.left.next(limit), self.right.next(limit));
            let Some(key) = left.iter().chain(&right).map(|entry| entry.0).min() else {
                return Ok(());
            };
            let left = left.filter(|entry| entry.0 == key);
            let right = right.filter(|entry| entry.0 == key);
            self.left.done += usize::from(left.is_some());
            self.right.done += usize::from(right.is_some());
            self.ranges.add(key, left.map(|entry| entry.1), right.map(|entry| entry.1))?;
        }
    }
}

/// Blocks that were compared, on their way to becoming ranges.
struct Ranges<'e> {
    each: &'e mut dyn FnMut(Range) -> Result<()>,
    same: bool,
    pending: Option<Range>,
}

impl Ranges<'_> {
    /// Adds a block with its packed mappings.
    #[inline]
    fn add(&mut self, key: u64, left: Option<u64>, right: Option<u64>) -> Result<()> {
        let block = |value: Option<u64>| value.map(|value| Mapping::unpack(value).block);
        let (left, right) = (block(left), block(right));
        let kind = match (left, right) {
            (Some(left), Some(right)) if left == right => Kind::Same,
            (Some(_), Some(_)) => Kind::Different,
            (Some(_), None) => Kind::LeftOnly,
            _ => Kind::RightOnly,
        };
        if let Some(pending) = &mut self.pending {
            let len = pending.len;
            let follows = |block: Option<DataBlock>, first: Option<DataBlock>| {
                block.map(DataBlock::get) == first.map(|first| first.get() + len)
            };
            if pending.kind == kind
                && key == pending.from.get().wrapping_add(len)
                && follows(left, pending.left)
                && follows(right, pending.right)
            {
                pending.len += 1;
                return Ok(());
            }
            self.flush()?;
        }
        self.pending = Some(Range { kind, from: GuestBlock::new(key), len: 1, left, right });
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        match self.pending.take() {
            Some(range) if self.same || range.kind != Kind::Same => (self.each)(range),
            _ => Ok(()),
        }
    }
}
