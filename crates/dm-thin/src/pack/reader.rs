//! Unpacking: chunks are read in order, and several threads unpack them and write their blocks.

use std::io::Read;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use block_io::{AlignedBuf, BlockDevice, ZeroMode, check_writable};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use flate2::read::ZlibDecoder;
use parking_lot::Mutex;
use persistent_data::{BLOCK_SIZE, MetaBlock, Transaction, identify};

use super::decode::Machine;
use super::{MAGIC, VERSION, broken, threads};

/// The largest chunk that is accepted, packed or not: others write them of 1024 blocks.
const LARGEST: u64 = 64 << 20;

/// What threads share that unpack one pack.
struct Target<'d> {
    metadata: &'d dyn BlockDevice,
    blocks: u64,
    /// Blocks that were unpacked; the superblock is kept for the end.
    state: Mutex<State>,
}

struct State {
    seen: Vec<bool>,
    superblock: Option<Box<[u8; BLOCK_SIZE]>>,
}

pub(super) fn unpack(mut input: impl Read, metadata: &dyn BlockDevice) -> Result<()> {
    check_writable(metadata)?;
    let blocks = read_head(&mut input)?;
    make_room(metadata, blocks)?;
    let state = State { seen: vec![false; blocks as usize], superblock: None };
    let target = Target { metadata, blocks, state: Mutex::new(state) };
    thread::scope(|scope| {
        let mut senders = Vec::new();
        let mut workers = Vec::new();
        for _ in 0..threads() {
            let (sender, chunks) = sync_channel(1);
            senders.push(sender);
            let target = &target;
            workers.push(scope.spawn(move || target.unpack_all(&chunks)));
        }
        let fed = (|| {
            for sender in senders.iter().cycle() {
                let Some(chunk) = read_chunk(&mut input)? else { break };
                // A thread that takes no more has failed, and says so below.
                if sender.send(chunk).is_err() {
                    break;
                }
            }
            Ok(())
        })();
        drop(senders);
        let done = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        done.fold(fed, Result::and)
    })?;
    target.finish()
}

fn read_head(input: &mut impl Read) -> Result<u64> {
    let mut word = || {
        let mut bytes = [0; 8];
        match input.read_exact(&mut bytes) {
            Ok(()) => Ok(u64::from_le_bytes(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Err(broken("ends inside its head"))
            }
            Err(error) => Err(failed(error)),
        }
    };
    if word()? != MAGIC {
        return Err(broken("is none: it begins with another magic number"));
    }
    match word()? {
        VERSION => {}
        version => {
            let problem = format!("has version {version}, only {VERSION} is known");
            return Err(Error::new(ErrorKind::Unsupported, "packed metadata", problem));
        }
    }
    match word()? {
        size if size == BLOCK_SIZE as u64 => {}
        size => return Err(broken(format!("has blocks of {size} bytes, not {BLOCK_SIZE}"))),
    }
    match word()? {
        blocks @ 1..=Transaction::MAX_BLOCKS => Ok(blocks),
        blocks => Err(broken(format!("is of {blocks} blocks, which no metadata has"))),
    }
}

/// Has the device read as zeros, and makes it large enough. Its superblock is gone first, durably.
fn make_room(metadata: &dyn BlockDevice, blocks: u64) -> Result<()> {
    let size = ByteCount::new(blocks * BLOCK_SIZE as u64);
    if metadata.size() < size {
        metadata.resize(size).map_err(|error| {
            if error.kind() != ErrorKind::Unsupported {
                return error;
            }
            let problem = format!("is smaller than the {} bytes that were packed", size.get());
            Error::new(ErrorKind::OutOfSpace, metadata.name(), problem).because(error)
        })?;
    }
    metadata.write_at(&AlignedBuf::zeroed(BLOCK_SIZE), ByteOffset::ZERO)?;
    metadata.flush()?;
    let mode = ZeroMode { may_unmap: true, only_if_fast: false };
    metadata.zero(ByteRange::new(ByteOffset::ZERO, metadata.size()), mode)
}

/// The next chunk, still compressed; `None` at the end.
fn read_chunk(input: &mut impl Read) -> Result<Option<Vec<u8>>> {
    let mut head = [0; 8];
    let mut got = 0;
    while got < head.len() {
        match input.read(&mut head[got..]) {
            Ok(0) if got == 0 => return Ok(None),
            Ok(0) => return Err(broken("ends inside the head of a chunk")),
            Ok(count) => got += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let len = u64::from_le_bytes(head);
    if len > LARGEST {
        return Err(broken(format!("has a chunk of {len} bytes, more than {LARGEST}")));
    }
    let mut chunk = Vec::new();
    // Memory grows with what is there, not with what is claimed.
    input.take(len).read_to_end(&mut chunk).map_err(failed)?;
    if (chunk.len() as u64) < len {
        return Err(broken("ends inside a chunk"));
    }
    Ok(Some(chunk))
}

impl Target<'_> {
    fn unpack_all(&self, chunks: &Receiver<Vec<u8>>) -> Result<()> {
        chunks.iter().try_for_each(|chunk| self.unpack_chunk(&chunk))
    }

    fn unpack_chunk(&self, chunk: &[u8]) -> Result<()> {
        let mut instructions = Vec::new();
        ZlibDecoder::new(chunk)
            .take(LARGEST + 1)
            .read_to_end(&mut instructions)
            .map_err(|error| broken("does not decompress").because(error))?;
        if instructions.len() as u64 > LARGEST {
            return Err(broken(format!("has a chunk that grows over {LARGEST} bytes")));
        }
        let mut machine = Machine::new(&instructions);
        let mut run = Run::new();
        while !machine.is_done() {
            let number = machine.word().map_err(broken)?;
            if number >= self.blocks {
                let problem = format!("has block {number} of {}", self.blocks);
                return Err(broken(problem));
            }
            let mut block = [0; BLOCK_SIZE];
            machine
                .block(&mut block)
                .map_err(|problem| broken(format!("{problem} (metadata block {number})")))?;
            if identify(&block).is_none() {
                return Err(broken(format!("makes no metadata of block {number}")));
            }
            if self.note(number, &block)? {
                run.add(self.metadata, number, &block)?;
            }
        }
        run.write(self.metadata)
    }

    /// Notes that a block was unpacked, and answers whether it is to be written now.
    fn note(&self, number: u64, block: &[u8; BLOCK_SIZE]) -> Result<bool> {
        let mut state = self.state.lock();
        if std::mem::replace(&mut state.seen[number as usize], true) {
            return Err(broken(format!("has block {number} twice")));
        }
        if number == 0 {
            state.superblock = Some(Box::new(*block));
        }
        Ok(number != 0)
    }

    /// Writes the superblock when all else is durable.
    fn finish(self) -> Result<()> {
        self.metadata.flush()?;
        if let Some(superblock) = self.state.into_inner().superblock {
            let mut block = AlignedBuf::zeroed(BLOCK_SIZE);
            block.copy_from_slice(&superblock[..]);
            self.metadata.write_at(&block, ByteOffset::ZERO)?;
            self.metadata.flush()?;
        }
        Ok(())
    }
}

/// Blocks that lie side by side and are written together.
struct Run {
    memory: AlignedBuf,
    first: u64,
    len: usize,
}

impl Run {
    /// Blocks that are written at once.
    const MOST: usize = 256;

    fn new() -> Self {
        Self { memory: AlignedBuf::zeroed(Self::MOST * BLOCK_SIZE), first: 0, len: 0 }
    }

    fn add(
        &mut self,
        metadata: &dyn BlockDevice,
        number: u64,
        block: &[u8; BLOCK_SIZE],
    ) -> Result<()> {
        if self.len == Self::MOST || number != self.first + self.len as u64 {
            self.write(metadata)?;
            self.first = number;
        }
        let start = self.len * BLOCK_SIZE;
        self.memory[start..start + BLOCK_SIZE].copy_from_slice(block);
        self.len += 1;
        Ok(())
    }

    fn write(&mut self, metadata: &dyn BlockDevice) -> Result<()> {
        let bytes = &self.memory[..self.len * BLOCK_SIZE];
        if !bytes.is_empty() {
            let offset = MetaBlock::new(self.first).offset().expect("the block lies on the device");
            metadata.write_at(bytes, offset)?;
        }
        self.len = 0;
        Ok(())
    }
}

fn failed(error: std::io::Error) -> Error {
    Error::io("packed metadata", "cannot be read", error)
}
