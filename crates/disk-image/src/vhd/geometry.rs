//! The geometry that a footer gives for a size: cylinders, heads, sectors of a track.

use block_types::{ByteCount, SECTOR};

/// Cylinders, heads and sectors of a track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors of a track.
    pub track_sectors: u8,
}

/// Sectors of the largest geometry.
const MOST: u64 = 65535 * 16 * 255;
/// Sectors up to which tracks of 63 sectors reach.
const MOST_OF_63: u64 = 65535 * 16 * 63;

impl Geometry {
    /// The geometry of a disk of `size` (the specification's appendix): the largest that does not
    /// exceed it, for sizes from 1 MiB to about 127 GiB.
    pub fn of(size: ByteCount) -> Self {
        let total = size.sectors().min(MOST);
        let (track, heads, tracks) =
            if total >= MOST_OF_63 { (255, 16, total / 255) } else { track_of(total) };
        Self {
            cylinders: u16::try_from(tracks / heads).unwrap_or(u16::MAX),
            // Both are among the small numbers of `track_of`.
            heads: heads as u8,
            track_sectors: track as u8,
        }
    }

    /// How much it addresses.
    pub fn size(self) -> ByteCount {
        let tracks = u64::from(self.cylinders) * u64::from(self.heads);
        ByteCount::new(tracks * u64::from(self.track_sectors) * SECTOR)
    }
}

/// Sectors of a track, heads and tracks of a disk with `total` sectors below the largest.
fn track_of(total: u64) -> (u64, u64, u64) {
    let tracks = total / 17;
    let heads = tracks.div_ceil(1024).max(4);
    if tracks < heads * 1024 && heads <= 16 {
        return (17, heads, tracks);
    }
    let tracks = total / 31;
    if tracks < 16 * 1024 {
        return (31, 16, tracks);
    }
    (63, 16, total / 63)
}

#[cfg(test)]
mod tests {
    use super::Geometry;
    use block_types::ByteCount;

    fn of(mib: u64) -> (u16, u8, u8) {
        let geometry = Geometry::of(ByteCount::new(mib << 20));
        (geometry.cylinders, geometry.heads, geometry.track_sectors)
    }

    #[test]
    fn agrees_with_the_peers() {
        // As vhd-util wrote it into the fixtures.
        assert_eq!(of(64), (963, 8, 17));
        assert_eq!(of(1), (30, 4, 17));
        // The largest.
        assert_eq!(of(2040 << 10), (65535, 16, 255));
    }

    #[test]
    fn never_exceeds_the_size() {
        for mib in (1..200_000).step_by(37) {
            let size = ByteCount::new(mib << 20);
            assert!(Geometry::of(size).size() <= size, "{mib} MiB");
        }
        assert_eq!(Geometry::of(ByteCount::ZERO).size(), ByteCount::ZERO);
    }
}
