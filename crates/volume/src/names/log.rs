//! The log of names: lines of text, each a checksum and a record as JSON, appended and flushed one
//! by one. Zeros, or a line that its checksum does not fit, end it.

use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, Error, ErrorKind, Result, crc32c};
use serde::{Deserialize, Serialize};

use super::Record;

/// The log grows by so many bytes at a time.
const STEP: u64 = 64 << 10;
/// A log larger than this is not one that was written here.
const LARGEST: u64 = 1 << 30;

/// The log of one pool.
pub struct NamesLog {
    device: Arc<dyn BlockDevice>,
    /// Where the next record goes.
    end: u64,
}

/// The first line: what the file is.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    firn: String,
    version: u32,
}

impl NamesLog {
    /// Begins an empty log on `device`.
    pub fn format(device: Arc<dyn BlockDevice>) -> Result<Self> {
        let header = Header { firn: "names".into(), version: 1 };
        let mut log = Self { device, end: 0 };
        log.append_line(&json(&header)?)?;
        Ok(log)
    }

    /// Opens a log and reads the records that the pool's transaction id, `transaction`, has made
    /// true. Those behind them were written for a commit that a crash prevented, and are
    /// overwritten by the next append.
    ///
    /// # Errors
    /// `Corrupt` where it is no log of names; `Unsupported` for a later version.
    pub fn open(device: Arc<dyn BlockDevice>, transaction: u64) -> Result<(Self, Vec<Record>)> {
        let size = device.size();
        if size.get() > LARGEST {
            return Err(Error::new(
                ErrorKind::Corrupt,
                device.name(),
                "is too large for a log of names",
            ));
        }
        let mut bytes = vec![0; size.as_usize()];
        device.read_at(&mut bytes, ByteOffset::ZERO)?;
        let (header_end, records) = parse_log(device.name(), &bytes)?;
        let mut end = header_end;
        let mut kept = Vec::new();
        for (record, behind) in records {
            if record.transaction > transaction {
                break;
            }
            kept.push(record);
            end = behind;
        }
        Ok((Self { device, end: end as u64 }, kept))
    }

    /// Appends a record and makes it durable.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        self.append_line(&json(record)?)
    }

    /// Takes back the record behind `position`, whose commit did not happen, so that no other
    /// commit with its transaction id makes it true.
    pub fn retract(&mut self, position: LogPosition) -> Result<()> {
        self.end = position.0;
        self.device.write_at(&[0], ByteOffset::new(self.end))?;
        self.device.flush()
    }

    /// Forgets every record, for a transaction id that is to go back behind them. Whatever a crash
    /// leaves of that is the log as it was, or an empty one.
    pub fn clear(&mut self) -> Result<()> {
        self.end = Self::format(Arc::clone(&self.device))?.end;
        Ok(())
    }

    /// Where the next record goes.
    pub fn position(&self) -> LogPosition {
        LogPosition(self.end)
    }

    fn append_line(&mut self, text: &str) -> Result<()> {
        let line = format!("{:08x} {text}\n", crc32c(text.as_bytes()));
        let end = self.end + line.len() as u64;
        // One byte more, so that zeros end the log even where an older, longer line stood.
        if end + 1 > self.device.size().get() {
            self.device.resize(ByteCount::new((end + 1).next_multiple_of(STEP)))?;
        }
        let mut bytes = line.into_bytes();
        bytes.push(0);
        self.device.write_at(&bytes, ByteOffset::new(self.end))?;
        self.device.flush()?;
        self.end = end;
        Ok(())
    }
}

/// A place in a log, to come back to.
#[derive(Clone, Copy, Debug)]
pub struct LogPosition(u64);

/// Reads a log: where its header ends, and its records, each with the place behind it. Reading ends
/// at the first line that is torn.
///
/// # Errors
/// `Corrupt` where the first line is no header, `Unsupported` for a later version.
pub fn parse_log(name: &str, bytes: &[u8]) -> Result<(usize, Vec<(Record, usize)>)> {
    let corrupt = || {
        Error::new(ErrorKind::Corrupt, name, "is no log of names")
            .advise("restore it from a copy, or move it away: volumes then go by their numbers")
    };
    let (header, mut at) = next_line(bytes, 0).ok_or_else(corrupt)?;
    let header: Header = serde_json::from_str(header).map_err(|error| corrupt().because(error))?;
    if header.firn != "names" {
        return Err(corrupt());
    }
    if header.version != 1 {
        let problem = format!("has version {} of the format, 1 is known here", header.version);
        return Err(Error::new(ErrorKind::Unsupported, name, problem));
    }
    let begin = at;
    let mut records = Vec::new();
    while let Some((line, behind)) = next_line(bytes, at) {
        // A line that is whole but says something unknown was written by somebody newer: what
        // follows may build on it.
        let record = serde_json::from_str(line).map_err(|error| {
            Error::new(ErrorKind::Unsupported, name, format!("has an unknown record at byte {at}"))
                .because(error)
        })?;
        records.push((record, behind));
        at = behind;
    }
    Ok((begin, records))
}

/// The text of the line at `at`, if it is whole, and where the next one begins.
fn next_line(bytes: &[u8], at: usize) -> Option<(&str, usize)> {
    let rest = bytes.get(at..)?;
    let len = rest.iter().position(|&byte| byte == b'\n')?;
    let (sum, text) = std::str::from_utf8(&rest[..len]).ok()?.split_once(' ')?;
    let sum = u32::from_str_radix(sum, 16).ok()?;
    (sum == crc32c(text.as_bytes())).then_some((text, at + len + 1))
}

fn json(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|error| {
        Error::new(ErrorKind::Invalid, "names", "cannot be written").because(error)
    })
}

#[cfg(test)]
mod tests {
    use super::{NamesLog, Record};
    use crate::{RecordedChange, VolumeName};
    use block_io::{BlockDevice, MemoryDevice};
    use block_types::{ByteCount, ByteOffset};
    use std::sync::Arc;

    fn record(transaction: u64, name: &str) -> Record {
        let name = VolumeName::parse(name).expect("a name");
        let change = RecordedChange::Create { name, id: 1, size: 4096 };
        Record { transaction, at: "2026-01-01T00:00:00Z".into(), change }
    }

    fn device() -> Arc<MemoryDevice> {
        Arc::new(MemoryDevice::new("names", ByteCount::ZERO))
    }

    #[test]
    fn records_come_true_with_their_transaction() {
        let device = device();
        let mut log = NamesLog::format(device.clone()).expect("formatted");
        for transaction in 1..=3 {
            log.append(&record(transaction, "db")).expect("appended");
        }
        for transaction in 0..=4 {
            let (_, records) = NamesLog::open(device.clone(), transaction).expect("opened");
            assert_eq!(records.len() as u64, transaction.min(3));
        }
    }

    #[test]
    fn a_record_that_did_not_come_true_is_overwritten() {
        let device = device();
        let mut log = NamesLog::format(device.clone()).expect("formatted");
        log.append(&record(1, "a-long-name-that-leaves-a-tail")).expect("appended");
        let (mut log, records) = NamesLog::open(device.clone(), 0).expect("opened");
        assert!(records.is_empty());
        log.append(&record(1, "db")).expect("appended");
        let (_, records) = NamesLog::open(device, 1).expect("opened");
        assert_eq!(records, [record(1, "db")]);
    }

    #[test]
    fn a_cleared_log_is_empty_and_goes_on() {
        let device = device();
        let mut log = NamesLog::format(device.clone()).expect("formatted");
        for transaction in 1..=3 {
            log.append(&record(transaction, "db")).expect("appended");
        }
        log.clear().expect("cleared");
        let (_, records) = NamesLog::open(device.clone(), 9).expect("opened");
        assert_eq!(records, []);
        log.append(&record(1, "new")).expect("appended");
        let (_, records) = NamesLog::open(device, 9).expect("opened");
        assert_eq!(records, [record(1, "new")]);
    }

    #[test]
    fn every_torn_end_loses_the_last_record_only() {
        let device = device();
        let mut log = NamesLog::format(device.clone()).expect("formatted");
        log.append(&record(1, "one")).expect("appended");
        let before = log.end;
        log.append(&record(2, "two")).expect("appended");
        for cut in before..log.end {
            let mut bytes = device.to_bytes();
            bytes[cut as usize..].fill(0);
            let torn = Arc::new(MemoryDevice::from_bytes("names", bytes));
            let (_, records) = NamesLog::open(torn, 2).expect("opened");
            assert_eq!(records, [record(1, "one")], "cut at {cut}");
        }
    }

    #[test]
    fn something_else_is_refused() {
        let device = device();
        device.resize(ByteCount::new(4096)).expect("resized");
        assert!(NamesLog::open(device.clone(), 0).is_err());
        device.write_at(b"00000000 {}\n", ByteOffset::ZERO).expect("written");
        assert!(NamesLog::open(device, 0).is_err());
    }
}
