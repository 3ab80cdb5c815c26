//! Saying where the bytes of a request lie: what is data at a place, or zeros.
//!
//! Takes no lock and does no I/O. What is compressed, the backing file's, shared or not in memory
//! has to be done.

use std::sync::atomic::Ordering;

use block_io::{Intent, Lease, Place, Resolve};
use block_types::{ByteCount, ByteOffset, ByteRange};

use super::entry::Cluster;
use super::image::{Gate, Image};
use super::mapping::{Kind, run_in_cluster};
use super::source::Source;

impl Resolve for Image {
    fn resolve<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<Lease<'d>> {
        let writes = intent == Intent::Write;
        let may_write = self.prepared.load(Ordering::SeqCst) && self.stopped.get().is_none();
        if writes && !may_write {
            return None;
        }
        // The lease first: what is read below it, an exchange of tables changed either before its
        // drain began, and then it is seen, or waits for the lease.
        let lease = self.source.leases.acquire();
        let gate = self.gate.load(Ordering::SeqCst);
        let shut = gate == Gate::Closed as u8 || (writes && gate == Gate::Reads as u8);
        if shut || range.end().get() > self.size.load(Ordering::SeqCst) {
            return None;
        }
        self.source.resolve(intent, range, places).map(|()| lease)
    }
}

impl Source {
    /// Appends the places of `range`; `None`, with `places` as it was, if it has to be done.
    pub(super) fn resolve<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<()> {
        let before = places.len();
        let whole = self.resolve_runs(intent, range, places);
        if whole.is_none() {
            places.truncate(before);
        }
        whole
    }

    fn resolve_runs<'d>(
        &'d self,
        intent: Intent,
        range: ByteRange,
        places: &mut Vec<Place<'d>>,
    ) -> Option<()> {
        let resolver = self.data().resolver()?;
        // Neighbours in the file are asked for together.
        let mut gathered = ByteRange::default();
        let mut at = range.start;
        while at < range.end() {
            let (guest, inside) = self.geometry.locate(at);
            let cluster = self.tree.known_now(guest)?;
            let run = run_in_cluster(self.geometry, cluster, inside.get());
            let len = ByteCount::new(run.len).min(range.end().since(at));
            let place = match run.kind {
                // What is encrypted does not lie there as it is.
                Kind::Data(_) if self.crypt.is_some() => return None,
                Kind::Data(place) if intent == Intent::Read || is_own(cluster) => place,
                Kind::Zero { .. } if intent == Intent::Read => {
                    push(resolver, intent, &mut gathered, places)?;
                    places.push(Place { file: None, at: ByteOffset::ZERO, len });
                    at = at.plus(len);
                    continue;
                }
                Kind::Absent if intent == Intent::Read && self.backing.is_none() => {
                    push(resolver, intent, &mut gathered, places)?;
                    places.push(Place { file: None, at: ByteOffset::ZERO, len });
                    at = at.plus(len);
                    continue;
                }
                _ => return None,
            };
            if gathered.is_empty() || gathered.end() != place {
                push(resolver, intent, &mut gathered, places)?;
                gathered = ByteRange::new(place, len);
            } else {
                gathered = ByteRange::between(gathered.start, place.plus(len));
            }
            at = at.plus(len);
        }
        push(resolver, intent, &mut gathered, places)
    }
}

/// Whether nobody else sees the cluster's place.
fn is_own(cluster: Cluster) -> bool {
    match cluster {
        Cluster::Standard(standard) => standard.exclusive,
        Cluster::Compressed(_) => false,
    }
}

/// Resolves the run that has gathered, if there is one.
fn push<'d>(
    resolver: &'d dyn Resolve,
    intent: Intent,
    run: &mut ByteRange,
    places: &mut Vec<Place<'d>>,
) -> Option<()> {
    if run.is_empty() {
        return Some(());
    }
    // The file's places do not move; the image's lease says who may use them.
    let _permanent = resolver.resolve(intent, std::mem::take(run), places)?;
    Some(())
}
