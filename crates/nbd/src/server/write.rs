//! WRITE.

use std::io::IoSlice;
use std::ops::Range;

use block_io::{AlignedBuf, BlockDevice, CacheMode, HostFile, Intent, Lease, Place, Segment};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result};

use super::execute::{Engine, InFlight};
use super::slow::JobKind;
use crate::wire::Request;

/// Buffered writes from this size on go through the queue: there another processor can copy.
const QUEUED_WRITE: usize = 256 << 10;
/// Most writes that are joined.
const MAX_JOINED: usize = 64;

/// Adjacent buffered writes of one batch, to be written together.
#[derive(Default)]
pub(super) struct WriteRun<'d> {
    file: Option<&'d HostFile>,
    at: ByteOffset,
    len: usize,
    writes: Vec<Joined<'d>>,
}

struct Joined<'d> {
    request: Request,
    /// Where in the receive buffer its bytes are.
    payload: Range<usize>,
    lease: Lease<'d>,
}

impl<'d> WriteRun<'d> {
    /// Whether `place` goes on where the run ends.
    fn is_continued_by(&self, file: &HostFile, place: &Place<'d>) -> bool {
        self.file.is_some_and(|own| std::ptr::eq(own, file))
            && self.at.plus(ByteCount::new(self.len as u64)) == place.at
            && self.writes.len() < MAX_JOINED
            && self.len + place.len.as_usize() <= QUEUED_WRITE
    }

    /// Writes the run, whose bytes are in `received`.
    fn write(&self, received: &[u8]) -> Result<()> {
        let Some(file) = self.file else { return Ok(()) };
        if let [only] = &self.writes[..] {
            return file.write_at(&received[only.payload.clone()], self.at);
        }
        let mut slices = [IoSlice::new(&[]); MAX_JOINED];
        for (slice, joined) in slices.iter_mut().zip(&self.writes) {
            *slice = IoSlice::new(&received[joined.payload.clone()]);
        }
        match rustix::io::pwritev(file, &slices[..self.writes.len()], self.at.get()) {
            Ok(count) if count == self.len => Ok(()),
            // Short or interrupted: to write all of it again is right, and finds the true error.
            _ => self.write_one_by_one(file, received),
        }
    }

    fn write_one_by_one(&self, file: &HostFile, received: &[u8]) -> Result<()> {
        let mut at = self.at;
        for joined in &self.writes {
            let bytes = &received[joined.payload.clone()];
            file.write_at(bytes, at)?;
            at = at.plus(ByteCount::of(bytes));
        }
        Ok(())
    }
}

impl<'d> Engine<'d> {
    /// Writes what is at `payload` of `received`: buffered at once, direct through the queue; or
    /// leaves it to the workers.
    pub(super) fn write(&mut self, request: Request, received: &[u8], payload: Range<usize>) {
        let mut places = std::mem::take(&mut self.places);
        match self.resolve_write(&request, &mut places) {
            Some(lease) if all_cached(&places) => {
                if let [place] = places[..] {
                    self.join(place, Joined { request, payload, lease }, received);
                } else {
                    let result = write_places(&places, &received[payload]);
                    drop(lease);
                    self.answer_write(&request, result);
                }
            }
            lease => {
                let mut buffer = self.pool.take(payload.len());
                buffer[..payload.len()].copy_from_slice(&received[payload]);
                self.write_later(request, buffer, lease, &places);
            }
        }
        places.clear();
        self.places = places;
    }

    /// Writes what `buffer` begins with.
    pub(super) fn write_owned(&mut self, request: Request, buffer: AlignedBuf) {
        let mut places = std::mem::take(&mut self.places);
        let len = request.length.as_usize();
        match self.resolve_write(&request, &mut places) {
            Some(lease) if len < QUEUED_WRITE && all_cached(&places) => {
                let result = write_places(&places, &buffer[..len]);
                drop(lease);
                self.recycle(Some(buffer));
                self.answer_write(&request, result);
            }
            lease => self.write_later(request, buffer, lease, &places),
        }
        places.clear();
        self.places = places;
    }

    /// The places of a write that can be executed here.
    fn resolve_write(&self, request: &Request, places: &mut Vec<Place<'d>>) -> Option<Lease<'d>> {
        if Self::is_forced(request) {
            return None;
        }
        let range = ByteRange::new(request.offset, request.length);
        let lease = self.resolver?.resolve(Intent::Write, range, places)?;
        places.iter().all(|place| place.file.is_some()).then_some(lease)
    }

    /// Queues a write that resolved, or leaves one that did not to the workers.
    fn write_later(
        &mut self,
        request: Request,
        buffer: AlignedBuf,
        lease: Option<Lease<'d>>,
        places: &[Place<'d>],
    ) {
        let Some(lease) = lease else {
            return self.hand_over(request, JobKind::Write(buffer));
        };
        let mut segments = std::mem::take(&mut self.segments);
        let mut start = 0;
        for place in places {
            let end = start + place.len.as_usize();
            if let Some(file) = place.file {
                segments.push(Segment { file, at: place.at, part: start..end });
            }
            start = end;
        }
        let token = self.launch(InFlight { request, expected: start, parts: Vec::new(), lease });
        self.queue.write(token, buffer, &segments);
        segments.clear();
        self.segments = segments;
    }

    /// Joins a buffered write with those before it, or begins a new run with it.
    fn join(&mut self, place: Place<'d>, write: Joined<'d>, received: &[u8]) {
        let file = place.file.expect("a write that resolved has a file");
        if !self.run.is_continued_by(file, &place) {
            self.finish_run(received);
            self.run.file = Some(file);
            self.run.at = place.at;
        }
        self.run.len += place.len.as_usize();
        self.run.writes.push(write);
    }

    /// Writes the run and answers its requests.
    pub(super) fn finish_run(&mut self, received: &[u8]) {
        if self.run.writes.is_empty() {
            return;
        }
        let result = self.run.write(received);
        let mut writes = std::mem::take(&mut self.run.writes);
        for Joined { request, lease, .. } in writes.drain(..) {
            drop(lease);
            let result = match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(Error::new(error.kind(), error.object(), error.problem())),
            };
            self.answer_write(&request, result);
        }
        self.run = WriteRun { writes, ..WriteRun::default() };
    }

    /// Answers a write that was done here; a failure is logged.
    fn answer_write(&mut self, request: &Request, result: Result<()>) {
        if let Err(error) = &result
            && error.kind() != ErrorKind::OutOfSpace
        {
            tracing::warn!(export = self.export.name(), ?request, %error, "failed");
        }
        self.answer(request, result);
    }
}

/// Whether every place goes through the page cache.
fn all_cached(places: &[Place<'_>]) -> bool {
    places.iter().all(|place| place.file.is_some_and(|file| file.cache_mode() == CacheMode::Cached))
}

/// Writes `bytes` at `places`, one after the other.
fn write_places(places: &[Place<'_>], bytes: &[u8]) -> Result<()> {
    let mut rest = bytes;
    for place in places {
        let (part, behind) = rest.split_at(place.len.as_usize());
        if let Some(file) = place.file {
            file.write_at(part, place.at)?;
        }
        rest = behind;
    }
    Ok(())
}
