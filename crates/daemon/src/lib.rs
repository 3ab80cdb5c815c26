//! The serving process: a pool's exports over NBD, and its control API.
//!
//! ```text
//! NBD clients -> nbd.sock, TCP -> nbd::Server -> exports --+
//!                                                          +-> volume::PoolDirectory
//! firn ... ---> control.sock ---> api ------> served ------+
//! ```
//!
//! [`serve()`] is `firn serve`: a [`Daemon`] with signals around it; [`serve_image()`] is the same
//! for one image, without a control API, and [`serve_origin()`] for an origin with its snapshots.
//! [`access()`] is for every other command: a [`PoolAccess`] that is either the pool itself, opened
//! under its lock, or the client of the daemon that has it. Only this crate runs anything
//! asynchronously, and only the control API: NBD has its own threads.
//!
//! What holds here:
//! - Sockets are made after the pool's lock is taken and removed before it is given back, so that
//!   the paths belong to one daemon at a time.
//! - An export's device is open as long as a client uses it, and no longer.
//! - What is deleted is withdrawn first: between the last look at its clients and the deletion
//!   nobody can connect.

mod access;
mod api;
mod bitmaps;
mod client;
mod control;
mod cow;
mod daemon;
mod exports;
mod image;
mod image_access;
mod interrupt;
mod job;
mod keeper;
mod local;
mod notify;
mod remote;
mod remote_image;
mod remote_jobs;
mod report;
mod repository;
mod repository_access;
mod run;
mod serve;
mod served;
mod socket;
mod trim;

pub use access::{PoolAccess, access};
pub use api::{Problem, openapi};
pub use cow::{CowAccess, MergeWatch, OriginReady, OriginServeOptions, cow_access, serve_origin};
pub use daemon::{Daemon, Ready, ServeOptions};
pub use image::{ImageReady, ImageServeOptions};
pub use image_access::{ImageAccess, access_image};
pub use interrupt::{Interrupt, on_interrupt};
pub use job::{JobAccess, JobInfo};
pub use remote_jobs::jobs;
pub use report::{ClientInfo, DaemonInfo, ExportInfo};
pub use repository::{RepositoryDaemon, serve_repository};
pub use repository_access::{RepositoryAccess, repository_access};
pub use serve::{serve, serve_image};
