//! `/v1/nodes` and `/v1/disks`: what a daemon that serves a repository is asked besides.

use std::path::PathBuf;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Json, Router};
use block_types::ByteCount;
use repository::NodeReport;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use volume::{NodeName, SnapshotName};

use super::extract::Body;
use super::problem::Problem;
use super::request::{AddedDisk, NewDisk, NewName};
use super::{Reply, done, reply};
use crate::job::JobInfo;
use crate::report::{DaemonInfo, ExportInfo};
use crate::repository::ServedRepository;

type Served = State<Arc<ServedRepository>>;

/// The routes, and what the document says of them.
pub(super) fn parts() -> (Router<Arc<ServedRepository>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::new()
        .routes(routes!(nodes))
        .routes(routes!(scan))
        .routes(routes!(collect))
        .routes(routes!(create))
        .routes(routes!(add))
        .routes(routes!(delete))
        .routes(routes!(snapshot))
        .routes(routes!(clone))
        .routes(routes!(exports))
        .routes(routes!(version))
        .split_for_parts()
}

/// The nodes of the repository, each behind its parent.
#[utoipa::path(get, path = "/v1/nodes", tag = "repository",
    responses((status = OK, description = "Them", body = serde_json::Value), Problem))]
async fn nodes(served: Served) -> Reply<Json<Vec<NodeReport>>> {
    reply(served, |served| Ok(served.repository.report())).await
}

/// Reads the directory anew.
#[utoipa::path(post, path = "/v1/scan", tag = "repository",
    responses((status = NO_CONTENT, description = "It is done"), Problem))]
async fn scan(served: Served) -> Reply<StatusCode> {
    done(served, |served| served.repository.scan()).await
}

/// Removes and merges what nobody needs: begins the job that does.
#[utoipa::path(post, path = "/v1/collect", tag = "repository",
    responses((status = OK, description = "The job", body = JobInfo), Problem))]
async fn collect(served: Served) -> Reply<Json<JobInfo>> {
    reply(served, ServedRepository::collect).await
}

/// Makes an empty disk.
#[utoipa::path(post, path = "/v1/disks", tag = "repository", request_body = NewDisk,
    responses((status = NO_CONTENT, description = "It is there"), Problem))]
async fn create(served: Served, Body(new): Body<NewDisk>) -> Reply<StatusCode> {
    done(served, move |served| {
        served.repository.create_disk(&NodeName::parse(&new.name)?, ByteCount::new(new.size))
    })
    .await
}

/// Copies a VHD into the repository.
#[utoipa::path(post, path = "/v1/disks/added", tag = "repository", request_body = AddedDisk,
    responses((status = NO_CONTENT, description = "It is there"), Problem))]
async fn add(served: Served, Body(added): Body<AddedDisk>) -> Reply<StatusCode> {
    done(served, move |served| {
        served.repository.add(&PathBuf::from(&added.path), &NodeName::parse(&added.name)?)
    })
    .await
}

/// Deletes a disk that has no clients.
#[utoipa::path(delete, path = "/v1/disks/{name}", tag = "repository",
    params(("name" = String, Path, description = "The disk")),
    responses((status = NO_CONTENT, description = "It is gone"), Problem))]
async fn delete(served: Served, Path(name): Path<String>) -> Reply<StatusCode> {
    done(served, move |served| served.delete(&NodeName::parse(&name)?)).await
}

/// Takes a snapshot of a disk as it is now, also while it is being written.
#[utoipa::path(post, path = "/v1/disks/{name}/snapshots", tag = "repository",
    params(("name" = String, Path, description = "The disk")), request_body = NewName,
    responses((status = NO_CONTENT, description = "It is there"), Problem))]
async fn snapshot(
    served: Served,
    Path(name): Path<String>,
    Body(new): Body<NewName>,
) -> Reply<StatusCode> {
    done(served, move |served| {
        let snapshot = SnapshotName::parse(&new.name)?;
        served.repository.snapshot(&NodeName::parse(&name)?, &snapshot).map(|_| ())
    })
    .await
}

/// Makes a new disk that begins as another is.
#[utoipa::path(post, path = "/v1/disks/{name}/clone", tag = "repository",
    params(("name" = String, Path, description = "The disk")), request_body = NewName,
    responses((status = NO_CONTENT, description = "It is there"), Problem))]
async fn clone(
    served: Served,
    Path(name): Path<String>,
    Body(new): Body<NewName>,
) -> Reply<StatusCode> {
    done(served, move |served| {
        served.repository.clone_disk(&NodeName::parse(&name)?, &NodeName::parse(&new.name)?)
    })
    .await
}

/// What NBD clients can use, where they reach it, and who uses it now.
#[utoipa::path(get, path = "/v1/exports", tag = "repository",
    responses((status = OK, description = "The exports", body = [ExportInfo]), Problem))]
async fn exports(served: Served) -> Reply<Json<Vec<ExportInfo>>> {
    reply(served, |served| Ok(served.exports())).await
}

/// Who serves.
#[utoipa::path(get, path = "/v1/version", tag = "repository",
    responses((status = OK, description = "The daemon", body = DaemonInfo), Problem))]
async fn version(served: Served) -> Json<DaemonInfo> {
    Json(served.info())
}
