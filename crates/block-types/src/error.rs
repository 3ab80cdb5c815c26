//! One error for every floor: a stable kind, the object, what is wrong, what to do, and the cause.

use std::{fmt, io};

/// A result with Firn's error.
pub type Result<T> = std::result::Result<T, Error>;

/// What sort of failure it is; few and stable, so callers match on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The device or the system reported an I/O error.
    Io,
    /// No space is left; nothing was changed.
    OutOfSpace,
    /// The object may not be written.
    ReadOnly,
    /// The request reaches past the end of the object.
    OutOfRange,
    /// The arguments make no sense, or break a limit of the format.
    Invalid,
    /// The object or the machine cannot do this.
    Unsupported,
    /// What was read breaks the rules of its format.
    Corrupt,
    /// There is no such object.
    NotFound,
    /// There is such an object already.
    Exists,
    /// Somebody else is using the object.
    Busy,
    /// The caller may not do this.
    Denied,
    /// An earlier failure stopped the object for good (FAIL-STOP).
    Stopped,
    /// The work was cancelled on request.
    Cancelled,
}

/// A failure: of what kind, at which object, what is wrong, what to do about it, and why.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    object: String,
    problem: String,
    advice: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A failure of `kind` at `object`; `problem` completes the sentence "object: ...".
    pub fn new(kind: ErrorKind, object: impl Into<String>, problem: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            kind,
            object: object.into(),
            problem: problem.into(),
            advice: None,
            source: None,
        }))
    }

    /// A failed system call: the kind follows from the error number, `doing` says what was tried.
    pub fn io(object: impl Into<String>, doing: impl Into<String>, source: io::Error) -> Self {
        Self::new(kind_of(&source), object, doing).because(source)
    }

    /// Adds what to do about it: a whole sentence, without the full stop.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.0.advice = Some(advice.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Says what larger thing the object is a part of: "lab/metadata, metadata block 7".
    #[must_use]
    pub fn within(mut self, whole: &str) -> Self {
        self.0.object = format!("{whole}, {}", self.0.object);
        self
    }

    /// The kind, to match on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The object that failed.
    pub fn object(&self) -> &str {
        &self.0.object
    }

    /// What is wrong with it, without object and advice.
    pub fn problem(&self) -> &str {
        &self.0.problem
    }

    /// What to do about it, if that is known.
    pub fn advice(&self) -> Option<&str> {
        self.0.advice.as_deref()
    }
}

/// The kind that an error number of the system stands for.
fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::AlreadyExists => ErrorKind::Exists,
        io::ErrorKind::PermissionDenied => ErrorKind::Denied,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::OutOfSpace,
        io::ErrorKind::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        io::ErrorKind::Unsupported => ErrorKind::Unsupported,
        io::ErrorKind::InvalidInput => ErrorKind::Invalid,
        io::ErrorKind::ResourceBusy => ErrorKind::Busy,
        _ => ErrorKind::Io,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.object, self.0.problem)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        if let Some(advice) = &self.0.advice {
            write!(f, "; {advice}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({self})", self.0.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        // Display already tells the direct cause; the chain goes on behind it.
        self.0.source.as_ref().and_then(|source| source.source())
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, ErrorKind};
    use std::io;

    #[test]
    fn names_object_problem_cause_and_advice() {
        let error = Error::io("lab/data", "cannot grow", io::Error::from_raw_os_error(28))
            .advise("free some space on its file system");
        assert_eq!(error.kind(), ErrorKind::OutOfSpace);
        assert_eq!(
            error.to_string(),
            "lab/data: cannot grow: No space left on device (os error 28); \
             free some space on its file system"
        );
    }
}
