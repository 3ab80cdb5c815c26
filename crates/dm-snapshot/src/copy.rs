//! Copying chunks of the origin to the store, and claiming them for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use block_io::{AlignedBuf, Intent};
use block_types::{ByteCount, Error, ErrorKind, Result};

use crate::alloc::Claim;
use crate::core::{Core, Keeping};
use crate::key::Key;
use crate::options::OnFull;
use crate::scatter::{Part, transfer};
use crate::views::View;
use crate::workers::{PIECE, for_each, with_scratch};
use crate::{Exception, OriginChunk, SnapshotState, StoreChunk};

/// Mode async: chunks that were read before the origin was written, and still have to be written to
/// the store.
pub(crate) struct Debt {
    core: Arc<Core>,
    exceptions: Vec<Exception>,
}

/// What somebody claimed of a snapshot's chunks.
struct Claims {
    /// To be copied.
    ours: Vec<Exception>,
    /// Everything is settled when exceptions below this number are listed.
    through: u64,
}

impl Core {
    /// Sees to it that the origin may overwrite these chunks: they are in the store as the mode has
    /// it, or the snapshot is lost. The caller pays the debt once it has written to the origin.
    pub(crate) fn protect(self: &Arc<Self>, chunks: &[u64]) -> Option<Debt> {
        if chunks.is_empty() || !self.health.keeps() || self.idle.load(Ordering::SeqCst) {
            return None;
        }
        let Some(claims) = self.claim_all(chunks) else {
            self.invalidate("its store is full");
            return None;
        };
        if self.keeping() == Keeping::Async {
            return self.capture(claims.ours, chunks);
        }
        if let Err(error) = self.copy_out(&claims.ours) {
            self.invalidate(&format!("a chunk cannot be copied: {error}"));
            return None;
        }
        self.publish(&claims.ours);
        self.commit_through(claims.through);
        None
    }

    /// Claims chunks, growing the store where it has to; `None` if it cannot.
    fn claim_all(&self, chunks: &[u64]) -> Option<Claims> {
        let mut claims = Claims { ours: Vec::with_capacity(chunks.len()), through: 0 };
        let mut rest = chunks.iter().copied().map(OriginChunk::new).peekable();
        loop {
            let size = self.device.size();
            let mut ledger = self.ledger.lock();
            while let Some(&chunk) = rest.peek() {
                match ledger.claim(chunk, || self.table.get(chunk).is_some(), size) {
                    Claim::Ours(exception) => claims.ours.push(exception),
                    Claim::Pending(number) => claims.through = claims.through.max(number),
                    Claim::There => {}
                    Claim::Full => break,
                }
                rest.next();
            }
            if !claims.ours.is_empty() {
                claims.through = claims.through.max(ledger.end());
            }
            drop(ledger);
            let grown = self.grow_by_policy(rest.peek().is_some());
            if rest.peek().is_none() {
                return Some(claims);
            }
            if !grown {
                return None;
            }
        }
    }

    /// Takes the data of claimed chunks, which is written to the store, into the table.
    pub(crate) fn publish(&self, exceptions: &[Exception]) {
        if exceptions.is_empty() {
            return;
        }
        if self.is_shared {
            self.publish_shared(exceptions);
        } else {
            self.table.insert(exceptions);
        }
        self.ledger.lock().written(exceptions);
        self.changed.notify_all();
    }

    /// Takes them into the tables of those whose they are.
    fn publish_shared(&self, exceptions: &[Exception]) {
        let views = self.views.read();
        for exception in exceptions {
            match Key::of(exception.old) {
                Some(Key::Own(id, old)) => {
                    if let Some(view) = views.get(id) {
                        view.own.insert(&[Exception { old, new: exception.new }]);
                    }
                }
                _ => self.table.insert(&[*exception]),
            }
        }
    }

    /// Copies claimed chunks from the origin to the store.
    fn copy_out(&self, exceptions: &[Exception]) -> Result<()> {
        for_each(self.workers, &self.groups(exceptions), |group| self.copy_group(group))
    }

    /// Divides exceptions into such as follow each other in the store, and fit the buffer.
    fn groups<'e>(&self, exceptions: &'e [Exception]) -> Vec<&'e [Exception]> {
        let most = (PIECE / self.chunk.bytes().get()).max(1) as usize;
        exceptions
            .chunk_by(|one, other| one.new.get() + 1 == other.new.get())
            .flat_map(|run| run.chunks(most))
            .collect()
    }

    /// Copies chunks that follow each other in the store, by one write.
    pub(crate) fn copy_group(&self, group: &[Exception]) -> Result<()> {
        with_scratch(|scratch| {
            let len = group.len() * self.chunk.bytes().as_usize();
            if len > scratch.len() {
                return self.copy_large(group[0], scratch);
            }
            self.read_past(group, scratch)?;
            self.device.write_at(&scratch[..len], self.chunk.store_start(group[0].new))
        })
    }

    /// Copies a chunk that is larger than the buffer.
    fn copy_large(&self, exception: Exception, buffer: &mut [u8]) -> Result<()> {
        let range = self.chunk.origin_range(exception.old, self.size);
        for piece in range.pieces(ByteCount::of(buffer)) {
            let part = &mut buffer[..piece.len.as_usize()];
            self.base.read_at(part, piece.start)?;
            let inside = piece.start.since(range.start);
            self.device.write_at(part, self.chunk.store_start(exception.new).plus(inside))?;
        }
        Ok(())
    }

    /// Reads chunks from the origin one behind the other, neighbours together. What the origin has
    /// not, behind its end, is zeros.
    fn read_past(&self, group: &[Exception], buffer: &mut AlignedBuf) -> Result<()> {
        let size = self.chunk.bytes().as_usize();
        let mut parts = Vec::with_capacity(group.len());
        let mut end = 0;
        for run in group.chunk_by(|one, other| one.old.get() + 1 == other.old.get()) {
            let first = self.chunk.origin_range(run[0].old, self.size);
            let last = self.chunk.origin_range(run[run.len() - 1].old, self.size);
            let there = end + last.end().since(first.start).as_usize();
            parts.push(Part { at: first.start, bytes: end..there });
            end += run.len() * size;
            buffer[there..end].fill(0);
        }
        transfer(&*self.base, Intent::Read, buffer, &parts)
    }

    /// Reads claimed chunks into memory, where the snapshot finds them, and lets the origin be
    /// written; then waits for those of `chunks` that others have claimed.
    fn capture(self: &Arc<Self>, ours: Vec<Exception>, chunks: &[u64]) -> Option<Debt> {
        let size = self.chunk.bytes().as_usize();
        for exception in &ours {
            let mut bytes = AlignedBuf::zeroed(size);
            if let Err(error) = self.read_past(&[*exception], &mut bytes) {
                self.invalidate(&format!("a chunk cannot be read: {error}"));
                return None;
            }
            self.captured.lock().insert(exception.old, Arc::new(bytes));
        }
        if !ours.is_empty() {
            self.seal(&ours);
            self.notify();
        }
        let mut ledger = self.ledger.lock();
        while self.health.keeps() && !chunks.iter().all(|&chunk| self.sealed.contains(chunk)) {
            self.changed.wait(&mut ledger);
        }
        drop(ledger);
        (!ours.is_empty()).then(|| Debt { core: Arc::clone(self), exceptions: ours })
    }

    /// The content of a chunk that is captured and not in the store yet.
    pub(crate) fn captured(&self, chunk: OriginChunk) -> Option<Arc<AlignedBuf>> {
        if !self.captures() {
            return None;
        }
        self.captured.lock().get(&chunk).map(Arc::clone)
    }

    /// Whether chunks are captured at all.
    pub(crate) fn captures(&self) -> bool {
        self.keeping() == Keeping::Async
    }

    /// Where a snapshot's data of a chunk lies in the store, if it is nowhere else any more: what
    /// may be written there is its own.
    pub(crate) fn settled(&self, chunk: OriginChunk, view: Option<&View>) -> Option<StoreChunk> {
        if let Some(view) = view {
            return view.own.get(chunk);
        }
        if self.captured(chunk).is_some() {
            return None;
        }
        self.table.get(chunk)
    }

    /// Waits until the data of a claimed chunk is written, or the snapshot is lost.
    pub(crate) fn wait_for_data(&self, chunk: OriginChunk, view: Option<&View>) {
        let mut ledger = self.ledger.lock();
        while self.health.keeps() && self.settled(chunk, view).is_none() {
            self.changed.wait(&mut ledger);
        }
    }

    /// Claims one chunk for a write to the snapshot itself, growing the store where it has to.
    ///
    /// # Errors
    /// `OutOfSpace`; the snapshot is then in the state that its options ask for.
    pub(crate) fn claim_own(&self, chunk: OriginChunk, view: Option<&View>) -> Result<Claim> {
        let listed = view.map_or(chunk, |view| Key::Own(view.id, chunk).packed());
        let there = || match view {
            Some(view) => view.own.get(chunk).is_some(),
            None => self.table.get(chunk).is_some(),
        };
        loop {
            let size = self.device.size();
            let claim = self.ledger.lock().claim(listed, there, size);
            match claim {
                Claim::Pending(_) | Claim::There => return Ok(claim),
                Claim::Ours(_) => {
                    self.grow_by_policy(false);
                    return Ok(claim);
                }
                Claim::Full if self.grow_by_policy(true) => {}
                Claim::Full => {
                    self.overflow();
                    return Err(self.full());
                }
            }
        }
    }

    /// The snapshot's own writes have no more room.
    fn overflow(&self) {
        match self.on_full {
            OnFull::Invalidate => self.invalidate("its store is full"),
            OnFull::Overflow => {
                let _alone = self.health.marking.lock();
                if self.health.get() == SnapshotState::Active {
                    let reason = format!("its store {} is full", self.device.name());
                    self.health.set_for(SnapshotState::Overflow, reason);
                }
            }
        }
    }

    /// Fails a write to the snapshot whose chunk could not be filled: the claim cannot be given
    /// back once others stand behind it.
    pub(crate) fn lost(&self, error: Error) -> Error {
        self.invalidate(&format!("a chunk cannot be filled: {error}"));
        Error::new(ErrorKind::Stopped, &*self.name, "the snapshot is invalid now").because(error)
    }
}

impl Debt {
    /// Writes what was captured to the store.
    pub(crate) fn pay(self) {
        let core = &self.core;
        for exception in &self.exceptions {
            let Some(bytes) = core.captured(exception.old) else { continue };
            let at = core.chunk.store_start(exception.new);
            if let Err(error) = core.device.write_at(&bytes, at) {
                core.invalidate(&format!("a copy cannot be written: {error}"));
                return;
            }
        }
        core.publish(&self.exceptions);
        {
            let mut captured = core.captured.lock();
            for exception in &self.exceptions {
                captured.remove(&exception.old);
            }
        }
        core.notify();
        core.commit_ready();
    }
}
