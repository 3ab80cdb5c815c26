//! The verbs of `firn pool` that work on metadata as it lies there: the thin tools, on pools that
//! nobody has open, and on metadata snapshots of those that are in use.

mod check;
mod delta;
mod dump;
mod ls;
mod pack;
mod repair;
mod restore;
mod rmap;
pub(crate) mod sink;
mod source;

pub(crate) use check::Check;
pub(crate) use delta::Delta;
pub(crate) use dump::Dump;
pub(crate) use ls::Ls;
pub(crate) use pack::{Pack, Unpack};
pub(crate) use repair::Repair;
pub(crate) use restore::Restore;
pub(crate) use rmap::Rmap;
