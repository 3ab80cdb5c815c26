//! The control API of an origin.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use block_types::ByteCount;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use volume::{CowReport, OriginReport};

use super::request::{Going, NewCow};
use super::served::ServedOrigin;
use crate::api::{
    Body, NewSize, Params, Problem, Reply, done, framed, made, reply, schema, with_jobs,
};
use crate::job::JobInfo;
use crate::report::{DaemonInfo, ExportInfo};

/// The frame of the document; the routes add themselves.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Firn control API of an origin",
        description = "Control of an origin and its snapshots, on the server's control socket. \
                       Sizes and offsets are bytes.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    tags(
        (name = "origin", description = "The origin and its snapshots"),
        (name = "jobs", description = "Long work in progress"),
        (name = "daemon", description = "The serving process and its clients")
    )
)]
struct Document;

type Served = State<Arc<ServedOrigin>>;

fn parts() -> (Router<Arc<ServedOrigin>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(status))
        .routes(routes!(create))
        .routes(routes!(drop_snapshot))
        .routes(routes!(merge))
        .routes(routes!(grow))
        .routes(routes!(exports))
        .routes(routes!(version))
        .routes(routes!(document))
        .split_for_parts()
}

/// The API of `served`.
pub(super) fn router(served: Arc<ServedOrigin>) -> Router {
    let jobs = Arc::clone(&served.jobs);
    framed(parts().0.with_state(served), jobs)
}

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "daemon",
    responses((status = OK, description = "The OpenAPI document", body = serde_json::Value)))]
async fn document() -> Response {
    Json(with_jobs(parts().1)).into_response()
}

/// The origin and its snapshots.
#[utoipa::path(get, path = "/v1/origin", tag = "origin",
    responses((status = OK, description = "The origin", body = schema::OriginReport), Problem))]
async fn status(served: Served) -> Reply<Json<OriginReport>> {
    reply(served, |served| Ok(served.report())).await
}

/// Takes a snapshot of the origin as it is now.
#[utoipa::path(post, path = "/v1/origin/snapshots", tag = "origin", request_body = NewCow,
    responses((status = CREATED, description = "The snapshot", body = schema::CowReport), Problem))]
async fn create(served: Served, Body(new): Body<NewCow>) -> Reply<(StatusCode, Json<CowReport>)> {
    made(served, move |served| served.create(&new.read()?)).await
}

/// Gives a snapshot up.
#[utoipa::path(delete, path = "/v1/origin/snapshots/{name}", tag = "origin",
    params(("name" = String, Path, description = "The snapshot"), Going),
    responses((status = NO_CONTENT, description = "It is gone"), Problem))]
async fn drop_snapshot(
    served: Served,
    Path(name): Path<String>,
    Params(how): Params<Going>,
) -> Reply<StatusCode> {
    done(served, move |served| served.drop_snapshot(&name, how.keep, how.force)).await
}

/// Begins to merge a snapshot back into the origin, which has its content from then on, and goes on
/// in the background.
#[utoipa::path(post, path = "/v1/origin/snapshots/{name}/merge", tag = "origin",
    params(("name" = String, Path, description = "The snapshot"), Going),
    responses((status = OK, description = "The job", body = JobInfo), Problem))]
async fn merge(
    served: Served,
    Path(name): Path<String>,
    Params(how): Params<Going>,
) -> Reply<Json<JobInfo>> {
    reply(served, move |served| served.begin_merge(&name, how.keep, how.force)).await
}

/// Makes the store of a snapshot larger.
#[utoipa::path(post, path = "/v1/origin/snapshots/{name}/grow", tag = "origin",
    params(("name" = String, Path, description = "The snapshot")), request_body = NewSize,
    responses((status = OK, description = "The snapshot", body = schema::CowReport), Problem))]
async fn grow(
    served: Served,
    Path(name): Path<String>,
    Body(new): Body<NewSize>,
) -> Reply<Json<CowReport>> {
    reply(served, move |served| served.cow.grow(&name, ByteCount::new(new.size))).await
}

/// What NBD clients can use, where they reach it, and who uses it now.
#[utoipa::path(get, path = "/v1/exports", tag = "daemon",
    responses((status = OK, description = "The exports", body = [ExportInfo]), Problem))]
async fn exports(served: Served) -> Reply<Json<Vec<ExportInfo>>> {
    reply(served, |served| Ok(served.list())).await
}

/// Who serves.
#[utoipa::path(get, path = "/v1/version", tag = "daemon",
    responses((status = OK, description = "The daemon", body = DaemonInfo), Problem))]
async fn version(served: Served) -> Reply<Json<DaemonInfo>> {
    reply(served, |served| Ok(served.info())).await
}
