//! Images for the tests.

use std::path::Path;
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile, MemoryDevice};
use block_types::{ByteCount, ByteOffset, ByteRange};
use disk_image::vhd::{
    BlockSize, Content, CreateOptions, DiskId, OpenOptions, Parent, ParentLink, Timestamp,
    VhdImage, create,
};
use testkit::peer::peer;

/// A UUID that is `number` throughout.
pub(crate) fn id(number: u8) -> DiskId {
    DiskId::new([number; 16])
}

/// What to make: a disk of `size` in blocks of `block`.
pub(crate) fn options(content: Content, number: u8, size: u64, block: u64) -> CreateOptions {
    CreateOptions {
        content,
        block_size: BlockSize::new(ByteCount::new(block)).expect("a block size"),
        ..CreateOptions::new(ByteCount::new(size), id(number), Timestamp::new(0))
    }
}

/// A link to the parent `number` at `path`.
pub(crate) fn link(number: u8, path: &str) -> ParentLink {
    ParentLink { id: Some(id(number)), modified: Timestamp::new(0), path: path.into() }
}

/// A new image in memory.
pub(crate) fn memory(name: &str, options: &CreateOptions) -> Arc<MemoryDevice> {
    let file = Arc::new(MemoryDevice::new(name, ByteCount::ZERO));
    create(&*file, options).expect("made");
    file
}

/// Opens an image for writing.
pub(crate) fn open(file: Arc<dyn BlockDevice>, parent: Option<Parent>) -> Arc<VhdImage> {
    let step = ByteCount::new(100_000);
    let options = OpenOptions { step, ..OpenOptions::default() };
    Arc::new(VhdImage::open(file, parent, options).expect("opened"))
}

/// Opens an image for reading.
pub(crate) fn open_read_only(file: Arc<dyn BlockDevice>, parent: Option<Parent>) -> Arc<VhdImage> {
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    Arc::new(VhdImage::open(file, parent, options).expect("opened"))
}

/// A file through the page cache.
pub(crate) fn host(path: &Path, read_only: bool) -> Arc<HostFile> {
    let options = FileOptions { cache: CacheMode::Cached, read_only };
    Arc::new(HostFile::open(path, options).expect("opened"))
}

/// Makes an image at `path` and opens it.
pub(crate) fn create_at(
    path: &Path,
    options: &CreateOptions,
    parent: Option<Parent>,
) -> Arc<VhdImage> {
    let file = HostFile::create(path, ByteCount::ZERO, CacheMode::Cached).expect("created");
    create(&file, options).expect("made");
    Arc::new(VhdImage::open(Arc::new(file), parent, OpenOptions::default()).expect("opened"))
}

/// Everything that a device holds.
pub(crate) fn content(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.size().as_usize()];
    device.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
    bytes
}

/// The sha256 of `bytes`.
pub(crate) fn sha256(bytes: Vec<u8>) -> String {
    let sum = peer("sha256sum").input(bytes).ok();
    sum.split_whitespace().next().expect("a sum").to_owned()
}

/// What a disk may hold: of each sector the values that are right now, and those besides that a
/// crash may bring back. A sector of a value is full of it; 0 is a sector of zeros.
#[derive(Clone, Debug)]
pub(crate) struct Sectors {
    right: Vec<Vec<u64>>,
    older: Vec<Vec<u64>>,
    writes: u64,
}

impl Sectors {
    /// A disk that holds `values`.
    pub(crate) fn new(values: Vec<u64>) -> Self {
        let older = vec![Vec::new(); values.len()];
        Self { right: values.into_iter().map(|value| vec![value]).collect(), older, writes: 0 }
    }

    /// A value that was never written.
    pub(crate) fn next_value(&mut self) -> u64 {
        self.writes += 1;
        self.writes
    }

    /// A write of `value` (0: zeroing) ended so.
    pub(crate) fn wrote(&mut self, range: ByteRange, value: u64, done: bool) {
        for sector in sectors(range) {
            let before = std::mem::replace(&mut self.right[sector], vec![value]);
            self.older[sector].extend(&before);
            if !done {
                self.right[sector].extend(before);
            }
        }
    }

    /// The range was discarded, or discarding it failed.
    pub(crate) fn discarded(&mut self, range: ByteRange) {
        for sector in sectors(range) {
            let before = self.right[sector].clone();
            self.older[sector].extend(before);
            self.right[sector].push(0);
        }
    }

    /// A flush succeeded.
    pub(crate) fn flushed(&mut self) {
        self.older.iter_mut().for_each(Vec::clear);
    }

    /// Everything that was not flushed may be as it was.
    pub(crate) fn crashed(&mut self) {
        for (right, older) in self.right.iter_mut().zip(&mut self.older) {
            right.append(older);
        }
    }

    /// The disk has another size; what is added is zeros.
    pub(crate) fn resize(&mut self, size: ByteCount) {
        self.right.resize(size.sectors() as usize, vec![0]);
        self.older.resize(size.sectors() as usize, Vec::new());
    }

    /// Compares what `device` holds; from now on that alone is right.
    pub(crate) fn compare(&mut self, device: &dyn BlockDevice) -> std::result::Result<(), String> {
        let read = values(device);
        if read.len() != self.right.len() {
            return Err(format!("has {} sectors, not {}", read.len(), self.right.len()));
        }
        for (sector, (value, right)) in read.into_iter().zip(&mut self.right).enumerate() {
            match value {
                Some(value) if right.contains(&value) => *right = vec![value],
                _ => return Err(format!("sector {sector} holds {value:?}, not one of {right:?}")),
            }
        }
        Ok(())
    }
}

fn sectors(range: ByteRange) -> std::ops::Range<usize> {
    let start = (range.start.get() / 512) as usize;
    start..start + range.len.sectors() as usize
}

/// Sectors that are full of one value each.
pub(crate) fn filled(values: impl IntoIterator<Item = u64>) -> Vec<u8> {
    values.into_iter().flat_map(|value| value.to_le_bytes().repeat(64)).collect()
}

/// The value of each sector of a device; none for one that is a mixture.
fn values(device: &dyn BlockDevice) -> Vec<Option<u64>> {
    let value = |sector: &[u8]| {
        let value = u64::from_le_bytes(sector[..8].try_into().expect("8 bytes"));
        sector.chunks(8).all(|word| word == value.to_le_bytes()).then_some(value)
    };
    content(device).chunks(512).map(value).collect()
}
