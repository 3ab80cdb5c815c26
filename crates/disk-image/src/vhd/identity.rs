//! Who a disk is: its UUID, its times, and which program made it.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A disk's UUID. Children name their parent by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiskId([u8; 16]);

/// A moment, in whole seconds since 2000-01-01 UTC, as footers and headers hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u32);

/// Which program made a disk, and so which conventions it follows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Creator {
    /// Four characters: `tap\0`, `win `, `qem2` and the like.
    pub app: [u8; 4],
    /// Its version: major in the upper, minor in the lower half.
    pub version: u32,
    /// The system: `Wi2k`, `Mac `, or zeros.
    pub os: [u8; 4],
}

/// Seconds from 1970 to 2000.
const EPOCH: u64 = 946_684_800;

impl DiskId {
    /// The UUID with these bytes, in the order of its text.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes, in the order of its text.
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }

    /// The UUID in `bytes`, unless it is the null one, which means that there is none.
    pub(super) fn present(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, byte) in self.0.iter().enumerate() {
            if matches!(number, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiskId({self})")
    }
}

impl Timestamp {
    /// A moment so many seconds after the beginning of 2000.
    pub const fn new(seconds: u32) -> Self {
        Self(seconds)
    }

    /// Seconds since the beginning of 2000.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The moment of `time`; the first or the last one where it lies outside 2000 to 2136.
    pub fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        Self(u32::try_from(since.saturating_sub(EPOCH)).unwrap_or(u32::MAX))
    }

    /// The moment, as the system counts.
    pub fn time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(EPOCH + u64::from(self.0))
    }
}

impl Creator {
    /// XenServer 1.3: dynamic and differencing disks have a batmap.
    pub const XENSERVER: Self = Self { app: *b"tap\0", version: 0x0001_0003, os: [0; 4] };
    /// Windows: no batmap. QEMU takes the size of such a disk from its footer, as of XenServer's;
    /// that of a program it does not know it works out from the geometry, which rounds.
    pub const WINDOWS: Self = Self { app: *b"win ", version: 0x000a_0000, os: *b"Wi2k" };

    /// Whether the disk is XenServer's.
    pub(super) fn is_xenserver(self) -> bool {
        self.app == Self::XENSERVER.app
    }

    /// Whether a sparse disk of this creator must have a batmap: else XenServer does not open it.
    pub(super) fn has_batmap(self) -> bool {
        self.is_xenserver() && self.version >= 0x0001_0002
    }

    /// Whether a sparse disk of this creator may have a batmap.
    pub(super) fn may_have_batmap(self) -> bool {
        self.is_xenserver() && self.version >= 0x0001_0001
    }

    /// Whether the hidden flag is kept in the copy at 0 alone, outside its sum.
    pub(super) fn hides_in_copy(self) -> bool {
        self.is_xenserver() && self.version <= 0x0001_0001
    }
}

impl fmt::Debug for Creator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = (self.version >> 16, self.version & 0xffff);
        write!(f, "\"{}\" {major}.{minor}", self.app.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::{Creator, DiskId, Timestamp};
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn texts() {
        let mut bytes = [0; 16];
        (0u8..).zip(&mut bytes).for_each(|(number, byte)| *byte = number);
        assert_eq!(DiskId::new(bytes).to_string(), "00010203-0405-0607-0809-0a0b0c0d0e0f");
        assert_eq!(format!("{:?}", Creator::XENSERVER), "\"tap\\x00\" 1.3");
        assert_eq!(DiskId::present([0; 16]), None);
    }

    #[test]
    fn times_begin_with_2000() {
        let time = UNIX_EPOCH + Duration::from_secs(1_795_188_008);
        assert_eq!(Timestamp::of(time).get(), 848_503_208);
        assert_eq!(Timestamp::new(848_503_208).time(), time);
        assert_eq!(Timestamp::of(UNIX_EPOCH).get(), 0);
        assert_eq!(Timestamp::of(UNIX_EPOCH + Duration::from_secs(1 << 40)).get(), u32::MAX);
    }

    #[test]
    fn who_has_a_batmap() {
        let tap = |version| Creator { version, ..Creator::XENSERVER };
        assert!(!tap(1).may_have_batmap() && tap(0x10001).may_have_batmap());
        assert!(!tap(0x10001).has_batmap() && tap(0x10002).has_batmap());
        assert!(!Creator::WINDOWS.may_have_batmap());
    }
}
