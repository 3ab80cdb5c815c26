//! Reading and writing scattered parts of a device through one buffer, at once where it resolves.

use std::cell::RefCell;
use std::ops::Range;

use block_io::{
    AlignedBuf, BlockDevice, CacheMode, Intent, IoQueue, Lease, Place, QueueChoice, Segment,
};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, Result};

/// Parts that a thread has in flight.
const DEPTH: u32 = 64;
/// Fewer parts than this are done one after the other.
const WORTHWHILE: usize = 4;

/// A part of the buffer, and where it is on the device.
pub(crate) struct Part {
    pub(crate) at: ByteOffset,
    pub(crate) bytes: Range<usize>,
}

thread_local! {
    /// This thread's queue; `None` until it is wanted.
    static QUEUE: RefCell<Option<IoQueue>> = const { RefCell::new(None) };
}

/// Reads the parts into `buffer`, or writes them from it. After a failure any of them may be done.
pub(crate) fn transfer(
    device: &dyn BlockDevice,
    intent: Intent,
    buffer: &mut AlignedBuf,
    parts: &[Part],
) -> Result<()> {
    if parts.len() >= WORTHWHILE {
        let mut places = Vec::with_capacity(parts.len());
        if let Some(_leases) = resolve(device, intent, parts, &mut places) {
            return at_once(device, intent, buffer, parts, &places);
        }
    }
    parts.iter().try_for_each(|Part { at, bytes }| match intent {
        Intent::Read => device.read_at(&mut buffer[bytes.clone()], *at),
        Intent::Write => device.write_at(&buffer[bytes.clone()], *at),
    })
}

/// The places of all parts, if each lies whole in a file past the page cache: through the cache a
/// call costs less than a queue.
fn resolve<'d>(
    device: &'d dyn BlockDevice,
    intent: Intent,
    parts: &[Part],
    places: &mut Vec<Place<'d>>,
) -> Option<Vec<Lease<'d>>> {
    let resolver = device.resolver()?;
    let mut leases = Vec::with_capacity(parts.len());
    for (number, Part { at, bytes }) in parts.iter().enumerate() {
        let range = ByteRange::new(*at, ByteCount::new(bytes.len() as u64));
        leases.push(resolver.resolve(intent, range, places)?);
        let file = places.last().and_then(|place| place.file)?;
        if places.len() != number + 1 || file.cache_mode() != CacheMode::Direct {
            return None;
        }
    }
    Some(leases)
}

/// Hands all parts to the system together, and waits for them.
fn at_once(
    device: &dyn BlockDevice,
    intent: Intent,
    buffer: &mut AlignedBuf,
    parts: &[Part],
    places: &[Place<'_>],
) -> Result<()> {
    let segments: Vec<Segment<'_>> = parts
        .iter()
        .zip(places)
        .filter_map(|(Part { bytes, .. }, place)| {
            place.file.map(|file| Segment { file, at: place.at, part: bytes.clone() })
        })
        .collect();
    QUEUE.with_borrow_mut(|slot| {
        let mut queue = match slot.take() {
            Some(queue) => queue,
            None => IoQueue::new(QueueChoice::Auto, DEPTH)?,
        };
        let own = std::mem::replace(buffer, AlignedBuf::zeroed(0));
        let len = own.len();
        match intent {
            Intent::Read => queue.read(0, own, &segments),
            Intent::Write => queue.write(0, own, &segments),
        }
        let completion = loop {
            match queue.next() {
                Some(completion) => break completion,
                None => queue.submit_and_wait()?,
            }
        };
        *buffer = completion.buffer.unwrap_or_else(|| AlignedBuf::zeroed(len));
        *slot = Some(queue);
        let doing = format!("cannot transfer {} parts", segments.len());
        completion.result.map(drop).map_err(|error| Error::io(device.name(), doing, error))
    })
}

#[cfg(test)]
mod tests {
    use super::{Part, transfer};
    use block_io::{AlignedBuf, BlockDevice, CacheMode, HostFile, Intent, MemoryDevice};
    use block_types::{ByteCount, ByteOffset};

    fn round_trip(device: &dyn BlockDevice) {
        let parts: Vec<Part> = [9u64, 2, 30, 7, 5]
            .iter()
            .enumerate()
            .map(|(number, block)| Part {
                at: ByteOffset::new(block * 4096),
                bytes: number * 4096..(number + 1) * 4096,
            })
            .collect();
        let mut buffer = AlignedBuf::zeroed(parts.len() * 4096);
        buffer.chunks_mut(4096).zip(1u8..).for_each(|(block, number)| block.fill(number));
        transfer(device, Intent::Write, &mut buffer, &parts).expect("written");
        buffer.fill(0);
        transfer(device, Intent::Read, &mut buffer, &parts).expect("read");
        assert!(buffer.chunks(4096).zip(1u8..).all(|(block, number)| block[4095] == number));
        let mut block = [0; 4096];
        device.read_at(&mut block, ByteOffset::new(30 * 4096)).expect("read");
        assert_eq!(block[0], 3);
    }

    #[test]
    fn parts_go_where_they_belong() {
        let size = ByteCount::new(1 << 20);
        round_trip(&MemoryDevice::new("memory", size));
        let folder = tempfile::tempdir().expect("a folder");
        for cache in [CacheMode::Direct, CacheMode::Cached] {
            let path = folder.path().join(format!("{cache:?}"));
            round_trip(&HostFile::create(&path, size, cache).expect("made"));
        }
    }
}
