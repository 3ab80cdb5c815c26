//! The blocking client of the control API: one connection for each request.

use std::path::{Path, PathBuf};
use std::time::Duration;

use block_types::{Error, ErrorKind, Result};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use crate::api::Problem;

/// A client of the daemon behind a control socket.
pub(crate) struct Client {
    socket: PathBuf,
    /// Runs on the calling thread, while it waits for an answer.
    runtime: Runtime,
}

/// A status and a body.
type Answer = (StatusCode, Bytes);

impl Client {
    /// A client of the daemon at `socket`; nothing is sent yet.
    pub(crate) fn new(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime =
            runtime.map_err(|error| Error::io("control client", "cannot be set up", error))?;
        Ok(Self { socket: socket.to_owned(), runtime })
    }

    /// Gets `target`, unless the answer takes longer than `limit`.
    pub(crate) fn get_within<T: DeserializeOwned>(
        &self,
        target: &str,
        limit: Duration,
    ) -> Result<T> {
        let exchange = self.exchange(Method::GET, target, Bytes::new());
        let answer = self.runtime.block_on(async { tokio::time::timeout(limit, exchange).await });
        let answer = answer
            .map_err(|_| Error::new(ErrorKind::Busy, self.name(), "the daemon does not answer"))?;
        self.read(answer?)
    }

    /// Sends a request without a body.
    pub(crate) fn ask<T: DeserializeOwned>(&self, method: Method, target: &str) -> Result<T> {
        self.read(self.runtime.block_on(self.exchange(method, target, Bytes::new()))?)
    }

    /// Sends a request with a body.
    pub(crate) fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        target: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        let body = serde_json::to_vec(body).expect("requests are plain values");
        self.read(self.runtime.block_on(self.exchange(method, target, body.into()))?)
    }

    /// One request on a connection of its own.
    async fn exchange(&self, method: Method, target: &str, body: Bytes) -> Result<Answer> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| Error::io(self.name(), "the daemon cannot be reached", error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| {
                Error::new(ErrorKind::Invalid, target, "is no target of a request").because(error)
            })?;
        let response = sender.send_request(request).await.map_err(|error| self.broken(error))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| self.broken(error))?;
        drop(sender);
        // Nothing is expected from it any more; how it ends tells nobody anything.
        let _ = connection.await;
        Ok((status, body.to_bytes()))
    }

    /// What an answer says.
    fn read<T: DeserializeOwned>(&self, (status, body): Answer) -> Result<T> {
        if !status.is_success() {
            return Err(match serde_json::from_slice::<Problem>(&body) {
                Ok(problem) => problem.into(),
                Err(_) => {
                    let text = String::from_utf8_lossy(&body);
                    Error::new(ErrorKind::Io, self.name(), format!("answers {status}: {text}"))
                }
            });
        }
        let body = if body.is_empty() { b"null" } else { &body[..] };
        serde_json::from_slice(body).map_err(|error| {
            Error::new(ErrorKind::Unsupported, self.name(), "answers what is not understood")
                .because(error)
                .advise("let the command and the daemon be of one version")
        })
    }

    fn name(&self) -> String {
        self.socket.display().to_string()
    }

    fn broken(&self, error: hyper::Error) -> Error {
        Error::new(ErrorKind::Io, self.name(), "the daemon ended before it had answered")
            .because(error)
            .advise("look at its log; what was asked for may or may not have been done")
    }
}
