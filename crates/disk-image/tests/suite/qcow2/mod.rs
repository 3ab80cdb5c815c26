//! qcow2: against the model, power failures, faults, hostile images, and QEMU in both directions.

mod amend;
mod bitmaps;
mod common;
mod compact;
mod compressed;
mod crash;
mod create;
mod damage;
mod faults;
mod features;
mod foreign;
mod hostile;
mod luks;
mod model;
mod pingpong;
mod random;
mod read;
mod recording;
mod resize;
mod snapshots;
mod threads;
