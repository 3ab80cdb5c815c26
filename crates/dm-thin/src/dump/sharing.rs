//! Which leaves devices share, in runs: what always occurs together becomes one definition.
//!
//! Each device is a sequence of leaves. A leaf *continues* another if wherever the one occurs the
//! other follows, and nowhere else: neither at an end, nor beside any third. Chains of leaves that
//! continue one another are the runs, named by their first leaf; a run that occurs twice or more
//! is shared.

use block_types::Result;
use persistent_data::MetaBlock;

use super::source::{Source, SourceDevice};

/// No neighbour was met: no leaf lies in block 0.
const NONE: u32 = 0;
/// Several neighbours were met, or an end.
const MANY: u32 = u32::MAX;

/// What was met of every block.
pub(super) struct Sharing {
    /// The one leaf that always precedes; [`MANY`] also at the beginning of a device.
    before: Vec<u32>,
    /// The one leaf that always follows; [`MANY`] also at the end of a device.
    behind: Vec<u32>,
    /// Whether the leaf occurs more than once.
    repeated: Vec<bool>,
}

impl Sharing {
    /// Looks at the leaves of `devices`.
    pub(super) fn of(source: &Source, devices: &[SourceDevice]) -> Result<Self> {
        let blocks = usize::try_from(source.store.device_blocks()).unwrap_or(usize::MAX);
        let mut sharing = Self {
            before: vec![NONE; blocks],
            behind: vec![NONE; blocks],
            repeated: vec![false; blocks],
        };
        for device in devices {
            let mut last = None;
            source.leaves(device.root, &mut |leaf| {
                let leaf = sharing
                    .index(leaf)
                    .ok_or_else(|| source.corrupt(leaf, "lies past the end of the device"))?;
                sharing.meet(last, leaf);
                last = Some(leaf);
                Ok(())
            })?;
            if let Some(last) = last {
                sharing.behind[last as usize] = MANY;
            }
        }
        Ok(sharing)
    }

    /// The heads of the shared runs, ascending.
    pub(super) fn shared_heads(&self) -> impl Iterator<Item = MetaBlock> + '_ {
        let heads = (0..self.before.len() as u32).filter(|&leaf| {
            self.repeated[leaf as usize] && !self.continues(self.before[leaf as usize], leaf)
        });
        heads.map(|leaf| MetaBlock::new(u64::from(leaf)))
    }

    /// The leaves of the run that begins with `head`.
    pub(super) fn run(&self, head: MetaBlock) -> impl Iterator<Item = MetaBlock> + '_ {
        // Whatever the walk of the devices met has an index.
        let first = u32::try_from(head.get()).unwrap_or(NONE);
        std::iter::successors(Some(first), |&leaf| {
            let next = self.behind[leaf as usize];
            self.continues(leaf, next).then_some(next)
        })
        .map(|leaf| MetaBlock::new(u64::from(leaf)))
    }

    /// Whether `leaf`, which comes behind `before` in a device, belongs to the same run.
    pub(super) fn same_run(&self, before: MetaBlock, leaf: MetaBlock) -> bool {
        match (u32::try_from(before.get()), u32::try_from(leaf.get())) {
            (Ok(before), Ok(leaf)) => self.continues(before, leaf),
            _ => false,
        }
    }

    /// Whether `leaf` occurs more than once.
    pub(super) fn is_shared(&self, leaf: MetaBlock) -> bool {
        self.repeated.get(leaf.get() as usize).copied().unwrap_or(false)
    }

    fn continues(&self, before: u32, leaf: u32) -> bool {
        let known = |leaf| leaf != NONE && leaf != MANY;
        known(before)
            && known(leaf)
            && self.behind[before as usize] == leaf
            && self.before[leaf as usize] == before
    }

    fn meet(&mut self, last: Option<u32>, leaf: u32) {
        let before = &mut self.before[leaf as usize];
        self.repeated[leaf as usize] |= *before != NONE;
        *before = match last {
            Some(last) if *before == NONE || *before == last => last,
            _ => MANY,
        };
        if let Some(last) = last {
            let behind = &mut self.behind[last as usize];
            *behind = if *behind == NONE || *behind == leaf { leaf } else { MANY };
        }
    }

    /// The place of a leaf in the arrays; `None` for one that no device can have.
    fn index(&self, leaf: MetaBlock) -> Option<u32> {
        let index = u32::try_from(leaf.get()).ok()?;
        (index != NONE && (index as usize) < self.before.len()).then_some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::{MANY, NONE, Sharing};
    use persistent_data::MetaBlock;

    /// The runs of `devices`, and whether each is shared.
    fn runs(devices: &[&[u32]]) -> Vec<(Vec<u64>, bool)> {
        let mut sharing =
            Sharing { before: vec![NONE; 16], behind: vec![NONE; 16], repeated: vec![false; 16] };
        for device in devices {
            let mut last = None;
            for &leaf in *device {
                sharing.meet(last, leaf);
                last = Some(leaf);
            }
            if let Some(last) = last {
                sharing.behind[last as usize] = MANY;
            }
        }
        let met = (1..16).filter(|&leaf| sharing.before[leaf as usize] != NONE);
        let heads = met.filter(|&leaf| !sharing.continues(sharing.before[leaf as usize], leaf));
        heads
            .map(|head| {
                let head = MetaBlock::new(u64::from(head));
                (sharing.run(head).map(MetaBlock::get).collect(), sharing.is_shared(head))
            })
            .collect()
    }

    #[test]
    fn runs_break_where_any_device_does() {
        assert_eq!(runs(&[&[1, 2, 3]]), [(vec![1, 2, 3], false)]);
        assert_eq!(runs(&[&[1, 2], &[1, 2, 3]]), [(vec![1, 2], true), (vec![3], false)]);
        assert_eq!(runs(&[&[2, 3], &[1, 2, 3]]), [(vec![1], false), (vec![2, 3], true)]);
        assert_eq!(
            runs(&[&[4, 1, 6], &[4, 2, 6], &[4, 1, 6]]),
            [(vec![1], true), (vec![2], false), (vec![4], true), (vec![6], true)]
        );
        assert_eq!(runs(&[&[1, 2], &[2, 1]]), [(vec![1], true), (vec![2], true)]);
        assert_eq!(runs(&[&[7], &[7]]), [(vec![7], true)]);
        assert_eq!(runs(&[]), []);
    }
}
