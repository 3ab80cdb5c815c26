//! Opening an image: bytes -> checked structures -> mapping, and what may be written.

use std::sync::Arc;

use block_io::{BlockDevice, check_writable};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result, SECTOR};

use super::address::GuestBlock;
use super::alloc::{Occupant, Occupied, Space};
use super::batmap::{self, Batmap};
use super::footer::{FOOTER, Footer, Footers, Kind};
use super::header::{HEADER, HEADER_AT, Header};
use super::host::{check_sectors, read_bytes};
use super::identity::Creator;
use super::image::{Heads, OpenOptions, Parent, Sparse, VhdImage};
use super::layout::LocatorLayout;
use super::mapping::Mapping;

/// The table is read in pieces of this size.
const PIECE: u64 = 1 << 20;
/// How far a table can address, in bytes of guest data.
const FARTHEST: u64 = 2 << 40;

/// What an image's structures say, before it is decided how it is used.
pub(super) struct Parts {
    pub(super) footers: Footers,
    pub(super) footer: Footer,
    pub(super) header: Option<Header>,
}

impl Parts {
    /// Reads footers and header of `file`.
    ///
    /// # Errors
    /// `Corrupt` or `Unsupported` where it is no VHD that can be read.
    pub(super) fn read(file: &dyn BlockDevice) -> Result<Self> {
        let footers = Footers::read(file)?;
        let footer = footers.choose()?;
        let header = match footer.kind() {
            Kind::Fixed => None,
            Kind::Dynamic | Kind::Differencing => Some(Header::read(file, &footer)?),
        };
        if header.is_none() && footer.size().get() > footers.end_at.get() {
            let problem = format!("is shorter than the disk that it holds, {}", footer.size());
            return Err(Error::new(ErrorKind::Corrupt, file.name(), problem));
        }
        Ok(Self { footers, footer, header })
    }
}

/// Whether `file` seems to be a VHD: it has a sound footer.
///
/// # Errors
/// Those of the file.
pub fn probe(file: &dyn BlockDevice) -> Result<bool> {
    Ok(Footers::read(file)?.choose().is_ok())
}

/// Whether the batmap may be trusted that is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Batmaps {
    Trust,
    Distrust,
}

impl VhdImage {
    /// Opens the VHD that `file` holds. `parent` is the parent of a differencing disk, which the
    /// caller has found and opened (GATED-OPEN); [`parent_info`](Self::parent_info) and
    /// [`probe_parent`](super::probe_parent) say which it is. Without it, what the image itself
    /// holds can be read.
    ///
    /// An image that is opened for writing is made sound first where a crash has left traces: the
    /// footer lost at the end or differing from its copy, a header on its way.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] and [`ErrorKind::Unsupported`] for what cannot be read, or not be
    /// written without harm; [`ErrorKind::Invalid`] for a parent that is not the one it names.
    pub fn open(
        file: Arc<dyn BlockDevice>,
        parent: Option<Parent>,
        options: OpenOptions,
    ) -> Result<Self> {
        Self::open_with(file, parent, options, Batmaps::Trust)
    }

    /// [`open`](Self::open), perhaps without what the batmap says.
    pub(super) fn open_with(
        file: Arc<dyn BlockDevice>,
        parent: Option<Parent>,
        options: OpenOptions,
        batmaps: Batmaps,
    ) -> Result<Self> {
        check_sectors(&*file)?;
        if !options.read_only {
            check_writable(&*file)?;
        }
        let Parts { footers, footer, header } = Parts::read(&*file)?;
        check_parent(&*file, &footer, header.as_ref(), parent.as_ref())?;
        let end_is_good = footers.end.sound().is_some();
        let copy_is_good = footers.copy.sound().is_some_and(|copy| {
            // The old flag lives there alone.
            copy.bytes() == footer.bytes() || footer.creator().hides_in_copy()
        });
        let mut heads =
            Heads { footer, footer_at: footers.end_at, header, batmap: None, distrust: None };
        let sparse = match &header {
            None => None,
            Some(header) => {
                let mapping = read_mapping(&*file, header, &mut heads, batmaps)?;
                Some(open_sparse(&*file, header, &mut heads, mapping, end_is_good, options)?)
            }
        };
        let parent = parent.map(|parent| parent.device);
        let image = Self::new(file, parent, heads, sparse, options.read_only);
        if !options.read_only {
            image.heal(end_is_good, copy_is_good)?;
        }
        Ok(image)
    }
}

/// Reads the table, and what the batmap says of it.
fn read_mapping(
    file: &dyn BlockDevice,
    header: &Header,
    heads: &mut Heads,
    batmaps: Batmaps,
) -> Result<Mapping> {
    let mapping = read_table(file, header, heads.footer.size())?;
    let found = match batmaps {
        Batmaps::Trust => find_batmap(file, header, heads, &mapping)?,
        Batmaps::Distrust => Err("it is to be written anew".to_owned()),
    };
    match found {
        Ok(batmap) => {
            let full = batmap.iter().flat_map(Batmap::full);
            let blocks = full.filter_map(|index| u32::try_from(index).ok());
            blocks.for_each(|block| mapping.set_full(GuestBlock::new(block)));
            heads.batmap = batmap;
        }
        Err(why) => heads.distrust = Some(why),
    }
    Ok(mapping)
}

/// Looks for free space if the image is to be written.
fn open_sparse(
    file: &dyn BlockDevice,
    header: &Header,
    heads: &mut Heads,
    mapping: Mapping,
    end_is_good: bool,
    options: OpenOptions,
) -> Result<Sparse> {
    if options.read_only {
        return Ok(Sparse::new(mapping, None, options.step));
    }
    let batmap = heads.batmap.as_ref();
    let mut occupied = structures(&heads.footer, header, batmap);
    occupied.extend(mapping.places().map(|(block, place)| Occupied {
        range: mapping.block_size().place(place),
        by: Occupant::Block(block.get()),
    }));
    occupied.extend(locators_home(&heads.footer, header, &occupied));
    if !end_is_good {
        // What lies past the end of the file is refused below, not made room for.
        let end = ByteOffset::new(file.size().get());
        let used = occupied.iter().map(|one| one.range.end().min(end)).max();
        heads.footer_at = lost_footer_at(file.size(), used.unwrap_or(ByteOffset::ZERO));
    }
    let size = mapping.block_size();
    let limit = heads.footer_at;
    let space = Space::survey(file.name(), size, &mut occupied, limit, file.size())?;
    Ok(Sparse::new(mapping, Some(space), options.step))
}

/// Where the locators of a header belong that a crash left aside: it is kept free for them, unless
/// somebody else has put header and locators elsewhere for good.
fn locators_home(footer: &Footer, header: &Header, others: &[Occupied]) -> Option<Occupied> {
    if footer.header_at() == HEADER_AT {
        return None;
    }
    let locators = header.locators(footer.kind()).iter().filter_map(LocatorLayout::place);
    let len = ByteCount::new(locators.map(|place| place.len.get()).sum());
    let at = locators_at(footer.creator(), header);
    let range = ByteRange::checked(at, len)?;
    let free = others.iter().all(|other| other.range.intersect(range).is_empty());
    free.then_some(Occupied { range, by: Occupant::Structure("locators' home") })
}

/// Where locators belong: behind table and batmap.
pub(super) fn locators_at(creator: Creator, header: &Header) -> ByteOffset {
    batmap::home(creator, header).map_or(header.table().end(), ByteRange::end)
}

/// Where the footer belongs that is lost: in the last sector of the file, if nothing is there, and
/// behind the file otherwise. (A device that was made larger has it at its new end.)
fn lost_footer_at(size: ByteCount, used: ByteOffset) -> ByteOffset {
    let last = size.get() / SECTOR * SECTOR;
    let at = last.saturating_sub(FOOTER.get()).max(used.get().next_multiple_of(SECTOR));
    ByteOffset::new(at)
}

/// What of the file belongs to the image's own structures.
pub(super) fn structures(
    footer: &Footer,
    header: &Header,
    batmap: Option<&Batmap>,
) -> Vec<Occupied> {
    let structure = |name, range| Occupied { range, by: Occupant::Structure(name) };
    let mut all = vec![
        structure("copy of the footer", ByteRange::new(ByteOffset::ZERO, FOOTER)),
        structure("header", ByteRange::new(footer.header_at(), HEADER)),
        structure("block allocation table", header.table()),
    ];
    match (batmap, batmap::home(footer.creator(), header)) {
        (Some(batmap), home) => {
            let at = batmap::header_at(header);
            all.push(structure("batmap's header", ByteRange::new(at, batmap::BATMAP_HEADER)));
            all.push(structure("batmap", batmap.map_range()));
            // On its way, or somewhere else for good: its home is kept free.
            let home = home.filter(|_| batmap.map_range().start != batmap::map_at(header));
            all.extend(home.map(|home| {
                let map = ByteRange::between(batmap::map_at(header), home.end());
                structure("batmap's home", map)
            }));
        }
        (None, Some(home)) => all.push(structure("batmap's home", home)),
        (None, None) => {}
    }
    let locators = header.locators(footer.kind()).iter().filter(|locator| locator.is_used());
    let places = locators.filter_map(LocatorLayout::place);
    all.extend(places.map(|range| structure("parent locator", range)));
    all
}

/// Reads as much of the block allocation table as a disk of `size` needs.
pub(super) fn read_table(
    file: &dyn BlockDevice,
    header: &Header,
    size: ByteCount,
) -> Result<Mapping> {
    let block_size = header.block_size();
    let farthest = FARTHEST / block_size.bytes().get();
    let needed = block_size.count(size);
    // Memory for more is taken only as far as the file has a table for it.
    let inside = file.size().get().saturating_sub(header.table_at().get()) / 4;
    let capacity = u64::from(header.entries()).min(farthest).min(inside).max(needed);
    let capacity = usize::try_from(capacity.min(1 << 22)).unwrap_or(0);
    let mapping = Mapping::new(block_size, capacity);
    let table = ByteRange::new(header.table_at(), ByteCount::new(4 * needed));
    let mut buffer = vec![0; ByteCount::new(PIECE).min(table.len).as_usize()];
    let mut first = 0;
    for piece in table.pieces(ByteCount::new(PIECE)) {
        let part = &mut buffer[..piece.len.as_usize()];
        read_bytes(file, part, piece.start)?;
        mapping.fill(first, part);
        first += part.len() / 4;
    }
    Ok(mapping)
}

/// The batmap that can be trusted, if there is one, or the reason why not.
pub(super) fn find_batmap(
    file: &dyn BlockDevice,
    header: &Header,
    heads: &Heads,
    mapping: &Mapping,
) -> Result<std::result::Result<Option<Batmap>, String>> {
    let batmap = match batmap::read(file, &heads.footer, header)? {
        batmap::Found::Absent => return Ok(Ok(None)),
        batmap::Found::Bad(why) => return Ok(Err(why)),
        batmap::Found::Sound(batmap) => *batmap,
    };
    let own = ByteRange::new(batmap::header_at(header), batmap::BATMAP_HEADER);
    let over = |range: ByteRange| {
        !range.intersect(own).is_empty() || !range.intersect(batmap.map_range()).is_empty()
    };
    let size = mapping.block_size();
    if let Some((block, _)) = mapping.places().find(|&(_, place)| over(size.place(place))) {
        return Ok(Err(format!("block {} lies over it", block.get())));
    }
    let needed = size.count(heads.footer.size());
    let unplaced = batmap.full().find(|&index| {
        let block = u32::try_from(index).ok().filter(|_| (index as u64) < needed);
        block.is_none_or(|block| mapping.place(GuestBlock::new(block)).is_none())
    });
    if let Some(index) = unplaced {
        return Ok(Err(format!("it says that block {index} is full, which has no place")));
    }
    Ok(Ok(Some(batmap)))
}

/// Checks that `parent` is the parent that the disk names.
fn check_parent(
    file: &dyn BlockDevice,
    footer: &Footer,
    header: Option<&Header>,
    parent: Option<&Parent>,
) -> Result<()> {
    let Some(header) = header.filter(|_| footer.kind() == Kind::Differencing) else {
        return match parent {
            None => Ok(()),
            Some(parent) => {
                let problem =
                    format!("has no parent, but was opened with {}", parent.device.name());
                Err(Error::new(ErrorKind::Invalid, file.name(), problem))
            }
        };
    };
    let named = header.parent_id();
    if named == Some(footer.id()) {
        let problem = format!("names itself as its parent ({})", footer.id());
        return Err(Error::new(ErrorKind::Corrupt, file.name(), problem));
    }
    let Some(parent) = parent.filter(|parent| parent.id != named) else {
        return Ok(());
    };
    let text = |id: Option<super::DiskId>| id.map_or("a raw disk".to_owned(), |id| id.to_string());
    let problem = format!(
        "names {} as its parent, but {} is {}",
        text(named),
        parent.device.name(),
        text(parent.id)
    );
    Err(Error::new(ErrorKind::Invalid, file.name(), problem)
        .advise("look for the disk with that UUID, or relink the child if the other is right"))
}
