//! `/v1/volumes`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use block_types::{ByteCount, Error, ErrorKind};
use volume::{DeviceId, VolumeInfo, VolumeName};

use super::extract::{Body, Params};
use super::problem::Problem;
use super::request::{
    CreateVolume, DeleteVolume, HydrateVolume, NewName, NewSize, NewVolume, StatusLine,
};
use super::{Reply, done, made, reply, schema};
use crate::job::{self, JobInfo};
use crate::served::ServedPool;

/// All volumes with their snapshots, by name.
#[utoipa::path(get, path = "/v1/volumes", tag = "volumes",
    responses((status = OK, description = "The volumes", body = [schema::VolumeInfo]), Problem))]
pub(super) async fn list(served: State<Arc<ServedPool>>) -> Reply<Json<Vec<VolumeInfo>>> {
    reply(served, |served| Ok(served.pool.volumes())).await
}

/// Makes an empty volume, or one over an external origin.
#[utoipa::path(post, path = "/v1/volumes", tag = "volumes", request_body = CreateVolume,
    responses((status = CREATED, description = "It", body = schema::VolumeInfo), Problem))]
pub(super) async fn create(
    served: State<Arc<ServedPool>>,
    Body(new): Body<CreateVolume>,
) -> Reply<(StatusCode, Json<VolumeInfo>)> {
    made(served, move |served| {
        let (name, size) = (VolumeName::parse(&new.name)?, new.size.map(ByteCount::new));
        if let Some(origin) = &new.origin {
            return served.pool.create_volume_over(&name, size, origin);
        }
        let size = size.ok_or_else(|| {
            let problem = "is given neither a size nor an origin that has one";
            Error::new(ErrorKind::Invalid, format!("volume {name}"), problem)
        })?;
        served.pool.create_volume(&name, size)
    })
    .await
}

/// One volume.
#[utoipa::path(get, path = "/v1/volumes/{name}", tag = "volumes",
    params(("name" = String, Path, description = "The volume")),
    responses((status = OK, description = "It", body = schema::VolumeInfo), Problem))]
pub(super) async fn show(
    served: State<Arc<ServedPool>>,
    Path(name): Path<String>,
) -> Reply<Json<VolumeInfo>> {
    reply(served, move |served| served.pool.volume(&VolumeName::parse(&name)?)).await
}

/// The line that `dmsetup status` would print for a volume.
#[utoipa::path(get, path = "/v1/volumes/{name}/status-line", tag = "volumes",
    params(("name" = String, Path, description = "The volume")),
    responses((status = OK, description = "The line", body = StatusLine), Problem))]
pub(super) async fn status_line(
    served: State<Arc<ServedPool>>,
    Path(name): Path<String>,
) -> Reply<Json<StatusLine>> {
    reply(served, move |served| {
        let line = served.pool.volume_status_line(&VolumeName::parse(&name)?)?;
        Ok(StatusLine { line })
    })
    .await
}

/// Gives another name to a volume. Refused while it, or a snapshot of it, has clients.
#[utoipa::path(post, path = "/v1/volumes/{name}/rename", tag = "volumes", request_body = NewName,
    params(("name" = String, Path, description = "The volume")),
    responses((status = OK, description = "It", body = schema::VolumeInfo), Problem))]
pub(super) async fn rename(
    served: State<Arc<ServedPool>>,
    Path(name): Path<String>,
    Body(new): Body<NewName>,
) -> Reply<Json<VolumeInfo>> {
    reply(served, move |served| {
        served.rename_volume(&VolumeName::parse(&name)?, &VolumeName::parse(&new.name)?)
    })
    .await
}

/// Begins to free a volume from its external origin: a job.
#[utoipa::path(post, path = "/v1/volumes/{name}/hydrate", tag = "volumes",
    request_body = HydrateVolume,
    params(("name" = String, Path, description = "The volume")),
    responses((status = OK, description = "The job", body = JobInfo), Problem))]
pub(super) async fn hydrate(
    served: State<Arc<ServedPool>>,
    Path(name): Path<String>,
    Body(how): Body<HydrateVolume>,
) -> Reply<Json<JobInfo>> {
    reply(served, move |served| {
        let (name, rate) = (VolumeName::parse(&name)?, how.rate.map(ByteCount::new));
        job::hydrate(&served.jobs, &served.pool, &name, how.family, rate)
    })
    .await
}

/// Gives name and size to a device that has none, made by a message or by others.
#[utoipa::path(post, path = "/v1/devices/{id}/name", tag = "volumes", request_body = NewVolume,
    params(("id" = u32, Path, description = "The device's number")),
    responses((status = OK, description = "It", body = schema::VolumeInfo), Problem))]
pub(super) async fn name_device(
    served: State<Arc<ServedPool>>,
    Path(id): Path<String>,
    Body(new): Body<NewVolume>,
) -> Reply<Json<VolumeInfo>> {
    reply(served, move |served| {
        let number = id.parse::<u32>().map_err(|error| {
            let object = format!("device '{id}'");
            Error::new(ErrorKind::Invalid, object, "is no number of a device").because(error)
        })?;
        let name = VolumeName::parse(&new.name)?;
        served.pool.name_device(DeviceId::new(number)?, &name, ByteCount::new(new.size))
    })
    .await
}

/// Changes the size of a volume; what lies behind a smaller size is lost.
#[utoipa::path(patch, path = "/v1/volumes/{name}", tag = "volumes", request_body = NewSize,
    params(("name" = String, Path, description = "The volume")),
    responses((status = OK, description = "It", body = schema::VolumeInfo), Problem))]
pub(super) async fn resize(
    served: State<Arc<ServedPool>>,
    Path(name): Path<String>,
    Body(new): Body<NewSize>,
) -> Reply<Json<VolumeInfo>> {
    reply(served, move |served| {
        served.pool.resize_volume(&VolumeName::parse(&name)?, ByteCount::new(new.size))
    })
    .await
}

/// Deletes a volume. Refused while it has clients, unless they may be disconnected.
#[utoipa::path(delete, path = "/v1/volumes/{name}", tag = "volumes",
    params(("name" = String, Path, description = "The volume"), DeleteVolume),
    responses((status = NO_CONTENT, description = "It is gone"), Problem))]
pub(super) async fn delete(
    served: State<Arc<ServedPool>>,
    Path(name): Path<String>,
    Params(how): Params<DeleteVolume>,
) -> Reply<StatusCode> {
    done(served, move |served| {
        served.delete_volume(&VolumeName::parse(&name)?, how.snapshots, how.force)
    })
    .await
}
