//! Making an image, and giving its disk clusters beforehand.

use std::collections::HashSet;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use block_io::{BlockDevice, ZeroMode};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use zerocopy::IntoBytes;

use super::alloc::Allocator;
use super::bytes::write_any;
use super::counts::Counts;
use super::entry::{Cluster, Standard, external_host};
use super::extension::{Extensions, feature_names, name_bytes};
use super::geometry::{CLUSTER_BITS, Geometry, GuestCluster, HostCluster, L1Index};
use super::header::{Compression, Encryption, Header, L1_LIMIT, SECTOR_ZERO};
use super::image::Image;
use super::layout::{EncryptionField, extension, feature};
use super::open::OpenOptions;
use super::stage::Stage;
use super::state::State;
use crate::luks::{self, Secret};

/// What of the disk is there from the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// Places for all data, in a sparse file.
    Metadata,
    /// The same, with the space reserved.
    Falloc,
    /// The same, with zeros written.
    Full,
}

/// What image to make. Names of other files are written down as they are, and not looked at.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Bytes of the disk.
    pub size: ByteCount,
    /// Version of the format: 2 or 3.
    pub version: u32,
    /// A power of two from 512 bytes to 2 MiB.
    pub cluster_size: ByteCount,
    /// A power of two from 1 to 64.
    pub refcount_bits: u32,
    /// With 32 subclusters to a cluster.
    pub extended_l2: bool,
    /// For compressed clusters.
    pub compression: Compression,
    /// Let others postpone reference counts; Firn does not.
    pub lazy_refcounts: bool,
    /// The backing file and its format.
    pub backing: Option<(OsString, OsString)>,
    /// The external data file.
    pub data_file: Option<OsString>,
    /// The external data file alone is to be a raw image of the disk.
    pub data_file_raw: bool,
    /// What is there from the beginning.
    pub preallocation: Preallocation,
    /// Encrypt the guest's data by LUKS.
    pub encryption: Option<NewEncryption>,
}

/// How a new image is encrypted: AES of 256 bits, XTS.
#[derive(Clone, Debug)]
pub struct NewEncryption {
    /// What opens it.
    pub secret: Secret,
    /// How long it is to take to open it, which makes guessing slow.
    pub time: Duration,
    /// What other programs call the encrypted part by: a UUID.
    pub uuid: String,
}

impl CreateOptions {
    /// An image as QEMU makes it unless told otherwise.
    pub fn new(size: ByteCount) -> Self {
        Self {
            size,
            version: 3,
            cluster_size: ByteCount::new(64 << 10),
            refcount_bits: 16,
            extended_l2: false,
            compression: Compression::Zlib,
            lazy_refcounts: false,
            backing: None,
            data_file: None,
            data_file_raw: false,
            preallocation: Preallocation::Off,
            encryption: None,
        }
    }

    pub(super) fn geometry(&self) -> Geometry {
        Geometry {
            cluster_bits: self.cluster_size.get().trailing_zeros(),
            refcount_order: self.refcount_bits.trailing_zeros(),
            extended: self.extended_l2,
            external: self.data_file.is_some(),
            zero_clusters: self.version > 2,
        }
    }

    pub(super) fn check(&self, name: &str) -> Result<()> {
        let invalid = |problem: &str| Err(Error::new(ErrorKind::Invalid, name, problem));
        let geometry = self.geometry();
        let modern = self.extended_l2
            || self.lazy_refcounts
            || self.data_file.is_some()
            || self.encryption.is_some()
            || self.compression != Compression::Zlib
            || self.refcount_bits != 16;
        if !matches!(self.version, 2 | 3) {
            return invalid("there are versions 2 and 3 of the format");
        }
        if self.version == 2 && modern {
            return invalid("version 2 of the format has none of the options asked for");
        }
        if !self.cluster_size.get().is_power_of_two()
            || !CLUSTER_BITS.contains(&geometry.cluster_bits)
        {
            return invalid("clusters have a power of two from 512 bytes to 2 MiB");
        }
        if !self.refcount_bits.is_power_of_two() || self.refcount_bits > 64 {
            return invalid("reference counts have a power of two from 1 to 64 bits");
        }
        if self.extended_l2 && geometry.cluster_bits < 14 {
            return invalid("subclusters need clusters of 16 KiB at least");
        }
        if geometry.l1_entries(self.size) * 8 > L1_LIMIT {
            return invalid("a disk of this size needs larger clusters");
        }
        if self.data_file_raw && (self.data_file.is_none() || self.backing.is_some()) {
            return invalid(
                "a raw data file stands alone: with a data file, without a backing one",
            );
        }
        if self.encryption.is_some() {
            let unwritten =
                matches!(self.preallocation, Preallocation::Metadata | Preallocation::Falloc);
            if unwritten || self.data_file_raw {
                return invalid(
                    "what is encrypted is written: it has no raw data file, and no space \
                     beforehand but 'full'",
                );
            }
        }
        if self.preallocation != Preallocation::Off && self.backing.is_some() {
            return invalid("what is allocated beforehand would hide the backing file");
        }
        Ok(())
    }

    fn header(&self) -> Header {
        let mut extensions = Extensions::default();
        if let Some((_, format)) = &self.backing {
            extensions.set(extension::BACKING_FORMAT, name_bytes(format));
        }
        if let Some(name) = &self.data_file {
            extensions.set(extension::DATA_FILE, name_bytes(name));
        }
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        Header {
            area: Vec::new(),
            version: self.version,
            geometry: self.geometry(),
            size: self.size,
            l1: ByteRange::default(),
            refcount_table: ByteRange::default(),
            snapshot_count: 0,
            snapshots_at: ByteOffset::ZERO,
            incompatible: flag(self.data_file.is_some(), feature::DATA_FILE)
                | flag(self.compression == Compression::Zstd, feature::COMPRESSION)
                | flag(self.extended_l2, feature::EXTENDED_L2),
            compatible: flag(self.lazy_refcounts, feature::LAZY_REFCOUNTS),
            autoclear: flag(self.data_file_raw, feature::RAW_DATA),
            compression: self.compression,
            encryption: self.encryption.as_ref().map(|_| Encryption::Luks),
            extensions,
            backing: self.backing.as_ref().map(|(name, _)| name.clone()),
        }
    }
}

/// Makes an image in `file`, whose content is lost. `data` is the external data file, if there is
/// to be one. The image is durable when this returns.
///
/// # Errors
/// [`ErrorKind::Invalid`] for options that do not go together; [`ErrorKind::OutOfSpace`].
pub fn create(
    file: &Arc<dyn BlockDevice>,
    data: Option<&Arc<dyn BlockDevice>>,
    options: &CreateOptions,
) -> Result<()> {
    options.check(file.name())?;
    if options.data_file.is_some() != data.is_some() {
        let problem = "an external data file takes both, its name and the file";
        return Err(Error::new(ErrorKind::Invalid, file.name(), problem));
    }
    let geometry = options.geometry();
    // Whatever was there is no image any more, whenever this ends.
    if file.size() < geometry.cluster() {
        file.resize(geometry.cluster())?;
    }
    write_any(&**file, &[0; SECTOR_ZERO], ByteOffset::ZERO)?;
    file.flush()?;
    if let Some(data) = data
        && data.size() < options.size
    {
        data.resize(options.size)?;
    }
    let mut header = options.header();
    lay_out(file, &mut header, options)?;
    if options.preallocation != Preallocation::Off || options.data_file_raw {
        let secret = options.encryption.as_ref().map(|encryption| encryption.secret.clone());
        let opened = OpenOptions { data: data.cloned(), secret, ..OpenOptions::default() };
        let image = Image::open(Arc::clone(file), opened)?;
        image.preallocate(options.preallocation)?;
        image.close()?;
    }
    Ok(())
}

/// Header, refcount table, refcount block, L1 table: one behind the other, as QEMU has them.
fn lay_out(
    file: &Arc<dyn BlockDevice>,
    header: &mut Header,
    options: &CreateOptions,
) -> Result<()> {
    let geometry = header.geometry;
    let mut counts = Counts::none(Arc::clone(file), geometry);
    counts.add_block(0, HostCluster(2));
    counts.add(HostCluster(0), 3)?;
    let table = geometry.host_range(HostCluster(1), 1);
    let mut alloc = Allocator::new(Arc::clone(file), geometry, counts, table);
    alloc.fresh.insert(0);
    alloc.reach(HostCluster(3))?;
    let entries = geometry.l1_entries(options.size).max(1);
    let l1_len = ByteCount::new(entries * 8);
    let l1 = alloc.allocate_whole(geometry.clusters(l1_len))?;
    let mut stage = Stage::default();
    if let Some(new) = &options.encryption {
        let area = luks::create(&new.secret, new.time, &new.uuid)?;
        let place = alloc.allocate_whole(geometry.clusters(ByteCount::of(&area)))?;
        let at = geometry.host_start(place.first);
        let field = EncryptionField { offset: at.get().into(), length: (area.len() as u64).into() };
        header.extensions.set(extension::ENCRYPTION, field.as_bytes().to_vec());
        stage.push(at, area);
    }
    for (first, count) in std::mem::take(&mut alloc.retired) {
        alloc.give_back(first, count)?;
    }
    header.l1 = ByteRange::new(geometry.host_start(l1.first), l1_len);
    header.refcount_table = alloc.table;
    let whole = geometry.host_range(l1.first, l1.count);
    file.zero(whole, ZeroMode { may_unmap: true, only_if_fast: false })?;
    for chunk in alloc.counts.take_dirty() {
        stage.push(chunk.at, chunk.bytes);
    }
    let table = alloc.table;
    let mut state = State::new(geometry, alloc, HashSet::new());
    stage.push(table.start, state.refcount_table(table));
    stage.write(&**file)?;
    file.flush()?;
    build_header(header, file.name())?;
    let mut area = header.area.clone();
    area.resize(area.len().max(SECTOR_ZERO), 0);
    // The rest first: the first sector makes it an image.
    write_any(&**file, &area[SECTOR_ZERO..], ByteOffset::new(SECTOR_ZERO as u64))?;
    file.flush()?;
    write_any(&**file, &area[..SECTOR_ZERO], ByteOffset::ZERO)?;
    file.flush()?;
    state.trim(&**file)
}

/// Builds the header, with names for the features where there is room for them.
fn build_header(header: &mut Header, name: &str) -> Result<()> {
    let bare = header.extensions.clone();
    if header.version > 2 {
        header.extensions.set(extension::FEATURE_NAMES, feature_names());
    }
    header.build(name).or_else(|_| {
        header.extensions = bare;
        header.build(name)
    })
}

impl Image {
    /// Gives every cluster of the disk that is nowhere a place.
    fn preallocate(&self, how: Preallocation) -> Result<()> {
        let geometry = self.source.geometry;
        let size = self.size();
        self.prepare_writes()?;
        let sparse = matches!(how, Preallocation::Off | Preallocation::Metadata);
        self.state()?.lock().alloc.provisions = !sparse;
        let end = geometry.clusters(size);
        for index in (0..geometry.l1_entries(size)).map(|index| L1Index(index as u32)) {
            let first = geometry.first_of(index).0;
            let last = end.min(first + geometry.table_entries());
            let mut at = first;
            while at < last {
                at += self.place_clusters(GuestCluster(at), last - at)?;
            }
            // Tables of a large disk do not wait all together.
            self.settle()?;
        }
        let data = self.source.data();
        let whole = ByteRange::new(ByteOffset::ZERO, data.size());
        match how {
            Preallocation::Off | Preallocation::Metadata => Ok(()),
            // What an image grows by has its space; an external file has it now.
            Preallocation::Falloc => data.provision(whole),
            Preallocation::Full => self.write_zeros(size),
        }
    }

    /// Places up to `count` clusters from `guest` on; how many it was.
    fn place_clusters(&self, guest: GuestCluster, count: u64) -> Result<u64> {
        let geometry = self.source.geometry;
        // Loaded before it is changed.
        self.source.cluster(guest)?;
        let (index, _) = geometry.slot(guest);
        let mut state = self.state()?.lock();
        state.own_table(&self.source.tree, index)?;
        if geometry.external {
            let new = Standard::data(geometry, external_host(guest));
            state.publish(&self.source.tree, guest, Cluster::Standard(new));
            return Ok(1);
        }
        let run = state.alloc.allocate(count)?;
        for ahead in 0..run.count {
            let new = Standard::data(geometry, run.first.plus(ahead));
            let guest = GuestCluster(guest.0 + ahead);
            state.publish(&self.source.tree, guest, Cluster::Standard(new));
        }
        drop(state);
        if !run.blank {
            // Before the mapping is durable, which only `settle` makes it.
            let range = geometry.host_range(run.first, run.count);
            self.source.file.zero(range, ZeroMode::default())?;
        }
        Ok(run.count)
    }

    fn write_zeros(&self, size: ByteCount) -> Result<()> {
        let zeros = vec![0; 1 << 20];
        let whole = ByteRange::new(ByteOffset::ZERO, size);
        for piece in whole.pieces(ByteCount::new(zeros.len() as u64)) {
            self.write_at(&zeros[..piece.len.as_usize()], piece.start)?;
        }
        self.flush()
    }
}
