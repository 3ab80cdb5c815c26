//! Making a store: always asked for, never guessed from a header that is zero.

use std::sync::Arc;

use block_io::{AlignedBuf, BlockDevice};
use block_types::{ByteCount, ByteOffset, Error, ErrorKind, Result};

use crate::header::{Header, io_unit};
use crate::store::check_chunk;
use crate::{ChunkSize, Store, commit};

/// Chunks of the smallest store: header, area, one of data.
const FEWEST: u64 = 3;

impl Store {
    /// Makes an empty persistent store on `device`, which must not hold one.
    ///
    /// # Errors
    /// [`ErrorKind::Exists`] where there is a store; [`ErrorKind::Invalid`] where the device is too
    /// small or the chunk does not fit its alignment.
    pub fn create(device: Arc<dyn BlockDevice>, chunk: ChunkSize) -> Result<Self> {
        Self::check_free(&device)?;
        Self::recreate(device, chunk)
    }

    /// Makes an empty store that several snapshots are to share.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_shared(device: Arc<dyn BlockDevice>, chunk: ChunkSize) -> Result<Self> {
        Self::check_free(&device)?;
        Self::recreate_shared(device, chunk)
    }

    fn check_free(device: &Arc<dyn BlockDevice>) -> Result<()> {
        let absent =
            Header::read(&**device).is_err_and(|error| error.kind() == ErrorKind::NotFound);
        if !absent && device.size() >= io_unit(&**device) {
            return Err(Error::new(
                ErrorKind::Exists,
                device.name(),
                "holds something already: its first bytes are not zero",
            )
            .advise("make the store anew on purpose, if nobody needs what is there"));
        }
        Ok(())
    }

    /// Makes an empty persistent store on `device`, whatever it holds.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where the device is too small or the chunk does not fit its
    /// alignment.
    pub fn recreate(device: Arc<dyn BlockDevice>, chunk: ChunkSize) -> Result<Self> {
        Self::make(device, chunk, false)
    }

    /// Makes an empty store that several snapshots are to share, whatever the device holds. Linux
    /// refuses it.
    ///
    /// # Errors
    /// As [`recreate`](Self::recreate).
    pub fn recreate_shared(device: Arc<dyn BlockDevice>, chunk: ChunkSize) -> Result<Self> {
        Self::make(device, chunk, true)
    }

    fn make(device: Arc<dyn BlockDevice>, chunk: ChunkSize, shared: bool) -> Result<Self> {
        check_chunk(&*device, chunk)?;
        let chunks = device.size().get() / chunk.bytes().get();
        if chunks < FEWEST {
            let problem = format!("has room for {chunks} chunks, a store needs {FEWEST}");
            return Err(Error::new(ErrorKind::Invalid, device.name(), problem)
                .advise("make it larger, or choose smaller chunks"));
        }
        let zeros = AlignedBuf::zeroed(chunk.bytes().as_usize());
        device.write_at(&zeros, ByteOffset::ZERO)?;
        device.write_at(&zeros, chunk.store_start(chunk.area(0)))?;
        commit::first_header(&*device, chunk, shared)?;
        Self::open(device)
    }

    /// The size of the device that a store needs so that every chunk of `origin` bytes can be
    /// overwritten, and nothing is lost.
    pub fn size_for(origin: ByteCount, chunk: ChunkSize) -> ByteCount {
        let exceptions = chunk.count(origin);
        // Every full area is followed by one more.
        let areas = exceptions / chunk.per_area() + 1;
        let chunks = (1 + areas + exceptions).max(FEWEST);
        ByteCount::new(chunks * chunk.bytes().get())
    }
}

#[cfg(test)]
mod tests {
    use crate::{ChunkSize, Store};
    use block_io::{BlockDevice, MemoryDevice};
    use block_types::{ByteCount, ByteOffset, ErrorKind};
    use std::sync::Arc;

    fn chunk() -> ChunkSize {
        ChunkSize::new(ByteCount::new(4096)).expect("a chunk size")
    }

    #[test]
    fn a_new_store_is_the_kernels() {
        let device = Arc::new(MemoryDevice::from_bytes("store", vec![0; 16 * 4096]));
        device.write_at(&[7; 4096], ByteOffset::new(4096)).expect("written");
        let store = Store::create(device.clone(), chunk()).expect("made");
        assert_eq!((store.exceptions(), store.is_valid()), (0, true));
        let mut expected = vec![0; 16 * 4096];
        expected[..16].copy_from_slice(b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0");
        assert!(device.to_bytes() == expected);
    }

    #[test]
    fn what_is_there_is_kept() {
        let device = Arc::new(MemoryDevice::new("store", ByteCount::new(16 * 4096)));
        Store::create(device.clone(), chunk()).expect("made");
        let error = Store::create(device.clone(), chunk()).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Exists);
        Store::recreate(device.clone(), chunk()).expect("made anew");
        device.write_at(b"EXT4", ByteOffset::ZERO).expect("written");
        let error = Store::create(device, chunk()).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Exists);
        let small = Arc::new(MemoryDevice::new("store", ByteCount::new(2 * 4096)));
        let error = Store::create(small, chunk()).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_zero_header_is_not_a_store() {
        let device = Arc::new(MemoryDevice::new("store", ByteCount::new(1 << 20)));
        let error = Store::open(device.clone()).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(device.to_bytes().iter().all(|&byte| byte == 0), "it was formatted");
    }

    #[test]
    fn room_for_everything() {
        let size =
            |chunks: u64| Store::size_for(ByteCount::new(chunks * 4096), chunk()).get() / 4096;
        assert_eq!(size(0), 3);
        assert_eq!(size(255), 257);
        // The area is full, so there is another one.
        assert_eq!(size(256), 259);
    }
}
