//! What clients send.

use std::path::PathBuf;

use block_types::{ByteCount, Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use volume::{ChunkSize, NewSnapshot, OnFull, SnapshotName, StoreSource};

/// A snapshot to take. Sizes are bytes.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct NewCow {
    /// The absolute path of its store.
    store: String,
    /// `made`, `shared`, `there` or `transient`.
    source: String,
    /// The size of the chunks of a store that is made.
    chunk_size: u64,
    /// The size that such a store has at first.
    store_size: Option<u64>,
    /// Its name; that of the store if absent.
    name: Option<String>,
    /// `sync`, `async` or `deferred`.
    mode: String,
    /// Whether a full store makes it invalid, instead of only taking no more writes.
    invalidate_when_full: bool,
    /// Discards make chunks zero that its store has.
    discard_zeroes: bool,
    /// Discards go on to the origin.
    discard_passdown: bool,
    /// Up to what size the store grows; what the whole origin may need if absent.
    grow_limit: Option<u64>,
    /// The snapshot's size, where the origin has grown since.
    size: Option<u64>,
}

/// How a snapshot goes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, IntoParams, ToSchema)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Going {
    /// Leave its store where it is.
    #[serde(default)]
    pub(super) keep: bool,
    /// Disconnect its clients first.
    #[serde(default)]
    pub(super) force: bool,
}

impl NewCow {
    /// What is sent for `new`.
    pub(super) fn of(new: &NewSnapshot) -> Result<Self> {
        let store = std::path::absolute(&new.store).map_err(|error| {
            Error::io(new.store.display().to_string(), "has no absolute path", error)
        })?;
        let (source, chunk, size) = match new.source {
            StoreSource::Made { chunk, size } => ("made", chunk, size),
            StoreSource::Shared { chunk, size } => ("shared", chunk, size),
            StoreSource::There => ("there", ChunkSize::DEFAULT, None),
            StoreSource::Transient { chunk, size } => ("transient", chunk, size),
        };
        Ok(Self {
            store: store.display().to_string(),
            source: source.to_owned(),
            chunk_size: chunk.bytes().get(),
            store_size: size.map(ByteCount::get),
            name: new.name.as_ref().map(ToString::to_string),
            mode: new.mode.to_string(),
            invalidate_when_full: new.on_full == OnFull::Invalidate,
            discard_zeroes: new.discard_zeroes,
            discard_passdown: new.discard_passdown,
            grow_limit: new.grow_limit.map(ByteCount::get),
            size: new.size.map(ByteCount::get),
        })
    }

    /// What it asks for.
    pub(super) fn read(self) -> Result<NewSnapshot> {
        let chunk = ChunkSize::new(ByteCount::new(self.chunk_size))?;
        let size = self.store_size.map(ByteCount::new);
        let source = match self.source.as_str() {
            "made" => StoreSource::Made { chunk, size },
            "shared" => StoreSource::Shared { chunk, size },
            "there" => StoreSource::There,
            "transient" => StoreSource::Transient { chunk, size },
            other => {
                let problem = "is none of made, shared, there and transient";
                return Err(Error::new(ErrorKind::Invalid, format!("source '{other}'"), problem));
            }
        };
        let on_full = if self.invalidate_when_full { OnFull::Invalidate } else { OnFull::Overflow };
        Ok(NewSnapshot {
            store: PathBuf::from(self.store),
            source,
            name: self.name.as_deref().map(SnapshotName::parse).transpose()?,
            mode: self.mode.parse()?,
            on_full,
            discard_zeroes: self.discard_zeroes,
            discard_passdown: self.discard_passdown,
            grow_limit: self.grow_limit.map(ByteCount::new),
            size: self.size.map(ByteCount::new),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::NewCow;
    use block_types::ByteCount;
    use volume::{ChunkSize, NewSnapshot, SnapshotName, StoreSource};

    #[test]
    fn what_is_sent_arrives() {
        for source in [
            StoreSource::There,
            StoreSource::Made { chunk: ChunkSize::DEFAULT, size: Some(ByteCount::new(1 << 20)) },
            StoreSource::Transient { chunk: ChunkSize::DEFAULT, size: None },
            StoreSource::Shared { chunk: ChunkSize::DEFAULT, size: None },
        ] {
            let new = NewSnapshot {
                source,
                name: Some(SnapshotName::parse("monday").unwrap()),
                discard_zeroes: true,
                grow_limit: Some(ByteCount::new(7)),
                ..NewSnapshot::new("/x/past.cow")
            };
            let json = serde_json::to_string(&NewCow::of(&new).unwrap()).unwrap();
            let back = serde_json::from_str::<NewCow>(&json).unwrap().read().unwrap();
            assert_eq!(format!("{back:?}"), format!("{new:?}"));
        }
    }
}
