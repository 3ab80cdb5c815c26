//! `/v1/pool`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use block_types::ByteCount;
use volume::{CheckReport, PoolReport};

use super::extract::Body;
use super::problem::Problem;
use super::request::NewSize;
use super::{Reply, reply, schema};
use crate::served::ServedPool;

/// How full the pool is, and in what state.
#[utoipa::path(get, path = "/v1/pool", tag = "pool",
    responses((status = OK, description = "The pool", body = schema::PoolReport), Problem))]
pub(super) async fn status(served: State<Arc<ServedPool>>) -> Reply<Json<PoolReport>> {
    reply(served, |served| Ok(served.pool.status())).await
}

/// Makes the pool larger.
#[utoipa::path(post, path = "/v1/pool/grow", tag = "pool", request_body = NewSize,
    responses((status = OK, description = "The pool", body = schema::PoolReport), Problem))]
pub(super) async fn grow(
    served: State<Arc<ServedPool>>,
    Body(new): Body<NewSize>,
) -> Reply<Json<PoolReport>> {
    reply(served, move |served| served.pool.grow(ByteCount::new(new.size))).await
}

/// Checks the pool's metadata as the last commit left it, while it is served.
#[utoipa::path(post, path = "/v1/pool/check", tag = "pool",
    responses((status = OK, description = "The findings", body = schema::CheckReport), Problem))]
pub(super) async fn check(served: State<Arc<ServedPool>>) -> Reply<Json<CheckReport>> {
    reply(served, |served| served.pool.check()).await
}
