//! Choosing the trees of devices and of details.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use persistent_data::{MetaBlock, RefCounts};

use super::adopt::{Orphans, adopt};
use super::catalogue::{Catalogue, Class};
use super::report::Roots;
use crate::DeviceId;
use crate::layout::DetailsLayout;
use crate::superblock::Superblock;

/// What is taken over.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) roots: Roots,
    pub(super) details: Option<Roots>,
    pub(super) devices: Vec<ChosenDevice>,
    pub(super) notes: Vec<String>,
}

/// A device that is taken over.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChosenDevice {
    pub(super) id: DeviceId,
    /// The root of its mappings; `None` where nobody knows.
    pub(super) root: Option<MetaBlock>,
    /// Its details; `None` where nobody knows.
    pub(super) details: Option<DetailsLayout>,
    /// Whether its root may be an old one, or is not known.
    pub(super) doubtful: bool,
}

type Details = BTreeMap<u64, DetailsLayout>;

/// Versions of a tree that are held against those of the other.
const CLOSELY: usize = 64;

/// The trees of devices and details that are taken over, if there are any.
pub(super) fn choose(
    catalogue: &mut Catalogue,
    superblock: Option<&Superblock>,
    claims: Option<&RefCounts>,
) -> Option<Chosen> {
    let named = superblock.map(Superblock::roots);
    let top = named.map(|roots| roots.mappings).filter(|at| catalogue.is_root(*at, Class::Devices));
    let bottom =
        named.map(|roots| roots.details).filter(|at| catalogue.is_root(*at, Class::Details));
    let from = |named: bool| if named { Roots::Superblock } else { Roots::Search };
    let (roots, details) = (from(top.is_some()), bottom.map(|_| Roots::Superblock));
    let (top, bottom) = match (top, bottom) {
        (Some(top), Some(bottom)) => (Some(top), Some(bottom)),
        (Some(top), None) => (Some(top), best_details(catalogue, &catalogue.roots_of(top))),
        (None, Some(bottom)) => (best_top(catalogue, &details_at(catalogue, bottom)), Some(bottom)),
        (None, None) => best_pair(catalogue).map(|(top, bottom)| (Some(top), bottom))?,
    };
    let details = details.or(bottom.map(|_| Roots::Search));
    let mut states = bottom.map(|at| details_at(catalogue, at)).unwrap_or_default();
    let mut chosen = Chosen { roots, details, devices: Vec::new(), notes: Vec::new() };
    let found = top.map(|top| catalogue.roots_of(top)).unwrap_or_default();
    for (id, root) in found {
        chosen.add(id, Some(root), states.remove(&id));
    }
    for (id, state) in states {
        // Of a device that was deleted since, old details may still tell.
        if details == Some(Roots::Superblock) {
            chosen.add(id, None, Some(state));
        }
    }
    chosen.devices.sort_by_key(|device| device.id);
    if let (Some(superblock), Some(claims)) = (superblock, claims) {
        complete(catalogue, superblock, claims, &mut chosen);
    }
    if superblock.and_then(Superblock::held_root).is_some() {
        chosen.notes.push("the metadata snapshot is not taken over".to_owned());
    }
    Some(chosen)
}

impl Chosen {
    fn add(&mut self, id: u64, root: Option<MetaBlock>, details: Option<DetailsLayout>) {
        if self.roots == Roots::Search
            && self.details == Some(Roots::Superblock)
            && details.is_none()
        {
            self.notes.push(format!("device {id} was found, but is deleted by now"));
            return;
        }
        let known = u32::try_from(id).ok().and_then(|id| DeviceId::new(id).ok());
        match known {
            Some(id) => {
                let doubtful = self.roots == Roots::Search || root.is_none();
                self.devices.push(ChosenDevice { id, root, details, doubtful });
            }
            None => self.notes.push(format!("device {id} is larger than 24 bits: left out")),
        }
    }
}

/// Finds by the counts of the space map what no readable node refers to any more: the roots of
/// devices where the tree of devices is an old one, and the children of lost nodes.
fn complete(
    catalogue: &mut Catalogue,
    superblock: &Superblock,
    claims: &RefCounts,
    chosen: &mut Chosen,
) {
    let mut held: Vec<MetaBlock> = Vec::new();
    let copies = catalogue.superblocks.iter();
    let copies = copies.filter(|(at, _)| Some(*at) == superblock.held_root());
    let trees = [superblock.roots()].into_iter().chain(copies.map(|(_, copy)| copy.roots()));
    for roots in trees {
        held.extend([roots.mappings, roots.details]);
        held.extend(catalogue.roots_of(roots.mappings).into_iter().map(|(_, root)| root));
    }
    let mut orphans = Orphans::find(catalogue, claims, held.into_iter());
    renew_roots(catalogue, &mut orphans, claims, chosen);
    let mapped = |details: DetailsLayout| details.mapped.get();
    let devices: Vec<_> = chosen
        .devices
        .iter()
        .filter_map(|device| Some((device.root?, device.details.map(mapped))))
        .collect();
    for at in adopt(catalogue, &orphans, &devices) {
        chosen.notes.push(format!("metadata block {at} is lost; its children were found again"));
    }
}

/// Replaces roots that an old tree of devices has, or that no tree has, by those that must have
/// been in the lost one.
fn renew_roots(
    catalogue: &Catalogue,
    orphans: &mut Orphans,
    claims: &RefCounts,
    chosen: &mut Chosen,
) {
    let stated = |device: &ChosenDevice| device.details.map(|details| details.mapped.get());
    let entries = |root: MetaBlock| catalogue.sum(root).map(|sum| sum.entries);
    let mut claimants: BTreeMap<MetaBlock, u32> = BTreeMap::new();
    for root in chosen.devices.iter().filter_map(|device| device.root) {
        *claimants.entry(root).or_default() += 1;
    }
    for device in &mut chosen.devices {
        // As many devices as before, and as many as the count says: none of them has moved on.
        let same = |root: &MetaBlock| claims.get(root.get()) == claimants[root];
        let known = device.root.filter(same).filter(|root| entries(*root) == stated(device));
        if let Some(root) = known.filter(|_| device.doubtful) {
            orphans.take(root);
            device.doubtful = false;
        }
    }
    for device in chosen.devices.iter_mut().filter(|device| device.doubtful) {
        let Some(stated) = stated(device) else { continue };
        if let Some(root) = orphans.with_entries(catalogue, stated) {
            orphans.take(root);
            device.root = Some(root);
            device.doubtful = false;
        }
    }
}

fn details_at(catalogue: &Catalogue, root: MetaBlock) -> Details {
    catalogue.details_of(root).into_iter().collect()
}

/// The blocks that may be the root of a tree of this class, and have something in them.
fn candidates(catalogue: &Catalogue, class: Class) -> impl Iterator<Item = MetaBlock> + '_ {
    let notes = catalogue.notes.iter();
    notes.filter(move |note| note.class == class && note.keys.is_some()).map(|note| note.at)
}

/// What a tree of devices comes to, held against details.
struct Tally {
    same_devices: bool,
    known: usize,
    matches: usize,
    lost: u64,
    newest: u32,
    entries: u64,
}

fn tally(catalogue: &Catalogue, roots: &[(u64, MetaBlock)], details: &Details) -> Tally {
    let same = roots.iter().map(|(id, _)| id).eq(details.keys());
    let mut tally =
        Tally { same_devices: same, known: 0, matches: 0, lost: 0, newest: 0, entries: 0 };
    for (id, root) in roots {
        let sum = catalogue.sum(*root).filter(|_| catalogue.is_root(*root, Class::Mappings));
        tally.known += usize::from(details.contains_key(id));
        let Some(sum) = sum else {
            tally.lost = tally.lost.saturating_add(1);
            continue;
        };
        let stated = details.get(id).map(|details| details.mapped.get());
        tally.matches += usize::from(stated == Some(sum.entries));
        tally.lost = tally.lost.saturating_add(sum.lost);
        tally.newest = tally.newest.max(sum.newest);
        tally.entries = tally.entries.saturating_add(sum.entries);
    }
    tally
}

/// The tree of devices that suits the pool's own details best.
fn best_top(catalogue: &Catalogue, details: &Details) -> Option<MetaBlock> {
    let best = candidates(catalogue, Class::Devices).map(|at| {
        let tally = tally(catalogue, &catalogue.roots_of(at), details);
        let (known, whole) = (tally.known, Reverse(tally.lost));
        ((tally.same_devices, known, tally.matches, whole, tally.newest, tally.entries), at)
    });
    let best = best.max_by_key(|(rank, _)| *rank);
    best.filter(|(rank, _)| rank.1 > 0).map(|(_, at)| at)
}

/// The details that suit the pool's own devices best.
fn best_details(catalogue: &Catalogue, roots: &[(u64, MetaBlock)]) -> Option<MetaBlock> {
    let best = candidates(catalogue, Class::Details).map(|at| {
        let details = details_at(catalogue, at);
        let tally = tally(catalogue, roots, &details);
        ((tally.same_devices, tally.known, tally.matches, age(&details)), at)
    });
    let best = best.max_by_key(|(rank, _)| *rank);
    best.filter(|(rank, _)| rank.1 > 0).map(|(_, at)| at)
}

/// What may be a tree of devices or of details, by which devices it has.
#[derive(Default)]
struct Group {
    /// Trees of devices, by the latest time of a mapping and how many mappings there are.
    tops: Vec<((u32, u64), MetaBlock)>,
    /// Trees of details, by their age and how many mappings they tell of.
    details: Vec<((Age, u64), MetaBlock)>,
}

/// The newest tree of devices for which there are details; or the largest, if there are none for
/// any.
fn best_pair(catalogue: &Catalogue) -> Option<(MetaBlock, Option<MetaBlock>)> {
    let mut groups = BTreeMap::<u64, Group>::new();
    for at in candidates(catalogue, Class::Details) {
        let details = details_at(catalogue, at);
        let mapped = details.values().map(|details| details.mapped.get());
        let rank = (age(&details), mapped.fold(0, u64::saturating_add));
        groups.entry(hash(details.keys())).or_default().details.push((rank, at));
    }
    for at in candidates(catalogue, Class::Devices) {
        let roots = catalogue.roots_of(at);
        let tally = tally(catalogue, &roots, &Details::new());
        let group = groups.entry(hash(roots.iter().map(|(id, _)| id))).or_default();
        group.tops.push(((tally.newest, tally.entries), at));
    }
    let rank = |group: &&Group| {
        let newest = group.details.iter().map(|(rank, _)| *rank).max();
        (newest.map(|(age, _)| age), group.tops.iter().map(|(rank, _)| *rank).max())
    };
    let group = groups.values().filter(|group| !group.tops.is_empty()).max_by_key(rank)?;
    group.best(catalogue)
}

impl Group {
    /// The newest tree of devices, with the details that suit it best.
    fn best(&self, catalogue: &Catalogue) -> Option<(MetaBlock, Option<MetaBlock>)> {
        let details: Vec<_> =
            newest(&self.details).map(|at| (at, details_at(catalogue, at))).collect();
        let ranked = newest(&self.tops).map(|top| {
            let roots = catalogue.roots_of(top);
            let suits = |(_, details): &&(MetaBlock, Details)| {
                (tally(catalogue, &roots, details).matches, age(details))
            };
            let partner = details.iter().max_by_key(suits);
            let none = Details::new();
            let states = partner.map_or(&none, |(_, details)| details);
            let tally = tally(catalogue, &roots, states);
            let rank = (age(states), tally.newest, tally.entries, tally.matches);
            (rank, (top, partner.map(|(at, _)| *at)))
        });
        ranked.max_by_key(|(rank, _)| *rank).map(|(_, pair)| pair)
    }
}

/// The blocks of the highest rank, as many as are worth to be looked at closely: a pool that was
/// used for long has left very many versions of itself.
fn newest<R: Ord + Copy>(ranked: &[(R, MetaBlock)]) -> impl Iterator<Item = MetaBlock> {
    let mut ranked = ranked.to_vec();
    ranked.sort_unstable_by_key(|(rank, at)| Reverse((*rank, *at)));
    ranked.into_iter().take(CLOSELY).map(|(_, at)| at)
}

/// A number for a set of devices.
fn hash<'i>(devices: impl Iterator<Item = &'i u64>) -> u64 {
    let mut hasher = DefaultHasher::new();
    devices.for_each(|device| device.hash(&mut hasher));
    hasher.finish()
}

/// The latest snapshot, and the latest transaction.
type Age = (u32, u64);

/// How old details are.
fn age(details: &Details) -> Age {
    let times = details.values().map(|details| details.snapshotted.get());
    let transactions = details.values().map(|details| details.transaction.get());
    (times.max().unwrap_or(0), transactions.max().unwrap_or(0))
}
