//! `firn serve`: a [`Daemon`] until a signal, or a command, ends it.

use block_types::{Error, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::control;
use crate::daemon::{Daemon, Ready, ServeOptions};
use crate::notify::notify;
use crate::run::Command;

/// What asks the process to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes the signals over from the system. Called inside a runtime.
    fn take() -> Result<Self> {
        let take = |kind| {
            signal(kind).map_err(|error| Error::io("signals", "cannot be taken over", error))
        };
        Ok(Self {
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one, and returns its number.
    async fn next(&mut self) -> i32 {
        let kind = tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        };
        kind.as_raw_value()
    }

    /// Ends the process at the next one.
    async fn exit(mut self) -> ! {
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
    let mut signals = {
        let _entered = runtime.enter();
        Signals::take()?
    };
    let daemon = Daemon::start_on(runtime, options)?;
    let pool = options.pool.display();
    tracing::info!(%pool, uri = daemon.ready().nbd_uri, "serving");
    notify("READY=1");
    ready(daemon.ready());
    let outcome = match &options.run {
        Some(command) => run(&daemon, command, signals),
        None => {
            daemon.runtime().block_on(signals.next());
            daemon.runtime().spawn(signals.exit());
            Ok(0)
        }
    };
    tracing::info!(%pool, "stopping");
    let stopped = daemon.stop();
    // What the command had to say comes first.
    outcome.and_then(|code| stopped.map(|()| code))
}

/// Runs `command` to its end; a signal is passed on to it.
fn run(daemon: &Daemon, command: &str, mut signals: Signals) -> Result<i32> {
    let mut command = Command::start(command, &daemon.first_export())?;
    daemon.runtime().block_on(async {
        tokio::select! {
            code = command.finish() => return code,
            number = signals.next() => command.signal(number),
        }
        daemon.runtime().spawn(signals.exit());
        command.finish().await
    })
}
