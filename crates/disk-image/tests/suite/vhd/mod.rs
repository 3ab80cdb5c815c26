//! VHD images against golden files, the model, power failures, faults and the peers.

mod common;
mod crash;
mod faults;
mod fixtures;
mod hostile;
mod images;
mod model;
mod peers;
mod repairs;
mod session;
