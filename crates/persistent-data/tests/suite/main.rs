//! Trees, space maps and transactions on whole devices.

mod broken;
mod crash;
mod golden;
mod model;
mod peers;
mod recount;
mod space;
mod world;
