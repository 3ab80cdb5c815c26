//! The blocks that a transaction allocated, and their way to the device.

use std::collections::HashMap;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{Error, ErrorKind, Result};

use crate::{BLOCK_SIZE, Block, BlockKind, MetaBlock, checksum};

/// How much is written at once.
const RUN_BLOCKS: usize = (1 << 20) / BLOCK_SIZE;

/// The blocks of one transaction.
#[derive(Debug, Default)]
pub(crate) struct FreshBlocks {
    /// `None` for a block that was allocated and has no content yet.
    blocks: HashMap<MetaBlock, Option<Fresh>>,
}

/// A block with content.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) kind: BlockKind,
    pub(crate) block: Arc<Block>,
}

impl FreshBlocks {
    pub(crate) fn contains(&self, at: MetaBlock) -> bool {
        self.blocks.contains_key(&at)
    }

    /// The content of `at`, if the transaction gave it one.
    pub(crate) fn get(&self, at: MetaBlock) -> Option<&Fresh> {
        self.blocks.get(&at)?.as_ref()
    }

    /// Takes in a block that was just allocated.
    pub(crate) fn reserve(&mut self, at: MetaBlock) {
        self.blocks.insert(at, None);
    }

    /// Forgets a block; says whether it was one of this transaction.
    pub(crate) fn remove(&mut self, at: MetaBlock) -> bool {
        self.blocks.remove(&at).is_some()
    }

    /// Gives `at` its content.
    pub(crate) fn put(&mut self, at: MetaBlock, kind: BlockKind, block: Arc<Block>) -> Result<()> {
        *self.blocks.get_mut(&at).ok_or_else(|| foreign(at))? = Some(Fresh { kind, block });
        Ok(())
    }

    /// The content of `at`, to change. Copied first if somebody else has it, too.
    pub(crate) fn edit(&mut self, at: MetaBlock) -> Result<&mut Block> {
        let slot = self.blocks.get_mut(&at).and_then(Option::as_mut);
        Ok(Arc::make_mut(&mut slot.ok_or_else(|| foreign(at))?.block))
    }

    /// Writes number and checksum into every block.
    pub(crate) fn seal(&mut self) -> Result<()> {
        for (&at, slot) in &mut self.blocks {
            let Some(fresh) = slot else {
                let object = format!("metadata block {at}");
                return Err(Error::new(ErrorKind::Invalid, object, "was allocated, not written"));
            };
            checksum::seal(&mut Arc::make_mut(&mut fresh.block)[..], fresh.kind, at);
        }
        Ok(())
    }

    /// Writes every block to `device`, ascending, neighbours in one write.
    pub(crate) fn write(&self, device: &dyn BlockDevice) -> Result<()> {
        let mut blocks: Vec<(MetaBlock, &Block)> = self.blocks.iter().filter_map(content).collect();
        blocks.sort_unstable_by_key(|(at, _)| *at);
        let mut run = Vec::with_capacity(RUN_BLOCKS.min(blocks.len()) * BLOCK_SIZE);
        let neighbours =
            |a: &(MetaBlock, &Block), b: &(MetaBlock, &Block)| a.0.get() + 1 == b.0.get();
        for run_blocks in blocks.chunk_by(neighbours).flat_map(|run| run.chunks(RUN_BLOCKS)) {
            run.clear();
            run_blocks.iter().for_each(|(_, block)| run.extend_from_slice(&block[..]));
            let offset = run_blocks[0].0.offset().expect("the block lies on the device");
            device.write_at(&run, offset)?;
        }
        Ok(())
    }

    /// Hands out every block with its content, and forgets them all.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (MetaBlock, Fresh)> + '_ {
        self.blocks.drain().filter_map(|(at, fresh)| Some((at, fresh?)))
    }
}

/// The refusal to write a block that is not the transaction's own. Only a tree that is broken, and
/// refers to free blocks, leads there.
fn foreign(at: MetaBlock) -> Error {
    checksum::corrupt(at, "would be changed, but is no block of this transaction")
}

fn content<'b>((at, slot): (&MetaBlock, &'b Option<Fresh>)) -> Option<(MetaBlock, &'b Block)> {
    slot.as_ref().map(|fresh| (*at, &*fresh.block))
}
