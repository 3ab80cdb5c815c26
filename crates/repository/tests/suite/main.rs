//! Tests of repositories.

mod common;
mod crash;
mod live;
mod peers;
mod points;
mod world;
