//! The log of a repository: lines of text, each a checksum and a record as JSON, appended and
//! flushed one by one. Zeros, or a line that its checksum does not fit, end it.
//!
//! It says only what the images themselves cannot: names, and two things that a crash must not make
//! anybody forget (see [`Record`]). When it has grown, one record that says the same takes its
//! place: written beside it, made durable, and renamed.

use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, Error, ErrorKind, Result, crc32c};
use serde::{Deserialize, Serialize};

use crate::folder::Folder;
use crate::record::{Catalogue, Record};

/// The file's name.
pub(crate) const LOG: &str = "names";
/// The next log, while it is written.
pub(crate) const NEXT_LOG: &str = "names.next";
/// The log grows by so many bytes at a time.
const STEP: u64 = 64 << 10;
/// A log larger than this is not one that was written here.
const LARGEST: u64 = 1 << 30;
/// With so many records it is written anew.
const MANY: usize = 4096;

/// The log of one repository.
pub(crate) struct Log {
    device: Arc<dyn BlockDevice>,
    /// Where the next record goes.
    end: u64,
    records: usize,
    /// Why nothing more is appended (FAIL-STOP).
    stopped: Option<String>,
}

/// The first line: what the file is.
#[derive(Serialize, Deserialize)]
struct Header {
    firn: String,
    version: u32,
}

impl Log {
    /// Begins an empty log in `folder`, durably.
    pub(crate) fn create(folder: &dyn Folder) -> Result<Self> {
        let log = Self::begin(folder.create(LOG)?)?;
        folder.sync()?;
        Ok(log)
    }

    fn begin(device: Arc<dyn BlockDevice>) -> Result<Self> {
        let mut log = Self { device, end: 0, records: 0, stopped: None };
        log.append_text(&json(&Header { firn: "repository".into(), version: 1 })?)?;
        Ok(log)
    }

    /// Opens the log of `folder`, and reads what it says.
    ///
    /// # Errors
    /// `Corrupt` where it is none; `Unsupported` for a later version.
    pub(crate) fn open(folder: &dyn Folder, read_only: bool) -> Result<(Self, Catalogue)> {
        let device = folder.open(LOG, read_only)?;
        if device.size().get() > LARGEST {
            let problem = "is too large for the log of a repository";
            return Err(Error::new(ErrorKind::Corrupt, device.name(), problem));
        }
        let mut bytes = vec![0; device.size().as_usize()];
        device.read_at(&mut bytes, ByteOffset::ZERO)?;
        let (end, records) = parse(device.name(), &bytes)?;
        let mut catalogue = Catalogue::default();
        records.iter().for_each(|record| catalogue.apply(record));
        let log = Self { device, end: end as u64, records: records.len(), stopped: None };
        Ok((log, catalogue))
    }

    /// Appends a record and makes it durable.
    ///
    /// # Errors
    /// Those of the file. Whether the record is there is then open, and nothing is appended any
    /// more until the log is read again.
    pub(crate) fn append(&mut self, record: &Record) -> Result<()> {
        if let Some(why) = &self.stopped {
            let problem = format!("takes no more records: {why}");
            return Err(Error::new(ErrorKind::Stopped, self.device.name(), problem));
        }
        let appended = self.append_text(&json(record)?);
        if let Err(error) = &appended {
            self.stopped = Some(error.to_string());
        }
        self.records += 1;
        appended
    }

    /// Whether it is time to write it anew.
    pub(crate) fn is_long(&self) -> bool {
        self.records > MANY
    }

    /// Writes it anew, to say what `catalogue` does.
    pub(crate) fn compact(folder: &dyn Folder, catalogue: &Catalogue) -> Result<Self> {
        if folder.list()?.iter().any(|file| file == NEXT_LOG) {
            folder.remove(NEXT_LOG)?;
            folder.sync()?;
        }
        let mut log = Self::begin(folder.create(NEXT_LOG)?)?;
        log.append(&catalogue.to_record())?;
        // Its name must be durable before it replaces another's.
        folder.sync()?;
        folder.rename(NEXT_LOG, LOG)?;
        folder.sync()?;
        Ok(log)
    }

    fn append_text(&mut self, text: &str) -> Result<()> {
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

/// Reads a log: where its last whole line ends, and its records.
fn parse(name: &str, bytes: &[u8]) -> Result<(usize, Vec<Record>)> {
    let corrupt = || {
        Error::new(ErrorKind::Corrupt, name, "is no log of a repository").advise(
            "restore it from a copy, or move it away and make the repository anew: \
                     the images stay, and go by the names of their files",
        )
    };
    let (header, mut at) = next_line(bytes, 0).ok_or_else(corrupt)?;
    let header: Header = serde_json::from_str(header).map_err(|error| corrupt().because(error))?;
    if header.firn != "repository" {
        return Err(corrupt());
    }
    if header.version != 1 {
        let problem = format!("has version {} of the format, 1 is known here", header.version);
        return Err(Error::new(ErrorKind::Unsupported, name, problem));
    }
    let mut records = Vec::new();
    while let Some((line, behind)) = next_line(bytes, at) {
        // KNOW-OR-REFUSE: a whole line that says something unknown was written by somebody newer.
        let record = serde_json::from_str(line).map_err(|error| {
            Error::new(ErrorKind::Unsupported, name, format!("has an unknown record at byte {at}"))
                .because(error)
        })?;
        records.push(record);
        at = behind;
    }
    Ok((at, records))
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
    serde_json::to_string(value)
        .map_err(|error| Error::new(ErrorKind::Invalid, LOG, "cannot be written").because(error))
}

#[cfg(test)]
mod tests {
    use super::{LOG, Log};
    use crate::NodeId;
    use crate::folder::{Folder, HostFolder};
    use crate::record::Record;
    use volume::NodeName;

    fn record(name: &str) -> Record {
        let node = NodeId::parse("x.vhd").expect("a node");
        Record::default().naming(&NodeName::parse(name).expect("a name"), &node, "now".into())
    }

    #[test]
    fn what_was_appended_is_read_again_and_survives_compaction() {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = HostFolder::new(dir.path());
        let mut log = Log::create(&folder).expect("created");
        for name in ["db", "db@monday", "web"] {
            log.append(&record(name)).expect("appended");
        }
        log.append(&Record::default().without(&NodeName::parse("web").expect("a name")))
            .expect("appended");
        let (_, before) = Log::open(&folder, false).expect("opened");
        assert_eq!(before.names.len(), 2);
        Log::compact(&folder, &before).expect("compacted");
        let (log, after) = Log::open(&folder, false).expect("opened");
        assert_eq!((after, log.records), (before, 1));
    }

    #[test]
    fn a_torn_line_ends_the_log() {
        let dir = tempfile::tempdir().expect("a directory");
        let folder = HostFolder::new(dir.path());
        let mut log = Log::create(&folder).expect("created");
        log.append(&record("db")).expect("appended");
        let whole = log.end;
        log.append(&record("web")).expect("appended");
        let bytes = std::fs::read(dir.path().join(LOG)).expect("read");
        for cut in whole..log.end {
            let mut torn = bytes.clone();
            torn[cut as usize..].fill(0);
            std::fs::write(dir.path().join(LOG), torn).expect("written");
            let (_, catalogue) = Log::open(&folder, false).expect("opened");
            assert_eq!(catalogue.names.len(), 1, "cut at {cut}");
        }
        std::fs::write(dir.path().join(LOG), "00000000 {}\n").expect("written");
        assert!(Log::open(&folder as &dyn Folder, false).is_err());
    }
}
