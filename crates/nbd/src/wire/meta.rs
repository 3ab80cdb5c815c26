//! Metadata contexts: their names, and the extents of BLOCK_STATUS.

use block_types::{ByteCount, Error, ErrorKind, Result};

use super::cursor::Cursor;
use super::magic::{Dialect, MAX_STATUS_EXTENTS};
use super::reply::{Chunk, ChunkKind};
use super::request::Request;

/// The context that tells data, zeros and holes apart.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// One extent of a metadata context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// How long it is.
    pub length: ByteCount,
    /// What the context says about it.
    pub flags: u64,
}

/// Whether LIST's `query` lists the context `name`: by its whole name, or by a prefix that ends
/// with a colon, as in `base:` and `qemu:dirty-bitmap:`.
pub fn query_lists(query: &str, name: &str) -> bool {
    query == name || (query.ends_with(':') && name.starts_with(query))
}

/// Appends the chunk with the extents of context `id`.
pub fn push_status(
    out: &mut Vec<u8>,
    dialect: Dialect,
    request: &Request,
    id: u32,
    extents: &[StatusExtent],
    done: bool,
) {
    if dialect == Dialect::Extended {
        let payload = 8 + extents.len() * 16;
        Chunk { kind: ChunkKind::BLOCK_STATUS_EXT, payload, done }.push(out, dialect, request);
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&(extents.len() as u32).to_be_bytes());
        for extent in extents {
            out.extend_from_slice(&extent.length.get().to_be_bytes());
            out.extend_from_slice(&extent.flags.to_be_bytes());
        }
        return;
    }
    let payload = 4 + extents.len() * 8;
    Chunk { kind: ChunkKind::BLOCK_STATUS, payload, done }.push(out, dialect, request);
    out.extend_from_slice(&id.to_be_bytes());
    for extent in extents {
        // A compact request, and so each of its extents, is shorter than 4 GiB.
        out.extend_from_slice(&(extent.length.get() as u32).to_be_bytes());
        out.extend_from_slice(&(extent.flags as u32).to_be_bytes());
    }
}

/// Reads the payload of a BLOCK_STATUS chunk: the context's number and its extents.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if the lengths do not add up, or there are no or far too many extents.
pub fn parse_status(kind: ChunkKind, payload: &[u8]) -> Result<(u32, Vec<StatusExtent>)> {
    extents(kind, payload)
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, "NBD reply", "has a malformed block status"))
}

fn extents(kind: ChunkKind, payload: &[u8]) -> Option<(u32, Vec<StatusExtent>)> {
    let mut fields = Cursor::new(payload);
    let id = fields.u32()?;
    let wide = kind == ChunkKind::BLOCK_STATUS_EXT;
    let claimed = if wide { Some(fields.u32()? as usize) } else { None };
    let size = if wide { 16 } else { 8 };
    let count = fields.rest().len() / size;
    let whole =
        fields.rest().len().is_multiple_of(size) && claimed.is_none_or(|claim| claim == count);
    if !whole || count == 0 || count > MAX_STATUS_EXTENTS {
        return None;
    }
    let next = |fields: &mut Cursor<'_>| {
        let (length, flags) = if wide {
            (fields.u64()?, fields.u64()?)
        } else {
            (fields.u32()?.into(), fields.u32()?.into())
        };
        Some(StatusExtent { length: ByteCount::new(length), flags })
    };
    let extents = (0..count).map(|_| next(&mut fields)).collect::<Option<_>>()?;
    Some((id, extents))
}
