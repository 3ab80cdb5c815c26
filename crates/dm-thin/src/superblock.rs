//! The superblock: bytes -> unchecked header -> header, and back without losing a foreign byte.

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, Error, ErrorKind, Result};
use persistent_data::{BLOCK_SIZE, BlockKind, MetaBlock, SpaceMapRoot, seal, verify};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::layout::{
    MAGIC, METADATA_BLOCK_SECTORS, NEEDS_CHECK, RootField, SuperblockLayout, VERSION,
};
use crate::{BlockSize, Time};

/// A superblock that was checked, with every byte it was read from.
#[derive(Clone)]
pub(crate) struct Superblock {
    layout: SuperblockLayout,
    /// The whole block: bytes behind the layout belong to others and are written back as they were.
    bytes: Box<[u8; BLOCK_SIZE]>,
    block_size: BlockSize,
}

/// The parts of a superblock that a commit changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Roots {
    pub(crate) time: Time,
    pub(crate) transaction: u64,
    pub(crate) mappings: MetaBlock,
    pub(crate) details: MetaBlock,
    pub(crate) data_map: SpaceMapRoot,
    pub(crate) metadata_map: SpaceMapRoot,
}

/// Where the superblock lies.
pub(crate) const LOCATION: MetaBlock = MetaBlock::new(0);

impl Superblock {
    /// The superblock of a new pool; its roots follow with the first commit.
    pub(crate) fn new(block_size: BlockSize, metadata_blocks: u64) -> Self {
        let mut bytes = Box::new([0; BLOCK_SIZE]);
        let mut layout = SuperblockLayout::read_from_prefix(&bytes[..])
            .expect("a block is longer than a superblock")
            .0;
        layout.magic = MAGIC.into();
        layout.version = VERSION.into();
        let sectors = block_size.bytes().sectors();
        layout.data_block_sectors = u32::try_from(sectors).expect("1 GiB is few sectors").into();
        layout.metadata_block_sectors = METADATA_BLOCK_SECTORS.into();
        layout.metadata_blocks = metadata_blocks.into();
        bytes[..size_of::<SuperblockLayout>()].copy_from_slice(layout.as_bytes());
        Self { layout, bytes, block_size }
    }

    /// Reads and checks the superblock of `metadata`.
    ///
    /// # Errors
    /// `Corrupt` where it is none or breaks a rule, `Unsupported` for features nobody knows here.
    pub(crate) fn read(metadata: &dyn BlockDevice) -> Result<Self> {
        let name = metadata.name();
        if metadata.size() < ByteCount::new(BLOCK_SIZE as u64) {
            return Err(Error::new(ErrorKind::Corrupt, name, "is shorter than a superblock")
                .advise("restore it from a copy; it is not the metadata of a thin pool"));
        }
        let mut bytes = Box::new([0; BLOCK_SIZE]);
        metadata.read_at(&mut bytes[..], ByteOffset::ZERO)?;
        Self::parse(name, bytes, LOCATION)
    }

    /// Checks a superblock, or the copy of one, that was read from block `at` of the device called
    /// `name`.
    pub(crate) fn parse(name: &str, bytes: Box<[u8; BLOCK_SIZE]>, at: MetaBlock) -> Result<Self> {
        let layout = SuperblockLayout::read_from_prefix(&bytes[..])
            .expect("a block is longer than a superblock")
            .0;
        let corrupt = |problem: String| {
            Error::new(ErrorKind::Corrupt, name, problem)
                .advise("repair it with 'firn pool repair', or restore it from a copy")
        };
        if layout.magic.get() != MAGIC {
            return Err(corrupt(format!(
                "is no thin pool metadata: the magic number is {:#x}, not {MAGIC:#x}",
                layout.magic.get()
            )));
        }
        verify(&bytes[..], BlockKind::Superblock, at)
            .map_err(|error| corrupt("has a broken superblock".into()).because(error))?;
        if layout.metadata_block_sectors.get() != METADATA_BLOCK_SECTORS {
            let sectors = layout.metadata_block_sectors.get();
            return Err(corrupt(format!("has metadata blocks of {sectors} sectors, not 8")));
        }
        let block = ByteCount::from_sectors(u64::from(layout.data_block_sectors.get()));
        let block_size = BlockSize::new(block)
            .map_err(|error| corrupt("has an impossible superblock".into()).because(error))?;
        if layout.incompat.get() != 0 {
            let bits = layout.incompat.get();
            return Err(Error::new(
                ErrorKind::Unsupported,
                name,
                format!("uses incompatible features that are not known here: bits {bits:#x}"),
            )
            .advise("open it with the software that made it"));
        }
        Ok(Self { layout, bytes, block_size })
    }

    /// Writes the superblock with new `roots`. The caller flushes before, for what the roots name,
    /// and after.
    pub(crate) fn write(&mut self, metadata: &dyn BlockDevice, roots: &Roots) -> Result<()> {
        let layout = &mut self.layout;
        layout.time = roots.time.get().into();
        layout.transaction = roots.transaction.into();
        layout.mappings = roots.mappings.get().into();
        layout.details = roots.details.get().into();
        layout.data_map.root = roots.data_map;
        layout.metadata_map.root = roots.metadata_map;
        self.bytes[..size_of::<SuperblockLayout>()].copy_from_slice(self.layout.as_bytes());
        seal(&mut self.bytes[..], BlockKind::Superblock, LOCATION);
        metadata.write_at(&self.bytes[..], ByteOffset::ZERO)
    }

    /// Marks it, from the next write on: only a check may decide if the metadata is sound.
    pub(crate) fn require_check(&mut self) {
        self.layout.flags = (self.layout.flags.get() | NEEDS_CHECK).into();
    }

    /// Names another block as that of the metadata snapshot, or none, from the next write on.
    pub(crate) fn hold(&mut self, at: Option<MetaBlock>) {
        self.layout.held_root = at.map_or(0, MetaBlock::get).into();
    }

    /// What a metadata snapshot of `roots` is: the superblock with the trees that they name, and
    /// without space maps, which it does not keep, and a snapshot of its own. Not sealed.
    pub(crate) fn snapshot(&self, roots: &Roots) -> [u8; BLOCK_SIZE] {
        let mut layout = self.layout;
        layout.time = roots.time.get().into();
        layout.transaction = roots.transaction.into();
        layout.mappings = roots.mappings.get().into();
        layout.details = roots.details.get().into();
        layout.held_root = 0.into();
        layout.data_map = RootField::new_zeroed();
        layout.metadata_map = RootField::new_zeroed();
        let mut bytes = *self.bytes;
        bytes[..size_of::<SuperblockLayout>()].copy_from_slice(layout.as_bytes());
        bytes
    }

    /// The roots it names.
    pub(crate) fn roots(&self) -> Roots {
        Roots {
            time: Time::new(self.layout.time.get()),
            transaction: self.layout.transaction.get(),
            mappings: MetaBlock::new(self.layout.mappings.get()),
            details: MetaBlock::new(self.layout.details.get()),
            data_map: self.layout.data_map.root,
            metadata_map: self.layout.metadata_map.root,
        }
    }

    /// The size of a data block.
    pub(crate) fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The block of the metadata snapshot, if one is held.
    pub(crate) fn held_root(&self) -> Option<MetaBlock> {
        let block = self.layout.held_root.get();
        (block != 0).then_some(MetaBlock::new(block))
    }

    /// Whether only a check may decide if the metadata is sound.
    pub(crate) fn needs_check(&self) -> bool {
        self.layout.flags.get() & NEEDS_CHECK != 0
    }

    /// Features that forbid writing, if any are set: none are known here.
    pub(crate) fn forbids_writing(&self) -> Option<u32> {
        let bits = self.layout.compat_ro.get();
        (bits != 0).then_some(bits)
    }
}

#[cfg(test)]
mod tests {
    use super::Superblock;
    use crate::BlockSize;
    use block_io::{BlockDevice, MemoryDevice};
    use block_types::{ByteCount, ByteOffset, ErrorKind};

    fn fresh() -> (MemoryDevice, Superblock) {
        let size = BlockSize::new(ByteCount::new(65536)).expect("a block size");
        let device = MemoryDevice::new("meta", ByteCount::new(1 << 20));
        let mut superblock = Superblock::new(size, 256);
        let roots = superblock.roots();
        superblock.write(&device, &roots).expect("written");
        (device, superblock)
    }

    #[test]
    fn foreign_bytes_survive() {
        let (device, mut superblock) = fresh();
        superblock.bytes[0x800] = 0x5a;
        let roots = superblock.roots();
        superblock.write(&device, &roots).expect("written");
        let mut again = Superblock::read(&device).expect("read");
        again.write(&device, &roots).expect("written");
        assert_eq!(device.to_bytes()[0x800], 0x5a);
    }

    #[test]
    fn a_flipped_bit_is_found() {
        let (device, _) = fresh();
        let mut byte = [0];
        device.read_at(&mut byte, ByteOffset::new(0x150)).expect("read");
        device.write_at(&[byte[0] ^ 1], ByteOffset::new(0x150)).expect("written");
        let error = Superblock::read(&device).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn unknown_incompatible_features_are_refused_by_name() {
        let (device, mut superblock) = fresh();
        superblock.layout.incompat = 4.into();
        let roots = superblock.roots();
        superblock.write(&device, &roots).expect("written");
        let error = Superblock::read(&device).err().expect("refused");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("0x4"), "{error}");
    }
}
