//! Handing out data blocks: windows are carved by the allocator, and their space is provided here,
//! without its lock, before a block of them is given away.

use std::sync::Arc;
use std::thread;

use block_types::{Error, ErrorKind, Result};
use parking_lot::MutexGuard;

use crate::allocator::{Carved, Window};
use crate::shared::Shared;
use crate::{DataBlock, DeviceId};

impl Shared {
    /// Takes a free block for `device`.
    ///
    /// # Errors
    /// `OutOfSpace` where none is left, or the file system below has no room for one.
    pub(crate) fn take_block(&self, device: DeviceId) -> Result<DataBlock> {
        if let Some(block) = self.next_block(device)? {
            return Ok(block);
        }
        // Blocks that were freed since the last commit come back with it.
        let generation = self.pending.lock().generation;
        self.commit_to(generation)?;
        self.wait_for_reclaim();
        self.next_block(device)?.ok_or_else(|| out_of_data_space(&self.name))
    }

    fn next_block(&self, device: DeviceId) -> Result<Option<DataBlock>> {
        let mut allocator = self.allocator.lock();
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

/// The answer to a write that needs a block when none is left.
fn out_of_data_space(pool: &str) -> Error {
    Error::new(ErrorKind::OutOfSpace, pool, "the pool has no free data block left")
        .advise("grow it with 'firn pool grow', or delete or discard what is not needed")
}
