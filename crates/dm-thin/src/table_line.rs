//! Table lines of the kernel's targets, `thin-pool` and `thin`, as `dmsetup create --table` takes
//! them. Reading one opens nothing.

use std::fmt;

use block_types::{ByteCount, Error, ErrorKind, Result};

use crate::words::{escaped, split};
use crate::{BlockSize, DeviceId, Discards};

/// `0 LENGTH thin-pool METADATA DATA BLOCK LOW_WATER [COUNT FEATURE...]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolTable {
    /// The pool's length: data blocks behind it are not used.
    pub length: ByteCount,
    /// The metadata device.
    pub metadata: String,
    /// The data device.
    pub data: String,
    /// The size of a data block; in sectors on the line.
    pub block_size: BlockSize,
    /// Free data blocks at which an event is raised.
    pub low_water: u64,
    /// What the pool is to do otherwise than usual.
    pub features: PoolFeatures,
}

/// The features of a pool's table line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolFeatures {
    /// New blocks need not read as zeros: `skip_block_zeroing`.
    pub skip_zeroing: bool,
    /// What becomes of discards: `ignore_discard`, `no_discard_passdown`.
    pub discards: Discards,
    /// Nothing is changed: `read_only`.
    pub read_only: bool,
    /// Writes that find no space fail at once, instead of waiting for it: `error_if_no_space`.
    pub error_if_no_space: bool,
}

/// `0 LENGTH thin POOL ID [ORIGIN]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThinTable {
    /// The size of the volume.
    pub length: ByteCount,
    /// The pool.
    pub pool: String,
    /// The device in it.
    pub id: DeviceId,
    /// What the device reads as where it maps nothing.
    pub origin: Option<String>,
}

/// The most features that a line may have.
const MOST_FEATURES: usize = 4;

impl PoolTable {
    /// Reads a line. What stands behind the features is passed over, as the kernel does it.
    ///
    /// # Errors
    /// `Invalid`, with the kernel's word for it.
    pub fn parse(line: &str) -> Result<Self> {
        let (length, words) = target(line, "thin-pool")?;
        let refuse = |problem| refused(line, problem);
        let [metadata, data, block, low_water, features @ ..] = &words[..] else {
            return Err(refuse("invalid argument count"));
        };
        if metadata == data {
            return Err(refuse("metadata and data cannot be one device"));
        }
        let features = PoolFeatures::read(features).map_err(refuse)?;
        let block_size = block.parse().ok().filter(|sectors| *sectors <= BLOCK_SECTORS);
        let block_size = block_size.map(ByteCount::from_sectors).map(BlockSize::new);
        let Some(Ok(block_size)) = block_size else { return Err(refuse("invalid block size")) };
        let low_water = low_water.parse().map_err(|_| refuse("invalid low water mark"))?;
        let (metadata, data) = (metadata.clone(), data.clone());
        Ok(Self { length, metadata, data, block_size, low_water, features })
    }
}

/// Sectors of the largest data block.
const BLOCK_SECTORS: u64 = (1 << 30) / 512;

impl PoolFeatures {
    fn read(words: &[String]) -> std::result::Result<Self, &'static str> {
        let mut features = Self::default();
        let Some((count, words)) = words.split_first() else { return Ok(features) };
        let count = count.parse().ok().filter(|count| *count <= MOST_FEATURES.min(words.len()));
        let count = count.ok_or("invalid number of pool feature arguments")?;
        let mut passes_down = true;
        let mut ignores = false;
        for word in &words[..count] {
            match word.to_ascii_lowercase().as_str() {
                "skip_block_zeroing" => features.skip_zeroing = true,
                "ignore_discard" => ignores = true,
                "no_discard_passdown" => passes_down = false,
                "read_only" => features.read_only = true,
                "error_if_no_space" => features.error_if_no_space = true,
                _ => return Err("unrecognised pool feature requested"),
            }
        }
        features.discards = match (ignores, passes_down) {
            (true, _) => Discards::Ignored,
            (false, false) => Discards::Kept,
            (false, true) => Discards::PassedDown,
        };
        Ok(features)
    }

    /// Their words, in the order in which the kernel lists them.
    fn words(&self) -> Vec<&'static str> {
        let discards = match self.discards {
            Discards::Ignored => Some("ignore_discard"),
            Discards::Kept => Some("no_discard_passdown"),
            Discards::PassedDown => None,
        };
        let words = [
            self.skip_zeroing.then_some("skip_block_zeroing"),
            discards,
            self.read_only.then_some("read_only"),
            self.error_if_no_space.then_some("error_if_no_space"),
        ];
        words.into_iter().flatten().collect()
    }
}

impl ThinTable {
    /// Reads a line.
    ///
    /// # Errors
    /// `Invalid`, with the kernel's word for it.
    pub fn parse(line: &str) -> Result<Self> {
        let (length, words) = target(line, "thin")?;
        let refuse = |problem| refused(line, problem);
        let (pool, id, origin) = match &words[..] {
            [pool, id] => (pool, id, None),
            [pool, id, origin] => (pool, id, Some(origin)),
            _ => return Err(refuse("invalid argument count")),
        };
        if origin == Some(pool) {
            return Err(refuse("a pool cannot be the origin of its own volume"));
        }
        let id = id.parse::<u64>().ok().and_then(|id| u32::try_from(id).ok());
        let Some(Ok(id)) = id.map(DeviceId::new) else { return Err(refuse("invalid device id")) };
        Ok(Self { length, pool: pool.clone(), id, origin: origin.cloned() })
    }
}

/// As the kernel prints it, with the blank at its end.
impl fmt::Display for PoolTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { length, metadata, data, block_size, low_water, features } = self;
        let (length, block) = (length.sectors(), block_size.bytes().sectors());
        let (metadata, data) = (escaped(metadata), escaped(data));
        let features = features.words();
        write!(
            f,
            "0 {length} thin-pool {metadata} {data} {block} {low_water} {} ",
            features.len()
        )?;
        features.iter().try_for_each(|word| write!(f, "{word} "))
    }
}

/// As the kernel prints it.
impl fmt::Display for ThinTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { length, pool, id, origin } = self;
        write!(f, "0 {} thin {} {id}", length.sectors(), escaped(pool))?;
        origin.as_deref().map_or(Ok(()), |origin| write!(f, " {}", escaped(origin)))
    }
}

/// The length and the arguments of a line for `target`. A table of one line begins at 0.
fn target(line: &str, target: &str) -> Result<(ByteCount, Vec<String>)> {
    let mut words = split(line);
    if words.len() < 3 {
        return Err(refused(line, "does not say START LENGTH TARGET"));
    }
    let arguments = words.split_off(3);
    let refuse = |problem: String| Err(refused(line, problem));
    if words[2] != target {
        return refuse(format!("is for the target '{}', not '{target}'", words[2]));
    }
    if words[0].parse() != Ok(0_u64) {
        return refuse(format!(
            "begins at '{}'; a table has no gap before its first line",
            words[0]
        ));
    }
    /// A device ends where signed file offsets do.
    const MOST: u64 = (1 << 63) / 512;
    match words[1].parse() {
        Ok(sectors @ 1..MOST) => Ok((ByteCount::from_sectors(sectors), arguments)),
        Ok(0) => refuse("zero-length target".into()),
        _ => refuse(format!("has an invalid length, '{}'", words[1])),
    }
}

fn refused(line: &str, problem: impl Into<String>) -> Error {
    let problem = format!("EINVAL: {}", problem.into());
    Error::new(ErrorKind::Invalid, format!("table '{}'", line.trim()), problem)
}

#[cfg(test)]
mod tests {
    use super::{PoolFeatures, PoolTable, ThinTable};
    use crate::{BlockSize, Discards};
    use block_types::{ByteCount, ErrorKind};
    use proptest::prelude::{any, prop_assert_eq, proptest};

    fn features(text: &str) -> PoolFeatures {
        let line = format!("0 524288 thin-pool /dev/ubda /dev/ubdb 128 100 {text}");
        PoolTable::parse(&line).unwrap_or_else(|error| panic!("{error}")).features
    }

    #[test]
    fn reads_a_pool_as_the_kernel_does() {
        let line = "0 524288 thin-pool 98:0 98:16 128 100 0 ";
        let table = PoolTable::parse(line).expect("a table");
        assert_eq!(table.length.sectors(), 524_288);
        assert_eq!((table.metadata.as_str(), table.data.as_str()), ("98:0", "98:16"));
        assert_eq!((table.block_size.bytes().get(), table.low_water), (65536, 100));
        assert_eq!(table.features, PoolFeatures::default());
        assert_eq!(table.to_string(), line);
        assert_eq!(features(""), PoolFeatures::default());
        let all = "4 Skip_Block_Zeroing no_discard_passdown read_only error_if_no_space";
        let expected = PoolFeatures {
            skip_zeroing: true,
            discards: Discards::Kept,
            read_only: true,
            error_if_no_space: true,
        };
        assert_eq!(features(all), expected);
        assert_eq!(features("2 ignore_discard no_discard_passdown").discards, Discards::Ignored);
        assert_eq!(features("1 read_only what follows is not looked at"), {
            PoolFeatures { read_only: true, ..PoolFeatures::default() }
        });
    }

    #[test]
    fn reads_a_volume_as_the_kernel_does() {
        let table = ThinTable::parse("0 2048 thin /dev/mapper/pool 7").expect("a table");
        assert_eq!((table.pool.as_str(), table.id.get()), ("/dev/mapper/pool", 7));
        assert_eq!(table.origin, None);
        let line = r"0 2048 thin pool 16777215 /dev/my\ disk";
        let table = ThinTable::parse(line).expect("a table");
        assert_eq!(table.origin.as_deref(), Some("/dev/my disk"));
        assert_eq!(table.to_string(), line);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_as_it_was(
            (metadata, data) in ("\\PC{1,9}", "\\PC{10,12}"),
            (blocks, units, low_water) in (1_u64..1 << 40, 1_u64..=16384, any::<u64>()),
            (skip_zeroing, read_only, error_if_no_space) in any::<(bool, bool, bool)>(),
            discards in 0_usize..3,
        ) {
            let discards = [Discards::Ignored, Discards::Kept, Discards::PassedDown][discards];
            let table = PoolTable {
                length: ByteCount::from_sectors(blocks),
                metadata,
                data,
                block_size: BlockSize::new(ByteCount::new(units << 16)).expect("a block size"),
                low_water,
                features: PoolFeatures { skip_zeroing, discards, read_only, error_if_no_space },
            };
            prop_assert_eq!(PoolTable::parse(&table.to_string()).expect("a table"), table);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            let _ = PoolTable::parse(&format!("0 8 thin-pool {text}"));
            let _ = ThinTable::parse(&format!("0 8 thin {text}"));
        }
    }

    #[test]
    fn refuses_with_the_word_of_the_kernel() {
        for (line, word) in [
            ("", "START LENGTH TARGET"),
            ("0 8 linear a 0", "not 'thin-pool'"),
            ("8 8 thin-pool m d 128 0", "gap"),
            ("0 0 thin-pool m d 128 0", "zero-length"),
            ("0 -1 thin-pool m d 128 0", "invalid length"),
            ("0 18014398509481984 thin-pool m d 128 0", "invalid length"),
            ("0 8 thin-pool m d 128", "invalid argument count"),
            ("0 8 thin-pool m m 128 0", "one device"),
            ("0 8 thin-pool m d 100 0", "invalid block size"),
            ("0 8 thin-pool m d 64 0", "invalid block size"),
            ("0 8 thin-pool m d 0 0", "invalid block size"),
            ("0 8 thin-pool m d 2097280 0", "invalid block size"),
            ("0 8 thin-pool m d 18446744073709551488 0", "invalid block size"),
            ("0 8 thin-pool m d 128 x", "invalid low water mark"),
            ("0 8 thin-pool m d 128 0 1", "number of pool feature"),
            ("0 8 thin-pool m d 128 0 5 a b c d e", "number of pool feature"),
            ("0 8 thin-pool m d 128 0 read_only", "number of pool feature"),
            ("0 8 thin-pool m d 128 0 1 turbo", "unrecognised pool feature"),
        ] {
            let error = PoolTable::parse(line).expect_err(line);
            assert_eq!(error.kind(), ErrorKind::Invalid, "{line}");
            assert!(error.to_string().contains(word), "{error}");
        }
        for (line, word) in [
            ("0 8 thin pool", "invalid argument count"),
            ("0 8 thin pool 1 origin more", "invalid argument count"),
            ("0 8 thin pool 1 pool", "origin"),
            ("0 8 thin pool x", "invalid device id"),
            ("0 8 thin pool 16777216", "invalid device id"),
        ] {
            let error = ThinTable::parse(line).expect_err(line);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
