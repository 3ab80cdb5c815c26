//! The names of a pool's devices: a log of records, and the table they add up to.

mod log;
mod origin;
mod record;
mod table;

pub use log::{NamesLog, parse_log};
pub use origin::{OriginEntry, OriginSource};
pub use record::{Record, RecordedChange};
pub use table::Names;
pub(crate) use table::{KnownNode, VolumeEntry};
