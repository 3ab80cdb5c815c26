//! `/v1/image`: the image that a daemon serves.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Json, Router};
use block_io::CacheMode;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use volume::{BackingPolicy, ChainImage, ImageOptions, ImageSnapshot};

use super::extract::Body;
use super::problem::Problem;
use super::request::{CommitImage, RebaseImage, SnapshotOfImage, StreamImage};
use super::{Reply, done, framed, jobs, made, reply, schema};
use crate::image_access::{ImageAccess, OpenImage};
use crate::job::JobInfo;

/// The frame of the document; the routes add themselves.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Firn control API of an image",
        description = "Control of an image that a daemon serves, on `IMAGE.control.sock`. \
                       Sizes and offsets are bytes.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    tags(
        (name = "image", description = "The image and its chain"),
        (name = "jobs", description = "Long work in progress")
    )
)]
struct Document;

type Served = State<Arc<OpenImage>>;

fn parts() -> (Router<Arc<OpenImage>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(chain))
        .routes(routes!(stream))
        .routes(routes!(commit))
        .routes(routes!(rebase))
        .routes(routes!(list, create))
        .routes(routes!(delete))
        .routes(routes!(revert))
        .split_for_parts()
}

/// The API of `image`.
pub(crate) fn router(image: &Arc<OpenImage>) -> Router {
    let (router, mut document) = parts();
    document.merge(jobs::parts().1);
    let text = document.to_pretty_json().expect("the document is made of plain values");
    let router = router
        .with_state(Arc::clone(image))
        .route("/v1/openapi.json", axum::routing::get(move || super::json_text(text.clone())));
    framed(router, Arc::clone(&image.jobs))
}

/// The images of the chain, the topmost first.
#[utoipa::path(get, path = "/v1/image", tag = "image",
    responses((status = OK, description = "They", body = [schema::ChainImage]), Problem))]
async fn chain(image: Served) -> Reply<Json<Vec<ChainImage>>> {
    reply(image, ImageAccess::chain).await
}

/// Begins to pull up into the image what is below it, while clients use it.
#[utoipa::path(post, path = "/v1/image/stream", tag = "image", request_body = StreamImage,
    responses((status = CREATED, description = "The job", body = JobInfo), Problem))]
async fn stream(
    image: Served,
    Body(asked): Body<StreamImage>,
) -> Reply<(StatusCode, Json<JobInfo>)> {
    made(image, move |image| image.stream(asked.base.as_deref().map(Path::new))).await
}

/// Begins to write what images of the chain have into one below them, while clients use the disk.
#[utoipa::path(post, path = "/v1/image/commit", tag = "image", request_body = CommitImage,
    responses((status = CREATED, description = "The job", body = JobInfo), Problem))]
async fn commit(
    image: Served,
    Body(asked): Body<CommitImage>,
) -> Reply<(StatusCode, Json<JobInfo>)> {
    made(image, move |image| {
        let (top, base) = (asked.top.as_deref(), asked.base.as_deref());
        image.commit_live(top.map(Path::new), base.map(Path::new))
    })
    .await
}

/// Begins to put the image on another backing file; it reads the same.
#[utoipa::path(post, path = "/v1/image/rebase", tag = "image", request_body = RebaseImage,
    responses((status = CREATED, description = "The job", body = JobInfo), Problem))]
async fn rebase(
    image: Served,
    Body(asked): Body<RebaseImage>,
) -> Reply<(StatusCode, Json<JobInfo>)> {
    made(image, move |image| {
        let backing = match (asked.allow_any, asked.allow_folders) {
            (true, _) => BackingPolicy::Any,
            (false, folders) if folders.is_empty() => BackingPolicy::SameFolder,
            (false, folders) => {
                BackingPolicy::Folders(folders.into_iter().map(PathBuf::from).collect())
            }
        };
        let format = asked.format.as_deref().map(str::parse).transpose()?;
        let options =
            ImageOptions { format, backing, cache: CacheMode::Cached, ..ImageOptions::reading() };
        image.rebase(Path::new(&asked.backing), &options)
    })
    .await
}

/// The internal snapshots of the image.
#[utoipa::path(get, path = "/v1/image/snapshots", tag = "image",
    responses((status = OK, description = "They", body = [schema::ImageSnapshot]), Problem))]
async fn list(image: Served) -> Reply<Json<Vec<ImageSnapshot>>> {
    reply(image, ImageAccess::snapshots).await
}

/// Takes an internal snapshot of the disk as it is, also while it is being written.
#[utoipa::path(post, path = "/v1/image/snapshots", tag = "image", request_body = SnapshotOfImage,
    responses((status = CREATED, description = "It", body = schema::ImageSnapshot), Problem))]
async fn create(
    image: Served,
    Body(asked): Body<SnapshotOfImage>,
) -> Reply<(StatusCode, Json<ImageSnapshot>)> {
    made(image, move |image| image.create_snapshot(&asked.name)).await
}

/// Deletes an internal snapshot.
#[utoipa::path(post, path = "/v1/image/snapshots/delete", tag = "image",
    request_body = SnapshotOfImage,
    responses((status = NO_CONTENT, description = "It is gone"), Problem))]
async fn delete(image: Served, Body(asked): Body<SnapshotOfImage>) -> Reply<StatusCode> {
    done(image, move |image| image.delete_snapshot(&asked.name)).await
}

/// Makes the disk what an internal snapshot is. What was written since is lost.
#[utoipa::path(post, path = "/v1/image/snapshots/revert", tag = "image",
    request_body = SnapshotOfImage,
    responses((status = NO_CONTENT, description = "It is done"), Problem))]
async fn revert(image: Served, Body(asked): Body<SnapshotOfImage>) -> Reply<StatusCode> {
    done(image, move |image| image.revert_to_snapshot(&asked.name)).await
}
