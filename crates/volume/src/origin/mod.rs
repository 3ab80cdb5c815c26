//! External origins: volumes that begin as an image, a file or an NBD export, and show it where
//! they hold nothing themselves.
//!
//! Nothing in the pool's metadata says so, as in the kernel's pools; the names do. A volume's
//! snapshots and clones stand on the same origin. An origin that is a file is locked against
//! writers while its pool is open for writing; one that is missing keeps the volumes that stand on
//! it from being opened, and nothing else.

mod create;
mod held;
mod hydrate;
mod merge;
mod source;
#[cfg(test)]
mod tests;

pub(crate) use held::Origins;
pub use hydrate::{Hydration, HydrationStep};
pub use merge::Merge;
