//! `/v1/jobs`: the same for whatever a daemon serves.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::{Json, Router};
use block_types::{Error, ErrorKind, Result};
use jobs::Registry;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::Body;
use super::problem::{Failure, Problem};
use super::request::JobRate;
use super::{Reply, reply};
use crate::job::{JobAccess, JobInfo};

/// The routes, and what the document says of them.
pub(super) fn parts() -> (Router<Arc<Registry>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, set_rate))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(cancel))
        .routes(routes!(complete))
        .split_for_parts()
}

/// The number in a path.
fn number(text: &str) -> Result<u64> {
    text.parse().map_err(|_| {
        Error::new(ErrorKind::Invalid, format!("job '{text}'"), "is no number of a job")
    })
}

/// Does `work` to the job that the path names.
async fn tell(
    jobs: State<Arc<Registry>>,
    id: &str,
    work: impl FnOnce(&Registry, u64) -> Result<JobInfo> + Send + 'static,
) -> Reply<Json<JobInfo>> {
    let id = number(id).map_err(Failure::from)?;
    reply(jobs, move |jobs| work(jobs, id)).await
}

/// The jobs that run, and the latest that did, the oldest first.
#[utoipa::path(get, path = "/v1/jobs", tag = "jobs",
    responses((status = OK, description = "The jobs", body = [JobInfo]), Problem))]
async fn list(jobs: State<Arc<Registry>>) -> Reply<Json<Vec<JobInfo>>> {
    reply(jobs, JobAccess::list).await
}

/// One job.
#[utoipa::path(get, path = "/v1/jobs/{job}", tag = "jobs",
    params(("job" = u64, Path, description = "The job's number")),
    responses((status = OK, description = "The job", body = JobInfo), Problem))]
async fn show(jobs: State<Arc<Registry>>, Path(id): Path<String>) -> Reply<Json<JobInfo>> {
    tell(jobs, &id, JobAccess::show).await
}

/// Limits how much a job may move in a second.
#[utoipa::path(patch, path = "/v1/jobs/{job}", tag = "jobs",
    params(("job" = u64, Path, description = "The job's number")),
    request_body = JobRate,
    responses((status = OK, description = "The job", body = JobInfo), Problem))]
async fn set_rate(
    jobs: State<Arc<Registry>>,
    Path(id): Path<String>,
    Body(JobRate { rate }): Body<JobRate>,
) -> Reply<Json<JobInfo>> {
    tell(jobs, &id, move |jobs, id| jobs.set_rate(id, rate)).await
}

/// Has a job wait, once the requests in flight are done.
#[utoipa::path(post, path = "/v1/jobs/{job}/pause", tag = "jobs",
    params(("job" = u64, Path, description = "The job's number")),
    responses((status = OK, description = "The job", body = JobInfo), Problem))]
async fn pause(jobs: State<Arc<Registry>>, Path(id): Path<String>) -> Reply<Json<JobInfo>> {
    tell(jobs, &id, JobAccess::pause).await
}

/// Lets a job go on.
#[utoipa::path(post, path = "/v1/jobs/{job}/resume", tag = "jobs",
    params(("job" = u64, Path, description = "The job's number")),
    responses((status = OK, description = "The job", body = JobInfo), Problem))]
async fn resume(jobs: State<Arc<Registry>>, Path(id): Path<String>) -> Reply<Json<JobInfo>> {
    tell(jobs, &id, JobAccess::resume).await
}

/// Has a job end as soon as the requests in flight are done. What it works on reads as before.
#[utoipa::path(post, path = "/v1/jobs/{job}/cancel", tag = "jobs",
    params(("job" = u64, Path, description = "The job's number")),
    responses((status = OK, description = "The job", body = JobInfo), Problem))]
async fn cancel(jobs: State<Arc<Registry>>, Path(id): Path<String>) -> Reply<Json<JobInfo>> {
    tell(jobs, &id, JobAccess::cancel).await
}

/// Gives a job that is ready, or will be, the word to complete.
#[utoipa::path(post, path = "/v1/jobs/{job}/complete", tag = "jobs",
    params(("job" = u64, Path, description = "The job's number")),
    responses((status = OK, description = "The job", body = JobInfo), Problem))]
async fn complete(jobs: State<Arc<Registry>>, Path(id): Path<String>) -> Reply<Json<JobInfo>> {
    tell(jobs, &id, JobAccess::complete).await
}
