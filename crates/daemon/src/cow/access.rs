//! One origin, whoever has it open: [`CowAccess`].

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_types::{ByteCount, ErrorKind, Result};
use volume::{CowOptions, CowOrigin, CowReport, NewSnapshot, OriginReport, find_snapshots};

use super::remote::RemoteOrigin;

/// How long an origin may be busy: commands are short.
const PATIENCE: Duration = Duration::from_secs(2);

/// Is told what is left of a merge, and may end the wait for it.
pub type MergeWatch<'w> = &'w mut dyn FnMut(ByteCount) -> ControlFlow<()>;

/// What the command may ask of an origin: the same answers and the same errors whether it is open
/// in this process or in a server. Unless something else is said, the methods are those of
/// [`CowOrigin`].
pub trait CowAccess {
    /// The origin and its snapshots.
    fn report(&self) -> Result<OriginReport>;

    /// Takes a snapshot.
    fn create(&self, new: &NewSnapshot) -> Result<CowReport>;

    /// Gives a snapshot up.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] while it has clients, unless they may be disconnected by force.
    fn drop_snapshot(&self, name: &str, keep: bool, force: bool) -> Result<()>;

    /// Merges a snapshot, and returns when that is done, or `watch` does not care any more: a
    /// server then goes on alone.
    fn merge(&self, name: &str, keep: bool, force: bool, watch: MergeWatch<'_>) -> Result<()>;

    /// Makes the store of a snapshot larger.
    fn grow(&self, name: &str, size: ByteCount) -> Result<CowReport>;

    /// Leaves the origin; one that a server has stays open there.
    fn close(&self) -> Result<()>;
}

/// Reaches the origin at `path`: through the server that has it, if there is one, else by opening
/// it here.
///
/// # Errors
/// [`ErrorKind::Busy`] where somebody has it open who cannot be asked; else as [`CowOrigin::open`].
pub fn cow_access(path: &Path, options: &CowOptions) -> Result<Box<dyn CowAccess>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let busy = match CowOrigin::open(path, options.clone()) {
            Ok(origin) => return Ok(Box::new(origin)),
            Err(error) if error.kind() == ErrorKind::Busy => error,
            Err(error) => return Err(error),
        };
        let control: Option<PathBuf> = find_snapshots(path, None).ok().and_then(|it| it.control);
        match control.map(|control| RemoteOrigin::connect(&control)) {
            Some(Ok(origin)) => return Ok(Box::new(origin)),
            Some(Err(error)) => tracing::debug!(%error, "no server answers"),
            None => {}
        }
        if Instant::now() >= deadline {
            return Err(busy);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl CowAccess for Arc<CowOrigin> {
    fn report(&self) -> Result<OriginReport> {
        Ok(CowOrigin::report(self))
    }

    fn create(&self, new: &NewSnapshot) -> Result<CowReport> {
        CowOrigin::create(self, new)
    }

    fn drop_snapshot(&self, name: &str, keep: bool, _force: bool) -> Result<()> {
        CowOrigin::drop_snapshot(self, name, keep)
    }

    fn merge(&self, name: &str, keep: bool, _force: bool, watch: MergeWatch<'_>) -> Result<()> {
        let merge = self.begin_merge(name, keep)?;
        loop {
            let left = merge.step()?;
            if watch(left).is_break() || left.is_zero() {
                return Ok(());
            }
        }
    }

    fn grow(&self, name: &str, size: ByteCount) -> Result<CowReport> {
        CowOrigin::grow(self, name, size)
    }

    fn close(&self) -> Result<()> {
        CowOrigin::close(self)
    }
}
