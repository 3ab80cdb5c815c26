//! Thin pools against the model, power failures, faults, and the peers.

mod common;
mod crash;
mod faults;
mod fixtures;
mod kernel;
mod model;
mod threads;
