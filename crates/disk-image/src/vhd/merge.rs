//! The steps of a merge: what of a range the image has itself, and where; and filling in what it
//! has not, beside writers.

use block_types::{ByteCount, ByteOffset, ByteRange, Result};

use super::image::{Sparse, VhdImage};
use super::mapping::Held;
use super::write::Fill;

/// A run of guest bytes that the image holds in one place of its file, or does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnRun {
    /// How far it goes.
    pub len: ByteCount,
    /// Where it lies in the file; `None` where the sectors are absent.
    pub at: Option<ByteOffset>,
}

impl VhdImage {
    /// What lies at the start of `range`, which is not empty and inside the disk, and how far that
    /// goes; `None` where a bitmap would have to be read first. Never blocks.
    pub fn own_run(&self, range: ByteRange) -> Option<OwnRun> {
        let run = self.run(range);
        match run.held {
            Held::Own(at) => Some(OwnRun { len: run.len, at: Some(at) }),
            Held::Absent => Some(OwnRun { len: run.len, at: None }),
            Held::Unknown(_) => None,
        }
    }

    /// Whether the block that holds `at` has a place in the file.
    pub fn has_place(&self, at: ByteOffset) -> bool {
        self.sparse.as_ref().is_none_or(|sparse| {
            sparse.mapping.place(sparse.mapping.block_size().locate(at).0).is_some()
        })
    }

    /// Writes `bytes` at `at` where sectors are absent, and leaves those that are present as they
    /// are: what a parent holds, once the image is to do without it. Beside other writers: whatever
    /// they have written, before or meanwhile, stays. How many bytes were absent.
    ///
    /// # Errors
    /// Those of a write.
    pub fn fill_absent(&self, bytes: &[u8], at: ByteOffset) -> Result<ByteCount> {
        let range = ByteRange::new(at, ByteCount::of(bytes));
        self.check_write(range)?;
        let Some(sparse) = &self.sparse else { return Ok(ByteCount::ZERO) };
        let mut filled = 0;
        for piece in range.pieces(sparse.mapping.block_size().bytes()) {
            let from = piece.start.since(at).as_usize();
            let part = &bytes[from..from + piece.len.as_usize()];
            filled += self.fill_piece(sparse, part, piece)?;
        }
        Ok(ByteCount::new(filled))
    }

    /// Fills what is absent of `piece`, which lies in one block.
    fn fill_piece(&self, sparse: &Sparse, bytes: &[u8], piece: ByteRange) -> Result<u64> {
        let (block, _) = sparse.mapping.block_size().locate(piece.start);
        // Under the block's lock no sector comes to be present but by this.
        let _alone = sparse.lock_block(block);
        if sparse.mapping.place(block).is_none() {
            self.write_new(sparse, block, piece, Fill::Bytes(bytes))?;
            return Ok(piece.len.get());
        }
        let mut absent = Vec::new();
        self.each_run(piece, |run, own| {
            absent.extend(own.is_none().then_some(run));
            Ok(())
        })?;
        for run in &absent {
            let from = run.start.since(piece.start).as_usize();
            self.write_absent(sparse, block, *run, &bytes[from..from + run.len.as_usize()])?;
        }
        Ok(absent.iter().map(|run| run.len.get()).sum())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use block_io::{BlockDevice, MemoryDevice};
    use block_types::{ByteCount, ByteOffset, ByteRange};

    use crate::vhd::{
        BlockSize, Content, CreateOptions, DiskId, Kind, OpenOptions, Parent, ParentLink,
        Timestamp, VhdImage, create, probe_node,
    };

    const SIZE: u64 = 256 << 10;

    fn made(number: u8, content: Content) -> Arc<MemoryDevice> {
        let file = Arc::new(MemoryDevice::new("disk.vhd", ByteCount::ZERO));
        let id = DiskId::new([number; 16]);
        let block_size = BlockSize::new(ByteCount::new(64 << 10)).expect("a block size");
        let options = CreateOptions::new(ByteCount::new(SIZE), id, Timestamp::new(0));
        create(&*file, &CreateOptions { content, block_size, ..options }).expect("made");
        file
    }

    fn open(file: &Arc<MemoryDevice>, parent: Option<Parent>) -> Arc<VhdImage> {
        let file = Arc::clone(file) as Arc<dyn BlockDevice>;
        Arc::new(VhdImage::open(file, parent, OpenOptions::default()).expect("opened"))
    }

    fn content(image: &VhdImage) -> Vec<u8> {
        let mut bytes = vec![0; SIZE as usize];
        image.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
        bytes
    }

    #[test]
    fn a_child_that_was_filled_stands_alone() {
        let base = made(1, Content::Dynamic);
        let link = ParentLink {
            id: Some(DiskId::new([1; 16])),
            modified: Timestamp::new(0),
            path: "b".into(),
        };
        let child = made(2, Content::Differencing(link));
        let parent = open(&base, None);
        parent.write_at(&[7; 100 << 10], ByteOffset::new(4096)).expect("written");
        let image = open(&child, Some(Parent::vhd(&parent)));
        image.write_at(&[9; 1024], ByteOffset::new(8192)).expect("written");
        let before = content(&image);
        let absent = image.fill_absent(&before[..128 << 10], ByteOffset::ZERO).expect("filled");
        assert_eq!(absent.get(), (128 << 10) - 1024, "what was there is left alone");
        assert_eq!(image.fill_absent(&[1; 512], ByteOffset::new(8192)).expect("ok").get(), 0);
        image.detach().expect("detached");
        assert_eq!(image.kind(), Kind::Dynamic);
        assert_eq!(content(&image), before, "and what is absent is zeros");
        image.write_at(&[5; 512], ByteOffset::new(200 << 10)).expect("written");
        image.close().expect("closed");
        assert_eq!(probe_node(&*child).expect("read").parent, None);
        let report = crate::vhd::check(&*child, None).expect("checked");
        assert_eq!(report.errors, Vec::<String>::new());
        let again = open(&child, None);
        let mut after = before.clone();
        after[200 << 10..(200 << 10) + 512].fill(5);
        assert_eq!(content(&again), after);
    }

    #[test]
    fn own_runs_say_where_sectors_lie() {
        let file = made(1, Content::Dynamic);
        let image = open(&file, None);
        image.write_at(&[3; 512], ByteOffset::new(64 << 10)).expect("written");
        let whole = ByteRange::new(ByteOffset::ZERO, image.size());
        let run = image.own_run(whole).expect("known");
        assert_eq!((run.len.get(), run.at), (64 << 10, None));
        let rest = ByteRange::new(ByteOffset::new(64 << 10), ByteCount::new(1024));
        let run = image.own_run(rest).expect("known");
        let mut bytes = [0; 512];
        file.read_at(&mut bytes, run.at.expect("there")).expect("read");
        assert_eq!(bytes, [3; 512]);
    }
}
