//! Who is connected, and to what.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::net::{Shutdown, shutdown};

use crate::wire::Dialect;

/// A client of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientInfo {
    /// The connection's number, never used again.
    pub id: u64,
    /// Who it is, as far as the socket tells.
    pub peer: String,
    /// The export it uses, once it has chosen.
    pub export: Option<String>,
    /// The form of requests and replies, once it is agreed.
    pub dialect: Option<Dialect>,
}

/// The connections of a server.
#[derive(Debug, Default)]
pub(super) struct Registry {
    state: Mutex<State>,
    /// A connection has ended.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    closing: bool,
    connections: HashMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    peer: String,
    choice: Option<(String, Dialect)>,
    socket: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
}

/// A place in the registry, given up when dropped.
#[derive(Debug)]
pub(super) struct Registration {
    registry: Arc<Registry>,
    id: u64,
    /// Set when the connection is to end.
    pub(super) stop: Arc<AtomicBool>,
}

impl Registry {
    /// Takes in a connection, unless there are `most` or the server is closing.
    pub(super) fn enter(
        self: &Arc<Self>,
        socket: &Arc<OwnedFd>,
        peer: String,
        most: usize,
    ) -> Option<Registration> {
        let mut state = self.state.lock();
        if state.closing || state.connections.len() >= most {
            return None;
        }
        state.last += 1;
        let id = state.last;
        let stop = Arc::new(AtomicBool::new(false));
        let connection =
            Connection { peer, choice: None, socket: Arc::clone(socket), stop: Arc::clone(&stop) };
        state.connections.insert(id, connection);
        Some(Registration { registry: Arc::clone(self), id, stop })
    }

    pub(super) fn clients(&self) -> Vec<ClientInfo> {
        let state = self.state.lock();
        let mut clients: Vec<_> = state
            .connections
            .iter()
            .map(|(&id, connection)| ClientInfo {
                id,
                peer: connection.peer.clone(),
                export: connection.export().map(str::to_owned),
                dialect: connection.choice.as_ref().map(|(_, dialect)| *dialect),
            })
            .collect();
        clients.sort_by_key(|client| client.id);
        clients
    }

    /// Ends the connections that use `export`, in good order; whether all are gone within
    /// `patience`. Those that are not are cut off.
    pub(super) fn disconnect(&self, export: &str, patience: Duration) -> bool {
        self.end(patience, |connection| connection.export() == Some(export))
    }

    /// Ends all connections likewise, and takes in no more.
    pub(super) fn close(&self, patience: Duration) -> bool {
        self.state.lock().closing = true;
        self.end(patience, |_| true)
    }

    fn end(&self, patience: Duration, concerned: impl Fn(&Connection) -> bool) -> bool {
        let mut state = self.state.lock();
        state.stop(&concerned, Shutdown::Read);
        let in_order = self.wait(&mut state, patience, &concerned);
        if !in_order {
            state.stop(&concerned, Shutdown::Both);
            // Now only I/O of their devices can hold them up.
            self.wait(&mut state, Duration::from_secs(5), &concerned);
        }
        in_order
    }

    fn wait(
        &self,
        state: &mut parking_lot::MutexGuard<'_, State>,
        patience: Duration,
        concerned: &impl Fn(&Connection) -> bool,
    ) -> bool {
        let deadline = Instant::now() + patience;
        while state.connections.values().any(concerned) {
            if self.ended.wait_until(state, deadline).timed_out() {
                return !state.connections.values().any(concerned);
            }
        }
        true
    }
}

impl Connection {
    fn export(&self) -> Option<&str> {
        self.choice.as_ref().map(|(export, _)| export.as_str())
    }
}

impl State {
    fn stop(&self, concerned: &impl Fn(&Connection) -> bool, how: Shutdown) {
        for connection in self.connections.values().filter(|connection| concerned(connection)) {
            // The flag first: whoever is woken by the socket looks at it.
            connection.stop.store(true, Ordering::Release);
            // Fails only if the peer is gone, which ends the connection too.
            let _ = shutdown(&connection.socket, how);
        }
    }
}

impl Registration {
    /// The connection's number.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Notes which export the client uses, and in which dialect.
    pub(super) fn chose(&self, export: &str, dialect: Dialect) {
        if let Some(connection) = self.registry.state.lock().connections.get_mut(&self.id) {
            connection.choice = Some((export.to_owned(), dialect));
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.registry.state.lock().connections.remove(&self.id);
        self.registry.ended.notify_all();
    }
}
