//! A device like a thin volume in small: blocks are absent until they are written, mapped ones lie
//! in one of two files, discarded ones are used again. It resolves, with leases, so a server that
//! kept a place after its lease would read or write another block's bytes.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};

use block_io::{
    BlockDevice, HostFile, Intent, Lease, LeaseSet, Limits, Place, Resolve, ZeroMode, check_range,
};
use block_types::{ByteCount, ByteOffset, ByteRange, Extent, ExtentState, Result};
use std::sync::Mutex;

pub const BLOCK: u64 = 16 << 10;

pub struct Patchwork {
    files: [HostFile; 2],
    /// 0 where a block is absent, else the number of its slot and one.
    map: Vec<AtomicU64>,
    leases: LeaseSet,
    /// Slots that are free; held while mappings change.
    free: Mutex<Vec<u64>>,
    pub drains: AtomicU64,
    pub flushes: AtomicU64,
}

impl Patchwork {
    /// A device of `blocks` blocks over two files with room for as many in each.
    pub fn new(files: [HostFile; 2], blocks: u64) -> Self {
        for file in &files {
            assert!(file.size().get() >= blocks * BLOCK);
        }
        Self {
            files,
            map: (0..blocks).map(|_| AtomicU64::new(0)).collect(),
            leases: LeaseSet::new(),
            // Few more slots than blocks, so that freed ones are used again at once.
            free: Mutex::new((0..blocks + 2).collect()),
            drains: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
        }
    }

    fn place(&self, slot: u64) -> (&HostFile, ByteOffset) {
        (&self.files[(slot % 2) as usize], ByteOffset::new(slot / 2 * BLOCK))
    }

    fn slot(&self, at: ByteOffset) -> Option<u64> {
        self.map[(at.get() / BLOCK) as usize].load(Ordering::SeqCst).checked_sub(1)
    }

    /// Where `piece`, which lies in one block, is.
    fn find(&self, piece: ByteRange) -> Option<(&HostFile, ByteOffset)> {
        let (file, start) = self.place(self.slot(piece.start)?);
        Some((file, start.plus(ByteCount::new(piece.start.get() % BLOCK))))
    }

    fn write_piece(&self, bytes: &[u8], piece: ByteRange) -> Result<()> {
        let mut free = self.free.lock().unwrap();
        if let Some((file, at)) = self.find(piece) {
            return file.write_at(bytes, at);
        }
        let slot = free.pop().expect("there are more slots than blocks");
        let mut block = vec![0; BLOCK as usize];
        let start = (piece.start.get() % BLOCK) as usize;
        block[start..start + bytes.len()].copy_from_slice(bytes);
        let (file, at) = self.place(slot);
        file.write_at(&block, at)?;
        self.map[(piece.start.get() / BLOCK) as usize].store(slot + 1, Ordering::SeqCst);
        Ok(())
    }
}

impl BlockDevice for Patchwork {
    fn name(&self) -> &'static str {
        "patchwork"
    }

    fn size(&self) -> ByteCount {
        ByteCount::new(self.map.len() as u64 * BLOCK)
    }

    fn limits(&self) -> Limits {
        Limits {
            minimum: ByteCount::new(512),
            preferred: ByteCount::new(BLOCK),
            read_only: false,
            discards: true,
            zeroes_fast: true,
        }
    }

    fn read_at(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        let range = ByteRange::new(at, ByteCount::of(buffer));
        check_range(self, range)?;
        let _lease = self.leases.acquire();
        let mut rest = buffer;
        for piece in range.pieces(ByteCount::new(BLOCK)) {
            let (part, behind) = rest.split_at_mut(piece.len.as_usize());
            match self.find(piece) {
                Some((file, at)) => file.read_at(part, at)?,
                None => part.fill(0),
            }
            rest = behind;
        }
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: ByteOffset) -> Result<()> {
        let range = ByteRange::new(at, ByteCount::of(bytes));
        check_range(self, range)?;
        let mut rest = bytes;
        for piece in range.pieces(ByteCount::new(BLOCK)) {
            let (part, behind) = rest.split_at(piece.len.as_usize());
            self.write_piece(part, piece)?;
            rest = behind;
        }
        Ok(())
    }

    fn zero(&self, range: ByteRange, _mode: ZeroMode) -> Result<()> {
        check_range(self, range)?;
        for piece in range.pieces(ByteCount::new(BLOCK)) {
            if self.slot(piece.start).is_some() {
                self.write_piece(&vec![0; piece.len.as_usize()], piece)?;
            }
        }
        Ok(())
    }

    fn discard(&self, range: ByteRange) -> Result<()> {
        check_range(self, range)?;
        for piece in range.pieces(ByteCount::new(BLOCK)) {
            if piece.len.get() < BLOCK {
                continue;
            }
            let mut free = self.free.lock().unwrap();
            let index = (piece.start.get() / BLOCK) as usize;
            let Some(slot) = self.map[index].swap(0, Ordering::SeqCst).checked_sub(1) else {
                continue;
            };
            self.leases.drain();
            self.drains.fetch_add(1, Ordering::Relaxed);
            // Whoever still reads here now finds what nobody wrote.
            let (file, at) = self.place(slot);
            file.write_at(&[0xDD; BLOCK as usize], at)?;
            free.push(slot);
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.files.iter().try_for_each(HostFile::flush)
    }

    fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        check_range(self, range)?;
        for piece in range.pieces(ByteCount::new(BLOCK)) {
            let mapped = self.slot(piece.start).is_some();
            let state = if mapped { ExtentState::Data } else { ExtentState::Hole };
            if each(Extent { range: piece, state }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn resolver(&self) -> Option<&dyn Resolve> {
        Some(self)
    }
}

impl Resolve for Patchwork {
    fn resolve<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<Lease<'d>> {
        if range.end().get() > self.size().get() {
            return None;
        }
        let lease = self.leases.acquire();
        let before = places.len();
        for piece in range.pieces(ByteCount::new(BLOCK)) {
            let place = match self.find(piece) {
                Some((file, at)) => Place { file: Some(file), at, len: piece.len },
                None if intent == Intent::Read => {
                    Place { file: None, at: ByteOffset::ZERO, len: piece.len }
                }
                None => {
                    places.truncate(before);
                    return None;
                }
            };
            places.push(place);
        }
        Some(lease)
    }
}
