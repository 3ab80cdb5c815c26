//! A store that is open: the list of its exceptions, checked, and where the next ones go.

use std::sync::Arc;

use block_io::{AlignedBuf, BlockDevice};
use block_types::{Error, ErrorKind, Result};
use zerocopy::{FromBytes, IntoBytes};

use crate::header::Header;
use crate::layout::ExceptionLayout;
use crate::{ChunkSize, Exception, Label, OriginChunk, StoreChunk, commit};

/// An exception store that no snapshot uses yet.
pub struct Store {
    pub(crate) device: Arc<dyn BlockDevice>,
    pub(crate) chunk: ChunkSize,
    pub(crate) kind: StoreKind,
}

/// Where a store keeps its exceptions.
pub(crate) enum StoreKind {
    /// On the device, as the kernel does.
    Persistent(Loaded),
    /// In memory alone.
    Transient,
}

/// What was read of a persistent store.
pub(crate) struct Loaded {
    pub(crate) header: Header,
    pub(crate) list: List,
}

/// The list of exceptions as it is on disk.
#[derive(Default)]
pub(crate) struct List {
    pub(crate) exceptions: Vec<Exception>,
    pub(crate) tail: Tail,
}

/// The area that the next exception goes to.
pub(crate) struct Tail {
    /// Its number.
    pub(crate) area: u64,
    /// Exceptions that it has.
    pub(crate) used: u64,
    /// How many of them are written to the disk.
    pub(crate) written: u64,
    /// Its chunk, without anything behind those exceptions.
    pub(crate) bytes: AlignedBuf,
    /// Whether there is something behind them on disk: the rest of a write that a crash tore, or of
    /// a merge. It would join the list when the list reaches it, so it is cleaned first.
    pub(crate) stale: bool,
}

impl Default for Tail {
    fn default() -> Self {
        Self { area: 0, used: 0, written: 0, bytes: AlignedBuf::zeroed(0), stale: false }
    }
}

impl Store {
    /// Opens the persistent store that `device` holds.
    ///
    /// A store that is marked invalid opens, so that it can be looked at and says so; what it holds
    /// is not read.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where the header is zero; [`ErrorKind::Corrupt`] where header or
    /// exceptions break a rule, those that the kernel does not check included;
    /// [`ErrorKind::Unsupported`] for another version.
    pub fn open(device: Arc<dyn BlockDevice>) -> Result<Self> {
        let header = Header::read(&*device)?;
        let chunk = header.chunk;
        let list = if header.valid {
            let list = List::read(&*device, chunk)?;
            let problems = header.problems(&list.exceptions, device.size(), None);
            if let Some(problem) = problems.first() {
                let many = problems.len();
                return Err(corrupt(&*device, format!("{problem} (one of {many} problems)")));
            }
            list
        } else {
            List::default()
        };
        Ok(Self { device, chunk, kind: StoreKind::Persistent(Loaded { header, list }) })
    }

    /// A transient store on `device`: nothing that is there is read, nothing survives.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where the chunk does not fit the device's alignment.
    pub fn transient(device: Arc<dyn BlockDevice>, chunk: ChunkSize) -> Result<Self> {
        check_chunk(&*device, chunk)?;
        Ok(Self { device, chunk, kind: StoreKind::Transient })
    }

    /// The size of its chunks.
    pub fn chunk_size(&self) -> ChunkSize {
        self.chunk
    }

    /// Whether it outlives the process.
    pub fn is_persistent(&self) -> bool {
        matches!(self.kind, StoreKind::Persistent(_))
    }

    /// Whether the past that it holds is whole; a store that is not is of no use.
    pub fn is_valid(&self) -> bool {
        match &self.kind {
            StoreKind::Persistent(loaded) => loaded.header.valid,
            StoreKind::Transient => true,
        }
    }

    /// Whether several snapshots share it.
    pub fn is_shared(&self) -> bool {
        matches!(&self.kind, StoreKind::Persistent(loaded) if loaded.header.shared)
    }

    /// What its header has noted of whose past it is.
    pub fn label(&self) -> Option<&Label> {
        match &self.kind {
            StoreKind::Persistent(loaded) => loaded.header.label.as_ref(),
            StoreKind::Transient => None,
        }
    }

    /// The label of the store on `device`; nothing else of it is read.
    ///
    /// # Errors
    /// As [`open`](Store::open) for the header.
    pub fn label_of(device: &dyn BlockDevice) -> Result<Option<Label>> {
        Ok(Header::read(device)?.label)
    }

    /// Marks the store on `device`, which is not in use, as invalid: its snapshot is given up.
    ///
    /// # Errors
    /// As [`open`](Store::open) for the header; what the device says.
    pub fn invalidate(device: &dyn BlockDevice) -> Result<()> {
        let header = Header { valid: false, in_use: false, ..Header::read(device)? };
        commit::rewrite_header(device, &header)
    }

    /// Notes in its header, durably, whose past it is.
    ///
    /// # Errors
    /// What the device says. [`ErrorKind::Unsupported`] for a transient store, which has no header.
    pub fn set_label(&mut self, label: Label) -> Result<()> {
        let StoreKind::Persistent(loaded) = &mut self.kind else {
            let problem = "is a transient store, which has no label";
            return Err(Error::new(ErrorKind::Unsupported, self.device.name(), problem));
        };
        loaded.header.label = Some(label);
        commit::rewrite_header(&*self.device, &loaded.header)
    }

    /// How many exceptions it holds.
    pub fn exceptions(&self) -> u64 {
        match &self.kind {
            StoreKind::Persistent(loaded) => loaded.list.exceptions.len() as u64,
            StoreKind::Transient => 0,
        }
    }
}

impl List {
    /// Reads the areas of `device` up to the end of the list.
    pub(crate) fn read(device: &dyn BlockDevice, chunk: ChunkSize) -> Result<Self> {
        let mut exceptions = Vec::new();
        for area in 0.. {
            let range = chunk.store_range(chunk.area(area));
            if range.end().get() > device.size().get() {
                let problem = format!("ends before area {area} of its exceptions, at {range}");
                return Err(corrupt(device, problem));
            }
            let mut bytes = AlignedBuf::zeroed(chunk.bytes().as_usize());
            device.read_at(&mut bytes, range.start)?;
            let used = parse_area(&bytes, &mut exceptions);
            if used < chunk.per_area() {
                let stale = clear_from(&mut bytes, used);
                let tail = Tail { area, used, written: used, bytes, stale };
                return Ok(Self { exceptions, tail });
            }
        }
        unreachable!("the device ends")
    }
}

impl Tail {
    /// The bytes of the exception at `place` of an area.
    fn slot(&mut self, place: u64) -> &mut [u8] {
        let size = size_of::<ExceptionLayout>();
        let at = place as usize * size;
        &mut self.bytes[at..at + size]
    }

    /// Puts an exception behind the last one.
    pub(crate) fn push(&mut self, exception: Exception) {
        let layout = ExceptionLayout {
            old_chunk: exception.old.get().into(),
            new_chunk: exception.new.get().into(),
        };
        let place = self.used;
        self.slot(place).copy_from_slice(layout.as_bytes());
        self.used += 1;
    }

    /// Begins anew, with the first area, which is empty.
    pub(crate) fn clear(&mut self) {
        (self.area, self.used, self.written, self.stale) = (0, 0, 0, false);
        self.bytes.fill(0);
    }

    /// Goes on with the next area, which is empty.
    pub(crate) fn advance(&mut self) {
        self.area += 1;
        self.used = 0;
        self.written = 0;
        self.bytes.fill(0);
    }

    /// Goes back to the area before, which is full, if there is one.
    pub(crate) fn step_back(&mut self, device: &dyn BlockDevice, chunk: ChunkSize) -> Result<bool> {
        let Some(area) = self.area.checked_sub(1) else { return Ok(false) };
        device.read_at(&mut self.bytes, chunk.store_start(chunk.area(area)))?;
        (self.area, self.used, self.written) = (area, chunk.per_area(), chunk.per_area());
        Ok(true)
    }

    /// Takes the last `count` exceptions away.
    pub(crate) fn pop(&mut self, count: u64) {
        self.used -= count;
        self.written = self.used;
        for place in self.used..self.used + count {
            self.slot(place).fill(0);
        }
    }

    /// The last exceptions, at most `limit`, in the order of the list.
    pub(crate) fn last(&self, limit: u64) -> Vec<Exception> {
        let mut exceptions = Vec::new();
        parse_area(&self.bytes, &mut exceptions);
        exceptions.truncate(self.used as usize);
        exceptions.split_off(self.used.saturating_sub(limit) as usize)
    }
}

/// Appends the exceptions of an area up to the end of the list, and says how many it has.
fn parse_area(bytes: &[u8], exceptions: &mut Vec<Exception>) -> u64 {
    let before = exceptions.len();
    let slots = bytes.chunks_exact(size_of::<ExceptionLayout>());
    let layouts = slots.filter_map(|slot| ExceptionLayout::read_from_bytes(slot).ok());
    exceptions.extend(layouts.take_while(|layout| layout.new_chunk.get() != 0).map(|layout| {
        Exception {
            old: OriginChunk::new(layout.old_chunk.get()),
            new: StoreChunk::new(layout.new_chunk.get()),
        }
    }));
    (exceptions.len() - before) as u64
}

/// Makes everything behind `used` exceptions zero, and says whether it was not.
fn clear_from(bytes: &mut [u8], used: u64) -> bool {
    let rest = &mut bytes[used as usize * size_of::<ExceptionLayout>()..];
    let stale = rest.iter().any(|&byte| byte != 0);
    rest.fill(0);
    stale
}

/// Checks that chunks of this size can be read from and written to `device`.
pub(crate) fn check_chunk(device: &dyn BlockDevice, chunk: ChunkSize) -> Result<()> {
    let unit = device.limits().minimum;
    if chunk.bytes().is_aligned(unit) {
        return Ok(());
    }
    let problem = format!("takes requests of {unit} only, chunks are {}", chunk.bytes());
    Err(Error::new(ErrorKind::Invalid, device.name(), problem)
        .advise("choose larger chunks, or open the device through the page cache"))
}

fn corrupt(device: &dyn BlockDevice, problem: String) -> Error {
    Error::new(ErrorKind::Corrupt, device.name(), problem)
        .advise("its snapshot cannot be used; the origin is not concerned")
}
