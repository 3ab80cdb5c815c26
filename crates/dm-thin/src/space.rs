//! Handing out data blocks: windows are carved by the allocator, and their space is provided here,
//! without its lock, before a block of them is given away.

use std::sync::Arc;
use std::thread;

use block_io::Ticket;
use block_types::{Error, ErrorKind, Result};
use parking_lot::MutexGuard;

use crate::EventKind;
use crate::allocator::{Allocator, Carved, MarkName, Window};
use crate::mode::Lack;
use crate::shared::Shared;
use crate::{DataBlock, DeviceId};

impl Shared {
    /// Takes a free block for `device`.
    ///
    /// # Errors
    /// `OutOfSpace` where none is left, or the file system below has no room for one.
    pub(crate) fn take_block(&self, device: DeviceId) -> Result<DataBlock> {
        let ticket = self.condition.ticket();
        // As the kernel does it, a pool that is out of space looks again when there is some, not
        // at every write.
        if let Some(lack) = self.condition.is_hopeless(Lack::Data)
            && !self.pending.lock().frees
        {
            return Err(out_of_data_space(&self.name, lack));
        }
        if let Some(block) = self.found(self.next_block(device), ticket)? {
            return Ok(block);
        }
        // Blocks that were freed since the last commit come back with it.
        let generation = self.pending.lock().generation;
        self.commit_to(generation)?;
        self.wait_for_reclaim();
        let mut block = self.found(self.next_block(device), ticket)?;
        // So do those of deleted devices, step by step.
        while block.is_none() && self.reclaim_step()? {
            self.wait_for_reclaim();
            block = self.found(self.next_block(device), ticket)?;
        }
        block.ok_or_else(|| {
            self.condition.lacks(Lack::Data, ticket);
            out_of_data_space(&self.name, Lack::Data)
        })
    }

    /// Notes where the file system below has no room for a block, or has it again.
    fn found(&self, block: Result<Option<DataBlock>>, ticket: Ticket) -> Result<Option<DataBlock>> {
        match &block {
            Ok(Some(_)) if self.condition.is_out_of_data() => self.condition.provide(Lack::Data),
            Err(error) if error.kind() == ErrorKind::OutOfSpace => {
                self.condition.lacks(Lack::DataBelow, ticket);
            }
            _ => {}
        }
        block
    }

    /// Raises an event for each mark that asking for a block now reaches.
    fn look_at_marks(&self, allocator: &mut Allocator) {
        let free = allocator.free();
        if let Some(mark) = allocator.reach(MarkName::LowWater) {
            self.condition.events.push(EventKind::LowWater { free, mark });
        }
        if let Some(mark) = allocator.reach(MarkName::Alarm) {
            self.condition.events.push(EventKind::Alarm { free, mark });
        }
    }

    fn next_block(&self, device: DeviceId) -> Result<Option<DataBlock>> {
        let mut allocator = self.allocator.lock();
        self.look_at_marks(&mut allocator);
        loop {
            if let Some(block) = allocator.take(device) {
                if allocator.wants_ahead() {
                    self.space_wanted.notify_one();
                }
                return Ok(Some(block));
            }
            match allocator.carve(device) {
                Carved::Window(window) => {
                    let opened = MutexGuard::unlocked(&mut allocator, || self.provide_some(window));
                    allocator.open(device, opened.as_ref().ok().copied());
                    self.window_opened.notify_all();
                    opened?;
                }
                Carved::Opening => self.window_opened.wait(&mut allocator),
                // The free blocks stand in a window that is being opened for another volume.
                Carved::Nothing if allocator.free() > 0 => {
                    self.window_opened.wait(&mut allocator);
                }
                // What is lent for a moment is back before that is the answer.
                Carved::Nothing if allocator.lends() => self.window_opened.wait(&mut allocator),
                Carved::Nothing => return Ok(None),
            }
        }
    }

    /// Provides space for `window`, or for its first block alone where that is all there is.
    fn provide_some(&self, window: Window) -> Result<Window> {
        match self.provide(window) {
            Err(error) if error.kind() == ErrorKind::OutOfSpace => self.provide(window.first()),
            done => done,
        }
    }

    fn provide(&self, window: Window) -> Result<Window> {
        let (first, count) = window.blocks();
        self.data.provision(self.block_size.data_range(first, count)).map(|()| window)
    }
}

/// Starts the thread that opens windows ahead, so that writers need not wait for the file system.
pub(crate) fn start_ahead(shared: &Arc<Shared>) -> Result<thread::JoinHandle<()>> {
    let name = shared.name.clone();
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name("firn-space".into())
        .spawn(move || open_ahead(&shared))
        .map_err(|error| Error::io(name, "cannot start the thread that provides space", error))
}

/// Makes that thread end.
pub(crate) fn end_ahead(shared: &Shared) {
    shared.allocator.lock().end();
    shared.space_wanted.notify_all();
}

fn open_ahead(shared: &Shared) {
    let mut allocator = shared.allocator.lock();
    while !allocator.is_ended() {
        let Some((device, window)) = allocator.carve_ahead() else {
            shared.space_wanted.wait(&mut allocator);
            continue;
        };
        // Whoever needs the window will meet the failure, and say so.
        let opened = MutexGuard::unlocked(&mut allocator, || shared.provide(window).ok());
        allocator.open(device, opened);
        shared.window_opened.notify_all();
    }
}

/// The answer to a write that needs a block when there is none.
fn out_of_data_space(pool: &str, lack: Lack) -> Error {
    let (problem, advice) = match lack {
        Lack::Data => (
            "the pool has no free data block left",
            "grow it with 'firn pool grow', or delete or discard what is not needed",
        ),
        Lack::DataBelow => (
            "the file system under the pool's data is full",
            "free space there, or discard what is not needed",
        ),
        Lack::Metadata => (
            "the pool's metadata is full",
            "grow it with 'firn pool grow --metadata', or delete snapshots",
        ),
    };
    Error::new(ErrorKind::OutOfSpace, pool, problem).advise(advice)
}
