//! Packing: stretches of the device are read, told apart and compressed by several threads, and
//! written in their order.

use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use block_io::{AlignedBuf, BlockDevice};
use block_types::{Error, ErrorKind, Result};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use persistent_data::{BLOCK_SIZE, MetaBlock, identify};

use super::encode::encode;
use super::{MAGIC, VERSION, threads};

/// Blocks of a stretch, and so of a chunk at most.
const STRETCH: u64 = 1024;

pub(super) fn pack(metadata: &dyn BlockDevice, mut out: impl Write) -> Result<()> {
    let blocks = metadata.size().get() / BLOCK_SIZE as u64;
    if blocks == 0 {
        return Err(Error::new(ErrorKind::Invalid, metadata.name(), "has no blocks to pack"));
    }
    for word in [MAGIC, VERSION, BLOCK_SIZE as u64, blocks] {
        out.write_all(&word.to_le_bytes()).map_err(failed)?;
    }
    let threads = threads() as u64;
    thread::scope(|scope| {
        let mut packed: Vec<Receiver<Result<Vec<u8>>>> = Vec::new();
        for thread in 0..threads {
            let (sender, receiver) = sync_channel(1);
            packed.push(receiver);
            scope.spawn(move || pack_stretches(metadata, blocks, thread, threads, &sender));
        }
        let stretches = blocks.div_ceil(STRETCH) as usize;
        for receiver in packed.iter().cycle().take(stretches) {
            let Ok(chunk) = receiver.recv() else { break };
            let chunk = chunk?;
            if !chunk.is_empty() {
                out.write_all(&(chunk.len() as u64).to_le_bytes()).map_err(failed)?;
                out.write_all(&chunk).map_err(failed)?;
            }
        }
        out.flush().map_err(failed)
    })
}

/// Packs every `step`th stretch from the stretch `first` on, until nobody takes them any more.
fn pack_stretches(
    metadata: &dyn BlockDevice,
    blocks: u64,
    first: u64,
    step: u64,
    sender: &SyncSender<Result<Vec<u8>>>,
) {
    let mut memory = AlignedBuf::zeroed(STRETCH as usize * BLOCK_SIZE);
    let mut instructions = Vec::new();
    let mut start = first * STRETCH;
    while start < blocks {
        let len = STRETCH.min(blocks - start);
        let bytes = &mut memory[..len as usize * BLOCK_SIZE];
        let chunk = pack_stretch(metadata, start, bytes, &mut instructions);
        if sender.send(chunk).is_err() {
            return;
        }
        start += step * STRETCH;
    }
}

/// Packs the blocks from `start` on, as many as fit `bytes`. Returns nothing if none is metadata.
fn pack_stretch(
    metadata: &dyn BlockDevice,
    start: u64,
    bytes: &mut [u8],
    instructions: &mut Vec<u8>,
) -> Result<Vec<u8>> {
    let offset = MetaBlock::new(start).offset().expect("the block lies on the device");
    metadata.read_at(bytes, offset)?;
    instructions.clear();
    for (block, number) in bytes.chunks_exact(BLOCK_SIZE).zip(start..) {
        if let Some(kind) = identify(block) {
            instructions.extend_from_slice(&number.to_le_bytes());
            encode(block, kind, instructions);
        }
    }
    if instructions.is_empty() {
        return Ok(Vec::new());
    }
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(instructions).map_err(failed)?;
    encoder.finish().map_err(failed)
}

fn failed(error: std::io::Error) -> Error {
    Error::io("packed metadata", "cannot be written", error)
}
