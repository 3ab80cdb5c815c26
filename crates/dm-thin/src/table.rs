//! A volume's mappings in memory: what the hot path reads, without a lock.
//!
//! Pages of mappings hang on slots; slots stand in segments that double in size, so the table grows
//! with its volume and nothing in it ever moves. A page is loaded from the mapping tree when it is
//! first wanted. One that has changes which no commit has written yet is always loaded, so a load
//! from the committed tree is never behind.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::{GuestBlock, Mapping};

/// Mappings of a page: 8 KiB of memory for 64 MiB of a volume with 64 KiB blocks.
pub(crate) const PAGE_BLOCKS: u64 = 1024;
/// Segments: the last ends far beyond any device that 64 bits of bytes can address.
const SEGMENTS: usize = 48;

/// What the table knows of a guest block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookup {
    /// Nothing yet: load its page.
    Unloaded,
    /// It is not mapped.
    Unmapped,
    /// It is mapped.
    Mapped(Mapping),
}

/// A run of guest blocks that share one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageIndex(u64);

/// All mappings of a volume, as far as they were wanted.
pub(crate) struct MapTable {
    segments: [OnceLock<Box<[Slot]>>; SEGMENTS],
}

#[derive(Default)]
struct Slot {
    state: AtomicU8,
    page: OnceLock<Box<Page>>,
}

struct Page([AtomicU64; PAGE_BLOCKS as usize]);

/// Slot states. A slot leaves `UNLOADED` once its page, if it needs one, is filled.
const UNLOADED: u8 = 0;
const EMPTY: u8 = 1;
const LOADED: u8 = 2;

/// A page's entry for an unmapped block; others are the tree's value plus one, which fits, since
/// data blocks stop short of 2^40.
const ABSENT: u64 = 0;

impl PageIndex {
    /// The page of `block`.
    pub(crate) const fn of(block: GuestBlock) -> Self {
        Self(block.get() / PAGE_BLOCKS)
    }

    /// Its first block.
    pub(crate) const fn first(self) -> GuestBlock {
        GuestBlock::new(self.0 * PAGE_BLOCKS)
    }

    /// The page behind it.
    pub(crate) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl MapTable {
    /// A table that knows nothing yet.
    pub(crate) fn new() -> Self {
        Self { segments: [const { OnceLock::new() }; SEGMENTS] }
    }

    /// What is known of `block`.
    pub(crate) fn get(&self, block: GuestBlock) -> Lookup {
        let Some(slot) = self.slot(PageIndex::of(block)) else {
            return Lookup::Unloaded;
        };
        match slot.state.load(Ordering::Acquire) {
            UNLOADED => Lookup::Unloaded,
            EMPTY => Lookup::Unmapped,
            _ => {
                let page = slot.page.get().expect("a loaded slot has its page");
                decode(page.0[(block.get() % PAGE_BLOCKS) as usize].load(Ordering::Acquire))
            }
        }
    }

    /// Whether nothing is known of `page`.
    pub(crate) fn is_unloaded(&self, page: PageIndex) -> bool {
        self.slot(page).is_none_or(|slot| slot.state.load(Ordering::Acquire) == UNLOADED)
    }

    /// Enters a change of a block whose page is loaded. Calls for one table do not overlap.
    pub(crate) fn set(&self, block: GuestBlock, mapping: Option<Mapping>) {
        let slot = self.slot_or_new(PageIndex::of(block));
        debug_assert_ne!(slot.state.load(Ordering::Relaxed), UNLOADED, "changed before loaded");
        let page = slot.page.get_or_init(Page::empty);
        page.0[(block.get() % PAGE_BLOCKS) as usize].store(encode(mapping), Ordering::Release);
        slot.state.store(LOADED, Ordering::Release);
    }

    /// Fills `page` with `mappings` (guest block, mapping) of the committed tree. Does nothing if
    /// it is loaded: what is in memory is never older.
    pub(crate) fn fill(&self, page: PageIndex, mappings: &[(GuestBlock, Mapping)]) {
        let slot = self.slot_or_new(page);
        if slot.state.load(Ordering::Acquire) != UNLOADED {
            return;
        }
        if mappings.is_empty() {
            // A page from before a reset may hang here, and `set` trusts it to be blank.
            slot.page.get().into_iter().for_each(|page| page.clear());
            slot.state.store(EMPTY, Ordering::Release);
            return;
        }
        let entries = slot.page.get_or_init(Page::empty);
        entries.clear();
        for (block, mapping) in mappings {
            let entry = &entries.0[(block.get() % PAGE_BLOCKS) as usize];
            entry.store(encode(Some(*mapping)), Ordering::Relaxed);
        }
        slot.state.store(LOADED, Ordering::Release);
    }

    /// Forgets everything: the volume's tree was exchanged. Nobody else is in the table.
    pub(crate) fn reset(&self) {
        for slot in self.segments.iter().filter_map(OnceLock::get).flat_map(|slots| slots.iter()) {
            slot.state.store(UNLOADED, Ordering::Release);
        }
    }

    fn slot(&self, page: PageIndex) -> Option<&Slot> {
        let (segment, inside) = place(page);
        self.segments[segment].get().map(|slots| &slots[inside])
    }

    fn slot_or_new(&self, page: PageIndex) -> &Slot {
        let (segment, inside) = place(page);
        let slots = self.segments[segment]
            .get_or_init(|| (0..1usize << segment).map(|_| Slot::default()).collect());
        &slots[inside]
    }
}

impl Page {
    fn empty() -> Box<Self> {
        Box::new(Self([const { AtomicU64::new(ABSENT) }; PAGE_BLOCKS as usize]))
    }

    fn clear(&self) {
        for entry in &self.0 {
            entry.store(ABSENT, Ordering::Relaxed);
        }
    }
}

/// Segment and place in it: segment k holds the 2^k pages from 2^k - 1 on.
fn place(page: PageIndex) -> (usize, usize) {
    let segment = (page.0 + 1).ilog2();
    (segment as usize, (page.0 + 1 - (1 << segment)) as usize)
}

fn encode(mapping: Option<Mapping>) -> u64 {
    mapping.map_or(ABSENT, |mapping| mapping.pack() + 1)
}

fn decode(entry: u64) -> Lookup {
    if entry == ABSENT { Lookup::Unmapped } else { Lookup::Mapped(Mapping::unpack(entry - 1)) }
}

#[cfg(test)]
mod tests {
    use super::{Lookup, MapTable, PAGE_BLOCKS, PageIndex};
    use crate::{DataBlock, GuestBlock, Mapping, Time};

    fn mapping(block: u64) -> Mapping {
        Mapping { block: DataBlock::new(block), time: Time::new(7) }
    }

    #[test]
    fn loads_changes_and_forgets() {
        let table = MapTable::new();
        let far = GuestBlock::new(5_000_000_000);
        assert_eq!(table.get(far), Lookup::Unloaded);
        table.fill(PageIndex::of(far), &[]);
        assert_eq!(table.get(far), Lookup::Unmapped);
        table.set(far, Some(mapping(0)));
        assert_eq!(table.get(far), Lookup::Mapped(mapping(0)));
        assert_eq!(table.get(GuestBlock::new(far.get() + 1)), Lookup::Unmapped);
        table.set(far, None);
        assert_eq!(table.get(far), Lookup::Unmapped);
        table.set(far, Some(mapping(3)));
        table.reset();
        assert_eq!(table.get(far), Lookup::Unloaded);
        table.fill(PageIndex::of(far), &[]);
        table.set(GuestBlock::new(far.get() + 1), Some(mapping(4)));
        assert_eq!(table.get(far), Lookup::Unmapped, "an entry from before the reset came back");
    }

    #[test]
    fn a_late_fill_does_not_undo_changes() {
        let table = MapTable::new();
        let block = GuestBlock::new(9);
        table.fill(PageIndex::of(block), &[(block, mapping(1))]);
        table.set(block, Some(mapping(2)));
        table.fill(PageIndex::of(block), &[(block, mapping(1))]);
        assert_eq!(table.get(block), Lookup::Mapped(mapping(2)));
    }

    #[test]
    fn every_page_has_its_own_slot() {
        let table = MapTable::new();
        for page in 0..70 {
            let block = GuestBlock::new(page * PAGE_BLOCKS);
            table.fill(PageIndex::of(block), &[(block, mapping(page))]);
        }
        for page in 0..70 {
            let block = GuestBlock::new(page * PAGE_BLOCKS);
            assert_eq!(table.get(block), Lookup::Mapped(mapping(page)));
        }
    }
}
