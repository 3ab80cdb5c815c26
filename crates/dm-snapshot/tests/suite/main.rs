//! Origins and snapshots against the model, power failures, faults, and the kernel.

mod common;
mod content;
mod crash;
mod depot;
mod faults;
mod fixtures;
mod kernel;
mod merge;
mod model;
mod order;
mod passdown;
mod room;
mod seal;
mod threads;
