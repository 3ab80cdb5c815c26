//! The leaves of a device, or of what devices share: mappings of its own, and leaves that are
//! already there.

use block_types::{Error, ErrorKind, Result};
use persistent_data::btree::Node;
use persistent_data::{BlockKind, RefCounts};

use super::output::Output;
use super::tree::{Child, Packer};
use crate::{DataBlock, GuestBlock, Mapping, Time};

/// Where mappings go: the new metadata, and the counts of data blocks.
pub(super) struct Sink {
    pub(super) output: Output,
    /// How many leaves refer to each data block.
    pub(super) data: RefCounts,
}

/// A run of blocks that lie side by side on both devices, and are of one time.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// The first guest block.
    pub from: GuestBlock,
    /// The data block that it lies in.
    pub to: DataBlock,
    /// How many blocks.
    pub len: u64,
    /// When they were mapped.
    pub time: Time,
}

/// Leaves in the making.
pub(super) struct Leaves {
    pending: Packer<u64>,
    done: Vec<Child>,
    /// The last key; in what is shared as the last leaf holds it, which only its first key tells.
    last: Option<u64>,
    /// Mappings of its own and in shared leaves.
    pub(super) mapped: u64,
}

impl Leaves {
    pub(super) fn new() -> Self {
        Self { pending: Packer::new(), done: Vec::new(), last: None, mapped: 0 }
    }

    /// Adds the mappings of `run`.
    pub(super) fn push(&mut self, sink: &mut Sink, run: Run) -> Result<()> {
        check_run(&run, sink.data.len())?;
        self.check_order(run.from.get())?;
        self.unseat_small(sink)?;
        for index in 0..run.len {
            let block = DataBlock::new(run.to.get() + index);
            self.push_one(sink, run.from.get() + index, Mapping { block, time: run.time }.pack())?;
        }
        self.last = Some(run.from.get() + (run.len - 1));
        Ok(())
    }

    /// Adds leaves that other trees have too. One with few entries is taken in entry by entry where
    /// it would not stand alone.
    pub(super) fn share(
        &mut self,
        sink: &mut Sink,
        leaves: &[Child],
        last: Option<u64>,
    ) -> Result<()> {
        // Nothing is mapped in them: one empty leaf, which only stands alone.
        if last.is_none() && self.last.is_some() {
            return Ok(());
        }
        if let Some(first) = leaves.first() {
            self.check_order(first.key)?;
        }
        self.unseat_small(sink)?;
        for leaf in leaves {
            let alone = self.done.is_empty() && self.pending.len() == 0;
            let few = usize::from(leaf.entries) < Packer::<u64>::LEAST && !alone;
            let few_wait = (1..Packer::<u64>::LEAST).contains(&self.pending.len());
            if few || few_wait {
                self.absorb(sink, leaf)?;
            } else {
                self.pending.settle(&mut sink.output, &mut self.done)?;
                self.done.push(*leaf);
                self.mapped += u64::from(leaf.entries);
            }
        }
        self.last = last.or(self.last);
        Ok(())
    }

    /// Writes what waits, and returns all leaves: at least one.
    pub(super) fn finish(mut self, sink: &mut Sink) -> Result<Finished> {
        if (1..Packer::<u64>::LEAST).contains(&self.pending.len())
            && let Some(before) = self.done.pop()
        {
            let (keys, values) = read_leaf(&sink.output, &before)?;
            count(&mut sink.data, &values)?;
            self.pending.prepend(&keys, &values);
        }
        self.pending.settle(&mut sink.output, &mut self.done)?;
        if self.done.is_empty() {
            Packer::<u64>::settle_empty(&mut sink.output, &mut self.done)?;
        }
        Ok(Finished { leaves: self.done, last: self.last, mapped: self.mapped })
    }

    fn push_one(&mut self, sink: &mut Sink, key: u64, value: u64) -> Result<()> {
        let block = Mapping::unpack(value).block;
        if sink.data.inc(block.get()).is_none() {
            return Err(past_end(block, sink.data.len()));
        }
        self.mapped += 1;
        self.pending.push(&mut sink.output, &mut self.done, key, value)
    }

    /// Takes in the entries of a shared leaf one by one: this tree gets them in leaves of its own.
    fn absorb(&mut self, sink: &mut Sink, leaf: &Child) -> Result<()> {
        let (keys, values) = read_leaf(&sink.output, leaf)?;
        for (key, value) in keys.into_iter().zip(values) {
            self.push_one(sink, key, value)?;
        }
        Ok(())
    }

    /// A shared leaf with few entries may stand as long as it is all there is.
    fn unseat_small(&mut self, sink: &mut Sink) -> Result<()> {
        if let [only] = self.done[..]
            && usize::from(only.entries) < Packer::<u64>::LEAST
        {
            self.done.clear();
            self.mapped -= u64::from(only.entries);
            self.absorb(sink, &only)?;
        }
        Ok(())
    }

    fn check_order(&self, key: u64) -> Result<()> {
        match self.last {
            Some(last) if key <= last => {
                let problem = format!("comes after block {last}, but mappings have to ascend");
                Err(Error::new(ErrorKind::Invalid, format!("guest block {key}"), problem))
            }
            _ => Ok(()),
        }
    }
}

/// Leaves that are complete: of a device, or for devices to share.
pub(super) struct Finished {
    pub(super) leaves: Vec<Child>,
    /// The last guest block that is mapped; `None` if none is.
    pub(super) last: Option<u64>,
    pub(super) mapped: u64,
}

/// Takes back what was counted for those of `leaves` that in the end no tree has.
pub(super) fn release_unused(sink: &mut Sink, leaves: &[Child]) -> Result<()> {
    for leaf in leaves {
        if sink.output.counts.get(leaf.at.get()) == 0 {
            for value in read_leaf(&sink.output, leaf)?.1 {
                sink.data.dec(Mapping::unpack(value).block.get());
            }
        }
    }
    Ok(())
}

fn count(data: &mut RefCounts, values: &[u64]) -> Result<()> {
    for &value in values {
        let block = Mapping::unpack(value).block;
        data.inc(block.get()).ok_or_else(|| past_end(block, data.len()))?;
    }
    Ok(())
}

fn read_leaf(output: &Output, leaf: &Child) -> Result<(Vec<u64>, Vec<u64>)> {
    let node = Node::parse(output.read(leaf.at, BlockKind::Node)?, leaf.at)?;
    let keys = node.keys().iter().map(|key| key.get()).collect();
    Ok((keys, (0..node.len()).map(|index| node.value(index)).collect()))
}

fn check_run(run: &Run, data_blocks: u64) -> Result<()> {
    let invalid = |object: String, problem: &str| Error::new(ErrorKind::Invalid, object, problem);
    let object = || format!("guest block {}", run.from.get());
    if run.len == 0 || run.from.get().checked_add(run.len).is_none() {
        return Err(invalid(object(), "begins a run of an impossible length"));
    }
    if run.time > Time::MAX {
        return Err(invalid(object(), "has a time that does not fit 24 bits"));
    }
    match run.to.get().checked_add(run.len) {
        Some(end) if end <= data_blocks => Ok(()),
        _ => Err(past_end(DataBlock::new(run.to.get().saturating_add(run.len - 1)), data_blocks)),
    }
}

fn past_end(block: DataBlock, data_blocks: u64) -> Error {
    let object = format!("data block {}", block.get());
    let problem = format!("lies past the end of a data device with {data_blocks} blocks");
    Error::new(ErrorKind::Invalid, object, problem)
}
