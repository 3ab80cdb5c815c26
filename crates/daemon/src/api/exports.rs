//! `/v1/exports` and `/v1/version`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::problem::Problem;
use super::{Reply, reply};
use crate::report::{DaemonInfo, ExportInfo};
use crate::served::ServedPool;

/// What NBD clients can use, where they reach it, and who uses it now.
#[utoipa::path(get, path = "/v1/exports", tag = "daemon",
    responses((status = OK, description = "The exports", body = [ExportInfo]), Problem))]
pub(super) async fn list(served: State<Arc<ServedPool>>) -> Reply<Json<Vec<ExportInfo>>> {
    reply(served, |served| Ok(served.exports())).await
}

/// Who serves.
#[utoipa::path(get, path = "/v1/version", tag = "daemon",
    responses((status = OK, description = "The daemon", body = DaemonInfo), Problem))]
pub(super) async fn version(served: State<Arc<ServedPool>>) -> Json<DaemonInfo> {
    Json(served.info())
}
