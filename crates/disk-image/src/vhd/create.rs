//! Making a new image.

use block_io::{BlockDevice, ZeroMode, check_writable};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result, SECTOR};

use super::address::BlockSize;
use super::batmap::{self, Batmap};
use super::commit;
use super::footer::{FOOTER, Footer, Kind};
use super::header::{HEADER_AT, Header, ParentLink};
use super::host::check_sectors;
use super::identity::{Creator, DiskId, Timestamp};
use super::locator::{self, Locator};
use super::open::locators_at;
use super::resize::check_size;

/// The table is written in pieces of this size.
const PIECE: usize = 1 << 20;

/// What a new image is to be.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// How it is stored, and over which parent.
    pub content: Content,
    /// The size of the disk: whole sectors, up to 2040 GiB.
    pub size: ByteCount,
    /// Its UUID; never the null one.
    pub id: DiskId,
    /// When it is made. Readers may refuse a time in the future.
    pub created: Timestamp,
    /// Whose conventions it follows. [`Creator::XENSERVER`] gives sparse disks a batmap.
    pub creator: Creator,
    /// The size of its blocks; all but [`BlockSize::DEFAULT`] are for tests and rare readers.
    pub block_size: BlockSize,
    /// The size to which it can grow later: four bytes of table for a block.
    pub largest: ByteCount,
}

/// What a new image holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// All of its bytes, zeros.
    Fixed,
    /// Nothing yet: zeros.
    Dynamic,
    /// Nothing yet: what the parent holds.
    Differencing(ParentLink),
}

impl CreateOptions {
    /// A dynamic disk of `size` as XenServer makes them, which cannot grow.
    pub fn new(size: ByteCount, id: DiskId, created: Timestamp) -> Self {
        Self {
            content: Content::Dynamic,
            size,
            id,
            created,
            creator: Creator::XENSERVER,
            block_size: BlockSize::DEFAULT,
            largest: size,
        }
    }

    fn check(&self, object: &str) -> Result<()> {
        check_size(object, self.size)?;
        check_size(object, self.largest.max(self.size))?;
        let Content::Differencing(link) = &self.content else { return Ok(()) };
        if link.id == Some(self.id) {
            let problem = format!("cannot be its own parent ({})", self.id);
            return Err(Error::new(ErrorKind::Invalid, object, problem));
        }
        Ok(())
    }
}

/// Makes an image in `file`: an empty file, or a block device, whose content is lost. Durable when
/// it returns; after a crash before that it is no VHD.
///
/// # Errors
/// [`ErrorKind::Exists`] for a file that holds something; [`ErrorKind::Invalid`] for sizes and
/// paths that no VHD has; [`ErrorKind::OutOfSpace`] for a device that is too small.
pub fn create(file: &dyn BlockDevice, options: &CreateOptions) -> Result<()> {
    check_sectors(file)?;
    check_writable(file)?;
    options.check(file.name())?;
    match &options.content {
        Content::Fixed => create_fixed(file, options),
        Content::Dynamic => create_sparse(file, options, None),
        Content::Differencing(link) => create_sparse(file, options, Some(link)),
    }
}

fn create_fixed(file: &dyn BlockDevice, options: &CreateOptions) -> Result<()> {
    let end = make_room(file, ByteOffset::new(options.size.get()))?;
    let content = ByteRange::new(ByteOffset::ZERO, options.size);
    file.zero(content, ZeroMode { may_unmap: true, only_if_fast: false })?;
    commit::flush(file)?;
    file.write_at(&footer(options, Kind::Fixed).bytes(), end)?;
    commit::flush(file)
}

fn create_sparse(
    file: &dyn BlockDevice,
    options: &CreateOptions,
    parent: Option<&ParentLink>,
) -> Result<()> {
    let blocks = options.block_size.count(options.largest.max(options.size));
    let entries = u32::try_from(blocks).unwrap_or(u32::MAX);
    let mut header = Header::new(options.block_size, entries);
    let batmap = batmap::home(options.creator, &header);
    let texts_at = locators_at(options.creator, &header);
    let mut texts = Vec::new();
    if let Some(link) = parent {
        let placed = locator::place(&Locator::for_parent(&link.path), texts_at)?;
        header = header.with_parent(link, placed.entries)?;
        texts = placed.bytes;
    }
    let end = make_room(file, texts_at.plus(ByteCount::of(&texts)))?;
    // An old footer must not be taken for the new image's while that is not whole.
    file.zero(ByteRange::new(ByteOffset::ZERO, FOOTER), ZeroMode::default())?;
    file.zero(ByteRange::new(end, FOOTER), ZeroMode::default())?;
    commit::flush(file)?;
    file.write_at(&header.bytes(), HEADER_AT)?;
    write_empty_table(file, &header)?;
    if batmap.is_some() {
        let batmap = Batmap::new(options.size, &header);
        file.write_at(&batmap.header_bytes(), batmap::header_at(&header))?;
        file.write_at(batmap.map(), batmap.map_range().start)?;
    }
    if !texts.is_empty() {
        file.write_at(&texts, texts_at)?;
    }
    commit::flush(file)?;
    let kind = if parent.is_some() { Kind::Differencing } else { Kind::Dynamic };
    let footer = footer(options, kind);
    file.write_at(&footer.bytes(), end)?;
    file.write_at(&footer.bytes(), ByteOffset::ZERO)?;
    commit::flush(file)
}

fn footer(options: &CreateOptions, kind: Kind) -> Footer {
    Footer::new(kind, options.size, options.id, options.created, options.creator)
}

/// Makes the file long enough for `used` bytes and a footer behind them, and says where that lies:
/// at the end of a device.
fn make_room(file: &dyn BlockDevice, used: ByteOffset) -> Result<ByteOffset> {
    let needed = ByteCount::new(used.plus(FOOTER).get());
    // Only a block device has a size that it was not given.
    let resizable = file.resize(file.size()).is_ok();
    if resizable && !file.size().is_zero() {
        let problem = "holds something already, and a new image would overwrite it";
        return Err(Error::new(ErrorKind::Exists, file.name(), problem)
            .advise("name a file that does not exist, or remove this one"));
    }
    if resizable {
        file.resize(needed)?;
        return Ok(used);
    }
    if file.size() < needed {
        let problem = format!("is too small for the image: {} of {needed}", file.size());
        return Err(Error::new(ErrorKind::OutOfSpace, file.name(), problem));
    }
    Ok(ByteOffset::new(file.size().get() / SECTOR * SECTOR - FOOTER.get()))
}

/// Writes a table of unused entries, padded with zeros to whole sectors.
fn write_empty_table(file: &dyn BlockDevice, header: &Header) -> Result<()> {
    let table = header.table();
    let end = table.start.plus(ByteCount::new(4 * u64::from(header.entries())));
    let mut buffer = vec![0xff; table.len.as_usize().min(PIECE)];
    for piece in table.pieces(ByteCount::new(PIECE as u64)) {
        let part = &mut buffer[..piece.len.as_usize()];
        let unused = piece.intersect(ByteRange::between(table.start, end)).len.as_usize();
        part[unused..].fill(0);
        file.write_at(part, piece.start)?;
    }
    Ok(())
}
