//! `/v1/pool`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use block_types::ByteCount;
use volume::{CheckReport, Message, PoolReport};

use super::extract::Body;
use super::problem::Problem;
use super::request::{NewSize, PoolMessage, StatusLine};
use super::{Reply, done, reply, schema};
use crate::job::{JobAccess, JobInfo};
use crate::served::ServedPool;
use crate::trim;

/// How full the pool is, and in what state.
#[utoipa::path(get, path = "/v1/pool", tag = "pool",
    responses((status = OK, description = "The pool", body = schema::PoolReport), Problem))]
pub(super) async fn status(served: State<Arc<ServedPool>>) -> Reply<Json<PoolReport>> {
    reply(served, |served| Ok(served.pool.status())).await
}

/// The line that `dmsetup status` would print for the pool.
#[utoipa::path(get, path = "/v1/pool/status-line", tag = "pool",
    responses((status = OK, description = "The line", body = StatusLine), Problem))]
pub(super) async fn status_line(served: State<Arc<ServedPool>>) -> Reply<Json<StatusLine>> {
    reply(served, |served| Ok(StatusLine { line: served.pool.status_line()? })).await
}

/// Does what a message of the kernel says; its failures have the kernel's names.
#[utoipa::path(post, path = "/v1/pool/message", tag = "pool", request_body = PoolMessage,
    responses((status = NO_CONTENT, description = "It is done"), Problem))]
pub(super) async fn message(
    served: State<Arc<ServedPool>>,
    Body(sent): Body<PoolMessage>,
) -> Reply<StatusCode> {
    done(served, move |served| served.message(Message::parse(&sent.message)?)).await
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

/// Makes room for more metadata. Metadata in a file grows by itself as it is needed.
#[utoipa::path(post, path = "/v1/pool/grow-metadata", tag = "pool", request_body = NewSize,
    responses((status = OK, description = "The pool", body = schema::PoolReport), Problem))]
pub(super) async fn grow_metadata(
    served: State<Arc<ServedPool>>,
    Body(new): Body<NewSize>,
) -> Reply<Json<PoolReport>> {
    reply(served, move |served| served.pool.grow_metadata(ByteCount::new(new.size))).await
}

/// Begins to give the space of free blocks back to the file system: a job.
#[utoipa::path(post, path = "/v1/pool/trim", tag = "pool",
    responses((status = OK, description = "The job", body = JobInfo), Problem))]
pub(super) async fn trim(served: State<Arc<ServedPool>>) -> Reply<Json<JobInfo>> {
    reply(served, |served| {
        let job = trim::start(&served.jobs, &served.pool)?;
        JobAccess::show(&*served.jobs, job.get())
    })
    .await
}

/// Checks the pool's metadata as the last commit left it, while it is served.
#[utoipa::path(post, path = "/v1/pool/check", tag = "pool",
    responses((status = OK, description = "The findings", body = schema::CheckReport), Problem))]
pub(super) async fn check(served: State<Arc<ServedPool>>) -> Reply<Json<CheckReport>> {
    reply(served, |served| served.pool.check()).await
}
