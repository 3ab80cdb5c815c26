//! The header of a persistent store: bytes -> header, and back.

use block_io::{AlignedBuf, BlockDevice};
use block_types::{ByteCount, ByteOffset, Error, ErrorKind, Result, SECTOR};
use zerocopy::{FromBytes, IntoBytes};

use crate::layout::{HeaderLayout, IN_USE, MAGIC, VERSION, VERSION_SHARED};
use crate::{ChunkSize, Label};

/// What a header says, once it was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) valid: bool,
    /// Whether a snapshot of mode async was using the store and has not closed it.
    pub(crate) in_use: bool,
    pub(crate) chunk: ChunkSize,
    /// Whether several snapshots share the store.
    pub(crate) shared: bool,
    /// Whose past the store holds, as whoever made it has noted.
    pub(crate) label: Option<Label>,
}

impl Header {
    /// Reads and checks the header of `device`.
    ///
    /// # Errors
    /// `NotFound` where the header is zero, `Corrupt` where it is not one, `Unsupported` for
    /// another version.
    pub(crate) fn read(device: &dyn BlockDevice) -> Result<Self> {
        let name = device.name();
        let len = io_unit(device);
        if device.size() < len {
            return Err(corrupt(name, "is shorter than the header of an exception store"));
        }
        let mut bytes = AlignedBuf::zeroed(len.as_usize());
        device.read_at(&mut bytes, ByteOffset::ZERO)?;
        Self::parse(name, &bytes)
    }

    /// Checks the bytes at the start of the device called `name`.
    pub(crate) fn parse(name: &str, bytes: &[u8]) -> Result<Self> {
        let Ok((layout, _)) = HeaderLayout::read_from_prefix(bytes) else {
            return Err(corrupt(name, "is shorter than the header of an exception store"));
        };
        match layout.magic.get() {
            MAGIC => {}
            0 => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    name,
                    "holds no exception store: its header is zero",
                )
                .advise("create one there; an existing store is never made anew by opening it"));
            }
            other => {
                let problem = format!("is no exception store: its magic number is {other:#x}");
                return Err(corrupt(name, problem));
            }
        }
        let version = layout.version.get();
        if version != VERSION && version != VERSION_SHARED {
            let problem =
                format!("has version {version}, only {VERSION} and {VERSION_SHARED} are known");
            return Err(Error::new(ErrorKind::Unsupported, name, problem)
                .advise("open it with the software that made it"));
        }
        let size = ByteCount::from_sectors(layout.chunk_sectors.get().into());
        let chunk = ChunkSize::new(size)
            .map_err(|error| corrupt(name, "has an impossible header").because(error))?;
        Ok(Self {
            valid: layout.valid.get() != 0,
            in_use: layout.in_use.get() == IN_USE,
            chunk,
            shared: version == VERSION_SHARED,
            label: Label::parse(bytes),
        })
    }

    /// Writes the header; the caller flushes.
    pub(crate) fn write(&self, device: &dyn BlockDevice) -> Result<()> {
        let mut bytes = AlignedBuf::zeroed(io_unit(device).as_usize());
        let sectors = u32::try_from(self.chunk.sectors()).expect("1 GiB is few sectors");
        let layout = HeaderLayout {
            magic: MAGIC.into(),
            valid: u32::from(self.valid).into(),
            version: if self.shared { VERSION_SHARED } else { VERSION }.into(),
            chunk_sectors: sectors.into(),
            in_use: if self.in_use { IN_USE } else { 0 }.into(),
        };
        bytes[..size_of::<HeaderLayout>()].copy_from_slice(layout.as_bytes());
        if let Some(label) = &self.label {
            label.put(&mut bytes);
        }
        device.write_at(&bytes, ByteOffset::ZERO)
    }
}

/// The least that can be read or written of `device`, at least a sector.
pub(crate) fn io_unit(device: &dyn BlockDevice) -> ByteCount {
    device.limits().minimum.max(ByteCount::new(SECTOR))
}

fn corrupt(name: &str, problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, name, problem)
        .advise("look whether it is the right device; nothing was written to it")
}

#[cfg(test)]
mod tests {
    use super::Header;
    use crate::ChunkSize;
    use block_io::MemoryDevice;
    use block_types::{ByteCount, ErrorKind};

    /// The first 16 bytes that the kernel writes for chunks of 8 sectors.
    const KERNEL: [u8; 16] = *b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0";

    fn sector(start: &[u8]) -> Vec<u8> {
        let mut sector = vec![0; 512];
        sector[..start.len()].copy_from_slice(start);
        sector
    }

    #[test]
    fn is_the_kernels_to_the_byte() {
        let header = Header::parse("store", &sector(&KERNEL)).expect("parsed");
        let chunk = ChunkSize::new(ByteCount::new(4096)).expect("a chunk size");
        assert_eq!(
            header,
            Header { valid: true, in_use: false, chunk, shared: false, label: None }
        );
        let device = MemoryDevice::new("store", ByteCount::new(512));
        header.write(&device).expect("written");
        assert_eq!(device.to_bytes(), sector(&KERNEL));
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let with = |at: usize, byte: u8| {
            let mut bytes = sector(&KERNEL);
            bytes[at] = byte;
            Header::parse("store", &bytes).expect_err("refused").kind()
        };
        assert_eq!(with(0, 0), ErrorKind::Corrupt);
        assert_eq!(with(8, 3), ErrorKind::Unsupported);
        assert_eq!(with(12, 9), ErrorKind::Corrupt);
        assert_eq!(with(12, 0), ErrorKind::Corrupt);
        let zero = Header::parse("store", &[0; 512]).expect_err("refused");
        assert_eq!(zero.kind(), ErrorKind::NotFound);
        assert!(zero.advice().is_some());
    }
}
