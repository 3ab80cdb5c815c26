//! `/v1/events` and `/v1/pool/settings`.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use volume::{EventList, Settings};

use super::extract::{Body, Params};
use super::problem::Problem;
use super::request::Since;
use super::{Reply, reply, schema};
use crate::served::ServedPool;

/// The longest that a request waits for an event: its client may have gone.
const PATIENCE: u64 = 30;

/// What has happened to the pool since it was opened, after event number `after`. With `wait`, the
/// answer comes once there is something to tell, or after so many seconds, 30 at most: whoever
/// follows asks again with the last number.
#[utoipa::path(get, path = "/v1/events", tag = "pool", params(Since),
    responses((status = OK, description = "The events", body = schema::EventList), Problem))]
pub(super) async fn list(
    served: State<Arc<ServedPool>>,
    Params(since): Params<Since>,
) -> Reply<Json<EventList>> {
    let patience = Duration::from_secs(since.wait.min(PATIENCE));
    reply(served, move |served| Ok(served.pool.events(since.after, patience))).await
}

/// How the pool is to behave.
#[utoipa::path(get, path = "/v1/pool/settings", tag = "pool",
    responses((status = OK, description = "The settings", body = schema::Settings), Problem))]
pub(super) async fn settings(served: State<Arc<ServedPool>>) -> Reply<Json<Settings>> {
    reply(served, |served| Ok(served.pool.settings())).await
}

/// Changes how the pool is to behave, now and when it is opened next. What is left out takes its
/// default.
#[utoipa::path(put, path = "/v1/pool/settings", tag = "pool", request_body = schema::Settings,
    responses((status = OK, description = "The settings", body = schema::Settings), Problem))]
pub(super) async fn configure(
    served: State<Arc<ServedPool>>,
    Body(settings): Body<Settings>,
) -> Reply<Json<Settings>> {
    reply(served, move |served| served.pool.configure(&settings)).await
}
