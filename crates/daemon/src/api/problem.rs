//! Failures on their way through the API: a [`Error`] as JSON with a status code, and back.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use block_types::{Error, ErrorKind};
use serde::{Deserialize, Serialize};
use utoipa::{IntoResponses, ToSchema};

/// Every kind with its name on the wire and its status code.
const KINDS: [(ErrorKind, &str, StatusCode); 13] = [
    (ErrorKind::Io, "io", StatusCode::INTERNAL_SERVER_ERROR),
    (ErrorKind::OutOfSpace, "out-of-space", StatusCode::INSUFFICIENT_STORAGE),
    (ErrorKind::ReadOnly, "read-only", StatusCode::FORBIDDEN),
    (ErrorKind::OutOfRange, "out-of-range", StatusCode::BAD_REQUEST),
    (ErrorKind::Invalid, "invalid", StatusCode::BAD_REQUEST),
    (ErrorKind::Unsupported, "unsupported", StatusCode::NOT_IMPLEMENTED),
    (ErrorKind::Corrupt, "corrupt", StatusCode::INTERNAL_SERVER_ERROR),
    (ErrorKind::NotFound, "not-found", StatusCode::NOT_FOUND),
    (ErrorKind::Exists, "exists", StatusCode::CONFLICT),
    (ErrorKind::Busy, "busy", StatusCode::CONFLICT),
    (ErrorKind::Denied, "denied", StatusCode::FORBIDDEN),
    (ErrorKind::Stopped, "stopped", StatusCode::SERVICE_UNAVAILABLE),
    (ErrorKind::Cancelled, "cancelled", StatusCode::INTERNAL_SERVER_ERROR),
];

/// A failure: of what kind, at which object, what is wrong and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoResponses)]
#[response(status = "default", description = "What went wrong, and what to do about it")]
pub struct Problem {
    /// `io`, `out-of-space`, `read-only`, `out-of-range`, `invalid`, `unsupported`, `corrupt`,
    /// `not-found`, `exists`, `busy`, `denied`, `stopped` or `cancelled`.
    kind: String,
    /// The object that failed.
    object: String,
    /// What is wrong with it, and the cause.
    problem: String,
    /// What to do about it, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

/// The entry of `kind` in the table.
fn entry(kind: ErrorKind) -> (ErrorKind, &'static str, StatusCode) {
    let found = KINDS.into_iter().find(|(known, ..)| *known == kind);
    found.expect("the table has every kind")
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<&Error> for Problem {
    fn from(error: &Error) -> Self {
        // The cause is told as part of the sentence: it cannot cross as an object.
        let text = error.to_string();
        let front = format!("{}: ", error.object());
        let back = error.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
        let problem = text.strip_prefix(&front).and_then(|rest| rest.strip_suffix(&back));
        Self {
            kind: entry(error.kind()).1.to_owned(),
            object: error.object().to_owned(),
            problem: problem.unwrap_or(error.problem()).to_owned(),
            advice: error.advice().map(str::to_owned),
        }
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        // A kind that a newer daemon invented is a failure all the same.
        let kind = KINDS.into_iter().find(|(_, name, _)| *name == problem.kind);
        let kind = kind.map_or(ErrorKind::Io, |(kind, ..)| kind);
        let error = Self::new(kind, problem.object, problem.problem);
        match problem.advice {
            Some(advice) => error.advise(advice),
            None => error,
        }
    }
}

/// What a handler returns where it failed.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    problem: Problem,
}

impl Failure {
    /// A failure with another status code than that of its kind.
    pub(super) fn with_status(error: Error, status: StatusCode) -> Self {
        Self { status, problem: error.into() }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (_, _, status) = entry(error.kind());
        Self::with_status(error, status)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(self.problem)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::{KINDS, Problem};
    use block_types::{Error, ErrorKind};
    use std::io;

    fn crossed(error: Error) -> Error {
        let json = serde_json::to_string(&Problem::from(error)).unwrap();
        serde_json::from_str::<Problem>(&json).unwrap().into()
    }

    #[test]
    fn every_kind_crosses() {
        for (kind, ..) in KINDS {
            let error = crossed(Error::new(kind, "lab/db", "does not work"));
            assert_eq!(error.kind(), kind);
            assert_eq!(error.to_string(), "lab/db: does not work");
            assert_eq!(error.advice(), None);
        }
    }

    #[test]
    fn the_sentence_stays_the_same() {
        let cause = || io::Error::from_raw_os_error(28);
        let make = || Error::io("lab/data", "cannot grow", cause()).advise("free some space");
        let error = crossed(make());
        assert_eq!(error.to_string(), make().to_string());
        assert_eq!(error.object(), "lab/data");
        assert_eq!(error.advice(), Some("free some space"));
        let error = crossed(error);
        assert_eq!(error.to_string(), make().to_string());
    }

    #[test]
    fn kinds_of_the_future_are_failures() {
        let json = r#"{"kind":"haunted","object":"lab","problem":"has a ghost"}"#;
        let error = Error::from(serde_json::from_str::<Problem>(json).unwrap());
        assert_eq!((error.kind(), error.object()), (ErrorKind::Io, "lab"));
    }
}
