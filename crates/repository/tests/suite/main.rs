//! Tests of repositories.

mod common;
mod crash;

mod world;
