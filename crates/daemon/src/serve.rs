//! `firn serve`: a [`Daemon`], or an image, until a signal, or a command, ends it.

use std::sync::Arc;
use std::time::Duration;

use block_types::{Error, Result};
use nbd::Uri;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use volume::DiskImage;

use crate::control;
use crate::daemon::{Daemon, Ready, ServeOptions};
use crate::image::{ImageReady, ImageServeOptions, ServedImage};
use crate::notify::notify;
use crate::run::Command;

/// What asks the process to end.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from the system. Called inside a runtime.
    pub(crate) fn take() -> Result<Self> {
        let take = |kind| {
            signal(kind).map_err(|error| Error::io("signals", "cannot be taken over", error))
        };
        Ok(Self {
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one, and returns its number.
    pub(crate) async fn next(&mut self) -> i32 {
        let kind = tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        };
        kind.as_raw_value()
    }

    /// Ends the process at the next one.
    pub(crate) async fn exit(mut self) -> ! {
        let number = self.next().await;
        tracing::warn!("asked to end again; ending at once");
        std::process::exit(128 + number);
    }
}

/// Serves a pool until SIGTERM or SIGINT, or until the command of [`ServeOptions::run`] has ended,
/// and returns the exit code: 0, or that of the command. `ready` is called as soon as both sockets
/// accept. A second signal ends the process at once.
///
/// # Errors
/// As [`Daemon::start`] and [`Daemon::stop`], or if the command cannot be started.
pub fn serve(options: &ServeOptions, ready: impl FnOnce(&Ready)) -> Result<i32> {
    let runtime = control::runtime()?;
    // Before anybody can connect: who started us to serve one client may end us right after it.
    let signals = {
        let _entered = runtime.enter();
        Signals::take()?
    };
    let daemon = Daemon::start_on(runtime, options)?;
    let pool = options.pool.display();
    tracing::info!(%pool, uri = daemon.ready().nbd_uri, "serving");
    notify("READY=1");
    ready(daemon.ready());
    let outcome =
        await_end(daemon.runtime(), options.run.as_deref(), &daemon.first_export(), signals);
    tracing::info!(%pool, "stopping");
    let stopped = daemon.stop();
    // What the command had to say comes first.
    outcome.and_then(|code| stopped.map(|()| code))
}

/// Serves an image as the export `options.name`, which is also the default one, until SIGTERM or
/// SIGINT, or until the command of [`ImageServeOptions::run`] has ended; then closes the image. The
/// exit code is 0, or that of the command. `ready` is called as soon as the sockets accept.
///
/// # Errors
/// If a socket is not to be had, the command cannot be started, or the image cannot be closed.
pub fn serve_image(
    image: &Arc<DiskImage>,
    options: &ImageServeOptions,
    ready: impl FnOnce(&ImageReady),
) -> Result<i32> {
    let runtime = control::runtime()?;
    let signals = {
        let _entered = runtime.enter();
        Signals::take()?
    };
    let mut served = ServedImage::start(&runtime, image, options)?;
    let name = image.path().display();
    tracing::info!(image = %name, uri = %served.uri(), "serving");
    notify("READY=1");
    ready(served.ready());
    let outcome = await_end(&runtime, options.run.as_deref(), served.uri(), signals);
    tracing::info!(image = %name, "stopping");
    notify("STOPPING=1");
    let stored = served.stop(&runtime);
    let closed = stored.and(image.close());
    runtime.shutdown_timeout(Duration::ZERO);
    // What the command had to say comes first.
    outcome.and_then(|code| closed.map(|()| code))
}

/// Waits for a signal, or runs `command` to its end; a signal is passed on to it. A second one ends
/// the process at once.
pub(crate) fn await_end(
    runtime: &Runtime,
    command: Option<&str>,
    uri: &Uri,
    mut signals: Signals,
) -> Result<i32> {
    let Some(command) = command else {
        runtime.block_on(signals.next());
        runtime.spawn(signals.exit());
        return Ok(0);
    };
    let mut command = Command::start(command, uri)?;
    runtime.block_on(async {
        tokio::select! {
            code = command.finish() => return code,
            number = signals.next() => command.signal(number),
        }
        runtime.spawn(signals.exit());
        command.finish().await
    })
}
