//! `/v1/volumes/{name}/snapshots`, and what differs between nodes.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use block_types::Result;
use volume::{ChangedRange, NodeName, SnapshotInfo, SnapshotName, VolumeInfo, VolumeName};

use super::extract::{Body, Params};
use super::problem::Problem;
use super::request::{Compare, DeleteSnapshot, NewName};
use super::{Reply, done, made, reply, schema};
use crate::served::ServedPool;

/// A volume and a snapshot of it, as the path names them.
type Names = (String, String);

fn parse((volume, snapshot): &Names) -> Result<(VolumeName, SnapshotName)> {
    Ok((VolumeName::parse(volume)?, SnapshotName::parse(snapshot)?))
}

/// The snapshots of a volume, the oldest first.
#[utoipa::path(get, path = "/v1/volumes/{name}/snapshots", tag = "snapshots",
    params(("name" = String, Path, description = "The volume")),
    responses((status = OK, description = "They", body = [schema::SnapshotInfo]), Problem))]
pub(super) async fn list(
    served: State<Arc<ServedPool>>,
    Path(name): Path<String>,
) -> Reply<Json<Vec<SnapshotInfo>>> {
    reply(served, move |served| Ok(served.pool.volume(&VolumeName::parse(&name)?)?.snapshots)).await
}

/// Takes a snapshot of a volume as it is now, also while it is being written.
#[utoipa::path(post, path = "/v1/volumes/{name}/snapshots", tag = "snapshots",
    params(("name" = String, Path, description = "The volume")),
    request_body = NewName,
    responses((status = CREATED, description = "It", body = schema::SnapshotInfo), Problem))]
pub(super) async fn create(
    served: State<Arc<ServedPool>>,
    Path(name): Path<String>,
    Body(new): Body<NewName>,
) -> Reply<(StatusCode, Json<SnapshotInfo>)> {
    made(served, move |served| {
        served.pool.create_snapshot(&VolumeName::parse(&name)?, &SnapshotName::parse(&new.name)?)
    })
    .await
}

/// Deletes a snapshot. Refused while it has clients, unless they may be disconnected.
#[utoipa::path(delete, path = "/v1/volumes/{name}/snapshots/{snapshot}", tag = "snapshots",
    params(
        ("name" = String, Path, description = "The volume"),
        ("snapshot" = String, Path, description = "The snapshot"),
        DeleteSnapshot
    ),
    responses((status = NO_CONTENT, description = "It is gone"), Problem))]
pub(super) async fn delete(
    served: State<Arc<ServedPool>>,
    Path(names): Path<Names>,
    Params(how): Params<DeleteSnapshot>,
) -> Reply<StatusCode> {
    done(served, move |served| {
        let (volume, snapshot) = parse(&names)?;
        served.delete_snapshot(&volume, &snapshot, how.force)
    })
    .await
}

/// Makes a volume what a snapshot of it is. Snapshots stay, later ones as well.
#[utoipa::path(post, path = "/v1/volumes/{name}/snapshots/{snapshot}/rollback", tag = "snapshots",
    params(
        ("name" = String, Path, description = "The volume"),
        ("snapshot" = String, Path, description = "The snapshot")
    ),
    responses((status = NO_CONTENT, description = "It is done"), Problem))]
pub(super) async fn rollback(
    served: State<Arc<ServedPool>>,
    Path(names): Path<Names>,
) -> Reply<StatusCode> {
    done(served, move |served| {
        let (volume, snapshot) = parse(&names)?;
        served.pool.rollback(&volume, &snapshot)
    })
    .await
}

/// Makes a new volume that begins as a snapshot is.
#[utoipa::path(post, path = "/v1/volumes/{name}/snapshots/{snapshot}/clone", tag = "snapshots",
    params(
        ("name" = String, Path, description = "The volume"),
        ("snapshot" = String, Path, description = "The snapshot")
    ),
    request_body = NewName,
    responses((status = CREATED, description = "It", body = schema::VolumeInfo), Problem))]
pub(super) async fn clone(
    served: State<Arc<ServedPool>>,
    Path(names): Path<Names>,
    Body(new): Body<NewName>,
) -> Reply<(StatusCode, Json<VolumeInfo>)> {
    made(served, move |served| {
        let (volume, snapshot) = parse(&names)?;
        served.pool.clone_snapshot(&volume, &snapshot, &VolumeName::parse(&new.name)?)
    })
    .await
}

/// Where a node holds something else than an earlier one.
#[utoipa::path(get, path = "/v1/diff", tag = "snapshots", params(Compare),
    responses((status = OK, description = "Ranges", body = [schema::ChangedRange]), Problem))]
pub(super) async fn diff(
    served: State<Arc<ServedPool>>,
    Params(nodes): Params<Compare>,
) -> Reply<Json<Vec<ChangedRange>>> {
    reply(served, move |served| {
        let (from, to) = (NodeName::parse(&nodes.from)?, NodeName::parse(&nodes.to)?);
        let mut found = Vec::new();
        served.pool.diff(&from, &to, &mut |range| {
            found.push(range);
            Ok(())
        })?;
        Ok(found)
    })
    .await
}
