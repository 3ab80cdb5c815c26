//! The names of a pool's devices: a log of records, and the table they add up to.

mod log;
mod record;
mod table;

pub use log::{NamesLog, parse_log};
pub use record::{Record, RecordedChange};
pub use table::Names;
pub(crate) use table::VolumeEntry;
