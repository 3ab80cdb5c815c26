//! What comes in with a request: bodies and queries, their mistakes answered as [`Failure`]s.

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use block_types::{Error, ErrorKind};
use serde::de::DeserializeOwned;

use super::problem::Failure;

/// A JSON body.
pub(crate) struct Body<T>(pub(crate) T);

/// The parameters behind the `?`.
pub(crate) struct Params<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let refuse = |rejection: JsonRejection| {
            let error = Error::new(ErrorKind::Invalid, "request body", rejection.body_text());
            Failure::with_status(error, rejection.status())
        };
        let Json(value) = Json::from_request(request, state).await.map_err(refuse)?;
        Ok(Self(value))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Failure> {
        let refuse = |rejection: QueryRejection| {
            Error::new(ErrorKind::Invalid, "request parameters", rejection.body_text())
        };
        let Query(value) = Query::try_from_uri(&parts.uri).map_err(refuse)?;
        Ok(Self(value))
    }
}
