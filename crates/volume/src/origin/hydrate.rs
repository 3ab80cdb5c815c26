//! Freeing volumes from their origin: what they still show of it is copied into the pool, a step at
//! a time, and then the names forget it.
//!
//! RERUNNABLE: nothing is noted of how far it has come. What was copied is mapped, and is passed
//! over by whoever begins again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Result};
use dm_thin::{DeviceId, ExternalOrigin, ThinVolume};

use crate::names::KnownNode;
use crate::{Names, NodeName, OriginEntry, PoolDirectory, RecordedChange, VolumeName};

/// How much a step covers: rollbacks wait for one, and a pool is not left to copy for long.
const STEP: ByteCount = ByteCount::new(8 << 20);

/// Who is to be freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    /// The device alone.
    Device(u32),
    /// All that came from the volume that was made over the origin in this transaction.
    Family(u64),
}

/// A hydration that has begun.
pub struct Hydration {
    pool: Arc<PoolDirectory>,
    whom: Option<Whom>,
    volumes: Vec<ThinVolume>,
    /// As it was when this pass began.
    rollbacks: u64,
    at: ByteOffset,
    /// How far any pass has come.
    furthest: ByteOffset,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HydrationStep {
    /// How much more is dealt with.
    pub covered: ByteCount,
    /// How much was copied for it.
    pub copied: ByteCount,
}

impl PoolDirectory {
    /// Begins to free a volume from its external origin, alone or with everything that shares it
    /// by descent: its snapshots, their clones, and what it was itself cloned from. What several of
    /// them share is copied once then, and else again for each. They may be in use.
    ///
    /// # Errors
    /// `NotFound`; `ReadOnly`; those of the origin.
    pub fn hydration(self: &Arc<Self>, name: &VolumeName, family: bool) -> Result<Hydration> {
        let known = {
            let mut state = self.names.lock();
            self.writable_log(&mut state.log)?;
            state.table.known(&NodeName { volume: name.clone(), snapshot: None })?
        };
        let whom = known.origin.map(|origin| match family {
            true => Whom::Family(origin.family),
            false => Whom::Device(known.id),
        });
        let mut hydration = Hydration {
            pool: Arc::clone(self),
            whom,
            volumes: Vec::new(),
            rollbacks: 0,
            at: ByteOffset::ZERO,
            furthest: ByteOffset::ZERO,
        };
        hydration.begin()?;
        Ok(hydration)
    }
}

impl Hydration {
    /// How much there is to deal with, what needs no copying included.
    pub fn total(&self) -> ByteCount {
        let sizes = self.volumes.iter().map(BlockDevice::size);
        sizes.max().unwrap_or_default()
    }

    /// Goes on for a while; `None` once the volumes are free. Between two steps it may be left
    /// alone, for as long as one likes and for good.
    ///
    /// # Errors
    /// Those of the origin and of the pool. What was copied stays, and a step may be tried again.
    pub fn step(&mut self) -> Result<Option<HydrationStep>> {
        let end = ByteOffset::new(self.total().get());
        if self.at >= end {
            let free = self.finish()?;
            let nothing = HydrationStep { covered: ByteCount::ZERO, copied: ByteCount::ZERO };
            return Ok((!free).then_some(nothing));
        }
        let next = self.at.plus(STEP).min(end);
        let volumes: Vec<&ThinVolume> = self.volumes.iter().collect();
        let copied = self.pool.pool.hydrate(&volumes, ByteRange::between(self.at, next))?;
        let covered = ByteCount::new(next.get().saturating_sub(self.furthest.get()));
        self.at = next;
        self.furthest = self.furthest.max(next);
        Ok(Some(HydrationStep { covered, copied }))
    }

    /// Begins a pass over those who are to be freed as they are now.
    fn begin(&mut self) -> Result<()> {
        self.at = ByteOffset::ZERO;
        let mut _connected = None;
        loop {
            let state = self.pool.names.lock();
            self.rollbacks = self.pool.rollbacks.load(Ordering::SeqCst);
            let members = state.table.stand_with(self.whom);
            let Some((_, origin)) = members.first() else {
                self.volumes.clear();
                return Ok(());
            };
            if let Some(device) = self.pool.origins.get(&origin.origin) {
                let open = |(known, origin): &(KnownNode, OriginEntry)| {
                    self.pool.open_member(known, origin, &device)
                };
                self.volumes = members.iter().map(open).collect::<Result<_>>()?;
                return Ok(());
            }
            let source = origin.origin.clone();
            drop(state);
            // Not under the lock: a server may take its time.
            _connected = Some(self.pool.origins.open(&source)?);
        }
    }

    /// Records that the volumes are free, durably with all that was copied; `false`, and another
    /// pass begins, if there are others by now, or some became what they had been.
    fn finish(&mut self) -> Result<bool> {
        let mut state = self.pool.names.lock();
        let members = state.table.stand_with(self.whom);
        let ids: Vec<u32> = members.iter().map(|(known, _)| known.id).collect();
        let covered = self.volumes.iter().map(|volume| volume.id().get());
        if !covered.eq(ids.iter().copied())
            || self.rollbacks != self.pool.rollbacks.load(Ordering::SeqCst)
        {
            drop(state);
            self.begin()?;
            return Ok(false);
        }
        if !ids.is_empty() {
            self.pool.record(&mut state, RecordedChange::Free { ids }, Vec::new())?;
        }
        drop(state);
        let volumes: Vec<&ThinVolume> = self.volumes.iter().collect();
        self.pool.pool.free_from_origin(&volumes);
        self.volumes.clear();
        self.whom = None;
        self.pool.release_origins();
        Ok(true)
    }
}

impl PoolDirectory {
    fn open_member(
        &self,
        known: &KnownNode,
        origin: &OriginEntry,
        device: &Arc<dyn BlockDevice>,
    ) -> Result<ThinVolume> {
        let origin = ExternalOrigin::new(Arc::clone(device), ByteCount::new(origin.shown))?;
        let (id, size) = (DeviceId::new(known.id)?, ByteCount::new(known.size));
        let name = format!("{}, device {id}", self.path.display());
        self.pool.open_volume_over(id, &name, size, true, Some(origin))
    }
}

impl Names {
    /// Those who stand on an origin and are meant, by device.
    fn stand_with(&self, whom: Option<Whom>) -> Vec<(KnownNode, OriginEntry)> {
        let mut members: Vec<_> = self
            .over_origins()
            .filter(|(known, origin)| match whom {
                Some(Whom::Device(id)) => known.id == id,
                Some(Whom::Family(family)) => origin.family == family,
                None => false,
            })
            .collect();
        members.sort_by_key(|(known, _)| known.id);
        members
    }
}
