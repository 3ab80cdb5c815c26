//! NBD: wire format, server and client.
//!
//! Three parts, each of which can be read alone:
//!
//! * [`wire`]: bytes to types and back, without I/O. Everything that comes from outside is parsed
//!   there and nowhere else.
//! * [`server`]: serves any [`BlockDevice`](block_io::BlockDevice) under a name, to many clients.
//!   It knows no format: a device that can say where its bytes lie is served straight from the
//!   files, any other through its blocking calls.
//! * [`client`]: an export of another server as a `BlockDevice`.
//!
//! Spoken are fixed newstyle, simple and structured replies, extended headers, `base:allocation`.
//! TLS is not: [`Uri`] refuses `nbds`, and the server answers STARTTLS with UNSUP.

mod channel;
pub mod client;
pub mod server;
mod uri;
pub mod wire;

pub use client::Client;
pub use server::{
    ClientInfo, Export, ExportEntry, ExportSource, ExportTable, Listener, MetaContext, Server,
    ServerOptions, remove_stale,
};
pub use uri::{Transport, Uri};
