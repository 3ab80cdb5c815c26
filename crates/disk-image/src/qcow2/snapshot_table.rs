//! The table of internal snapshots: read, kept byte for byte, and written.
//!
//! Section "Snapshots" of the specification.

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use zerocopy::{FromBytes, IntoBytes};

use super::bytes::read_clipped;
use super::geometry::Geometry;
use super::header::{Header, L1_LIMIT, corrupt};
use super::layout::{SnapshotExtra, SnapshotHead};

/// The largest snapshot table, as in QEMU.
pub(super) const TABLE_LIMIT: u64 = 64 << 20;
/// The most extra data of a snapshot, as in QEMU.
const EXTRA_LIMIT: u32 = 1024;

/// An internal snapshot as the table has it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) head: SnapshotHead,
    /// As it is, so that what is not known of it survives.
    pub(super) extra: Vec<u8>,
    pub(super) id: Vec<u8>,
    pub(super) name: Vec<u8>,
}

/// All internal snapshots, in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct SnapshotTable {
    pub(super) entries: Vec<Entry>,
}

impl SnapshotTable {
    /// Reads the table that `header` names.
    ///
    /// # Errors
    /// [`block_types::ErrorKind::Corrupt`] for a table or an entry outside its limits.
    pub(super) fn read(file: &dyn BlockDevice, header: &Header) -> Result<Self> {
        let mut entries = Vec::new();
        let mut at = header.snapshots_at;
        for number in 0..header.snapshot_count {
            let bad =
                |problem: &str| corrupt(file.name(), format!("snapshot {}: {problem}", number + 1));
            let (entry, len) = read_entry(file, at, &bad)?;
            check_l1(&entry, header.geometry, file.size(), &bad)?;
            at = at.checked_add(len).ok_or_else(|| bad("lies past every end"))?;
            // The padding of the last entry may be missing at the end of a file.
            let end = file.size().get().next_multiple_of(8);
            if at.get() - header.snapshots_at.get() > TABLE_LIMIT || at.get() > end {
                return Err(bad("lies past the end of the table or the file"));
            }
            entries.push(entry);
        }
        Ok(Self { entries })
    }

    /// Bytes of the table in the file.
    pub(super) fn len(&self) -> ByteCount {
        ByteCount::new(self.entries.iter().map(Entry::len).sum())
    }

    /// The table as it stands in the file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len().as_usize());
        for entry in &self.entries {
            bytes.extend_from_slice(entry.head.as_bytes());
            bytes.extend_from_slice(&entry.extra);
            bytes.extend_from_slice(&entry.id);
            bytes.extend_from_slice(&entry.name);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes
    }

    /// The place in the table of the snapshot called `name`: its id if there is one, or else its
    /// name.
    pub(super) fn find(&self, name: &str) -> Option<usize> {
        let wanted = name.as_bytes();
        let by_id = self.entries.iter().position(|entry| entry.id == wanted);
        by_id.or_else(|| self.entries.iter().position(|entry| entry.name == wanted))
    }

    /// An id that no snapshot has: one more than the largest.
    pub(super) fn next_id(&self) -> u64 {
        let number = |entry: &Entry| str::from_utf8(&entry.id).ok()?.parse::<u64>().ok();
        self.entries.iter().filter_map(number).max().unwrap_or(0).saturating_add(1)
    }
}

fn read_entry(
    file: &dyn BlockDevice,
    at: ByteOffset,
    bad: &dyn Fn(&str) -> block_types::Error,
) -> Result<(Entry, ByteCount)> {
    let mut head = [0; size_of::<SnapshotHead>()];
    read_clipped(file, &mut head, at)?;
    let head = SnapshotHead::read_from_bytes(&head).map_err(|_| bad("is cut short"))?;
    if head.extra_size.get() > EXTRA_LIMIT {
        return Err(bad("has more than 1024 bytes of extra data"));
    }
    let (extra, id) = (head.extra_size.get() as usize, usize::from(head.id_size.get()));
    let mut rest = vec![0; extra + id + usize::from(head.name_size.get())];
    let behind = at.checked_add(ByteCount::new(size_of::<SnapshotHead>() as u64));
    read_clipped(file, &mut rest, behind.ok_or_else(|| bad("lies past every end"))?)?;
    let name = rest.split_off(extra + id);
    let id = rest.split_off(extra);
    let entry = Entry { head, extra: rest, id, name };
    let len = ByteCount::new(entry.len());
    Ok((entry, len))
}

fn check_l1(
    entry: &Entry,
    geometry: Geometry,
    file_size: ByteCount,
    bad: &dyn Fn(&str) -> block_types::Error,
) -> Result<()> {
    let len = u64::from(entry.head.l1_size.get()) * 8;
    let at = ByteOffset::new(entry.head.l1_table_offset.get());
    if len == 0 {
        return Ok(());
    }
    let range = ByteRange::checked(at, ByteCount::new(len));
    let inside = range.is_some_and(|range| range.end().get() <= file_size.get());
    if len > L1_LIMIT || !inside || at == ByteOffset::ZERO || !at.is_aligned(geometry.cluster()) {
        return Err(bad("has its L1 table outside the file, too large, or at no cluster's start"));
    }
    Ok(())
}

impl Entry {
    /// The snapshot's L1 table.
    pub(super) fn l1(&self) -> ByteRange {
        let at = ByteOffset::new(self.head.l1_table_offset.get());
        ByteRange::new(at, ByteCount::new(u64::from(self.head.l1_size.get()) * 8))
    }

    /// Bytes of the virtual machine's state, which lies behind the disk.
    pub(super) fn vm_state_size(&self) -> ByteCount {
        let known = self.known_extra(0).filter(|_| self.extra.len() >= 8);
        ByteCount::new(known.unwrap_or_else(|| u64::from(self.head.vm_state_size.get())))
    }

    /// Bytes of the disk when the snapshot was taken, if the entry says so.
    pub(super) fn disk_size(&self) -> Option<ByteCount> {
        self.known_extra(8).map(ByteCount::new)
    }

    /// Instructions of a machine that is replayed.
    pub(super) fn instructions(&self) -> Option<u64> {
        self.known_extra(16).filter(|&count| count != u64::MAX)
    }

    /// Gives the entry other extra data.
    pub(super) fn set_extra(&mut self, extra: Vec<u8>) {
        self.head.extra_size = (extra.len() as u32).into();
        self.extra = extra;
    }

    fn known_extra(&self, at: usize) -> Option<u64> {
        let bytes = self.extra.get(at..at + 8)?;
        Some(u64::from_be_bytes(bytes.try_into().expect("eight bytes")))
    }

    fn len(&self) -> u64 {
        let len = size_of::<SnapshotHead>() + self.extra.len() + self.id.len() + self.name.len();
        (len as u64).next_multiple_of(8)
    }
}

/// The extra data of `entry` with all that version 3 wants: where the size of the disk is missing,
/// it was `size`.
pub(super) fn long_extra(entry: &Entry, size: ByteCount) -> Vec<u8> {
    if entry.extra.len() >= 16 {
        return entry.extra.clone();
    }
    let mut extra = new_extra(size);
    extra[..8].copy_from_slice(&entry.vm_state_size().get().to_be_bytes());
    extra
}

/// The extra data of a new snapshot of a disk of `size`, without a machine's state.
pub(super) fn new_extra(size: ByteCount) -> Vec<u8> {
    let extra = SnapshotExtra {
        vm_state_size: 0.into(),
        disk_size: size.get().into(),
        icount: u64::MAX.into(),
    };
    extra.as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::{Entry, SnapshotTable, new_extra};
    use crate::qcow2::layout::SnapshotHead;
    use block_types::ByteCount;
    use zerocopy::FromZeros;

    fn entry(id: &str, name: &str) -> Entry {
        let extra = new_extra(ByteCount::new(77));
        let mut head = SnapshotHead::new_zeroed();
        head.extra_size = (extra.len() as u32).into();
        head.id_size = (id.len() as u16).into();
        head.name_size = (name.len() as u16).into();
        Entry { head, extra, id: id.into(), name: name.into() }
    }

    #[test]
    fn ids_go_before_names_and_count_up() {
        let table = SnapshotTable { entries: vec![entry("7", "3"), entry("3", "x")] };
        assert_eq!((table.find("3"), table.find("x"), table.find("y")), (Some(1), Some(1), None));
        assert_eq!(table.next_id(), 8);
        assert_eq!(SnapshotTable::default().next_id(), 1);
        assert_eq!(table.encode().len() as u64, table.len().get());
        assert_eq!(table.entries[0].disk_size(), Some(ByteCount::new(77)));
        assert_eq!(table.entries[0].vm_state_size(), ByteCount::ZERO);
    }
}
