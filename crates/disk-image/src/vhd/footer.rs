//! The footer: bytes -> unchecked -> checked, and which of its two copies counts.
//!
//! A sparse disk has it twice: in the last sector of the file and, as a copy, in the first. Either
//! is one sector, which a disk writes whole or not at all. The one at the end counts where it is
//! sound, as it does for XenServer: every change reaches it first (see `commit`). Programs that
//! crashed leave garbage or nothing there; the copy counts then.

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, Error, ErrorKind, Result, SECTOR};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::geometry::Geometry;
use super::host::{read_bytes, read_structure};
use super::identity::{Creator, DiskId, Timestamp};
use super::layout::{
    FEATURE_RESERVED, FEATURE_TEMPORARY, FOOTER_COOKIE, FooterLayout, NOWHERE, POISONED_COOKIE,
    VERSION,
};

/// Bytes of a footer.
pub(super) const FOOTER: ByteCount = ByteCount::new(SECTOR);
/// The largest disk of the format: 2040 GiB, by its specification and its peers.
pub(super) const MOST: ByteCount = ByteCount::new(2040 << 30);
/// The largest disk that is read: what 32 bits of sectors can address.
const MOST_READ: ByteCount = ByteCount::new(2 << 40);

/// How a disk is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All of its bytes, then the footer.
    Fixed,
    /// The blocks that were written.
    Dynamic,
    /// The sectors that were written; all others are its parent's.
    Differencing,
}

/// A footer that was checked, with every byte that it was read from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Footer {
    layout: FooterLayout,
    kind: Kind,
}

/// What one of the two places of the footer holds.
#[derive(Debug)]
pub(super) enum Found {
    /// A sound footer.
    Sound(Box<Footer>),
    /// What is wrong with it.
    Bad(Error),
}

/// Both copies of a footer, as they were found.
pub(super) struct Footers {
    /// In the first sector of the file.
    pub(super) copy: Found,
    /// In the last one.
    pub(super) end: Found,
    /// Where the one at the end begins.
    pub(super) end_at: ByteOffset,
}

impl Footer {
    /// The footer of a new disk.
    pub(super) fn new(
        kind: Kind,
        size: ByteCount,
        id: DiskId,
        created: Timestamp,
        creator: Creator,
    ) -> Self {
        let mut layout = FooterLayout::new_zeroed();
        layout.cookie = FOOTER_COOKIE;
        layout.features = FEATURE_RESERVED.into();
        layout.version = VERSION.into();
        layout.data_offset = if kind == Kind::Fixed { NOWHERE } else { FOOTER.get() }.into();
        layout.timestamp = created.get().into();
        layout.creator_app = creator.app;
        layout.creator_version = creator.version.into();
        layout.creator_os = creator.os;
        layout.original_size = size.get().into();
        layout.disk_type = kind.number().into();
        layout.uuid = id.bytes();
        Self { layout, kind }.with_size(size)
    }

    /// Checks a footer that was read from `object`.
    ///
    /// # Errors
    /// `Corrupt` where it is none, its sum is wrong or it breaks a rule; `Unsupported` for features
    /// and versions that are not known here.
    pub(super) fn parse(object: &str, bytes: &[u8; SECTOR as usize]) -> Result<Self> {
        let layout = FooterLayout::read_from_bytes(bytes).expect("as long as a footer");
        let corrupt = |problem: String| Error::new(ErrorKind::Corrupt, object, problem);
        if layout.cookie == POISONED_COOKIE {
            return Err(corrupt("was put out of use by XenServer's tools ('v_poison')".into())
                .advise("it was being changed when that failed; repair it there, or restore it"));
        }
        if layout.cookie != FOOTER_COOKIE {
            let cookie = layout.cookie.escape_ascii();
            return Err(corrupt(format!("is no footer of a VHD: it begins with '{cookie}'")));
        }
        let (sum, found) = (layout.sum(), layout.checksum.get());
        // Old versions of XenServer set the hidden flag of the copy and leave the sum.
        let shown = FooterLayout { hidden: 0, ..layout }.sum();
        let old = creator_of(&layout).hides_in_copy();
        if found != sum && !(old && found == shown) {
            return Err(corrupt(format!("has the sum {found:#x} in its footer, not {sum:#x}")));
        }
        if layout.version.get() >> 16 != VERSION >> 16 {
            let version = layout.version.get();
            let problem = format!("is a VHD of version {version:#x}, which is not known here");
            return Err(Error::new(ErrorKind::Unsupported, object, problem)
                .advise("open it with the software that made it"));
        }
        let unknown = layout.features.get() & !(FEATURE_RESERVED | FEATURE_TEMPORARY);
        if unknown != 0 {
            let problem = format!("uses features that are not known here: bits {unknown:#x}");
            return Err(Error::new(ErrorKind::Unsupported, object, problem)
                .advise("open it with the software that made it"));
        }
        let Some(kind) = Kind::of(layout.disk_type.get()) else {
            let number = layout.disk_type.get();
            return Err(corrupt(format!("is of type {number}, which no VHD is that is in use")));
        };
        let size = ByteCount::new(layout.current_size.get());
        let most = if kind == Kind::Fixed { ByteCount::new(1 << 62) } else { MOST_READ };
        if !size.is_aligned(ByteCount::new(SECTOR)) || size > most {
            let problem = format!("has a size of {} bytes, which no VHD can have", size.get());
            return Err(corrupt(problem));
        }
        Ok(Self { layout, kind })
    }

    /// Its bytes, with the right sum.
    pub(super) fn bytes(&self) -> [u8; SECTOR as usize] {
        let mut layout = self.layout;
        layout.checksum = layout.sum().into();
        layout.as_bytes().try_into().expect("as long as a sector")
    }

    /// The bytes as they were read.
    pub(super) fn layout(&self) -> &FooterLayout {
        &self.layout
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn size(&self) -> ByteCount {
        ByteCount::new(self.layout.current_size.get())
    }

    pub(super) fn id(&self) -> DiskId {
        DiskId::new(self.layout.uuid)
    }

    pub(super) fn created(&self) -> Timestamp {
        Timestamp::new(self.layout.timestamp.get())
    }

    pub(super) fn creator(&self) -> Creator {
        creator_of(&self.layout)
    }

    pub(super) fn geometry(&self) -> Geometry {
        Geometry {
            cylinders: self.layout.cylinders.get(),
            heads: self.layout.heads,
            track_sectors: self.layout.track_sectors,
        }
    }

    pub(super) fn is_hidden(&self) -> bool {
        self.layout.hidden != 0
    }

    /// Where the header lies, of a sparse disk.
    pub(super) fn header_at(&self) -> ByteOffset {
        ByteOffset::new(self.layout.data_offset.get())
    }

    pub(super) fn with_hidden(mut self, hidden: bool) -> Self {
        self.layout.hidden = u8::from(hidden);
        self
    }

    pub(super) fn with_kind(mut self, kind: Kind) -> Self {
        self.layout.disk_type = kind.number().into();
        self.kind = kind;
        self
    }

    pub(super) fn with_id(mut self, id: DiskId) -> Self {
        self.layout.uuid = id.bytes();
        self
    }

    pub(super) fn with_header_at(mut self, at: ByteOffset) -> Self {
        self.layout.data_offset = at.get().into();
        self
    }

    pub(super) fn with_size(mut self, size: ByteCount) -> Self {
        let geometry = Geometry::of(size);
        self.layout.current_size = size.get().into();
        self.layout.cylinders = geometry.cylinders.into();
        self.layout.heads = geometry.heads;
        self.layout.track_sectors = geometry.track_sectors;
        self
    }
}

fn creator_of(layout: &FooterLayout) -> Creator {
    Creator {
        app: layout.creator_app,
        version: layout.creator_version.get(),
        os: layout.creator_os,
    }
}

impl Kind {
    fn of(number: u32) -> Option<Self> {
        match number {
            2 => Some(Self::Fixed),
            3 => Some(Self::Dynamic),
            4 => Some(Self::Differencing),
            _ => None,
        }
    }

    const fn number(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }
}

impl Found {
    pub(super) fn sound(&self) -> Option<&Footer> {
        match self {
            Self::Sound(footer) => Some(footer),
            Self::Bad(_) => None,
        }
    }
}

impl Footers {
    /// Reads both places of the footer.
    ///
    /// # Errors
    /// Those of the file.
    pub(super) fn read(file: &dyn BlockDevice) -> Result<Self> {
        let size = file.size();
        let end_at = end_of(size);
        let mut end = [0; SECTOR as usize];
        // Before Virtual PC 2004 footers had 511 bytes: the last, which is zero, is missing.
        let held = size.get().saturating_sub(end_at.get()).min(SECTOR);
        read_bytes(file, &mut end[..held as usize], end_at)?;
        let end = found(Footer::parse(&format!("{}, end", file.name()), &end));
        let copy = match read_structure(file, ByteOffset::ZERO)? {
            Some(bytes) => found(Footer::parse(&format!("{}, start", file.name()), &bytes)),
            None => Found::Bad(Error::new(ErrorKind::Corrupt, file.name(), "is empty")),
        };
        Ok(Self { copy, end, end_at })
    }

    /// The one that counts.
    ///
    /// # Errors
    /// What is wrong with the one at the end, where the copy is no better.
    pub(super) fn choose(&self) -> Result<Footer> {
        match (&self.end, &self.copy) {
            (Found::Sound(end), _) => Ok(with_old_flag(**end, self.copy.sound())),
            // The first sector of a fixed disk is a guest's: a footer there means nothing.
            (Found::Bad(_), Found::Sound(copy)) if copy.kind != Kind::Fixed => Ok(**copy),
            (Found::Bad(error), _) => Err(again(error)),
        }
    }
}

/// Old versions of XenServer keep the hidden flag in the copy alone.
fn with_old_flag(end: Footer, copy: Option<&Footer>) -> Footer {
    match copy {
        Some(copy) if end.creator().hides_in_copy() && copy.id() == end.id() => {
            end.with_hidden(copy.is_hidden())
        }
        _ => end,
    }
}

fn found(parsed: Result<Footer>) -> Found {
    match parsed {
        Ok(footer) => Found::Sound(Box::new(footer)),
        Err(error) => Found::Bad(error),
    }
}

/// The same error once more.
fn again(error: &Error) -> Error {
    let same = Error::new(error.kind(), error.object(), error.problem());
    match error.advice() {
        Some(advice) => same.advise(advice),
        None => same,
    }
}

/// Where the footer at the end of a file of `size` begins: one of 511 bytes has lost its last.
fn end_of(size: ByteCount) -> ByteOffset {
    let short = u64::from(size.get() % SECTOR == SECTOR - 1);
    ByteOffset::new(size.get().saturating_sub(SECTOR - short))
}

#[cfg(test)]
mod tests {
    use super::{FOOTER, Footer, Footers, Kind};
    use crate::vhd::{Creator, DiskId, Timestamp};
    use block_io::{BlockDevice, MemoryDevice};
    use block_types::{ByteCount, ByteOffset, ErrorKind};

    fn footer(kind: Kind) -> Footer {
        let (id, size) = (DiskId::new([7; 16]), ByteCount::new(64 << 20));
        Footer::new(kind, size, id, Timestamp::new(1), Creator::XENSERVER)
    }

    fn file(start: &[u8], end: &[u8]) -> MemoryDevice {
        let bytes = [start, &[0; 4096], end].concat();
        MemoryDevice::from_bytes("disk.vhd", bytes)
    }

    #[test]
    fn bytes_and_back() {
        let footer = footer(Kind::Dynamic).with_hidden(true);
        let again = Footer::parse("disk.vhd", &footer.bytes()).expect("sound");
        assert_eq!(again.bytes(), footer.bytes());
        assert!(again.is_hidden() && again.kind() == Kind::Dynamic);
        assert_eq!(&again.bytes()[..8], b"conectix");
        assert_eq!(again.header_at().get(), FOOTER.get());
    }

    #[test]
    fn the_end_counts_and_the_copy_stands_in() {
        let (old, new) = (footer(Kind::Dynamic), footer(Kind::Dynamic).with_hidden(true));
        let read = |start: &[u8], end: &[u8]| Footers::read(&file(start, end)).expect("read");
        let both = read(&old.bytes(), &new.bytes());
        assert!(both.choose().expect("sound").is_hidden());
        let lost = read(&old.bytes(), &[0xc7; 512]);
        assert!(!lost.choose().expect("sound").is_hidden());
        let error = read(&[0; 512], &[0; 512]).choose().expect_err("none");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("disk.vhd"), "{error}");
        // What a guest writes to its first sector is no footer of a fixed disk.
        let fixed = footer(Kind::Fixed).bytes();
        assert!(read(&fixed, &[0; 512]).choose().is_err());
    }

    #[test]
    fn footers_of_511_bytes() {
        let read = Footers::read(&file(&[], &footer(Kind::Fixed).bytes()[..511])).expect("read");
        assert_eq!(read.choose().expect("sound").kind(), Kind::Fixed);
        assert_eq!(read.end_at, ByteOffset::new(4096));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = footer(Kind::Dynamic).bytes();
        for bit in 0..512 * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Footer::parse("disk.vhd", &bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_flag_of_old_versions_lies_in_the_copy_outside_its_sum() {
        let creator = Creator { version: 0x0001_0001, ..Creator::XENSERVER };
        let size = ByteCount::new(1 << 20);
        let footer =
            Footer::new(Kind::Dynamic, size, DiskId::new([1; 16]), Timestamp::new(0), creator);
        let mut copy = footer.bytes();
        copy[85] = 1;
        let file = file(&copy, &footer.bytes());
        let chosen = Footers::read(&file).expect("read").choose().expect("sound");
        assert!(chosen.is_hidden());
    }

    #[test]
    fn unknown_features_are_refused_by_their_bits() {
        let mut unknown = footer(Kind::Dynamic);
        unknown.layout.features = 0x12.into();
        let error = Footer::parse("disk.vhd", &unknown.bytes()).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("0x10"), "{error}");
    }

    #[test]
    fn a_file_shorter_than_a_footer_is_none() {
        for len in [0, 1, 511, 512] {
            let file = MemoryDevice::new("short", ByteCount::new(len));
            assert!(Footers::read(&file).expect("read").choose().is_err(), "{len}");
            assert_eq!(file.size().get(), len);
        }
    }
}
