//! Thin pools against the model, power failures, faults, and the peers.

mod check;
mod checklist;
mod common;
mod crash;
mod differential;
mod events;
mod exhaustion;
mod faults;
mod features;
mod fixtures;
mod held_root;
mod hydrate;
mod kernel;
mod kernel_modes;
mod messages;
mod model;
mod modes;
mod origin;
mod origin_kernel;
mod promise;
mod repair;
mod threads;
mod tools;
