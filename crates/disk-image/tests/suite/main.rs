//! Image formats against the model, power failures, faults, hostile images, and the peers.

mod qcow2;
mod vhd;
