//! Reading one state of the disk: the active one, or a snapshot's.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::{BlockDevice, LeaseSet};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, Extent, ExtentState, Result};
use parking_lot::Mutex;

use super::bytes::read_clipped;
use super::compressed::{Decompressed, decompress};
use super::entry::{Cluster, Descriptor, L1Entry, encode};
use super::geometry::{Geometry, GuestCluster, HostCluster};
use super::header::{Compression, corrupt};
use super::mapping::{Kind, Run, run_at};
use super::state::State;
use super::tree::{Tree, decode_of};
use crate::luks::SectorCipher;

/// Where the bytes of a state of the disk come from.
pub(super) struct Source {
    pub(super) name: String,
    pub(super) file: Arc<dyn BlockDevice>,
    /// The external data file.
    pub(super) data: Option<Arc<dyn BlockDevice>>,
    pub(super) backing: Option<Arc<dyn BlockDevice>>,
    pub(super) geometry: Geometry,
    pub(super) compression: Compression,
    /// What the guest's data are encrypted by, unless they are compressed.
    pub(super) crypt: Option<Arc<SectorCipher>>,
    pub(super) tree: Tree,
    /// Those who read places of the files; who gives places to others waits for them.
    pub(super) leases: Arc<LeaseSet>,
    pub(super) decompressed: Arc<Decompressed>,
    /// The counts that say what may be written in place; none if nothing may.
    pub(super) state: Option<Arc<Mutex<State>>>,
}

impl Source {
    /// The file that holds the guest's data.
    pub(super) fn data(&self) -> &dyn BlockDevice {
        self.data.as_deref().unwrap_or(&*self.file)
    }

    /// What `cluster` is, its table loaded if it has to be.
    pub(super) fn cluster(&self, cluster: GuestCluster) -> Result<Cluster> {
        loop {
            if let Some(known) = self.tree.known(&self.name, cluster)? {
                return Ok(known);
            }
            let (index, _) = self.geometry.slot(cluster);
            let first = self.geometry.first_of(index);
            self.tree.load(&*self.file, index, |entry, words| self.adjust(first, entry, words))?;
        }
    }

    /// Checks the entries of a table that was read, and marks those that may be written in place:
    /// the counts decide, not the flags of the file (SNAPSHOT-FIXED).
    pub(super) fn adjust(
        &self,
        first: GuestCluster,
        table: L1Entry,
        words: &mut [u64],
    ) -> Result<()> {
        let geometry = self.geometry;
        let end = self.file.size();
        let mut state = self.state.as_ref().map(|state| state.lock());
        for (at, entry) in (0..).zip(words.chunks_exact_mut(geometry.entry_words())) {
            let guest = GuestCluster(first.0 + at);
            let held = [entry[0], entry.get(1).copied().unwrap_or(0)];
            let cluster = decode_of(geometry, &self.name, guest, held)?;
            let Some((host, _)) = cluster.hosts(geometry) else { continue };
            if geometry.external {
                continue;
            }
            if geometry.host_start(host).get() >= end.get() {
                let problem = format!("{guest} lies at {host}, past the end of the file");
                return Err(corrupt(&self.name, problem));
            }
            let own = match (&mut state, cluster) {
                (Some(state), Cluster::Standard(_)) => {
                    if state.tables.contains(&host) {
                        let problem = format!("{guest} lies at {host}, where a table is");
                        return Err(corrupt(&self.name, problem));
                    }
                    table.exclusive && state.alloc.counts.get(host)? == 1
                }
                _ => false,
            };
            entry[0] = encode(geometry, cluster.marked(own))[0];
        }
        Ok(())
    }

    /// The run at the start of `range`.
    pub(super) fn run(&self, range: ByteRange) -> Result<Run> {
        run_at(self.geometry, range, &|cluster| self.cluster(cluster))
    }

    /// Fills `buffer` from `at`.
    pub(super) fn read(&self, buffer: &mut [u8], at: ByteOffset) -> Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let start = at.plus(ByteCount::new(done as u64));
            // Under the lease the places stay this state's until the read is over.
            let _lease = self.leases.acquire();
            let left = ByteCount::new((buffer.len() - done) as u64);
            let run = self.run(ByteRange::new(start, left))?;
            let part = &mut buffer[done..done + run.len as usize];
            self.read_run(run.kind, part, start)?;
            done += part.len();
        }
        Ok(())
    }

    pub(super) fn read_run(&self, kind: Kind, part: &mut [u8], start: ByteOffset) -> Result<()> {
        match kind {
            Kind::Data(place) => self.read_data(part, place),
            Kind::Zero { .. } => {
                part.fill(0);
                Ok(())
            }
            Kind::Absent => self.read_backing(part, start),
            Kind::Compressed(descriptor) => {
                let (_, inside) = self.geometry.locate(start);
                let from = inside.as_usize();
                let cluster = self.decompressed(descriptor)?;
                part.copy_from_slice(&cluster[from..from + part.len()]);
                Ok(())
            }
        }
    }

    /// Fills `part` with what the backing file holds; zeros behind its end, or without one.
    pub(super) fn read_backing(&self, part: &mut [u8], start: ByteOffset) -> Result<()> {
        match &self.backing {
            Some(backing) => read_clipped(&**backing, part, start),
            None => {
                part.fill(0);
                Ok(())
            }
        }
    }

    /// The content of a compressed cluster.
    pub(super) fn decompressed(&self, descriptor: Descriptor) -> Result<Arc<Vec<u8>>> {
        if let Some(kept) = self.decompressed.get(descriptor) {
            return Ok(kept);
        }
        let mut data = vec![0; descriptor.range().len.as_usize()];
        read_clipped(&*self.file, &mut data, descriptor.at)?;
        let mut cluster = vec![0; self.geometry.cluster().as_usize()];
        decompress(self.compression, &data, &mut cluster).map_err(|problem| {
            let problem = format!("the compressed data at {}: {problem}", descriptor.at);
            corrupt(&self.name, problem)
        })?;
        let cluster = Arc::new(cluster);
        self.decompressed.put(descriptor, &cluster);
        Ok(cluster)
    }

    /// Calls `each` with what lies in `range`; what is the backing file's is asked of it.
    pub(super) fn extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end() {
            let run = self.run(ByteRange::between(at, range.end()))?;
            let here = ByteRange::new(at, ByteCount::new(run.len));
            let state = match run.kind {
                Kind::Data(_) | Kind::Compressed(_) => ExtentState::Data,
                Kind::Zero { host: Some(_) } => ExtentState::Zero,
                Kind::Zero { host: None } => ExtentState::Hole,
                Kind::Absent => {
                    if self.backing_extents(here, each)?.is_break() {
                        return Ok(());
                    }
                    at = here.end();
                    continue;
                }
            };
            if each(Extent { range: here, state }).is_break() {
                return Ok(());
            }
            at = here.end();
        }
        Ok(())
    }

    fn backing_extents(
        &self,
        range: ByteRange,
        each: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>> {
        let mut flow = ControlFlow::Continue(());
        let mut rest = range;
        if let Some(backing) = &self.backing {
            let whole = ByteRange::new(ByteOffset::ZERO, backing.size());
            let inside = range.intersect(whole);
            if !inside.is_empty() {
                backing.extents(inside, &mut |extent| {
                    flow = each(extent);
                    flow
                })?;
                rest = ByteRange::between(inside.end(), range.end());
            }
        }
        if flow.is_continue() && !rest.is_empty() {
            flow = each(Extent { range: rest, state: ExtentState::Hole });
        }
        Ok(flow)
    }

    /// Refuses devices whose requests are larger than a cluster.
    pub(super) fn check_limits(&self) -> Result<()> {
        for device in [Some(&self.file), self.data.as_ref()].into_iter().flatten() {
            let unit = device.limits().minimum;
            if unit > self.geometry.cluster() {
                let cluster = self.geometry.cluster();
                return Err(Error::new(
                    block_types::ErrorKind::Unsupported,
                    device.name(),
                    format!("takes requests of {unit} only, but holds clusters of {cluster}"),
                )
                .advise("open it through the page cache"));
            }
        }
        Ok(())
    }

    /// The place of a guest's byte in `host`.
    pub(super) fn place(&self, host: HostCluster, inside: u64) -> ByteOffset {
        self.geometry.host_start(host).plus(ByteCount::new(inside))
    }
}
