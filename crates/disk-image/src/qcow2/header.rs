//! The header: from bytes that nobody trusts to figures that everybody may.
//!
//! [`UncheckedHeader`] holds what stands in the file; [`UncheckedHeader::check`] makes a [`Header`]
//! of it, once every figure lies within the limits. Bytes that are not understood, unknown fields
//! and extensions, stay where they are: a change of the header patches the fields that changed.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};
use zerocopy::FromBytes;

use super::bytes::read_clipped;
use super::extension::{Extensions, FeatureKind};
use super::geometry::{CLUSTER_BITS, Geometry};
use super::layout::{CompressionField, HeaderV2, HeaderV3, MAGIC, extension, feature};

/// The largest L1 table, as in QEMU.
pub(super) const L1_LIMIT: u64 = 32 << 20;
/// The largest refcount table, as in QEMU.
pub(super) const REFCOUNT_TABLE_LIMIT: u64 = 8 << 20;
/// The most internal snapshots, as in QEMU.
pub(super) const SNAPSHOT_LIMIT: u32 = 65536;
/// The longest backing file name.
pub(super) const BACKING_LIMIT: u32 = 1023;
/// Every field that ever changes lies in the first sector, which a disk writes whole or not at all.
pub(super) const SECTOR_ZERO: usize = 512;
/// Bytes of the header of version 2, and the least of version 3.
pub(super) const V2_LENGTH: usize = size_of::<HeaderV2>();
pub(super) const V3_LENGTH: usize = V2_LENGTH + size_of::<HeaderV3>();

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate, as every version of QEMU reads it.
    #[default]
    Zlib,
    /// Zstandard, one frame for each cluster; QEMU 5.1 and later.
    Zstd,
}

/// How the guest's data are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// AES-CBC with a password as the key; deprecated.
    Aes,
    /// LUKS.
    Luks,
}

/// The header of an image, every figure within its limits.
#[derive(Clone, Debug)]
pub struct Header {
    /// Cluster 0 up to the end of what the header uses, as it stands in the file.
    pub(super) area: Vec<u8>,
    pub(super) version: u32,
    pub(super) geometry: Geometry,
    pub(super) size: ByteCount,
    pub(super) l1: ByteRange,
    pub(super) refcount_table: ByteRange,
    pub(super) snapshot_count: u32,
    pub(super) snapshots_at: ByteOffset,
    pub(super) incompatible: u64,
    pub(super) compatible: u64,
    pub(super) autoclear: u64,
    pub(super) compression: Compression,
    pub(super) encryption: Option<Encryption>,
    pub(super) extensions: Extensions,
    pub(super) backing: Option<OsString>,
}

/// A header as it stands in the file.
pub(super) struct UncheckedHeader {
    name: String,
    file_size: ByteCount,
    v2: HeaderV2,
    v3: HeaderV3,
    length: usize,
    /// Cluster 0, cut at the end of the file.
    area: Vec<u8>,
}

impl UncheckedHeader {
    /// Reads cluster 0, at most 2 MiB, of `file`.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] unless it begins like an image of a known version.
    pub(super) fn read(file: &dyn BlockDevice) -> Result<Self> {
        let name = file.name().to_owned();
        let mut head = [0; V3_LENGTH];
        read_clipped(file, &mut head, ByteOffset::ZERO)?;
        let (v2, rest) = HeaderV2::read_from_prefix(&head).map_err(|_| not_qcow2(&name))?;
        let (mut v3, _) = HeaderV3::read_from_prefix(rest).map_err(|_| not_qcow2(&name))?;
        if v2.magic.get() != MAGIC {
            return Err(not_qcow2(&name));
        }
        let cluster_bits = v2.cluster_bits.get();
        if !CLUSTER_BITS.contains(&cluster_bits) {
            let problem = format!("has clusters of 2^{cluster_bits} bytes, not of 2^9 to 2^21");
            return Err(corrupt(&name, problem));
        }
        let length = match v2.version.get() {
            2 => {
                v3 = HeaderV3 {
                    refcount_order: 4.into(),
                    header_length: (V2_LENGTH as u32).into(),
                    ..HeaderV3::default_features()
                };
                V2_LENGTH
            }
            3 => v3.header_length.get() as usize,
            other => {
                let problem = format!("is of version {other} of the format, not of 2 or 3");
                return Err(Error::new(ErrorKind::Unsupported, &name, problem));
            }
        };
        let file_size = file.size();
        let whole = (1u64 << cluster_bits).min(file_size.get());
        let mut area = vec![0; ByteCount::new(whole).as_usize()];
        read_clipped(file, &mut area, ByteOffset::ZERO)?;
        Ok(Self { name, file_size, v2, v3, length, area })
    }

    /// Checks every figure.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for a figure outside its limits; [`ErrorKind::Unsupported`], by name,
    /// for an incompatible feature that is not known (KNOW-OR-REFUSE).
    pub(super) fn check(self) -> Result<Header> {
        let version = self.v2.version.get();
        let least = if version == 2 { V2_LENGTH } else { V3_LENGTH };
        if self.length < least || !self.length.is_multiple_of(8) || self.length > self.area.len() {
            let problem = format!("has a header of {} bytes, which cannot be", self.length);
            return Err(self.corrupt(problem));
        }
        let (extensions, extensions_len) = Extensions::parse(&self.area[self.length..])
            .map_err(|problem| self.corrupt(problem))?;
        let incompatible = self.v3.incompatible_features.get();
        self.check_features(incompatible, &extensions)?;
        let geometry = self.geometry(incompatible)?;
        let (backing, backing_end) = self.backing()?;
        let used = (self.length + extensions_len).max(backing_end);
        let header = Header {
            version,
            geometry,
            size: ByteCount::new(self.v2.size.get()),
            l1: self.l1(geometry)?,
            refcount_table: self.refcount_table(geometry)?,
            snapshot_count: self.v2.nb_snapshots.get(),
            snapshots_at: ByteOffset::new(self.v2.snapshots_offset.get()),
            incompatible,
            compatible: self.v3.compatible_features.get(),
            autoclear: self.v3.autoclear_features.get(),
            compression: self.compression(incompatible)?,
            encryption: self.encryption()?,
            extensions,
            backing,
            area: self.area[..used].to_vec(),
        };
        self.check_whole(&header)?;
        Ok(header)
    }

    fn corrupt(&self, problem: impl Into<String>) -> Error {
        corrupt(&self.name, problem)
    }

    fn check_features(&self, incompatible: u64, extensions: &Extensions) -> Result<()> {
        let unknown = incompatible & !feature::INCOMPATIBLE;
        if unknown == 0 {
            return Ok(());
        }
        let names: Vec<String> = (0..64)
            .filter(|bit| unknown & 1 << bit != 0)
            .map(|bit| {
                let name = extensions.feature_name(FeatureKind::Incompatible, bit);
                name.unwrap_or_else(|| format!("incompatible bit {bit}"))
            })
            .collect();
        let problem = format!("needs features that are not known here: {}", names.join(", "));
        Err(Error::new(ErrorKind::Unsupported, &self.name, problem)
            .advise("open it with the program that made it, and convert it there"))
    }

    fn geometry(&self, incompatible: u64) -> Result<Geometry> {
        let geometry = Geometry {
            cluster_bits: self.v2.cluster_bits.get(),
            refcount_order: self.v3.refcount_order.get(),
            extended: incompatible & feature::EXTENDED_L2 != 0,
            external: incompatible & feature::DATA_FILE != 0,
            zero_clusters: self.v2.version.get() > 2,
        };
        if geometry.refcount_order > 6 {
            let order = geometry.refcount_order;
            return Err(self.corrupt(format!("has reference counts of 2^{order} bits")));
        }
        if geometry.extended && geometry.cluster_bits < 14 {
            let size = geometry.cluster();
            return Err(self.corrupt(format!("has extended L2 entries with clusters of {size}")));
        }
        Ok(geometry)
    }

    /// A table of whole clusters behind cluster 0 and inside the file.
    fn table(&self, what: &str, at: u64, len: u64, geometry: Geometry) -> Result<ByteRange> {
        let range = ByteRange::checked(ByteOffset::new(at), ByteCount::new(len));
        let fits = range.is_some_and(|range| {
            range.start.is_aligned(geometry.cluster())
                && at >= geometry.cluster().get()
                && range.end().get() <= self.file_size.get()
        });
        match range {
            Some(range) if fits => Ok(range),
            _ => Err(self.corrupt(format!(
                "has its {what}, {len} bytes at {at:#x}, outside the file, over the header or at \
                 no cluster's start"
            ))),
        }
    }

    fn l1(&self, geometry: Geometry) -> Result<ByteRange> {
        let len = u64::from(self.v2.l1_size.get()) * 8;
        if len > L1_LIMIT {
            let problem = format!("has an L1 table of {len} bytes, more than {L1_LIMIT}");
            return Err(self.corrupt(problem));
        }
        if len == 0 {
            return Ok(ByteRange::default());
        }
        self.table("L1 table", self.v2.l1_table_offset.get(), len, geometry)
    }

    fn refcount_table(&self, geometry: Geometry) -> Result<ByteRange> {
        let clusters = u64::from(self.v2.refcount_table_clusters.get());
        let len = clusters << geometry.cluster_bits;
        let limit = REFCOUNT_TABLE_LIMIT.max(geometry.cluster().get());
        if len == 0 || len > limit {
            return Err(
                self.corrupt(format!("has a refcount table of {len} bytes, not of 1 to {limit}"))
            );
        }
        self.table("refcount table", self.v2.refcount_table_offset.get(), len, geometry)
    }

    fn backing(&self) -> Result<(Option<OsString>, usize)> {
        let (at, len) = (self.v2.backing_file_offset.get(), self.v2.backing_file_size.get());
        if at == 0 || len == 0 {
            return Ok((None, 0));
        }
        let start = usize::try_from(at).unwrap_or(usize::MAX);
        let end = start.saturating_add(len as usize);
        let bytes = self.area.get(start..end).filter(|_| start >= self.length);
        match bytes {
            Some(bytes) if len <= BACKING_LIMIT => {
                Ok((Some(OsString::from_vec(bytes.to_vec())), end))
            }
            _ => Err(self.corrupt(format!(
                "has its backing file's name, {len} bytes at {at:#x}, outside the first cluster, \
                 or longer than {BACKING_LIMIT} bytes"
            ))),
        }
    }

    fn compression(&self, incompatible: u64) -> Result<Compression> {
        let field = self.area.get(V3_LENGTH..self.length).unwrap_or_default();
        let kind = CompressionField::read_from_prefix(field).map_or(0, |(f, _)| f.compression_type);
        match (kind, incompatible & feature::COMPRESSION != 0) {
            (0, false) => Ok(Compression::Zlib),
            (1, true) => Ok(Compression::Zstd),
            (0 | 1, _) => Err(self.corrupt("says two things about its compression")),
            (other, _) => Err(Error::new(
                ErrorKind::Unsupported,
                &self.name,
                format!("is compressed in a way that is not known here (type {other})"),
            )),
        }
    }

    fn encryption(&self) -> Result<Option<Encryption>> {
        match self.v2.crypt_method.get() {
            0 => Ok(None),
            1 => Ok(Some(Encryption::Aes)),
            2 => Ok(Some(Encryption::Luks)),
            other => Err(Error::new(
                ErrorKind::Unsupported,
                &self.name,
                format!("is encrypted in a way that is not known here (method {other})"),
            )),
        }
    }

    fn check_whole(&self, header: &Header) -> Result<()> {
        let needed = header.geometry.l1_entries(header.size) * 8;
        if needed > header.l1.len.get() {
            return Err(self.corrupt(format!(
                "has an L1 table of {} bytes where {} need {needed}",
                header.l1.len.get(),
                header.size
            )));
        }
        if header.snapshot_count > SNAPSHOT_LIMIT {
            let count = header.snapshot_count;
            return Err(self.corrupt(format!("has {count} snapshots, over {SNAPSHOT_LIMIT}")));
        }
        let geometry = header.geometry;
        if header.snapshot_count > 0 {
            self.table("snapshot table", header.snapshots_at.get(), 1, geometry)?;
        }
        if header.data_file_raw() && (!geometry.external || header.backing.is_some()) {
            return Err(self.corrupt("has a raw data file, but no data file or a backing file"));
        }
        Ok(())
    }
}

impl HeaderV3 {
    /// The features of version 2: none.
    fn default_features() -> Self {
        Self {
            incompatible_features: 0.into(),
            compatible_features: 0.into(),
            autoclear_features: 0.into(),
            refcount_order: 4.into(),
            header_length: 0.into(),
        }
    }
}

impl Header {
    /// Reads and checks the header of `file`; opens nothing and reads nothing else.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if it is no qcow2 image, or one with a figure outside its limits;
    /// [`ErrorKind::Unsupported`], by name, for incompatible features that are not known.
    pub fn read(file: &dyn BlockDevice) -> Result<Self> {
        UncheckedHeader::read(file)?.check()
    }

    /// Version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Bytes of the disk.
    pub fn size(&self) -> ByteCount {
        self.size
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> ByteCount {
        self.geometry.cluster()
    }

    /// Bits of a reference count.
    pub fn refcount_bits(&self) -> u32 {
        1 << self.geometry.refcount_order
    }

    /// How compressed clusters are compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// How the guest's data are encrypted, if they are.
    pub fn encryption(&self) -> Option<Encryption> {
        self.encryption
    }

    /// Whether clusters have subclusters.
    pub fn extended_l2(&self) -> bool {
        self.geometry.extended
    }

    /// Whether reference counts may be postponed.
    pub fn lazy_refcounts(&self) -> bool {
        self.compatible & feature::LAZY_REFCOUNTS != 0
    }

    /// Whether the reference counts were postponed and not made up for.
    pub fn is_dirty(&self) -> bool {
        self.incompatible & feature::DIRTY != 0
    }

    /// Whether somebody found the image corrupt.
    pub fn is_corrupt(&self) -> bool {
        self.incompatible & feature::CORRUPT != 0
    }

    /// How many internal snapshots there are.
    pub fn snapshots(&self) -> u32 {
        self.snapshot_count
    }

    /// The backing file as the image names it: a path, a URI or `json:`. A name of another's
    /// making: to be opened only as the caller's policy lets it (GATED-OPEN).
    pub fn backing_file(&self) -> Option<OsString> {
        self.backing.clone()
    }

    /// The format of the backing file as the image names it.
    pub fn backing_format(&self) -> Option<OsString> {
        self.extensions.name(extension::BACKING_FORMAT)
    }

    /// Whether the guest's data lie in another file.
    pub fn has_data_file(&self) -> bool {
        self.geometry.external
    }

    /// The external data file as the image names it; the same caution holds.
    pub fn data_file(&self) -> Option<OsString> {
        self.extensions.name(extension::DATA_FILE).filter(|_| self.geometry.external)
    }

    /// Whether the external data file alone is a raw image of the disk.
    pub fn data_file_raw(&self) -> bool {
        self.autoclear & feature::RAW_DATA != 0
    }
}

/// The error for a file that is something else.
fn not_qcow2(name: &str) -> Error {
    corrupt(name, "is no qcow2 image: it does not begin with \"QFI\\xfb\"")
}

/// The error for an image that breaks the rules of the format.
pub(super) fn corrupt(name: &str, problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, name, problem)
        .advise("check it with 'firn image check', and restore it from a copy if that cannot help")
}
