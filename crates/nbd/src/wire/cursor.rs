//! A bounded reader over a message's fields.

use super::magic::MAX_STRING;

/// Reads fields from the front of a slice; every read past the end is `None`.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'b> {
    rest: &'b [u8],
}

impl<'b> Cursor<'b> {
    pub(super) fn new(bytes: &'b [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A u32 length and so many bytes of UTF-8, at most [`MAX_STRING`].
    pub(super) fn string(&mut self) -> Option<&'b str> {
        let len = usize::try_from(self.u32()?).ok()?;
        self.text(len)
    }

    /// `len` bytes of UTF-8, at most [`MAX_STRING`].
    pub(super) fn text(&mut self, len: usize) -> Option<&'b str> {
        if len > MAX_STRING {
            return None;
        }
        let (text, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        std::str::from_utf8(text).ok()
    }

    /// What was not read yet.
    pub(super) fn rest(&self) -> &'b [u8] {
        self.rest
    }

    /// `Some` if everything was read.
    pub(super) fn end(&self) -> Option<()> {
        self.rest.is_empty().then_some(())
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*field)
    }
}

/// Appends a u32 length and the bytes of `text`.
pub(super) fn push_string(out: &mut Vec<u8>, text: &str) {
    let len = u32::try_from(text.len()).expect("names are bounded by MAX_STRING");
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}
