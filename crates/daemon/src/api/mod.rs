//! The control API: HTTP and JSON on a Unix socket, described by OpenAPI 3.1.
//!
//! A handler takes a request apart, has the work done on a thread that may block, and passes the
//! answer on. A client that goes away in the middle does not stop work that has begun.

mod events;
mod exports;
mod extract;
pub(crate) mod image;
mod jobs;
mod pool;
mod problem;
mod repository;
mod request;
pub(crate) mod schema;
mod snapshots;
#[cfg(test)]
mod tests;
mod volumes;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use block_types::{Error, ErrorKind, Result};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) use extract::{Body, Params};
pub use problem::Problem;
pub(crate) use request::{
    AddedDisk, CommitImage, CreateVolume, HydrateVolume, JobRate, NewDisk, NewName, NewSize,
    NewVolume, PoolMessage, RebaseImage, SnapshotOfImage, StatusLine, StreamImage,
};

use crate::repository::ServedRepository;
use crate::served::ServedPool;
use problem::Failure;

/// What a handler answers.
pub(crate) type Reply<T> = std::result::Result<T, Failure>;

/// Where the document is served.
const DOCUMENT_PATH: &str = "/v1/openapi.json";

/// The frame of the document; the routes add themselves.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Firn control API",
        description = "Control of a pool that a daemon serves, on the pool's `control.sock`. \
                       Sizes and offsets are bytes.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    tags(
        (name = "pool", description = "The pool as a whole"),
        (name = "volumes", description = "Volumes"),
        (name = "snapshots", description = "Snapshots of volumes"),
        (name = "repository", description = "A repository of disk images, where one is served"),
        (name = "jobs", description = "Long work in progress"),
        (name = "daemon", description = "The serving process and its clients")
    )
)]
struct Document;

/// The routes, and the document that describes them.
fn parts() -> (Router<Arc<ServedPool>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(pool::status))
        .routes(routes!(pool::status_line))
        .routes(routes!(pool::message))
        .routes(routes!(pool::grow))
        .routes(routes!(pool::grow_metadata))
        .routes(routes!(events::settings, events::configure))
        .routes(routes!(events::list))
        .routes(routes!(pool::check))
        .routes(routes!(pool::trim))
        .routes(routes!(volumes::list, volumes::create))
        .routes(routes!(volumes::show, volumes::resize, volumes::delete))
        .routes(routes!(volumes::status_line))
        .routes(routes!(volumes::rename))
        .routes(routes!(volumes::hydrate))
        .routes(routes!(volumes::name_device))
        .routes(routes!(snapshots::list, snapshots::create))
        .routes(routes!(snapshots::delete))
        .routes(routes!(snapshots::rollback))
        .routes(routes!(snapshots::clone))
        .routes(routes!(snapshots::diff))
        .routes(routes!(exports::list))
        .routes(routes!(exports::version))
        .routes(routes!(document))
        .split_for_parts()
}

/// The API of `served`.
pub(crate) fn router(served: Arc<ServedPool>) -> Router {
    let (router, _) = parts();
    let jobs = Arc::clone(&served.jobs);
    framed(router.with_state(served), jobs)
}

/// Routes with what is the same for all daemons: those of jobs, answers to what is not there, and
/// the log.
pub(crate) fn framed(router: Router, jobs: Arc<::jobs::Registry>) -> Router {
    router
        .merge(jobs::parts().0.with_state(jobs))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(middleware::from_fn(log))
}

/// The API of a repository.
pub(crate) fn repository_router(served: Arc<ServedRepository>) -> Router {
    let jobs = Arc::clone(&served.jobs);
    framed(repository::parts().0.with_state(served), jobs)
}

/// The OpenAPI document of the control API, as JSON.
pub fn openapi() -> String {
    let mut document = with_jobs(parts().1);
    document.merge(repository::parts().1);
    document.to_pretty_json().expect("the document is made of plain values")
}

/// A document, with what there is to say of jobs.
pub(crate) fn with_jobs(mut document: utoipa::openapi::OpenApi) -> utoipa::openapi::OpenApi {
    document.merge(jobs::parts().1);
    document
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "daemon",
    responses((status = OK, description = "The OpenAPI document", body = serde_json::Value)))]
async fn document() -> Response {
    json_text(openapi()).await
}

/// A text that is JSON.
async fn json_text(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

async fn unknown_path(uri: Uri) -> Failure {
    let error = Error::new(ErrorKind::NotFound, uri.path(), "is no part of the control API");
    error.advise(format!("see {DOCUMENT_PATH}")).into()
}

async fn unknown_method(method: Method, uri: Uri) -> Failure {
    let error = Error::new(ErrorKind::Invalid, uri.path(), format!("cannot be asked to {method}"))
        .advise(format!("see {DOCUMENT_PATH}"));
    Failure::with_status(error, StatusCode::METHOD_NOT_ALLOWED)
}

/// Notes who changed what.
async fn log(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let status = response.status().as_u16();
    if method == Method::GET {
        tracing::debug!(%method, path, status, "control request");
    } else {
        tracing::info!(%method, path, status, "control request");
    }
    response
}

/// Does `work` on a thread that may block.
async fn blocking<S: Send + Sync + 'static, T: Send + 'static>(
    State(served): State<Arc<S>>,
    work: impl FnOnce(&S) -> Result<T> + Send + 'static,
) -> Reply<T> {
    let done = tokio::task::spawn_blocking(move || work(&served)).await;
    let done = done.map_err(|error| {
        Error::new(ErrorKind::Io, "control request", "was broken off").because(error)
    })?;
    Ok(done?)
}

/// Does `work` likewise, and answers with what it returns.
pub(crate) async fn reply<S: Send + Sync + 'static, T: Send + 'static>(
    served: State<Arc<S>>,
    work: impl FnOnce(&S) -> Result<T> + Send + 'static,
) -> Reply<Json<T>> {
    blocking(served, work).await.map(Json)
}

/// Does `work` likewise, and answers that something was made.
pub(crate) async fn made<S: Send + Sync + 'static, T: Send + 'static>(
    served: State<Arc<S>>,
    work: impl FnOnce(&S) -> Result<T> + Send + 'static,
) -> Reply<(StatusCode, Json<T>)> {
    Ok((StatusCode::CREATED, Json(blocking(served, work).await?)))
}

/// Does `work` likewise, and answers that it is done.
pub(crate) async fn done<S: Send + Sync + 'static>(
    served: State<Arc<S>>,
    work: impl FnOnce(&S) -> Result<()> + Send + 'static,
) -> Reply<StatusCode> {
    blocking(served, work).await.map(|()| StatusCode::NO_CONTENT)
}
