//! Repair: leaks taken back, or every reference count made anew.
//!
//! New counts are built beside the old ones, in clusters that neither the tables nor the old counts
//! use, and the header, one write, makes them count. What the tables themselves say is not touched:
//! an entry that is damaged stays for somebody who can tell what it was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteOffset, Error, ErrorKind, Result};

use super::bytes::{bytes_of, read_clipped, words_of, write_any};
use super::check::{CheckReport, Findings, check, examine};
use super::counts::Counts;
use super::geometry::{Geometry, HostCluster};
use super::header::{Header, REFCOUNT_TABLE_LIMIT};
use super::layout::feature;
use super::stage::Stage;

/// What to repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Counts that are too high.
    Leaks,
    /// Every count, and the marks that say what is shared.
    All,
}

/// Repairs the image in `file`, which nobody uses meanwhile, and says what is left.
///
/// # Errors
/// As [`check()`]; [`ErrorKind::OutOfSpace`] where new counts find no place.
pub fn repair(file: &Arc<dyn BlockDevice>, what: Repair) -> Result<CheckReport> {
    let header = Header::read(&**file)?;
    let findings = examine(file, &header)?;
    let sound = findings.report.is_sound() && findings.wrong.is_empty() && !header.is_dirty();
    if !sound {
        match what {
            Repair::Leaks => lower(file, &header, &findings)?,
            Repair::All => rebuild(file, &header, &findings)?,
        }
    }
    check(file)
}

/// Makes up for counts that were postponed: an image that is dirty is not any more.
pub(super) fn rebuild_counts(file: &Arc<dyn BlockDevice>) -> Result<()> {
    let header = Header::read(&**file)?;
    let findings = examine(file, &header)?;
    if findings.damaged {
        return Err(super::header::corrupt(
            file.name(),
            "was not closed, and its tables are damaged, so its counts cannot be made up for",
        ));
    }
    rebuild(file, &header, &findings)
}

/// Takes counts that are too high down to the users, where they lie: whenever this ends, no count
/// is too low.
fn lower(file: &Arc<dyn BlockDevice>, header: &Header, findings: &Findings) -> Result<()> {
    let mut bytes = vec![0; header.refcount_table.len.as_usize()];
    read_clipped(&**file, &mut bytes, header.refcount_table.start)?;
    let mut counts = Counts::open(Arc::clone(file), header.geometry, &words_of(&bytes))?;
    for &(cluster, count, users) in &findings.wrong {
        if count > users {
            counts.set(cluster, users)?;
        }
    }
    let mut stage = Stage::default();
    for chunk in counts.take_dirty() {
        stage.push(chunk.at, chunk.bytes);
    }
    stage.write(&**file)?;
    file.flush()
}

/// Makes every count anew, and then the marks.
fn rebuild(file: &Arc<dyn BlockDevice>, header: &Header, findings: &Findings) -> Result<()> {
    let damaged = findings.damaged;
    if !findings.wrong.is_empty() {
        recount(file, header, findings)?;
    }
    // The marks after the counts: a mark is read with its count in mind.
    let mut stage = Stage::default();
    for mark in &findings.wrong_marks {
        let mut word = [0; 8];
        read_clipped(&**file, &mut word, mark.word_at)?;
        word[0] = word[0] & 0x7f | if mark.own { 0 } else { 0x80 };
        stage.push(mark.word_at, word.to_vec());
    }
    stage.write(&**file)?;
    file.flush()?;
    let mut header = Header::read(&**file)?;
    let flags = if damaged { feature::DIRTY } else { feature::DIRTY | feature::CORRUPT };
    if header.incompatible & flags != 0 {
        header.incompatible &= !flags;
        write_any(&**file, &header.sector_zero(), ByteOffset::ZERO)?;
        file.flush()?;
    }
    Ok(())
}

/// Where new counts are to lie.
struct Layout {
    table: HostCluster,
    table_clusters: u64,
    /// Refcount block by index, and its place.
    homes: Vec<(usize, HostCluster)>,
}

/// Makes every count anew, as wide as `header` says.
pub(super) fn recount(
    file: &Arc<dyn BlockDevice>,
    header: &Header,
    findings: &Findings,
) -> Result<()> {
    let geometry = header.geometry;
    let old = old_structures(file, header)?;
    // The old structures are users of themselves, and so are not free either.
    let free = |cluster: HostCluster| findings.walk.users.get(cluster) == 0;
    let users: Vec<(HostCluster, u64)> = findings
        .walk
        .users
        .iter_from(HostCluster(0))
        .map(|(cluster, users)| (cluster, users - old.get(&cluster).copied().unwrap_or(0)))
        .filter(|(_, users)| *users > 0)
        .collect();
    let layout = plan(file, geometry, &users, &free)?;
    let mut counts = Counts::none(Arc::clone(file), geometry);
    for &(index, home) in &layout.homes {
        counts.add_block(index, home);
    }
    for &(cluster, users) in &users {
        counts.set(cluster, users)?;
    }
    for &(_, home) in &layout.homes {
        counts.set(home, 1)?;
    }
    counts.add(layout.table, layout.table_clusters)?;
    write_counts(file, header, &layout, counts)
}

/// The clusters of the refcount table and blocks that are there now, and how often each is one.
fn old_structures(
    file: &Arc<dyn BlockDevice>,
    header: &Header,
) -> Result<BTreeMap<HostCluster, u64>> {
    let geometry = header.geometry;
    let table = header.refcount_table;
    let mut bytes = vec![0; table.len.as_usize()];
    read_clipped(&**file, &mut bytes, table.start)?;
    let blocks = words_of(&bytes);
    let blocks = blocks.iter().filter(|&&word| word != 0 && word < file.size().get());
    let homes = blocks.filter_map(|&word| geometry.host_cluster(ByteOffset::new(word)));
    let tables = table.pieces(geometry.cluster());
    let tables = tables.map(|piece| geometry.host_cluster_of(piece.start));
    let mut uses = BTreeMap::new();
    homes.chain(tables).for_each(|cluster| *uses.entry(cluster).or_insert(0) += 1);
    Ok(uses)
}

/// Finds places for the blocks and the table, which are counted themselves.
fn plan(
    file: &Arc<dyn BlockDevice>,
    geometry: Geometry,
    users: &[(HostCluster, u64)],
    free: &dyn Fn(HostCluster) -> bool,
) -> Result<Layout> {
    let index_of = |cluster: HostCluster| (cluster.0 / geometry.block_counts()) as usize;
    let mut wanted: BTreeSet<usize> = users.iter().map(|(cluster, _)| index_of(*cluster)).collect();
    loop {
        let entries = wanted.last().map_or(1, |last| last + 1) as u64;
        let table_clusters = (entries * 8).div_ceil(geometry.cluster().get());
        if table_clusters << geometry.cluster_bits
            > REFCOUNT_TABLE_LIMIT.max(geometry.cluster().get())
        {
            let problem = "uses clusters too far back in the file for a refcount table";
            return Err(Error::new(ErrorKind::OutOfSpace, file.name(), problem));
        }
        // The table first, where there is room for all of it.
        let mut table = HostCluster(1);
        while let Some(taken) = (0..table_clusters).rev().find(|&at| !free(table.plus(at))) {
            table = table.plus(taken + 1);
        }
        let in_table =
            |cluster: HostCluster| cluster >= table && cluster < table.plus(table_clusters);
        let places = (1..).map(HostCluster).filter(|&at| free(at) && !in_table(at));
        let homes: Vec<_> = wanted.iter().copied().zip(places).collect();
        let before = wanted.len();
        wanted.extend((0..table_clusters).map(|at| index_of(table.plus(at))));
        wanted.extend(homes.iter().map(|(_, home)| index_of(*home)));
        if wanted.len() == before {
            return Ok(Layout { table, table_clusters, homes });
        }
    }
}

fn write_counts(
    file: &Arc<dyn BlockDevice>,
    header: &Header,
    layout: &Layout,
    mut counts: Counts,
) -> Result<()> {
    let geometry = header.geometry;
    let mut words = vec![0; (layout.table_clusters * geometry.cluster().get() / 8) as usize];
    let mut end = layout.table.plus(layout.table_clusters);
    for &(index, home) in &layout.homes {
        words[index] = geometry.host_start(home).get();
        end = end.max(home.plus(1));
    }
    let needed = block_types::ByteCount::new(end.0 << geometry.cluster_bits);
    if file.size() < needed {
        file.resize(needed).map_err(|error| {
            Error::new(ErrorKind::OutOfSpace, file.name(), "has no room for new counts")
                .because(error)
        })?;
    }
    let table = geometry.host_range(layout.table, layout.table_clusters);
    let mut stage = Stage::default();
    stage.push(table.start, bytes_of(&words));
    for chunk in counts.take_dirty() {
        stage.push(chunk.at, chunk.bytes);
    }
    stage.write(&**file)?;
    file.flush()?;
    let mut header = header.clone();
    header.refcount_table = table;
    // Not clean yet: the marks may be wrong.
    write_any(&**file, &header.sector_zero(), ByteOffset::ZERO)?;
    file.flush()
}
