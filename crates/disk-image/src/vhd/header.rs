//! The header of a sparse disk: bytes -> unchecked -> checked, and what it says of the parent.

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result, SECTOR};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::address::{BlockSize, whole_sectors};
use super::footer::{FOOTER, Footer, Kind};
use super::host::read_structure;
use super::identity::{DiskId, Timestamp};
use super::layout::{HEADER_COOKIE, HeaderLayout, LocatorLayout, NOWHERE, VERSION};
use super::locator::{self, Locator};

/// Bytes of a header.
pub(super) const HEADER: ByteCount = ByteCount::new(1024);
/// Where headers lie, behind the copy of the footer.
pub(super) const HEADER_AT: ByteOffset = ByteOffset::new(SECTOR);
/// Where block allocation tables lie, behind the header.
pub(super) const TABLE_AT: ByteOffset = ByteOffset::new(3 * SECTOR);
/// Blocks of a disk at most: 2 TiB in blocks of 512 KiB. More would only be a way to have memory
/// wasted by a few bytes from outside.
const MOST_BLOCKS: u64 = 1 << 22;
/// UTF-16 units of a parent's name.
const NAME_UNITS: usize = 256;

/// A header that was checked, with every byte that it was read from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    layout: HeaderLayout,
    block_size: BlockSize,
}

/// What a differencing disk says of its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentInfo {
    /// Its UUID; `None` for a raw parent, which has none (XenServer).
    pub id: Option<DiskId>,
    /// When the parent's file was last changed, as its child was made. XenServer and libvhdi do
    /// not mind if it has changed since; Windows does.
    pub modified: Timestamp,
    /// The parent's file name.
    pub name: String,
    /// Where it lies, in several spellings. GATED-OPEN: nothing here opens them.
    pub locators: Vec<Locator>,
}

/// The parent that a disk is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentLink {
    /// Its UUID; `None` for a raw parent.
    pub id: Option<DiskId>,
    /// When its file was last changed.
    pub modified: Timestamp,
    /// Its path relative to the child's folder, with slashes; the last part is its name.
    pub path: String,
}

impl Header {
    /// The header of a new disk without a parent, whose table holds `entries`.
    pub(super) fn new(block_size: BlockSize, entries: u32) -> Self {
        let mut layout = HeaderLayout::new_zeroed();
        layout.cookie = HEADER_COOKIE;
        layout.data_offset = NOWHERE.into();
        layout.table_offset = TABLE_AT.get().into();
        layout.version = VERSION.into();
        layout.max_entries = entries.into();
        let bytes = u32::try_from(block_size.bytes().get()).unwrap_or(u32::MAX);
        layout.block_size = bytes.into();
        Self { layout, block_size }
    }

    /// Reads and checks the header that `footer` names.
    ///
    /// # Errors
    /// `Corrupt` where there is none or it breaks a rule; `Unsupported` for what is not known here.
    pub(super) fn read(file: &dyn BlockDevice, footer: &Footer) -> Result<Self> {
        let at = footer.header_at();
        let bytes = read_structure::<{ HEADER.get() as usize }>(file, at)?;
        let Some(bytes) = bytes.filter(|_| at.is_aligned(ByteCount::new(SECTOR))) else {
            let problem = format!("has no room for a header at {at}, where its footer names one");
            return Err(Error::new(ErrorKind::Corrupt, file.name(), problem));
        };
        let header = Self::parse(file.name(), &bytes)?;
        header.check(file, footer)?;
        Ok(header)
    }

    /// Checks a header by itself.
    pub(super) fn parse(object: &str, bytes: &[u8; HEADER.get() as usize]) -> Result<Self> {
        let layout = HeaderLayout::read_from_bytes(bytes).expect("as long as a header");
        let corrupt = |problem: String| Error::new(ErrorKind::Corrupt, object, problem);
        if layout.cookie != HEADER_COOKIE {
            let cookie = layout.cookie.escape_ascii();
            return Err(corrupt(format!("has no header: there is '{cookie}'")));
        }
        let (sum, found) = (layout.sum(), layout.checksum.get());
        if sum != found {
            return Err(corrupt(format!("has the sum {found:#x} in its header, not {sum:#x}"))
                .advise("restore it from a copy: the header has none in the file"));
        }
        if layout.version.get() >> 16 != VERSION >> 16 {
            let version = layout.version.get();
            let problem = format!("has a header of version {version:#x}, not known here");
            return Err(Error::new(ErrorKind::Unsupported, object, problem)
                .advise("open it with the software that made it"));
        }
        let block = ByteCount::new(u64::from(layout.block_size.get()));
        let block_size = BlockSize::new(block)
            .map_err(|error| corrupt("has an impossible header".into()).because(error))?;
        Ok(Self { layout, block_size })
    }

    /// Checks that the table lies in the file, apart from footer and header, and holds the disk.
    fn check(&self, file: &dyn BlockDevice, footer: &Footer) -> Result<()> {
        let corrupt = |problem: String| Error::new(ErrorKind::Corrupt, file.name(), problem);
        let blocks = self.block_size.count(footer.size());
        if blocks > u64::from(self.entries()) {
            let entries = self.entries();
            return Err(corrupt(format!(
                "has a table of {entries} entries for a disk of {blocks} blocks"
            )));
        }
        if blocks > MOST_BLOCKS {
            let problem = format!("has {blocks} blocks; more than {MOST_BLOCKS} are not read");
            return Err(Error::new(ErrorKind::Unsupported, file.name(), problem));
        }
        let needed = whole_sectors(4 * blocks);
        let Some(table) = ByteRange::checked(self.table_at(), needed)
            .filter(|table| table.end().get() <= file.size().get())
            .filter(|table| table.start.is_aligned(ByteCount::new(SECTOR)))
        else {
            let at = self.table_at();
            return Err(corrupt(format!("has its table at {at}, where the file holds none")));
        };
        let header = ByteRange::new(footer.header_at(), HEADER);
        let copy = ByteRange::new(ByteOffset::ZERO, FOOTER);
        if [header, copy].iter().any(|other| !other.intersect(table).is_empty()) {
            return Err(corrupt(format!("has its table over its own header: {table}")));
        }
        Ok(())
    }

    /// Its bytes, with the right sum.
    pub(super) fn bytes(&self) -> [u8; HEADER.get() as usize] {
        let mut layout = self.layout;
        layout.checksum = layout.sum().into();
        layout.as_bytes().try_into().expect("as long as a header")
    }

    pub(super) fn layout(&self) -> &HeaderLayout {
        &self.layout
    }

    pub(super) fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// Entries of the table.
    pub(super) fn entries(&self) -> u32 {
        self.layout.max_entries.get()
    }

    pub(super) fn table_at(&self) -> ByteOffset {
        ByteOffset::new(self.layout.table_offset.get())
    }

    /// What the whole table occupies, also where the disk needs less of it.
    pub(super) fn table(&self) -> ByteRange {
        let len = whole_sectors(4 * u64::from(self.entries()));
        ByteRange::checked(self.table_at(), len)
            .unwrap_or(ByteRange::new(self.table_at(), ByteCount::ZERO))
    }

    /// The entries for locators. Those of a disk without a parent mean nothing.
    pub(super) fn locators(&self, kind: Kind) -> &[LocatorLayout] {
        if kind == Kind::Differencing { &self.layout.locators } else { &[] }
    }

    /// Whether anything of a parent is left in the header.
    pub(super) fn names_a_parent(&self) -> bool {
        let layout = &self.layout;
        layout.parent_uuid != [0; 16]
            || layout.parent_timestamp.get() != 0
            || layout.parent_name.iter().any(|unit| unit.get() != 0)
            || layout.locators.iter().any(LocatorLayout::is_used)
    }

    /// The parent's UUID; `None` for a raw one, and without a parent.
    pub(super) fn parent_id(&self) -> Option<DiskId> {
        DiskId::present(self.layout.parent_uuid)
    }

    /// What it says of the parent.
    pub(super) fn parent(&self, file: &dyn BlockDevice) -> Result<ParentInfo> {
        let units = self.layout.parent_name.iter().map(|unit| unit.get());
        let units: Vec<u16> = units.take_while(|&unit| unit != 0).collect();
        Ok(ParentInfo {
            id: self.parent_id(),
            modified: Timestamp::new(self.layout.parent_timestamp.get()),
            name: String::from_utf16_lossy(&units),
            locators: locator::read(file, &self.layout.locators)?,
        })
    }

    /// The same header for the parent `link`, with `locators` as its entries.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where the parent's name is too long, or there is none.
    pub(super) fn with_parent(
        mut self,
        link: &ParentLink,
        locators: [LocatorLayout; 8],
    ) -> Result<Self> {
        let name = link.path.rsplit('/').next().unwrap_or_default();
        let units: Vec<u16> = name.encode_utf16().collect();
        if units.is_empty() || units.len() >= NAME_UNITS {
            let problem = format!("has no file name of 1 to {} characters", NAME_UNITS - 1);
            return Err(Error::new(ErrorKind::Invalid, &*link.path, problem));
        }
        self.layout.parent_uuid = link.id.map_or([0; 16], DiskId::bytes);
        self.layout.parent_timestamp = link.modified.get().into();
        self.layout.parent_name = [0.into(); NAME_UNITS];
        for (place, unit) in self.layout.parent_name.iter_mut().zip(units) {
            *place = unit.into();
        }
        self.layout.locators = locators;
        Ok(self)
    }

    /// The same header with its locators elsewhere.
    pub(super) fn with_locators(mut self, locators: [LocatorLayout; 8]) -> Self {
        self.layout.locators = locators;
        self
    }

    /// The same header without anything of a parent.
    pub(super) fn without_parent(mut self) -> Self {
        self.layout.parent_uuid = [0; 16];
        self.layout.parent_timestamp = 0.into();
        self.layout.parent_name = [0.into(); NAME_UNITS];
        self.layout.locators = [LocatorLayout::unused(); 8];
        self
    }
}

impl ParentInfo {
    /// Whether the parent's file is as old as it was when the child was made.
    pub fn is_unchanged_since(&self, modified: Timestamp) -> bool {
        self.modified == modified
    }
}

#[cfg(test)]
mod tests {
    use super::{Header, ParentLink};
    use crate::vhd::layout::LocatorLayout;
    use crate::vhd::{BlockSize, DiskId, Timestamp};
    use block_io::MemoryDevice;
    use block_types::ByteCount;

    fn link(path: &str) -> ParentLink {
        let id = Some(DiskId::new([9; 16]));
        ParentLink { id, modified: Timestamp::new(5), path: path.into() }
    }

    #[test]
    fn the_parent_is_written_and_read_back() {
        let header = Header::new(BlockSize::DEFAULT, 64);
        assert!(!header.names_a_parent());
        let unused = [LocatorLayout::unused(); 8];
        let child = header.with_parent(&link("../a/grüße.vhd"), unused).expect("short");
        let again = Header::parse("child", &child.bytes()).expect("sound");
        let file = MemoryDevice::new("child", ByteCount::new(4096));
        let parent = again.parent(&file).expect("read");
        assert_eq!(parent.name, "grüße.vhd");
        assert_eq!(parent.id, Some(DiskId::new([9; 16])));
        assert!(parent.is_unchanged_since(Timestamp::new(5)));
        assert!(again.names_a_parent() && !again.without_parent().names_a_parent());
    }

    #[test]
    fn names_have_limits() {
        let header = Header::new(BlockSize::DEFAULT, 64);
        let unused = [LocatorLayout::unused(); 8];
        for bad in ["", "a/", &"x".repeat(256)] {
            assert!(header.with_parent(&link(bad), unused).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = Header::new(BlockSize::DEFAULT, 64).bytes();
        for bit in 0..1024 * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::parse("disk.vhd", &bytes).is_err(), "bit {bit}");
        }
    }
}
