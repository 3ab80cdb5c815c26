//! Snapshots of a pool that is served, through its control socket: a process of `firn` for each
//! would take the processor from those who are measured.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// The control socket's name in a pool's folder.
const SOCKET: &str = "control.sock";

/// Takes the snapshot `volume@name` in the pool that is served in `pool`.
pub(super) fn snapshot(pool: &Path, volume: &str, name: &str) -> Result<()> {
    let body = format!("{{\"name\":\"{name}\"}}");
    request(pool, "POST", &format!("/v1/volumes/{volume}/snapshots"), &body)
}

/// Deletes that snapshot.
pub(super) fn delete_snapshot(pool: &Path, volume: &str, name: &str) -> Result<()> {
    request(pool, "DELETE", &format!("/v1/volumes/{volume}/snapshots/{name}"), "")
}

/// Sends a request and waits until it is done.
fn request(pool: &Path, method: &str, target: &str, body: &str) -> Result<()> {
    let path = pool.join(SOCKET);
    let mut socket = UnixStream::connect(&path).with_context(|| path.display().to_string())?;
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes())?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 2"), "{method} {target}: {answer}");
    Ok(())
}
