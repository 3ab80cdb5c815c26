//! The daemon with real sockets, real processes and NBD's own tools.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod access;
mod clients;
mod process;
mod world;
