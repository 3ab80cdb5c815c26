//! Finding the children of nodes that are lost.
//!
//! The metadata space map says how many parents each node has. A node in use with more parents than
//! can be read is a child of a node that cannot be read. Where all such orphans that belong to the
//! keys of a lost node fit together to one, it is put together again.

use std::collections::{BTreeMap, HashMap};

use persistent_data::btree::max_entries;
use persistent_data::{MetaBlock, RefCounts};

use super::catalogue::{Catalogue, Class, Note, suits};

/// Lost nodes beyond which nobody could tell whose children the orphans are.
const MOST_LOST: usize = 500;

/// A node that cannot be read.
#[derive(Clone, Copy, Debug)]
struct Lost {
    /// The keys that it may have held.
    low: u64,
    high: u64,
    /// How many mappings may be below it by the details of its devices.
    room: u64,
}

/// Nodes in use with more parents than can be read: how many more.
#[derive(Debug)]
pub(super) struct Orphans(BTreeMap<MetaBlock, u32>);

impl Orphans {
    /// The orphans of a device whose space map has the counts `claims`, and on which `roots` are
    /// held by the superblock or by leaves of the trees of devices that can be read.
    pub(super) fn find(
        catalogue: &Catalogue,
        claims: &RefCounts,
        roots: impl Iterator<Item = MetaBlock>,
    ) -> Self {
        let mut parents = HashMap::<MetaBlock, u32>::new();
        let in_use = |note: &&Note| claims.get(note.at.get()) > 0;
        for note in catalogue.notes.iter().filter(in_use) {
            for (_, child) in &catalogue.edges[note.edges.clone()] {
                *parents.entry(*child).or_default() += 1;
            }
        }
        roots.for_each(|root| *parents.entry(root).or_default() += 1);
        let mut orphans = BTreeMap::new();
        let nodes = catalogue.notes.iter().filter(|note| suits(note.class, Class::Mappings));
        for note in nodes.filter(|note| note.keys.is_some()) {
            let known = parents.get(&note.at).copied().unwrap_or(0);
            let missing = claims.get(note.at.get()).saturating_sub(known);
            if missing > 0 {
                orphans.insert(note.at, missing);
            }
        }
        Self(orphans)
    }

    /// The one orphan that maps exactly so many blocks.
    pub(super) fn with_entries(&self, catalogue: &Catalogue, entries: u64) -> Option<MetaBlock> {
        let whole = |at: &&MetaBlock| {
            catalogue.sum(**at).is_some_and(|sum| sum.entries == entries && sum.lost == 0)
        };
        let mut found = self.0.keys().filter(whole);
        found.next().filter(|_| found.next().is_none()).copied()
    }

    /// An orphan has one parent less to find.
    pub(super) fn take(&mut self, at: MetaBlock) {
        if let Some(missing) = self.0.get_mut(&at) {
            *missing -= 1;
            if *missing == 0 {
                self.0.remove(&at);
            }
        }
    }
}

/// Puts together the lost nodes of the trees of `devices`, each with the blocks that it mapped, as
/// far as that is known. Returns which.
pub(super) fn adopt(
    catalogue: &mut Catalogue,
    orphans: &Orphans,
    devices: &[(MetaBlock, Option<u64>)],
) -> Vec<MetaBlock> {
    let lost = lost_nodes(catalogue, devices);
    if lost.len() > MOST_LOST {
        return Vec::new();
    }
    let mut families = Vec::new();
    for (&at, place) in &lost {
        if let Some(children) = children_of(catalogue, orphans, place, &lost) {
            families.push((at, children));
        }
    }
    let adopted = families.iter().map(|(at, _)| *at).collect();
    for (at, children) in families {
        let begin = catalogue.edges.len();
        let keys = (children[0].0, children[children.len() - 1].0);
        let len = children.len();
        catalogue.edges.extend(children);
        catalogue.add(Note {
            at,
            class: Class::Mappings,
            leaf: false,
            len,
            keys: Some(keys),
            newest: 0,
            edges: begin..begin + len,
        });
    }
    catalogue.sum_up();
    adopted
}

/// The nodes that cannot be read, by all the devices that have them.
fn lost_nodes(
    catalogue: &Catalogue,
    devices: &[(MetaBlock, Option<u64>)],
) -> BTreeMap<MetaBlock, Lost> {
    let mut lost = BTreeMap::<MetaBlock, Lost>::new();
    for (root, stated) in devices {
        let entries = catalogue.sum(*root).map_or(0, |sum| sum.entries);
        let room = stated.map_or(u64::MAX, |stated| stated.saturating_sub(entries));
        for (at, low, high) in catalogue.read(*root, Class::Mappings).lost {
            if catalogue.get(at).is_none() {
                let place = lost.entry(at).or_insert(Lost { low, high, room });
                place.low = place.low.max(low);
                place.high = place.high.min(high);
                place.room = place.room.min(room);
            }
        }
    }
    lost
}

/// The children of a lost node with their keys, if all that could be its children fit together.
fn children_of(
    catalogue: &Catalogue,
    orphans: &Orphans,
    place: &Lost,
    lost: &BTreeMap<MetaBlock, Lost>,
) -> Option<Vec<(u64, MetaBlock)>> {
    let inside =
        |at: MetaBlock, place: &Lost| catalogue.fits(at, Class::Mappings, place.low, place.high);
    let mut children = Vec::new();
    for (&at, &missing) in orphans.0.iter().filter(|(at, _)| inside(**at, place)) {
        let parents = lost.values().filter(|place| inside(at, place)).count();
        // Fewer parents are missing than there are nodes it could have hung on: nobody knows which.
        if parents > missing as usize {
            return None;
        }
        let (first, _) = catalogue.get(at)?.keys?;
        children.push((first, at, *catalogue.sum(at)?));
    }
    children.sort_unstable_by_key(|(first, _, _)| *first);
    let apart = children.windows(2).all(|pair| pair[0].2.last < pair[1].0);
    let level = children.windows(2).all(|pair| pair[0].2.height == pair[1].2.height);
    let entries = children.iter().map(|(_, _, sum)| sum.entries).fold(0, u64::saturating_add);
    let sound = apart && level && !children.is_empty() && children.len() <= max_entries(8);
    (sound && entries <= place.room)
        .then(|| children.into_iter().map(|(first, at, _)| (first, at)).collect())
}
