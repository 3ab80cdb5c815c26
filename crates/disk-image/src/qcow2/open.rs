//! Opening an image: the header, the devices that it needs, the counts.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use block_io::{BlockDevice, LeaseSet};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use parking_lot::{Condvar, Mutex, RwLock};
use zerocopy::FromBytes;

use super::alloc::Allocator;
use super::bitmap::Bitmaps;
use super::bytes::{read_clipped, words_of};
use super::commit::Progress;
use super::compressed::Decompressed;
use super::counts::Counts;
use super::geometry::{Geometry, HostCluster, L1Index};
use super::header::{Encryption, Header, corrupt};
use super::image::{CLUSTER_LOCKS, Gate, Image};
use super::layout::{EncryptionField, extension, feature};
use super::snapshot_table::SnapshotTable;
use super::source::Source;
use super::state::State;
use super::tree::Tree;
use super::{recording, repair};
use crate::luks::{self, Secret, SectorCipher};

/// Refcount blocks are all read at once if they take at most so many bytes: enough for 2 TiB of
/// 64 KiB clusters. Others are read as clusters are taken and given up.
const PRELOAD: u64 = 64 << 20;

/// How to open an image.
///
/// The image opens nothing by itself (GATED-OPEN): [`Header::backing_file`] and
/// [`Header::data_file`] say what it wants, the caller decides and hands in devices.
#[derive(Clone)]
pub struct OpenOptions {
    /// The backing file, for an image that has one.
    pub backing: Option<Arc<dyn BlockDevice>>,
    /// The external data file, for an image that has one.
    pub data: Option<Arc<dyn BlockDevice>>,
    /// Reads without the backing file, as if it were zeros.
    pub without_backing: bool,
    /// Refuse writes; nothing is written to the file.
    pub read_only: bool,
    /// What opens the image, if it is encrypted.
    pub secret: Option<Secret>,
    /// Give the space of clusters that are not used any more back to the file.
    pub discards: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            backing: None,
            data: None,
            without_backing: false,
            read_only: false,
            secret: None,
            discards: true,
        }
    }
}

impl Image {
    /// Opens the image in `file`. Writes nothing before the first write, unless the image was not
    /// closed by somebody who postpones reference counts: then they are made up for; or bitmaps
    /// were recorded in when it was last used: then they are made consistent.
    ///
    /// Memory: the L1 table, at most 32 MiB; the refcount table, at most 8 MiB, with its
    /// bookkeeping
    /// 56 MiB; refcount blocks, at most 64 MiB at once, then as they are wanted; L2 tables as they
    /// are wanted.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`]; [`ErrorKind::Unsupported`] for features that are not known;
    /// [`ErrorKind::Invalid`] if a device is missing or one too many; [`ErrorKind::Denied`] without
    /// the right secret.
    pub fn open(file: Arc<dyn BlockDevice>, options: OpenOptions) -> Result<Arc<Self>> {
        let mut header = Header::read(&*file)?;
        check_devices(&*file, &header, &options)?;
        let crypt = unlock(&*file, &header, options.secret.as_ref())?;
        if !options.read_only {
            check_writable(&*file, &header)?;
            if header.is_dirty() {
                repair::rebuild_counts(&file)?;
                header = Header::read(&*file)?;
            }
            recording::recover(&*file, &mut header)?;
        }
        let geometry = header.geometry;
        let snapshots = SnapshotTable::read(&*file, &header)?;
        let tree = Tree::read(&*file, geometry, header.l1)?;
        let state = if options.read_only {
            None
        } else {
            let alloc = allocator(&file, geometry, header.refcount_table)?;
            let tables = table_clusters(&header, &tree, &alloc);
            Some(Arc::new(Mutex::new(State::new(geometry, alloc, tables))))
        };
        let source = Source {
            name: file.name().to_owned(),
            file,
            data: options.data,
            backing: options.backing,
            geometry,
            compression: header.compression,
            crypt,
            tree,
            leases: Arc::new(LeaseSet::new()),
            decompressed: Arc::new(Decompressed::default()),
            state,
        };
        source.check_limits()?;
        Ok(Arc::new(Self {
            source,
            size: AtomicU64::new(header.size.get()),
            header: RwLock::new(header),
            snapshots: RwLock::new(snapshots),
            progress: Mutex::new(Progress::default()),
            progressed: Condvar::new(),
            gate: AtomicU8::new(Gate::Open as u8),
            changing: RwLock::new(()),
            reading: RwLock::new(()),
            clusters: [const { Mutex::new(()) }; CLUSTER_LOCKS as usize],
            stopped: OnceLock::new(),
            prepared: AtomicBool::new(false),
            preparing: Mutex::new(false),
            recorded: Mutex::default(),
            putting: Mutex::default(),
            discards: options.discards,
            packing: Mutex::new(()),
            views: Mutex::new(Vec::new()),
        }))
    }

    /// What has to be durable before the first write of a guest: nobody may believe any more what
    /// it makes wrong. Besides what [`prepare_tables`](Self::prepare_tables) does, bitmaps that
    /// record are marked.
    pub(super) fn prepare_writes(&self) -> Result<()> {
        if self.prepared.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.prepare_tables()?;
        let _one_at_a_time = self.preparing.lock();
        if self.prepared.load(Ordering::SeqCst) {
            return Ok(());
        }
        let header = self.header.write();
        if let Some(bitmaps) = Bitmaps::read(&*self.source.file, &header)?
            && let Some(directory) = bitmaps.marked_in_use(|name| self.is_recorded(name))
        {
            self.write_durably(&directory, bitmaps.directory.start)?;
        }
        self.prepared.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// What has to be durable before the first change of tables: unknown autoclear features are
    /// cleared (KNOW-OR-REFUSE).
    pub(super) fn prepare_tables(&self) -> Result<()> {
        let mut prepared = self.preparing.lock();
        if *prepared {
            return Ok(());
        }
        let mut header = self.header.write();
        let unknown = header.autoclear & !feature::AUTOCLEAR;
        if unknown != 0 {
            header.autoclear &= feature::AUTOCLEAR;
            self.write_header(&header)?;
        }
        drop(header);
        // The last cluster of a file that somebody else wrote may be cut.
        let clusters = self.source.geometry.clusters(self.source.file.size());
        self.state()?.lock().alloc.reach(HostCluster(clusters))?;
        *prepared = true;
        Ok(())
    }
}

/// The allocator of a file whose refcount table lies at `table`.
fn allocator(
    file: &Arc<dyn BlockDevice>,
    geometry: Geometry,
    table: ByteRange,
) -> Result<Allocator> {
    let mut bytes = vec![0; table.len.as_usize()];
    read_clipped(&**file, &mut bytes, table.start)?;
    let mut counts = Counts::open(Arc::clone(file), geometry, &words_of(&bytes))?;
    counts.preload(PRELOAD)?;
    Ok(Allocator::new(Arc::clone(file), geometry, counts, table))
}

/// The clusters that hold the tables of the active disk and the counts.
fn table_clusters(header: &Header, tree: &Tree, alloc: &Allocator) -> HashSet<HostCluster> {
    let geometry = header.geometry;
    let whole = [header.l1, header.refcount_table];
    let pieces = whole.into_iter().flat_map(|range| range.pieces(geometry.cluster()));
    let mut tables: HashSet<_> =
        pieces.map(|piece| geometry.host_cluster_of(piece.start)).collect();
    tables.extend((0..alloc.counts.blocks()).filter_map(|index| alloc.counts.home(index)));
    let entries = tree.l1.read().len() as u32;
    tables
        .extend((0..entries).filter_map(|at| tree.l1_entry(L1Index(at))).map(|entry| entry.table));
    tables
}

/// The cipher of the data of an encrypted image.
fn unlock(
    file: &dyn BlockDevice,
    header: &Header,
    secret: Option<&Secret>,
) -> Result<Option<Arc<SectorCipher>>> {
    match header.encryption() {
        None => return Ok(None),
        Some(Encryption::Luks) => {}
        Some(Encryption::Aes) => {
            let problem = "is encrypted by QEMU's old scheme, AES without LUKS";
            return Err(Error::new(ErrorKind::Unsupported, file.name(), problem)
                .advise("convert it with 'qemu-img convert'; the scheme protects little"));
        }
    }
    let Some(secret) = secret else {
        return Err(Error::new(ErrorKind::Denied, file.name(), "is encrypted")
            .advise("name the file that holds its secret with --secret-file"));
    };
    let field = header.extensions.get(extension::ENCRYPTION);
    let field = field.and_then(|field| EncryptionField::read_from_prefix(field).ok());
    let area = field.and_then(|(field, _)| {
        ByteRange::checked(ByteOffset::new(field.offset.get()), ByteCount::new(field.length.get()))
    });
    let fits = |area: &ByteRange| {
        let aligned = area.start.is_aligned(header.geometry.cluster());
        aligned && area.len.get() <= luks::AREA_LIMIT && area.end().get() <= file.size().get()
    };
    let Some(area) = area.filter(fits) else {
        return Err(corrupt(file.name(), "has no LUKS header where one has to be"));
    };
    let mut bytes = vec![0; area.len.as_usize()];
    read_clipped(file, &mut bytes, area.start)?;
    luks::unlock(file.name(), &bytes, secret).map(|cipher| Some(Arc::new(cipher)))
}

/// Checks that the devices handed in are those that the image wants.
fn check_devices(file: &dyn BlockDevice, header: &Header, options: &OpenOptions) -> Result<()> {
    let name = |name: Option<std::ffi::OsString>| name.unwrap_or_default().display().to_string();
    let invalid = |problem: String, advice: &str| {
        Err(Error::new(ErrorKind::Invalid, file.name(), problem).advise(advice))
    };
    if header.has_data_file() != options.data.is_some() {
        return match options.data {
            None => invalid(
                format!("keeps its data in another file, '{}'", name(header.data_file())),
                "name the data file, if you trust the image",
            ),
            Some(_) => invalid("has no external data file".to_owned(), "name none"),
        };
    }
    match (header.backing_file().is_some(), options.backing.is_some()) {
        (true, false) if !options.without_backing => invalid(
            format!("stands on a backing file, '{}'", name(header.backing_file())),
            "name the backing file, if you trust the image",
        ),
        (false, true) => invalid("has no backing file".to_owned(), "name none"),
        _ => Ok(()),
    }
}

/// Checks that the image may be written at all.
fn check_writable(file: &dyn BlockDevice, header: &Header) -> Result<()> {
    block_io::check_writable(file)?;
    if header.is_corrupt() {
        return Err(corrupt(file.name(), "was found corrupt and marked so; it can only be read"));
    }
    Ok(())
}
