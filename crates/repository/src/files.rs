//! Files that were ever read through a disk: what resolves to a place in one refers to it as long
//! as the disk is open, so none is closed before.
//!
//! A list that only grows, read without a lock. What is retired is emptied by whoever removes it,
//! so all that it costs is a descriptor.

use std::sync::{Arc, OnceLock};

use block_io::BlockDevice;
use block_types::{Error, ErrorKind, Result};
use parking_lot::Mutex;

/// Shelves, each twice as long as the one before.
const SHELVES: usize = 20;

type Shelf = Box<[OnceLock<Arc<dyn BlockDevice>>]>;

/// The files of one disk.
pub(crate) struct Files {
    shelves: [OnceLock<Shelf>; SHELVES],
    len: Mutex<usize>,
}

/// The place of a file in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileNumber(u32);

impl Files {
    pub(crate) fn new() -> Self {
        Self { shelves: [const { OnceLock::new() }; SHELVES], len: Mutex::new(0) }
    }

    /// Enters a file, unless it is there.
    pub(crate) fn enter(&self, file: &Arc<dyn BlockDevice>) -> Result<FileNumber> {
        let mut len = self.len.lock();
        let known = (0..*len).map(|index| FileNumber(index as u32));
        let mut same = known.filter(|&number| Arc::ptr_eq(&self.entry(number), file));
        if let Some(number) = same.next() {
            return Ok(number);
        }
        let (shelf, place) = locate(*len);
        if shelf >= SHELVES {
            let problem = "has been read through too many files; close it and open it again";
            return Err(Error::new(ErrorKind::Unsupported, file.name(), problem));
        }
        let shelf = self.shelves[shelf]
            .get_or_init(|| (0..1usize << shelf).map(|_| OnceLock::new()).collect());
        shelf[place].get_or_init(|| Arc::clone(file));
        *len += 1;
        Ok(FileNumber((*len - 1) as u32))
    }

    fn entry(&self, number: FileNumber) -> Arc<dyn BlockDevice> {
        let (shelf, place) = locate(number.0 as usize);
        let shelf = self.shelves[shelf].get().expect("numbers are of files that were entered");
        Arc::clone(shelf[place].get().expect("numbers are of files that were entered"))
    }

    /// A file that was entered.
    pub(crate) fn get(&self, number: FileNumber) -> &dyn BlockDevice {
        let (shelf, place) = locate(number.0 as usize);
        let shelf = self.shelves[shelf].get().expect("numbers are of files that were entered");
        &**shelf[place].get().expect("numbers are of files that were entered")
    }
}

/// The shelf of entry `index`, and its place on it.
fn locate(index: usize) -> (usize, usize) {
    let shelf = (index + 1).ilog2() as usize;
    (shelf, index + 1 - (1 << shelf))
}

#[cfg(test)]
mod tests {
    use super::Files;
    use block_io::{BlockDevice, MemoryDevice};
    use block_types::ByteCount;
    use std::sync::Arc;

    #[test]
    fn files_keep_their_numbers() {
        let files = Files::new();
        let devices: Vec<Arc<dyn BlockDevice>> = (0..100)
            .map(|n| Arc::new(MemoryDevice::new(n.to_string(), ByteCount::ZERO)) as _)
            .collect();
        let numbers: Vec<_> = devices.iter().map(|d| files.enter(d).expect("room")).collect();
        for (device, number) in devices.iter().zip(numbers) {
            assert_eq!(files.get(number).name(), device.name());
            assert_eq!(files.enter(device).expect("room"), number);
        }
    }
}
