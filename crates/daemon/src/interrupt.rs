//! Ctrl-C for commands that wait for a job.

use block_types::Result;

use crate::control;
use crate::serve::Signals;

/// From here on SIGINT and SIGTERM do not end the process: the first one calls `cancel`, a second
/// one ends the process after all.
///
/// # Errors
/// If the signals cannot be taken over.
pub fn on_interrupt(cancel: impl FnOnce() + Send + 'static) -> Result<Interrupt> {
    let runtime = control::runtime()?;
    let mut signals = {
        let _entered = runtime.enter();
        Signals::take()?
    };
    runtime.spawn(async move {
        signals.next().await;
        cancel();
        signals.exit().await;
    });
    Ok(Interrupt { runtime: Some(runtime) })
}

/// Holds the signals. When it is dropped they are ignored no more than before: the process ends
/// soon after the job that it waited for.
#[derive(Debug)]
pub struct Interrupt {
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
