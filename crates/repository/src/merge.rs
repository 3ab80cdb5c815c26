//! A merge from its plan to the removal of what it made superfluous.

use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, Error, ErrorKind, Result};
use disk_image::vhd::{OpenOptions, Parent, VhdImage};
use jobs::Monitor;
use parking_lot::MutexGuard;
use volume::NodeName;

use crate::NodeId;
use crate::chain::Chain;
use crate::copy::Copy;
use crate::disk::{Disk, Retired};
use crate::layer::Layer;
use crate::mirror::Mirror;
use crate::plan::{Plan, Run, choose, plans, runs};
use crate::point::Point;
use crate::progress::Progress;
use crate::record::Record;
use crate::repository::Repository;
use crate::state::{Running, State};

/// A merge that is being done.
struct Merge {
    run: Run,
    plan: Plan,
    target: Arc<Layer>,
    /// The disk that a guest writes to, if the topmost node is one.
    live: Option<Arc<Disk>>,
    /// The topmost node's name.
    name: Option<NodeName>,
    size: ByteCount,
    copy: Copy,
}

impl Merge {
    /// The place of the topmost node.
    fn last(&self) -> usize {
        self.run.0.len() - 1
    }

    fn target_id(&self) -> &NodeId {
        &self.run.0[self.plan.target]
    }

    /// Whether the target is what a guest writes to all along.
    fn is_upwards(&self) -> bool {
        self.plan.target == self.last()
    }
}

impl Repository {
    /// Merges a run. Bytes that were copied.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfSpace`] before anything is begun; [`ErrorKind::Cancelled`]; those of the
    /// files. Whatever was done is kept, shows nowhere, and is not done again.
    pub(crate) fn merge(&self, run: Run, monitor: &Monitor) -> Result<ByteCount> {
        let progress = Arc::new(Progress::default());
        let plan = self.plan(&run)?;
        progress.expect(plan.bytes, monitor);
        self.probe.reach(Point::MergeBegun);
        let merge = self.begin(run, plan, &progress)?;
        let done = self.carry_out(&merge, &progress, monitor);
        let mut state = self.lock();
        if done.is_err() {
            self.abandon(&mut state, &merge);
        }
        state.merges.retain(|running| running.target != *merge.target_id());
        let removed = if done.is_ok() { state.remove_garbage(false) } else { Ok(0) };
        drop(state);
        self.changed.notify_all();
        done?;
        removed?;
        Ok(merge.plan.bytes)
    }

    /// Works out what is the cheapest way.
    fn plan(&self, run: &Run) -> Result<Plan> {
        let (layers, has_parent, live) = {
            let mut state = self.lock();
            let layers = run.0.iter().map(|id| state.layer(id)).collect::<Result<Vec<_>>>()?;
            let has_parent = state.tree.get(&run.0[0]).is_some_and(|node| node.parent.is_some());
            (layers, has_parent, state.live_disk(run.top()).is_some())
        };
        let plans = plans(&layers, has_parent)?;
        let free = self.folder.free()?;
        choose(&plans, free, live).map_err(|why| {
            Error::new(ErrorKind::OutOfSpace, run.top().to_string(), why)
                .advise("free some space, or wait until it is merged in smaller parts")
        })
    }

    /// Opens what it takes, and lets everybody know of the merge.
    fn begin(&self, run: Run, plan: Plan, progress: &Arc<Progress>) -> Result<Merge> {
        let mut state = self.lock();
        if self.is_stopping() || !runs(&state).contains(&run) {
            return Err(changed(&run));
        }
        let live = state.live_disk(run.top());
        let size = state.layer(run.top())?.size();
        let target_id = run.0[plan.target].clone();
        state.grow(&target_id, size)?;
        self.probe.reach(Point::MergeGrown);
        let target = state.writer(&target_id)?;
        let name = state.catalogue.name_of(run.top()).cloned();
        let has_parent = state.tree.get(&run.0[0]).is_some_and(|node| node.parent.is_some());
        let last = run.0.len() - 1;
        // What a guest writes to is looked at step by step; the chain is of what stays as it is.
        let fixed = if live.is_some() { &run.0[..last] } else { &run.0[..] };
        let ids: Vec<NodeId> = fixed.iter().rev().cloned().collect();
        let place = ids.iter().position(|id| *id == target_id);
        let chain: Arc<Chain> = state.chain(&ids, size)?;
        let mirror = live.as_ref().filter(|_| plan.target < last).map(|disk| {
            let mirror = Arc::new(Mirror::new(Arc::clone(&target), size));
            (Arc::clone(&disk.view().top), mirror)
        });
        let makes_root = plan.target > 0 && !has_parent;
        let copy =
            Copy { chain, target: Arc::clone(&target), place, live: mirror, makes_root, size };
        let running =
            Running { nodes: run.0.clone(), target: target_id, progress: Arc::clone(progress) };
        state.merges.push(running);
        Ok(Merge { run, plan, target, live, name, size, copy })
    }

    fn carry_out(&self, merge: &Merge, progress: &Progress, monitor: &Monitor) -> Result<()> {
        if let (Some(disk), Some((_, mirror))) = (&merge.live, &merge.copy.live) {
            disk.switch(|view| Ok(view.mirrored(Arc::clone(mirror))))?;
            self.probe.reach(Point::MergeMirrored);
        }
        merge.copy.run(progress, monitor, &self.probe)?;
        self.probe.reach(Point::MergeCopied);
        if let (Some(disk), Some((_, mirror))) = (&merge.live, &merge.copy.live) {
            disk.note_pause(mirror.longest_nanos());
        }
        // Most of what there is to flush, while nobody waits.
        merge.target.image.flush()?;
        let retired = self.finish(&mut self.lock(), merge)?;
        retired.into_iter().for_each(Retired::wait);
        self.probe.reach(Point::MergeRetired);
        Ok(())
    }

    /// Makes the target take the place of the run.
    fn finish(&self, state: &mut MutexGuard<'_, State>, merge: &Merge) -> Result<Vec<Retired>> {
        self.check_unchanged(state, merge)?;
        merge.target.image.flush()?;
        self.probe.reach(Point::MergeFlushed);
        if merge.plan.target > 0 {
            let parent = state.tree.get(&merge.run.0[0]).and_then(|node| node.parent.clone());
            match parent {
                Some(parent) => state.relink(merge.target_id(), &parent)?,
                None => state.detach(merge.target_id())?,
            }
            self.probe.reach(Point::MergeParent);
        }
        let mut retired = Vec::new();
        if !merge.is_upwards() {
            retired.extend(self.take_over(state, merge)?);
            for child in state.tree.children(merge.run.top()) {
                state.relink(&child, merge.target_id())?;
                self.probe.reach(Point::MergeRelinking);
            }
            self.probe.reach(Point::MergeRelinked);
        }
        state.settle_flag(merge.target_id())?;
        self.probe.reach(Point::MergeShown);
        if merge.live.is_none() {
            merge.target.image.close()?;
            self.probe.reach(Point::MergeClosed);
        }
        retired.extend(state.refresh_disks()?);
        self.probe.reach(Point::MergeRefreshed);
        Ok(retired)
    }

    /// The instant at which the target stands for the topmost node.
    fn take_over(
        &self,
        state: &mut MutexGuard<'_, State>,
        merge: &Merge,
    ) -> Result<Option<Retired>> {
        let above = &merge.run.0[merge.plan.target + 1..];
        let absorbed = above.iter().map(|id| (id.clone(), merge.target_id().clone()));
        let mut record = Record { absorbed: absorbed.collect(), ..Record::default() };
        record.own.extend(merge.run.0.iter().cloned());
        if let Some(name) = &merge.name {
            let created = state.catalogue.names[name].created.clone();
            record = record.naming(name, merge.target_id(), created);
        }
        let Some(disk) = &merge.live else {
            state.record(&record)?;
            self.probe.reach(Point::MergeAbsorbed);
            return Ok(None);
        };
        let chain = state.tree.chain(merge.target_id());
        let below = state.chain(&chain[1..], merge.size)?;
        let next = disk.prepare(Arc::clone(&merge.target), below)?;
        let retired = disk.switch(|_| {
            merge.target.image.flush()?;
            self.probe.reach(Point::MergePaused);
            state.record(&record)?;
            self.probe.reach(Point::MergeAbsorbed);
            Ok(next)
        })?;
        self.probe.reach(Point::MergeSwitched);
        Ok(Some(retired))
    }

    /// Checks that the run is what it was when the merge began.
    fn check_unchanged(&self, state: &State, merge: &Merge) -> Result<()> {
        let nodes = &merge.run.0;
        let last = merge.last();
        let joined = (0..last).all(|at| {
            state.catalogue.name_of(&nodes[at]).is_none()
                && state.tree.only_child(&nodes[at]) == Some(&nodes[at + 1])
        });
        let named = state.catalogue.name_of(&nodes[last]) == merge.name.as_ref();
        let wanted = merge.name.is_some() || !state.tree.children(&nodes[last]).is_empty();
        let live = state.live_disk(&nodes[last]).is_some() == merge.live.is_some();
        if joined && named && wanted && live { Ok(()) } else { Err(changed(&merge.run)) }
    }

    /// Leaves a merge that did not come to its end: what it has copied shows nowhere.
    fn abandon(&self, state: &mut State, merge: &Merge) {
        if let Some(disk) = &merge.live
            && disk.view().mirror.is_some()
            && let Err(error) = disk.switch(|view| Ok(view.unmirrored()))
        {
            tracing::error!(%error, disk = disk.name(), "its writes stay mirrored");
        }
        let in_use =
            merge.live.as_ref().is_some_and(|disk| disk.view().top.id == *merge.target_id());
        if !in_use {
            if let Err(error) = merge.target.image.close() {
                tracing::warn!(%error, node = %merge.target_id(), "not closed in order");
            }
            state.forget_layer(merge.target_id());
        }
    }
}

impl State {
    /// The disk that a guest writes to, whose topmost node is `top`.
    fn live_disk(&self, top: &NodeId) -> Option<Arc<Disk>> {
        let mut disks = self.disks.values();
        disks.find(|disk| !disk.is_read_only() && disk.view().top.id == *top).cloned()
    }

    /// Makes a node as large as the disk that it is to hold.
    fn grow(&mut self, id: &NodeId, size: ByteCount) -> Result<()> {
        if self.tree.size(id).is_none_or(|own| own >= size) {
            return Ok(());
        }
        let chain = self.tree.chain(id);
        let parent = match chain.get(1) {
            None => None,
            Some(parent) => {
                let top = self.layer(parent)?;
                let below = self.chain(&chain[2..], top.size())?;
                let device = Disk::new(parent.to_string(), Arc::clone(&top), below, true)?;
                Some(Parent { device: Arc::new(device), id: Some(top.image.id()) })
            }
        };
        // Where the parent is longer, what is added has to hide it: so it is open here.
        let file = self.folder.open(id.file(), false)?;
        let image = VhdImage::open(file, parent, OpenOptions::default())?;
        image.grow(size)?;
        image.close()?;
        self.forget_layer(id);
        self.reread(id, chain.get(1))
    }
}

fn changed(run: &Run) -> Error {
    let problem = "is not what it was when the merge began; it is looked at again";
    Error::new(ErrorKind::Cancelled, run.top().to_string(), problem)
}
