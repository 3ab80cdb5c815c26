//! The durability modes: when a write to the origin goes ahead, and what a crash leaves.

use std::fmt;
use std::str::FromStr;

use block_types::{Error, ErrorKind, Result};

/// When a write that first touches a chunk of the origin goes ahead of a persistent store.
///
/// In every mode a write whose chunks are in the store already goes straight to the origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// When the copy is durable, and after it the exception, as the kernel does.
    ///
    /// A crash leaves the snapshot valid and whole. Of the origin, everything that was flushed is
    /// there; of writes that were not flushed, any sectors.
    #[default]
    Sync,
    /// When the chunk is read, as EVMS did.
    ///
    /// The copy follows, and the exceptions go out when a sector is full of them, or at close;
    /// nothing is flushed. The store is marked invalid on disk from before the first write until it
    /// is closed: a crash loses the snapshot, and says so, and harms the origin no more than in
    /// [`Sync`](Self::Sync).
    Async,
    /// At once, into a buffer of bounded size; a large write, of 256 KiB or more, as in
    /// [`Sync`](Self::Sync). A flush of the origin, a full buffer, or a second's
    /// time makes the copies, then flushes the store, then the exceptions, then the store again,
    /// and only then writes to the origin.
    ///
    /// A crash leaves the same as in [`Sync`](Self::Sync): the buffer is what a disk's volatile
    /// cache is. A process that is killed loses it too.
    Deferred,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sync => "sync",
            Self::Async => "async",
            Self::Deferred => "deferred",
        })
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "sync" => Ok(Self::Sync),
            "async" => Ok(Self::Async),
            "deferred" => Ok(Self::Deferred),
            _ => Err(Error::new(ErrorKind::Invalid, format!("mode '{text}'"), "is not known")
                .advise("write sync, async or deferred")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Mode;

    #[test]
    fn modes_have_names() {
        for mode in [Mode::Sync, Mode::Async, Mode::Deferred] {
            assert_eq!(mode.to_string().parse::<Mode>().expect("a mode"), mode);
        }
        assert!("SYNC".parse::<Mode>().is_err());
    }
}
