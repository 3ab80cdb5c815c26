//! What a pool does with writes: the kernel's modes, and why a pool is in one.

use block_types::ErrorKind;

/// What a pool does with writes, from the best to the worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PoolMode {
    /// It takes them.
    #[default]
    Write,
    /// It takes those that need no new data block; others wait or fail.
    OutOfDataSpace,
    /// It takes those that change no metadata; others wait or fail. Deleting goes on.
    OutOfMetadataSpace,
    /// It takes none.
    ReadOnly,
    /// It takes none, and could not even note that its metadata needs a check.
    Fail,
}

impl PoolMode {
    /// The kernel's word in a status line. The kernel tells both kinds of a pool that cannot change
    /// its metadata by one word.
    pub fn kernel_word(self) -> &'static str {
        match self {
            Self::Write => "rw",
            Self::OutOfDataSpace => "out_of_data_space",
            Self::OutOfMetadataSpace | Self::ReadOnly => "ro",
            Self::Fail => "Fail",
        }
    }

    /// A word for each mode.
    pub fn name(self) -> &'static str {
        match self {
            Self::OutOfMetadataSpace => "out_of_metadata_space",
            Self::Fail => "fail",
            other => other.kernel_word(),
        }
    }

    /// Whether a write may find no space.
    pub(crate) fn is_out_of_space(self) -> bool {
        matches!(self, Self::OutOfDataSpace | Self::OutOfMetadataSpace)
    }
}

/// Why a pool takes no writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Whoever opened it only reads, and may not even have the right to write.
    Observed,
    /// Its feature `read_only`.
    Chosen,
    /// Its metadata needs a check.
    NeedsCheck,
    /// Its metadata uses features that forbid writing.
    Foreign,
    /// A commit or a flush has failed.
    Stopped,
    /// It is closed.
    Closed,
}

impl Why {
    /// What a write is answered with.
    pub(crate) fn kind(self) -> ErrorKind {
        match self {
            Self::Observed | Self::Chosen => ErrorKind::ReadOnly,
            Self::NeedsCheck => ErrorKind::Corrupt,
            Self::Foreign => ErrorKind::Unsupported,
            Self::Stopped | Self::Closed => ErrorKind::Stopped,
        }
    }

    /// Whether the pool can be made larger all the same: its metadata may be written, though
    /// nothing of what it holds may change.
    pub(crate) fn allows_growing(self) -> bool {
        matches!(self, Self::Chosen | Self::NeedsCheck | Self::Stopped)
    }
}

/// Which space is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    /// Data blocks.
    Data,
    /// Room on the file system under the data device; nobody tells when there is some again.
    DataBelow,
    /// Metadata blocks.
    Metadata,
}

impl Lack {
    pub(crate) fn mode(self) -> PoolMode {
        match self {
            Self::Data | Self::DataBelow => PoolMode::OutOfDataSpace,
            Self::Metadata => PoolMode::OutOfMetadataSpace,
        }
    }
}
