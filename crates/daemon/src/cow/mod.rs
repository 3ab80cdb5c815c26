//! An origin with its snapshots: served over NBD, and reached by every other command.

mod access;
mod api;
mod exports;
mod remote;
mod request;
mod serve;
mod served;

pub use access::{CowAccess, MergeWatch, cow_access};
pub use serve::{OriginReady, OriginServeOptions, serve_origin};
