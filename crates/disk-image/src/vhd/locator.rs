//! Parent locators: what a disk says about where its parent lies.
//!
//! GATED-OPEN: a locator is text from inside an image. It is reported, and never opened here.

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result, SECTOR};

use super::address::whole_sectors;
use super::layout::LocatorLayout;

/// Bytes of a locator's text at most: paths are shorter, and a parent's change needs room for all.
pub(super) const LONGEST: u64 = 1024;

/// What sort of path a locator is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// `W2ku`: an absolute path of Windows, in UTF-16.
    WindowsAbsolute,
    /// `W2ru`: a path of Windows relative to the child, in UTF-16.
    WindowsRelative,
    /// `MacX`: a URL `file://`, in UTF-8.
    Url,
    /// Another, by its code.
    Other([u8; 4]),
}

/// A path to the parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locator {
    /// What sort of path.
    pub platform: Platform,
    /// The path as it was written, with characters that are none replaced.
    pub path: String,
}

impl Platform {
    /// The platform of `code`; `None` for an entry that is not used.
    fn of(code: [u8; 4]) -> Option<Self> {
        Some(match &code {
            [0, 0, 0, 0] => return None,
            b"W2ku" => Self::WindowsAbsolute,
            b"W2ru" => Self::WindowsRelative,
            b"MacX" => Self::Url,
            _ => Self::Other(code),
        })
    }

    const fn code(self) -> [u8; 4] {
        match self {
            Self::WindowsAbsolute => *b"W2ku",
            Self::WindowsRelative => *b"W2ru",
            Self::Url => *b"MacX",
            Self::Other(code) => code,
        }
    }
}

impl Locator {
    /// The three locators that XenServer writes for a parent at `path`, which is relative to the
    /// child's folder: every one of them says the same.
    pub(super) fn for_parent(path: &str) -> Vec<Self> {
        let windows = format!(".\\{}", path.replace('/', "\\"));
        vec![
            Self { platform: Platform::Url, path: format!("file://./{path}") },
            Self { platform: Platform::WindowsAbsolute, path: windows.clone() },
            Self { platform: Platform::WindowsRelative, path: windows },
        ]
    }

    /// Its text as it is written.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] where it is too long.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let bytes: Vec<u8> = match self.platform {
            Platform::Url | Platform::Other(_) => self.path.clone().into_bytes(),
            Platform::WindowsAbsolute | Platform::WindowsRelative => {
                self.path.encode_utf16().flat_map(u16::to_le_bytes).collect()
            }
        };
        if ByteCount::of(&bytes).get() > LONGEST {
            let problem = format!("is a longer path than {LONGEST} bytes of a locator hold");
            return Err(Error::new(ErrorKind::Invalid, &*self.path, problem)
                .advise("give the parent a shorter path, relative to its child"));
        }
        Ok(bytes)
    }

    fn decode(platform: Platform, bytes: &[u8]) -> Self {
        let path = match platform {
            Platform::Url | Platform::Other(_) => String::from_utf8_lossy(bytes).into_owned(),
            Platform::WindowsAbsolute | Platform::WindowsRelative => {
                let units = bytes.chunks_exact(2).map(|two| u16::from_le_bytes([two[0], two[1]]));
                let units: Vec<u16> = units.collect();
                String::from_utf16_lossy(&units)
            }
        };
        Self { platform, path: path.trim_end_matches('\0').to_owned() }
    }

    /// The path relative to the child's folder, or absolute, with slashes, where the locator is of
    /// a known sort. It is for the caller to judge before anything is opened by it.
    pub fn relative_path(&self) -> Option<String> {
        match self.platform {
            Platform::Url => {
                let path = self.path.strip_prefix("file://")?;
                Some(path.strip_prefix("./").unwrap_or(path).to_owned())
            }
            Platform::WindowsAbsolute | Platform::WindowsRelative => {
                let path = self.path.replace('\\', "/");
                Some(path.strip_prefix("./").unwrap_or(&path).to_owned())
            }
            Platform::Other(_) => None,
        }
    }
}

/// Locators with their places in the file, one behind the other.
pub(super) struct Placed {
    /// The header's entries.
    pub(super) entries: [LocatorLayout; 8],
    /// Their texts, padded to sectors, in the same order and without gaps.
    pub(super) bytes: Vec<u8>,
}

/// Puts `locators` at `at`, each in whole sectors.
///
/// # Errors
/// [`ErrorKind::Invalid`] where one is too long.
pub(super) fn place(locators: &[Locator], at: ByteOffset) -> Result<Placed> {
    let mut entries = [LocatorLayout::unused(); 8];
    let mut bytes = Vec::new();
    for (entry, locator) in entries.iter_mut().zip(locators) {
        let text = locator.encode()?;
        let space = whole_sectors(text.len() as u64);
        *entry = LocatorLayout {
            code: locator.platform.code(),
            data_space: u32::try_from(space.get()).unwrap_or(u32::MAX).into(),
            data_len: u32::try_from(text.len()).unwrap_or(u32::MAX).into(),
            reserved: 0.into(),
            data_offset: (at.get() + bytes.len() as u64).into(),
        };
        bytes.extend_from_slice(&text);
        bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
    }
    Ok(Placed { entries, bytes })
}

impl LocatorLayout {
    /// An entry that is not used.
    pub(super) fn unused() -> Self {
        Self {
            code: [0; 4],
            data_space: 0.into(),
            data_len: 0.into(),
            reserved: 0.into(),
            data_offset: 0.into(),
        }
    }

    /// Whether the entry is used.
    pub(super) fn is_used(&self) -> bool {
        Platform::of(self.code).is_some()
    }

    /// What it occupies of the file. The room is in sectors by the specification, but XenServer
    /// writes bytes: below one sector it can only be a number of sectors.
    pub(super) fn place(&self) -> Option<ByteRange> {
        let space = match u64::from(self.data_space.get()) {
            sectors @ 0..SECTOR => sectors * SECTOR,
            bytes => bytes,
        };
        let space = space.max(whole_sectors(u64::from(self.data_len.get())).get());
        ByteRange::checked(ByteOffset::new(self.data_offset.get()), ByteCount::new(space))
    }
}

/// Reads the locators that `entries` name. One that lies outside the file, or is longer than any
/// path, is left out: the others serve as well.
pub(super) fn read(file: &dyn BlockDevice, entries: &[LocatorLayout]) -> Result<Vec<Locator>> {
    let mut locators = Vec::new();
    for entry in entries {
        let Some(platform) = Platform::of(entry.code) else { continue };
        let len = ByteCount::new(u64::from(entry.data_len.get()));
        let range = ByteRange::checked(ByteOffset::new(entry.data_offset.get()), len);
        let inside = range.filter(|range| range.end().get() <= file.size().get());
        let Some(range) = inside.filter(|range| range.len.get() <= 4 * LONGEST) else {
            continue;
        };
        let mut bytes = vec![0; range.len.as_usize()];
        super::host::read_bytes(file, &mut bytes, range.start)?;
        locators.push(Locator::decode(platform, &bytes));
    }
    Ok(locators)
}

#[cfg(test)]
mod tests {
    use super::{Locator, Platform, place, read};
    use block_io::{BlockDevice, MemoryDevice};
    use block_types::{ByteCount, ByteOffset};

    #[test]
    fn locators_are_written_as_xenserver_does_and_read_back() {
        let locators = Locator::for_parent("base.vhd");
        let placed = place(&locators, ByteOffset::new(3072)).expect("short");
        let lens: Vec<_> = placed.entries.iter().map(|entry| entry.data_len.get()).collect();
        assert_eq!(lens[..4], [17, 20, 20, 0]);
        assert_eq!(placed.bytes.len(), 3 * 512);
        let file = MemoryDevice::new("child", ByteCount::new(8192));
        file.write_at(&placed.bytes, ByteOffset::new(3072)).expect("written");
        assert_eq!(read(&file, &placed.entries).expect("read"), locators);
        for locator in &locators {
            assert_eq!(locator.relative_path().as_deref(), Some("base.vhd"));
        }
    }

    #[test]
    fn paths_of_other_folders_keep_their_slashes() {
        let locators = Locator::for_parent("../old/base.vhd");
        assert_eq!(locators[2].path, ".\\..\\old\\base.vhd");
        assert_eq!(locators[2].relative_path().as_deref(), Some("../old/base.vhd"));
    }

    #[test]
    fn entries_outside_the_file_are_left_out() {
        let placed = place(&Locator::for_parent("x"), ByteOffset::new(u64::MAX - 4096));
        let file = MemoryDevice::new("child", ByteCount::new(8192));
        assert!(read(&file, &placed.expect("short").entries).expect("read").is_empty());
    }

    #[test]
    fn paths_that_are_too_long_are_refused() {
        assert!(place(&Locator::for_parent(&"x".repeat(600)), ByteOffset::ZERO).is_err());
    }

    #[test]
    fn space_in_sectors_and_in_bytes() {
        let mut entry = place(&Locator::for_parent("x"), ByteOffset::new(512)).expect("short");
        let entry = &mut entry.entries[0];
        for (space, bytes) in [(1, 512), (3, 1536), (512, 512), (1024, 1024), (0, 512)] {
            entry.data_space = space.into();
            assert_eq!(entry.place().expect("a range").len.get(), bytes, "{space}");
        }
        let unknown = Locator { platform: Platform::Other(*b"Wi2r"), path: "x".into() };
        assert_eq!(unknown.relative_path(), None);
    }
}
