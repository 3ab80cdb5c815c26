//! Two trees side by side: whatever both hang on the same block is met once.

use std::cmp::Ordering;

use block_types::Result;
use persistent_data::MetaBlock;
use persistent_data::btree::KeyRange;

use crate::dump::{Feeder, Source};

/// Whose leaf comes next, and the least key that any leaf from there on may hold.
#[derive(Clone, Copy, Debug)]
pub(super) enum Whose {
    Left(u64),
    Right(u64),
    Both(u64),
}

/// A part of a tree that is still to be walked.
#[derive(Clone, Copy)]
struct Part {
    at: MetaBlock,
    /// Levels between it and the leaves.
    level: usize,
    place: KeyRange,
}

/// A tree that is being walked: its parts in order, the next one last.
struct Walk<'s> {
    source: &'s Source,
    rest: Vec<Part>,
}

impl<'s> Walk<'s> {
    fn new(source: &'s Source, root: MetaBlock) -> Result<Self> {
        let part = Part { at: root, level: source.depth(root)?, place: KeyRange::whole() };
        Ok(Self { source, rest: vec![part] })
    }

    fn next(&self) -> Option<Part> {
        self.rest.last().copied()
    }

    /// Puts the children of the next part in its place.
    fn descend(&mut self) -> Result<()> {
        let Some(part) = self.rest.pop() else { return Ok(()) };
        let node = self.source.internal(part.at, part.place)?;
        let level = part.level - 1;
        let child =
            |index| Part { at: node.child(index), level, place: part.place.child(&node, index) };
        self.rest.extend((0..node.len()).rev().map(child));
        Ok(())
    }

    /// Feeds the next part if it is a leaf; else goes on with its children.
    fn step(&mut self, feeder: &mut Feeder<'_, Whose>, whose: fn(u64) -> Whose) -> Result<()> {
        match self.next() {
            Some(Part { at, level: 0, place }) => {
                self.rest.pop();
                feeder.event(whose(place.low))?;
                feeder.leaf(at)
            }
            _ => self.descend(),
        }
    }
}

/// Feeds the leaves of both trees in the order of the keys of their places. Those that hang on one
/// block on both sides are left out unless `same` asks for them.
pub(super) fn feed(
    feeder: &mut Feeder<'_, Whose>,
    source: &Source,
    left: MetaBlock,
    right: MetaBlock,
    same: bool,
) -> Result<()> {
    let mut left = Walk::new(source, left)?;
    let mut right = Walk::new(source, right)?;
    loop {
        let (one, other) = match (left.next(), right.next()) {
            (None, None) => return Ok(()),
            (Some(_), None) => {
                left.step(feeder, Whose::Left)?;
                continue;
            }
            (None, Some(_)) => {
                right.step(feeder, Whose::Right)?;
                continue;
            }
            (Some(one), Some(other)) => (one, other),
        };
        if one.at == other.at && one.level == other.level {
            right.rest.pop();
            if same {
                let below = left.rest.len() - 1;
                while left.rest.len() > below {
                    left.step(feeder, Whose::Both)?;
                }
            } else {
                left.rest.pop();
            }
            continue;
        }
        let by_place = one.place.low.cmp(&other.place.low);
        match by_place.then(other.level.cmp(&one.level)) {
            Ordering::Less => left.step(feeder, Whose::Left)?,
            Ordering::Greater => right.step(feeder, Whose::Right)?,
            // Two different nodes for the same keys: what is below them may be shared.
            Ordering::Equal if one.level > 0 => {
                left.descend()?;
                right.descend()?;
            }
            Ordering::Equal => {
                left.step(feeder, Whose::Left)?;
                right.step(feeder, Whose::Right)?;
            }
        }
    }
}
