//! Development only: what the tests of several crates share.
//!
//! - [`peer`]: the peers' programs; one that is missing fails the test with the package to install.
//! - [`kernel`]: Linux 6.1 as an ordinary process, with host files as its disks.
//! - [`thin_tools`], [`server`], [`fixture`]: the thin tools, a serving process, the golden images.
//! - [`rng`], [`oracle`], [`workload`]: random operations by seed, and what they must have done.
//!
//! Helpers panic with everything that was seen where a test can do nothing but fail; they return
//! errors where a test may want to look at one.

pub mod fixture;
pub mod kernel;
pub mod oracle;
pub mod pattern;
pub mod peer;
pub mod rng;
pub mod server;
pub mod thin_tools;
pub mod workload;
