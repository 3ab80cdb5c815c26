//! READ.

use block_io::{AlignedBuf, CacheMode, Intent, Place, Segment};
use block_types::{ByteCount, ByteOffset, ByteRange};

use super::execute::{Engine, HEADROOM, InFlight};
use super::slow::JobKind;
use crate::wire::{CommandFlags, Dialect, Request, data_header, push_hole};

/// Most chunks of one reply; a read of more runs is answered as data.
const MAX_PARTS: usize = 32;

/// A run of a reply: data, or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) len: usize,
    pub(super) hole: bool,
}

impl<'d> Engine<'d> {
    /// Reads at once what is in the page cache, and the rest through the queue; or leaves the
    /// request to the workers.
    pub(super) fn read(&mut self, request: Request) {
        let range = ByteRange::new(request.offset, request.length);
        let mut places = std::mem::take(&mut self.places);
        let lease =
            self.resolver.and_then(|resolver| resolver.resolve(Intent::Read, range, &mut places));
        let mut buffer = self.pool.take(range.len.as_usize());
        if let Some(lease) = lease {
            let parts = self.parts_of(&request, &places);
            self.fill(&mut buffer, &places, parts.is_empty());
            if self.segments.is_empty() {
                drop(lease);
                self.answer_data(&request, buffer, &parts);
            } else {
                let segments = std::mem::take(&mut self.segments);
                let expected = segments.iter().map(|segment| segment.part.len()).sum();
                let token = self.launch(InFlight { request, expected, parts, lease });
                self.queue.read(token, buffer, &segments);
                self.segments = segments;
                self.segments.clear();
            }
        } else {
            self.hand_over(request, JobKind::Read(buffer));
        }
        places.clear();
        self.places = places;
    }

    /// The runs of data and holes, if the reply is to tell them apart; else nothing.
    fn parts_of(&self, request: &Request, places: &[Place<'d>]) -> Vec<Part> {
        let whole = self.dialect() == Dialect::Simple
            || request.flags.contains(CommandFlags::DF)
            || places.iter().all(|place| place.file.is_some());
        if whole {
            return Vec::new();
        }
        let mut parts: Vec<Part> = Vec::new();
        for place in places {
            let (len, hole) = (place.len.as_usize(), place.file.is_none());
            let full = parts.len() == MAX_PARTS;
            match parts.last_mut() {
                Some(last) if last.hole == hole => last.len += len,
                _ if full => return Vec::new(),
                _ => parts.push(Part { len, hole }),
            }
        }
        parts
    }

    /// Fills the buffer behind its headroom with what can be had at once; the segments of what
    /// cannot are collected.
    fn fill(&mut self, buffer: &mut AlignedBuf, places: &[Place<'d>], holes_as_data: bool) {
        let mut start = HEADROOM;
        for place in places {
            let end = start + place.len.as_usize();
            match place.file {
                None if holes_as_data => buffer[start..end].fill(0),
                None => {}
                Some(file) => {
                    let hit = if file.cache_mode() == CacheMode::Cached {
                        file.read_if_cached(&mut buffer[start..end], place.at).unwrap_or(0)
                    } else {
                        0
                    };
                    if start + hit < end {
                        let at = place.at.plus(ByteCount::new(hit as u64));
                        self.segments.push(Segment { file, at, part: start + hit..end });
                    }
                }
            }
            start = end;
        }
    }

    /// Answers a READ with what is in `buffer` behind its headroom.
    pub(super) fn answer_data(
        &mut self,
        request: &Request,
        mut buffer: AlignedBuf,
        parts: &[Part],
    ) {
        if !parts.is_empty() {
            return self.answer_parts(request, buffer, parts);
        }
        let range = ByteRange::new(request.offset, request.length);
        let header = data_header(self.dialect(), request, range, true);
        let start = HEADROOM - header.len();
        buffer[start..HEADROOM].copy_from_slice(&header);
        self.outbox.data(buffer, start..HEADROOM + range.len.as_usize());
    }

    fn answer_parts(&mut self, request: &Request, buffer: AlignedBuf, parts: &[Part]) {
        let dialect = self.dialect();
        let last_data = parts.iter().rposition(|part| !part.hole);
        let mut buffer = Some(buffer);
        let mut kept = None;
        let mut done = 0;
        for (index, part) in parts.iter().enumerate() {
            let at = ByteOffset::new(request.offset.get() + done as u64);
            let range = ByteRange::new(at, ByteCount::new(part.len as u64));
            let last = index + 1 == parts.len();
            if part.hole {
                self.outbox.small(|out| push_hole(out, dialect, request, range, last));
            } else {
                self.outbox.small(|out| {
                    out.extend_from_slice(&data_header(dialect, request, range, last));
                });
                if let Some(buffer) = buffer.take() {
                    kept = Some(self.outbox.keep(buffer));
                }
                let number = kept.expect("the first run of data keeps the buffer");
                let bytes = HEADROOM + done..HEADROOM + done + part.len;
                self.outbox.part(number, bytes, last_data == Some(index));
            }
            done += part.len;
        }
        // Nothing but holes.
        self.recycle(buffer);
    }
}
