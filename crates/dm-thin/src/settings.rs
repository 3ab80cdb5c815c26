//! How a pool is to behave: what a table line of the kernel says, and its module's parameter.

use std::time::Duration;

use crate::PoolFeatures;

/// How a pool is to behave. The metadata keeps none of it: that is the volume manager's to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// The features of its table line.
    pub features: PoolFeatures,
    /// Free data blocks at which an event is raised, once.
    pub low_water: u64,
    /// How long a write waits for space before it fails, the kernel's `no_space_timeout`; `None`
    /// for as long as it takes.
    pub no_space_timeout: Option<Duration>,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            features: PoolFeatures::default(),
            low_water: 0,
            no_space_timeout: Some(Duration::from_secs(60)),
        }
    }
}
