//! Repairing an image: what a check finds and what can be put right without guessing at content.
//!
//! Each step leaves an image that reads the same as before, whatever a crash cuts short; and
//! running the repair again goes on where it ended. What is not repaired: blocks that lie over each
//! other or past the end of the file, since nobody knows whose the bytes are, and a header that is
//! lost.

use std::sync::Arc;

use block_io::{BlockDevice, check_writable};
use block_types::{ByteCount, ByteOffset, ByteRange, Result, SECTOR};

use super::address::{FileSector, GuestBlock};
use super::alloc::{Occupant, Occupied, Space};
use super::check::{CheckReport, check};
use super::commit;
use super::footer::{FOOTER, Footer, Kind};
use super::header::Header;
use super::heads::Change;
use super::image::{OpenOptions, VhdImage};
use super::mapping::Mapping;
use super::open::{Batmaps, Parts, read_table, structures};

/// Blocks are moved in pieces of this size.
const PIECE: u64 = 1 << 20;

/// What a repair did, and what is still wrong.
#[derive(Clone, Debug, Default)]
pub struct RepairReport {
    /// What was put right.
    pub done: Vec<String>,
    /// What a check says afterwards.
    pub left: CheckReport,
}

/// Repairs the image in `file`, which nobody has open.
///
/// # Errors
/// Those of [`check`] and of the file.
pub fn repair(file: &Arc<dyn BlockDevice>) -> Result<RepairReport> {
    check_writable(&**file)?;
    let before = check(&**file, None)?;
    let mut done = Vec::new();
    if !before.errors.is_empty() {
        let parts = Parts::read(&**file)?;
        let evicted = match &parts.header {
            Some(header) => evict(&**file, &parts, header)?,
            None => 0,
        };
        if evicted > 0 {
            done.push(format!("moved {evicted} blocks off the image's own structures"));
        }
        // An image whose blocks overlap is not opened for writing; the check below says so.
        if let Ok(image) = open(file) {
            done.extend(rewrite(&image, &parts)?);
        }
    }
    Ok(RepairReport { done, left: check(&**file, None)? })
}

/// Opens the image, which writes lost footers, without what its batmap says.
fn open(file: &Arc<dyn BlockDevice>) -> Result<VhdImage> {
    VhdImage::open_with(Arc::clone(file), None, OpenOptions::default(), Batmaps::Distrust)
}

/// Writes anew what can be worked out of the rest.
fn rewrite(image: &VhdImage, parts: &Parts) -> Result<Vec<String>> {
    let mut done = Vec::new();
    if parts.footers.end.sound().is_none() {
        done.push("wrote the footer at the end".to_owned());
    } else if parts.footers.copy.sound().is_none() && image.kind() != Kind::Fixed {
        done.push("wrote the copy of the footer".to_owned());
    }
    let Some((sparse, header)) = image.sparse.as_ref().zip(parts.header) else {
        image.close()?;
        return Ok(done);
    };
    if image.kind() == Kind::Dynamic && header.names_a_parent() {
        image.replace_header(sparse, Change::NoParent, &[])?;
        done.push("removed what the header said of a parent".to_owned());
    }
    image.clear_unneeded_entries(sparse)?;
    for (block, _) in sparse.mapping.places() {
        image.load_bitmap(block)?;
    }
    image.close()?;
    if parts.footer.creator().has_batmap() {
        done.push("wrote the batmap anew, from the bitmaps".to_owned());
    }
    Ok(done)
}

/// Moves every block that lies over the image's own structures behind all others: QEMU puts blocks
/// there that knows nothing of batmaps. How many there were.
fn evict(file: &dyn BlockDevice, parts: &Parts, header: &Header) -> Result<u64> {
    let mapping = read_table(file, header, parts.footer.size())?;
    let own = structures(&parts.footer, header, None);
    let size = mapping.block_size();
    let inside = |range: ByteRange| range.end().get() <= file.size().get();
    let over = |place: FileSector| {
        let range = size.place(place);
        inside(range) && own.iter().any(|one| !one.range.intersect(range).is_empty())
    };
    let moving: Vec<_> = mapping.places().filter(|&(_, place)| over(place)).collect();
    // A table that the file does not hold whole is no reason to make the file as long.
    if moving.is_empty() || !own.iter().all(|one| inside(one.range)) {
        return Ok(0);
    }
    let mut space = space_behind(file, &own, &mapping)?;
    make_room(file, parts, &mut space, moving.len() as u64)?;
    let mut moved = Vec::new();
    for (block, from) in moving {
        let Some((to, _)) = space.take() else { break };
        copy(file, size.place(from), to.start())?;
        moved.push((block, to));
    }
    commit::flush(file)?;
    for &(block, to) in &moved {
        write_entry(file, header, block, to)?;
    }
    commit::flush(file)?;
    Ok(moved.len() as u64)
}

/// The space behind everything that is used, as one structure: gaps are left alone.
fn space_behind(file: &dyn BlockDevice, own: &[Occupied], mapping: &Mapping) -> Result<Space> {
    let size = mapping.block_size();
    let blocks = mapping.places().map(|(_, place)| size.place(place).end());
    let end = own.iter().map(|one| one.range.end()).chain(blocks).max();
    let used = ByteRange::between(ByteOffset::ZERO, end.unwrap_or(ByteOffset::ZERO));
    let mut all = [Occupied { range: used, by: Occupant::Structure("image") }];
    let limit = used.end();
    Space::survey(file.name(), size, &mut all, limit, file.size())
}

/// Makes room for `blocks` before the footer: a new one is durable before the old one's place is
/// used. A device keeps its size.
fn make_room(file: &dyn BlockDevice, parts: &Parts, space: &mut Space, blocks: u64) -> Result<()> {
    let Some(target) = space.target(blocks) else { return Ok(()) };
    let end = ByteCount::new(target.plus(FOOTER).get());
    if end > file.size() {
        file.resize(end)?;
        write_footer(file, &parts.footer, target)?;
        space.set_limit(target);
    } else {
        let last = file.size().get() / SECTOR * SECTOR - FOOTER.get();
        write_footer(file, &parts.footer, ByteOffset::new(last))?;
        space.set_limit(ByteOffset::new(last));
    }
    Ok(())
}

fn write_footer(file: &dyn BlockDevice, footer: &Footer, at: ByteOffset) -> Result<()> {
    file.write_at(&footer.bytes(), at)?;
    commit::flush(file)
}

fn copy(file: &dyn BlockDevice, from: ByteRange, to: ByteOffset) -> Result<()> {
    let mut buffer = vec![0; ByteCount::new(PIECE).min(from.len).as_usize()];
    for piece in from.pieces(ByteCount::new(PIECE)) {
        let part = &mut buffer[..piece.len.as_usize()];
        file.read_at(part, piece.start)?;
        file.write_at(part, to.plus(piece.start.since(from.start)))?;
    }
    Ok(())
}

/// Changes one entry of the table; its sector is written whole.
fn write_entry(
    file: &dyn BlockDevice,
    header: &Header,
    block: GuestBlock,
    place: FileSector,
) -> Result<()> {
    let offset = 4 * u64::from(block.get());
    let sector = header.table_at().plus(ByteCount::new(offset / SECTOR * SECTOR));
    let mut bytes = [0; SECTOR as usize];
    file.read_at(&mut bytes, sector)?;
    let inside = (offset % SECTOR) as usize;
    bytes[inside..inside + 4].copy_from_slice(&place.get().to_be_bytes());
    file.write_at(&bytes, sector)
}
