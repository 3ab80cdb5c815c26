//! Checking an image as it lies there: every count against every user.

use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteOffset, Result};

use super::bytes::{read_clipped, words_of};
use super::counts::Counts;
use super::geometry::HostCluster;
use super::header::Header;
use super::walk::{Mark, PAGE, Walk, marks};

/// Clusters behind the end of the file, besides as many as it has, whose counts are looked at.
const BEHIND: u64 = 1 << 17;

/// What a check found. As in qemu-img, corruption endangers data, a leak only wastes space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What is corrupt, in words; the first ones.
    pub corruptions: Vec<String>,
    /// How many corruptions there are.
    pub corruption_count: u64,
    /// Clusters of the file that are counted more often than they are used.
    pub leaks: u64,
    /// Clusters of the disk.
    pub total_clusters: u64,
    /// Those that have a place.
    pub allocated_clusters: u64,
    /// Those that are compressed.
    pub compressed_clusters: u64,
    /// Those that do not lie behind the one before them.
    pub fragmented_clusters: u64,
    /// Where the last cluster that is counted ends.
    pub image_end: ByteOffset,
}

impl CheckReport {
    /// Whether there is neither corruption nor a leak.
    pub fn is_sound(&self) -> bool {
        self.corruption_count == 0 && self.leaks == 0
    }
}

/// What a check found, with what a repair needs.
pub(super) struct Findings {
    pub(super) report: CheckReport,
    pub(super) walk: Walk,
    /// Clusters with a count that is not their users'; count, users.
    pub(super) wrong: Vec<(HostCluster, u64, u64)>,
    /// Marks that are not what the users ask for.
    pub(super) wrong_marks: Vec<Mark>,
    /// Whether tables or entries are damaged, which counting anew cannot help.
    pub(super) damaged: bool,
}

/// Checks the image in `file`, which nobody writes meanwhile; changes nothing.
///
/// Memory: 4 bytes for each cluster that is used, and the refcount blocks.
///
/// # Errors
/// As [`Header::read`], and for I/O errors. What is found wrong is no error but a finding.
pub fn check(file: &Arc<dyn BlockDevice>) -> Result<CheckReport> {
    let header = Header::read(&**file)?;
    Ok(examine(file, &header)?.report)
}

/// Walks the tables and compares.
pub(super) fn examine(file: &Arc<dyn BlockDevice>, header: &Header) -> Result<Findings> {
    let mut walk = Walk::run(&**file, header)?;
    let damaged = !walk.problems.is_empty();
    let mut counts = refcounts(file, header, &mut walk)?;
    let in_file = header.geometry.clusters(file.size());
    let mut wrong = Vec::new();
    let end = compare(&mut counts, &mut walk, in_file, &mut wrong)?;
    let mut wrong_marks = Vec::new();
    marks(&**file, header, &mut |mark| {
        let count = counts.get(mark.host)?;
        if mark.own != (count == 1) {
            let says = if mark.own { "the disk's own" } else { "shared" };
            walk.problem(format!("{} is marked as {says}, but its count is {count}", mark.host));
        }
        // Where every count is right, a count is as good as the users.
        let users = if wrong.is_empty() { count } else { walk.users.get(mark.host) };
        if mark.own != (users == 1) {
            wrong_marks.push(mark);
        }
        Ok(())
    })?;
    if header.is_corrupt() {
        walk.problem("the image is marked as corrupt".to_owned());
    }
    // Counts behind the end of the file take no space, and qemu-img does not look at them.
    let leaked =
        |(cluster, count, users): &&(HostCluster, u64, u64)| count > users && cluster.0 < in_file;
    let leaks = wrong.iter().filter(leaked).count() as u64;
    let report = CheckReport {
        corruptions: walk.problems.clone(),
        corruption_count: walk.problems.len() as u64 + walk.untold,
        leaks,
        total_clusters: header.geometry.clusters(header.size),
        allocated_clusters: walk.allocated,
        compressed_clusters: walk.compressed,
        fragmented_clusters: walk.fragmented,
        image_end: ByteOffset::new(end << header.geometry.cluster_bits),
    };
    Ok(Findings { report, walk, wrong, wrong_marks, damaged })
}

/// The counts of the file, whose own clusters are users, too.
fn refcounts(file: &Arc<dyn BlockDevice>, header: &Header, walk: &mut Walk) -> Result<Counts> {
    let geometry = header.geometry;
    let table = header.refcount_table;
    let mut bytes = vec![0; table.len.as_usize()];
    read_clipped(&**file, &mut bytes, table.start)?;
    for piece in table.pieces(geometry.cluster()) {
        walk.users.add(geometry.host_cluster_of(piece.start));
    }
    let mut words = words_of(&bytes);
    for (index, word) in words.iter_mut().enumerate().filter(|(_, word)| **word != 0) {
        let at = ByteOffset::new(*word);
        match geometry.host_cluster(at).filter(|_| *word < file.size().get()) {
            Some(home) => walk.users.add(home),
            None => {
                walk.problem(format!("refcount block {index} lies at {at}, where none can be"));
                *word = 0;
            }
        }
    }
    // Two of one place are found by its count; here the second is as good as none.
    let mut seen = std::collections::HashSet::new();
    words.iter_mut().filter(|word| **word != 0).for_each(|word| {
        if !seen.insert(*word) {
            *word = 0;
        }
    });
    Counts::open(Arc::clone(file), geometry, &words)
}

/// Compares every count with the users, and says where the last cluster that is counted or used
/// ends in the file, which has `in_file` clusters. Counts behind its end are looked at as far as a
/// crash may have left them there, and no further: memory is bounded by the file.
fn compare(
    counts: &mut Counts,
    walk: &mut Walk,
    in_file: u64,
    wrong: &mut Vec<(HostCluster, u64, u64)>,
) -> Result<u64> {
    let horizon = in_file.saturating_mul(2).saturating_add(BEHIND);
    let horizon = horizon.min(counts.end().max(walk.users.end()).0);
    let mut last = 0;
    for first in (0..horizon).step_by(PAGE as usize) {
        let users = walk.users.page(HostCluster(first)).map(<[u32]>::to_vec);
        if users.is_none() && !counts.has_block(HostCluster(first), PAGE) {
            continue;
        }
        for inside in 0..PAGE {
            let cluster = HostCluster(first + inside);
            let users = users.as_ref().map_or(0, |users| u64::from(users[inside as usize]));
            let count = counts.get(cluster)?;
            if (count > 0 || users > 0) && cluster.0 < in_file {
                last = cluster.0 + 1;
            }
            if count < users {
                walk.problem(format!("{cluster} has {users} users and is counted {count} times"));
            }
            if count != users {
                wrong.push((cluster, count, users));
            }
        }
    }
    Ok(last)
}
