//! Writes of metadata that may reach the disk in any order: gathered, sorted, joined.

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, Result};

use super::bytes::write_any;

/// Neighbours are joined up to this size.
const LARGEST: usize = 1 << 20;

/// A batch of writes to one file.
#[derive(Default)]
pub(super) struct Stage {
    writes: Vec<(ByteOffset, Vec<u8>)>,
}

impl Stage {
    /// Adds a write.
    pub(super) fn push(&mut self, at: ByteOffset, bytes: Vec<u8>) {
        self.writes.push((at, bytes));
    }

    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// Bytes that wait to be written.
    pub(super) fn len(&self) -> usize {
        self.writes.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// Writes everything, in the order of the file, and forgets it.
    ///
    /// # Errors
    /// As the file's `write_at`.
    pub(super) fn write(&mut self, file: &dyn BlockDevice) -> Result<()> {
        let mut writes = std::mem::take(&mut self.writes);
        writes.sort_by_key(|(at, _)| *at);
        let mut writes = writes.into_iter();
        let Some(mut run) = writes.next() else {
            return Ok(());
        };
        for (at, bytes) in writes {
            let (start, joined) = &mut run;
            let touches = start.plus(ByteCount::of(joined)) == at;
            if touches && joined.len() + bytes.len() <= LARGEST {
                joined.extend_from_slice(&bytes);
                continue;
            }
            write_any(file, joined, *start)?;
            run = (at, bytes);
        }
        write_any(file, &run.1, run.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Stage;
    use block_io::{BlockDevice, CrashWorld};
    use block_types::ByteOffset;

    #[test]
    fn neighbours_are_one_write() {
        let world = CrashWorld::new(1);
        let file = world.device("file", vec![0; 64]);
        let mut stage = Stage::default();
        for at in [8, 0, 40, 16] {
            stage.push(ByteOffset::new(at), vec![at as u8 + 1; 8]);
        }
        assert_eq!(stage.len(), 32);
        stage.write(&*file).unwrap();
        assert!(stage.is_empty());
        assert_eq!(world.ops(), 2);
        let mut bytes = [0; 48];
        file.read_at(&mut bytes, ByteOffset::ZERO).unwrap();
        assert_eq!((bytes[0], bytes[8], bytes[16], bytes[24], bytes[40]), (1, 9, 17, 0, 41));
    }
}
