//! The control API's server: the one place that runs asynchronously.

use std::time::Duration;

use block_types::{Error, Result};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::socket::PrivateSocket;

/// The control socket's name in a pool directory.
pub(crate) const SOCKET: &str = "control.sock";

/// A control API that is being served.
pub(crate) struct Control {
    /// The path, and the word that ends the server; gone once it refuses.
    open: Option<(PrivateSocket, oneshot::Sender<()>)>,
    task: JoinHandle<std::io::Result<()>>,
}

/// What the control API, and whatever waits for signals, runs on.
pub(crate) fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(|error| Error::io("control API", "cannot be set up", error))
}

impl Control {
    /// Serves the API of `router` at `socket`.
    pub(crate) fn start(
        runtime: &Runtime,
        socket: PrivateSocket,
        router: axum::Router,
    ) -> Result<Self> {
        let _entered = runtime.enter();
        let listener = tokio::net::UnixListener::from_std(socket.try_clone()?)
            .map_err(|error| Error::io("control API", "cannot be served", error))?;
        let (stop, stopped) = oneshot::channel();
        // Either word ends it: that it is to stop, or that nobody is left who could say so.
        let server =
            axum::serve(listener, router).with_graceful_shutdown(async { drop(stopped.await) });
        let task = runtime.spawn(async { server.await });
        Ok(Self { open: Some((socket, stop)), task })
    }

    /// Removes the path and takes no more connections.
    pub(crate) fn refuse(&mut self) {
        if let Some((socket, stop)) = self.open.take() {
            // The path first: whoever comes from now on is told that nobody is there.
            drop(socket);
            // Fails only where the server has ended by itself.
            let _ = stop.send(());
        }
    }

    /// Lets the requests in flight finish for at most `patience`; whether all did.
    pub(crate) fn finish(mut self, runtime: &Runtime, patience: Duration) -> bool {
        self.refuse();
        let task = self.task;
        runtime.block_on(async { tokio::time::timeout(patience, task).await.is_ok() })
    }
}
