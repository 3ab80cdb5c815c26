//! Ranges of the disk as runs of one sort: at a place, zeros, the backing file's, compressed.

use block_types::{ByteCount, ByteOffset, ByteRange, Result};

use super::entry::{Cluster, Descriptor};
use super::geometry::{Geometry, GuestCluster};

/// What a run of the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Data from this place on, in the image or in its external data file.
    Data(ByteOffset),
    /// Zeros; `host` is the place that is kept for data.
    Zero {
        /// The place that is kept for data, if one is.
        host: Option<ByteOffset>,
    },
    /// The backing file's, or zeros if there is none.
    Absent,
    /// A part of a compressed cluster.
    Compressed(Descriptor),
}

/// A run of bytes of one sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) kind: Kind,
    pub(crate) len: u64,
}

/// The run that begins `inside` bytes into a cluster, cut at the cluster's end.
pub(crate) fn run_in_cluster(geometry: Geometry, cluster: Cluster, inside: u64) -> Run {
    let size = geometry.cluster().get();
    let standard = match cluster {
        Cluster::Compressed(descriptor) => {
            return Run { kind: Kind::Compressed(descriptor), len: size - inside };
        }
        Cluster::Standard(standard) => standard,
    };
    let unit = geometry.subcluster().get();
    let sort = |sub: u64| (standard.allocated >> sub & 1, standard.zero >> sub & 1);
    let first = inside / unit;
    let same =
        (first..u64::from(geometry.subclusters())).take_while(|&sub| sort(sub) == sort(first));
    let end = (first + same.count() as u64) * unit;
    let place = standard.host.map(|host| geometry.host_start(host).plus(ByteCount::new(inside)));
    let kind = match (sort(first), place) {
        ((1, _), Some(place)) => Kind::Data(place),
        ((_, 1), host) => Kind::Zero { host },
        _ => Kind::Absent,
    };
    Run { kind, len: end - inside }
}

/// The run at the start of `range`, which is not empty: as long as clusters go on with it.
///
/// # Errors
/// As `lookup`, which finds what a cluster is.
pub(crate) fn run_at(
    geometry: Geometry,
    range: ByteRange,
    lookup: &dyn Fn(GuestCluster) -> Result<Cluster>,
) -> Result<Run> {
    let mut run: Option<Run> = None;
    let mut at = range.start;
    while at < range.end() {
        let (cluster, inside) = geometry.locate(at);
        let next = run_in_cluster(geometry, lookup(cluster)?, inside.get());
        run = match run {
            None => Some(next),
            Some(so_far) if continues(so_far, next) => {
                Some(Run { len: so_far.len + next.len, ..so_far })
            }
            done => return Ok(cut(done, range)),
        };
        at = at.plus(ByteCount::new(next.len));
    }
    Ok(cut(run, range))
}

fn cut(run: Option<Run>, range: ByteRange) -> Run {
    let run = run.unwrap_or(Run { kind: Kind::Absent, len: 0 });
    Run { len: run.len.min(range.len.get()), ..run }
}

/// Whether `next` goes on where `run` ends.
fn continues(run: Run, next: Run) -> bool {
    let behind = |place: ByteOffset| place.checked_add(ByteCount::new(run.len));
    match (run.kind, next.kind) {
        (Kind::Data(place), Kind::Data(next)) => behind(place) == Some(next),
        (Kind::Zero { host: None }, Kind::Zero { host: None }) | (Kind::Absent, Kind::Absent) => {
            true
        }
        (Kind::Zero { host: Some(place) }, Kind::Zero { host: Some(next) }) => {
            behind(place) == Some(next)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Run, run_at, run_in_cluster};
    use crate::qcow2::entry::{Cluster, Standard};
    use crate::qcow2::geometry::{Geometry, HostCluster};
    use block_types::{ByteCount, ByteOffset, ByteRange};

    fn geometry(extended: bool) -> Geometry {
        Geometry {
            cluster_bits: 16,
            refcount_order: 4,
            extended,
            external: false,
            zero_clusters: true,
        }
    }

    #[test]
    fn subclusters_cut_a_cluster_into_runs() {
        let host = Some(HostCluster(3));
        let standard = Standard { host, exclusive: true, allocated: 0b110, zero: 0b1000 };
        let run = |inside| run_in_cluster(geometry(true), Cluster::Standard(standard), inside);
        assert_eq!(run(5), Run { kind: Kind::Absent, len: 2043 });
        let place = ByteOffset::new(3 * 65536 + 2048);
        assert_eq!(run(2048), Run { kind: Kind::Data(place), len: 4096 });
        let kept = Some(ByteOffset::new(3 * 65536 + 6144));
        assert_eq!(run(6144), Run { kind: Kind::Zero { host: kept }, len: 2048 });
        assert_eq!(run(8192), Run { kind: Kind::Absent, len: 65536 - 8192 });
    }

    #[test]
    fn neighbours_join() {
        let geometry = geometry(false);
        let range = |start, len| ByteRange::new(ByteOffset::new(start), ByteCount::new(len));
        let find = |start, len| {
            run_at(geometry, range(start, len), &|cluster| {
                let host = [5, 6, 9][cluster.0 as usize];
                Ok(Cluster::Standard(Standard::data(geometry, HostCluster(host))))
            })
            .unwrap()
        };
        let first = Kind::Data(ByteOffset::new(5 * 65536 + 10));
        assert_eq!(find(10, 3 * 65536 - 10), Run { kind: first, len: 2 * 65536 - 10 });
        assert_eq!(find(10, 4).len, 4);
    }
}
