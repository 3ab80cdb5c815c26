//! Table lines of the kernel's targets `snapshot`, `snapshot-origin` and `snapshot-merge`, as
//! `dmsetup` reads and prints them; and their status lines.

use std::fmt;
use std::str::FromStr;

use block_types::{ByteCount, Error, ErrorKind, Result};

use crate::{ChunkSize, OnFull, SnapshotStatus};

/// A line of a device-mapper table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableLine {
    /// Where the target begins on its device.
    pub start: ByteCount,
    /// How long it is.
    pub len: ByteCount,
    /// What is there.
    pub target: Target,
}

/// A target of a table line. Devices are as they were written: paths or `major:minor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `snapshot-origin DEVICE`.
    Origin {
        /// The device under the origin.
        device: String,
    },
    /// `snapshot ORIGIN STORE P|PO|N CHUNK [FEATURES]`.
    Snapshot(SnapshotTarget),
    /// `snapshot-merge`, with the same arguments.
    Merge(SnapshotTarget),
}

/// The arguments of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotTarget {
    /// The device under the origin.
    pub origin: String,
    /// The store's device.
    pub store: String,
    /// Whether the store outlives the snapshot (`P`), and what happens when it is full (`O`).
    pub kind: SnapshotKind,
    /// The size of a chunk. `None`, written 0, leaves it to the store, whose own goes first in any
    /// case, and to the default where a store is made.
    pub chunk: Option<ChunkSize>,
    /// `discard_zeroes_cow`: discards make whole chunks of the snapshot zero.
    pub discard_zeroes: bool,
    /// `discard_passdown_origin`: discards of the snapshot go to the origin's device.
    pub discard_passdown: bool,
}

/// The second word of a snapshot's store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// `P` or `PO`.
    Persistent(OnFull),
    /// `N`.
    Transient,
}

impl TableLine {
    /// The status line that `dmsetup status` prints for the target.
    pub fn status_line(&self, status: &SnapshotStatus) -> String {
        let name = self.target.name();
        let (start, len) = (self.start.sectors(), self.len.sectors());
        match self.target {
            Target::Origin { .. } => format!("{start} {len} {name} "),
            Target::Snapshot(_) | Target::Merge(_) => format!("{start} {len} {name} {status}"),
        }
    }
}

impl Target {
    /// The kernel's name for it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Origin { .. } => "snapshot-origin",
            Self::Snapshot(_) => "snapshot",
            Self::Merge(_) => "snapshot-merge",
        }
    }
}

impl FromStr for TableLine {
    type Err = Error;

    /// # Errors
    /// [`ErrorKind::Invalid`], saying what the kernel would say.
    fn from_str(line: &str) -> Result<Self> {
        let mut words = line.split_ascii_whitespace();
        let mut next =
            |what: &str| words.next().ok_or_else(|| wrong(line, format!("lacks {what}")));
        let start = sectors(line, next("its start")?)?;
        let len = sectors(line, next("its length")?)?;
        let name = next("its target")?;
        let arguments: Vec<&str> = words.collect();
        let target = match name {
            "snapshot-origin" => match arguments[..] {
                [device] => Target::Origin { device: device.to_owned() },
                _ => return Err(wrong(line, "takes one device".to_owned())),
            },
            "snapshot" => Target::Snapshot(snapshot(line, &arguments)?),
            "snapshot-merge" => Target::Merge(snapshot(line, &arguments)?),
            other => return Err(wrong(line, format!("has the unknown target '{other}'"))),
        };
        Ok(Self { start, len, target })
    }
}

fn snapshot(line: &str, arguments: &[&str]) -> Result<SnapshotTarget> {
    let [origin, store, kind, chunk, features @ ..] = arguments else {
        return Err(wrong(line, "takes four arguments or more".to_owned()));
    };
    if origin == store {
        return Err(wrong(line, "has the origin for its own store".to_owned()));
    }
    let mut target = SnapshotTarget {
        origin: (*origin).to_owned(),
        store: (*store).to_owned(),
        kind: self::kind(line, kind)?,
        chunk: self::chunk(line, chunk)?,
        discard_zeroes: false,
        discard_passdown: false,
    };
    let [count, features @ ..] = features else { return Ok(target) };
    if count.parse() != Ok(features.len()) || features.len() > 2 {
        return Err(wrong(line, "has another number of features than it says".to_owned()));
    }
    for feature in features {
        match *feature {
            "discard_zeroes_cow" => target.discard_zeroes = true,
            "discard_passdown_origin" => target.discard_passdown = true,
            other => return Err(wrong(line, format!("asks for the unknown feature '{other}'"))),
        }
    }
    if target.discard_passdown && !target.discard_zeroes {
        let problem = "asks for discard_passdown_origin without discard_zeroes_cow";
        return Err(wrong(line, problem.to_owned()));
    }
    Ok(target)
}

/// As the kernel: the first letter decides, in either case; after `P` the second may be `O`, and
/// nothing else is looked at.
fn kind(line: &str, word: &str) -> Result<SnapshotKind> {
    let letter = |place: usize| word.as_bytes().get(place).map(u8::to_ascii_uppercase);
    match (letter(0), letter(1)) {
        (Some(b'N'), _) => Ok(SnapshotKind::Transient),
        (Some(b'P'), None) => Ok(SnapshotKind::Persistent(OnFull::Invalidate)),
        (Some(b'P'), Some(b'O')) => Ok(SnapshotKind::Persistent(OnFull::Overflow)),
        _ => Err(wrong(line, format!("has a store '{word}', which is none of P, PO and N"))),
    }
}

fn chunk(line: &str, word: &str) -> Result<Option<ChunkSize>> {
    let sectors: u32 =
        word.parse().map_err(|_| wrong(line, format!("has a chunk of '{word}' sectors")))?;
    if sectors == 0 {
        return Ok(None);
    }
    let size = ByteCount::from_sectors(sectors.into());
    ChunkSize::new(size)
        .map(Some)
        .map_err(|error| wrong(line, "has an impossible chunk".to_owned()).because(error))
}

fn sectors(line: &str, word: &str) -> Result<ByteCount> {
    let sectors: Option<u64> = word.parse().ok();
    let bytes = sectors.and_then(|sectors| sectors.checked_mul(block_types::SECTOR));
    bytes.map(ByteCount::new).ok_or_else(|| wrong(line, format!("has '{word}' for sectors")))
}

fn wrong(line: &str, problem: String) -> Error {
    Error::new(ErrorKind::Invalid, format!("table line '{line}'"), problem)
}

/// As `dmsetup table` prints it.
impl fmt::Display for TableLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} ", self.start.sectors(), self.len.sectors(), self.target.name())?;
        match &self.target {
            Target::Origin { device } => f.write_str(device),
            Target::Snapshot(target) | Target::Merge(target) => target.fmt(f),
        }
    }
}

impl fmt::Display for SnapshotTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            SnapshotKind::Persistent(OnFull::Invalidate) => "P",
            SnapshotKind::Persistent(OnFull::Overflow) => "PO",
            SnapshotKind::Transient => "N",
        };
        let chunk = self.chunk.map_or(0, ChunkSize::sectors);
        write!(f, "{} {} {kind} {chunk}", self.origin, self.store)?;
        let features = [
            (self.discard_zeroes, "discard_zeroes_cow"),
            (self.discard_passdown, "discard_passdown_origin"),
        ];
        let features: Vec<&str> =
            features.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        if features.is_empty() {
            return Ok(());
        }
        write!(f, " {} {}", features.len(), features.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::{SnapshotKind, TableLine, Target};
    use crate::OnFull;

    #[test]
    fn lines_that_the_kernel_takes() {
        for line in [
            "0 32768 snapshot-origin /dev/mapper/base",
            "0 32768 snapshot /dev/mapper/base /dev/ubdb P 8",
            "0 32768 snapshot 98:0 98:16 PO 32",
            "0 32768 snapshot 98:0 98:16 N 0",
            "8 1 snapshot-merge 98:0 98:16 P 8 1 discard_zeroes_cow",
            "8 1 snapshot 98:0 98:16 P 8 2 discard_zeroes_cow discard_passdown_origin",
        ] {
            assert_eq!(line.parse::<TableLine>().expect(line).to_string(), line);
        }
        for (word, kind) in [
            ("p", SnapshotKind::Persistent(OnFull::Invalidate)),
            ("po", SnapshotKind::Persistent(OnFull::Overflow)),
            ("POx", SnapshotKind::Persistent(OnFull::Overflow)),
            ("never", SnapshotKind::Transient),
        ] {
            let line: TableLine = format!("0 8 snapshot a b {word} 8 0").parse().expect(word);
            let Target::Snapshot(target) = line.target else { panic!("{line}") };
            assert_eq!(target.kind, kind);
        }
    }

    #[test]
    fn lines_that_the_kernel_refuses() {
        for line in [
            "",
            "0 32768",
            "0 x snapshot a b P 8",
            "0 36028797018963968 snapshot a b P 8",
            "0 8 thin a b",
            "0 8 snapshot-origin a b",
            "0 8 snapshot-origin",
            "0 8 snapshot a b P",
            "0 8 snapshot a a P 8",
            "0 8 snapshot a b Px 8",
            "0 8 snapshot a b M 8",
            "0 8 snapshot a b P 7",
            "0 8 snapshot a b P -8",
            "0 8 snapshot a b P 4194304",
            "0 8 snapshot a b P 8 1",
            "0 8 snapshot a b P 8 1 unknown",
            "0 8 snapshot a b P 8 1 discard_passdown_origin",
            "0 8 snapshot a b P 8 3 discard_zeroes_cow discard_zeroes_cow discard_zeroes_cow",
        ] {
            assert!(line.parse::<TableLine>().is_err(), "{line}");
        }
    }
}
