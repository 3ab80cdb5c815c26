//! The columns of the table.

use std::str::FromStr;

use block_types::{ByteCount, Error, ErrorKind};

use super::Row;
use crate::GuestBlock;

/// A column, by the name that `thin_ls` has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// `DEV`: the identifier.
    Device,
    /// `TRANSACTION`: the transaction in which the device was made.
    Transaction,
    /// `CREATE_TIME`: the pool's time then.
    Created,
    /// `SNAP_TIME`: the pool's time when it last became or got a snapshot.
    Snapshotted,
    /// `MAPPED...`, `EXCLUSIVE...`, `SHARED...`, `HIGHEST...`.
    Amount(Amount, Unit),
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    /// All mapped blocks.
    Mapped,
    /// Those that no other mapping shares.
    Exclusive,
    /// The others.
    Shared,
    /// Not an amount but a place: the last mapped block, sector or byte. Only 1.x has it.
    Highest,
}

/// What it is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// `..._BLOCKS`
    Blocks,
    /// `..._SECTORS`
    Sectors,
    /// `..._BYTES`
    Bytes,
    /// No ending: bytes in a unit that gives a short number.
    Readable,
}

/// Every column, with its name.
const COLUMNS: [(&str, Column); 20] = {
    use Amount::{Exclusive, Highest, Mapped, Shared};
    use Unit::{Blocks, Bytes, Readable, Sectors};
    [
        ("DEV", Column::Device),
        ("MAPPED_BLOCKS", Column::Amount(Mapped, Blocks)),
        ("EXCLUSIVE_BLOCKS", Column::Amount(Exclusive, Blocks)),
        ("SHARED_BLOCKS", Column::Amount(Shared, Blocks)),
        ("HIGHEST_BLOCK", Column::Amount(Highest, Blocks)),
        ("MAPPED_SECTORS", Column::Amount(Mapped, Sectors)),
        ("EXCLUSIVE_SECTORS", Column::Amount(Exclusive, Sectors)),
        ("SHARED_SECTORS", Column::Amount(Shared, Sectors)),
        ("HIGHEST_SECTOR", Column::Amount(Highest, Sectors)),
        ("MAPPED_BYTES", Column::Amount(Mapped, Bytes)),
        ("EXCLUSIVE_BYTES", Column::Amount(Exclusive, Bytes)),
        ("SHARED_BYTES", Column::Amount(Shared, Bytes)),
        ("HIGHEST_BYTE", Column::Amount(Highest, Bytes)),
        ("MAPPED", Column::Amount(Mapped, Readable)),
        ("EXCLUSIVE", Column::Amount(Exclusive, Readable)),
        ("SHARED", Column::Amount(Shared, Readable)),
        ("HIGHEST_MAPPED", Column::Amount(Highest, Readable)),
        ("TRANSACTION", Column::Transaction),
        ("CREATE_TIME", Column::Created),
        ("SNAP_TIME", Column::Snapshotted),
    ]
};

impl Column {
    /// What `thin_ls` shows unless it is told otherwise.
    pub const DEFAULT: [Self; 4] = [
        Self::Device,
        Self::Amount(Amount::Mapped, Unit::Readable),
        Self::Created,
        Self::Snapshotted,
    ];

    /// The names of all columns.
    pub fn names() -> impl Iterator<Item = &'static str> {
        COLUMNS.iter().map(|(name, _)| *name)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        let found = COLUMNS.iter().find(|(_, column)| *column == self);
        found.map_or("", |(name, _)| name)
    }

    /// Whether mappings have to be counted for it.
    pub(super) fn counts(self) -> bool {
        matches!(self, Self::Amount(Amount::Exclusive | Amount::Shared, _))
    }

    /// Its text in `row`.
    pub(super) fn text(self, row: &Row, block_size: ByteCount) -> String {
        let (amount, unit) = match self {
            Self::Device => return row.id.to_string(),
            Self::Transaction => return row.state.transaction.to_string(),
            Self::Created => return row.state.created.get().to_string(),
            Self::Snapshotted => return row.state.snapshotted.get().to_string(),
            Self::Amount(amount, unit) => (amount, unit),
        };
        let blocks = match amount {
            Amount::Mapped => row.state.mapped,
            Amount::Exclusive => row.exclusive.unwrap_or(0),
            Amount::Shared => row.shared().unwrap_or(0),
            Amount::Highest => return highest(row, unit, block_size),
        };
        let size = |each: u64| blocks.saturating_mul(each);
        match unit {
            Unit::Blocks => blocks.to_string(),
            Unit::Sectors => size(block_size.sectors()).to_string(),
            Unit::Bytes => size(block_size.get()).to_string(),
            Unit::Readable => readable(size(block_size.get())),
        }
    }
}

impl FromStr for Column {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let found = COLUMNS.iter().find(|(known, _)| *known == name);
        found.map(|(_, column)| *column).ok_or_else(|| {
            let names: Vec<&str> = Self::names().collect();
            Error::new(ErrorKind::Invalid, format!("column {name:?}"), "is not known")
                .advise(format!("choose from {}", names.join(", ")))
        })
    }
}

/// The last mapped unit; 1.x counts a device without mappings as if block 0 were mapped.
fn highest(row: &Row, unit: Unit, block_size: ByteCount) -> String {
    let block = row.highest.map_or(0, GuestBlock::get);
    let last = |each: u64| block.saturating_add(1).saturating_mul(each) - 1;
    match unit {
        Unit::Blocks => block.to_string(),
        Unit::Sectors => last(block_size.sectors()).to_string(),
        Unit::Bytes => last(block_size.get()).to_string(),
        Unit::Readable => readable(last(block_size.get())),
    }
}

/// A number of bytes in a unit that gives a short number: cut to a unit in which it has four
/// digits or more, and rounded to the next one where that is above 8192.
fn readable(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let Some(bits) = bytes.checked_ilog2() else { return "0".to_owned() };
    let mut unit = (bits / 10).saturating_sub(1);
    let mut number = bytes >> (10 * unit);
    if number > 8192 {
        number = (number + 512) / 1024;
        unit += 1;
    }
    format!("{number}{}", UNITS[unit as usize])
}
