//! One image over NBD: an export, and nothing to control.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use block_types::{Result, format_size};
use nbd::{Export, ExportTable, Server, ServerOptions, Uri};
use volume::DiskImage;

use crate::daemon::{GRACE, listen};

/// How to serve an image.
#[derive(Clone, Debug)]
pub struct ImageServeOptions {
    /// The export's name.
    pub name: String,
    /// Refuse every write.
    pub read_only: bool,
    /// The Unix socket.
    pub socket: PathBuf,
    /// A TCP address beside it; port 0 lets the system choose.
    pub tcp: Option<SocketAddr>,
    /// A shell command to run while serving, as for a pool.
    pub run: Option<String>,
    /// Serve at the sockets that the service manager hands over, if it does (`LISTEN_FDS`).
    pub listen_fds: bool,
}

/// Where an image is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageReady {
    /// The export.
    pub nbd_uri: String,
    /// The export by TCP, where that was asked for.
    pub nbd_tcp_uri: Option<String>,
}

/// An image with its server.
pub(crate) struct ServedImage {
    server: Server,
    uri: Uri,
    ready: ImageReady,
}

impl ServedImage {
    /// Serves `image`; the sockets accept when this returns.
    pub(crate) fn start(image: &DiskImage, options: &ImageServeOptions) -> Result<Self> {
        let device = image.device();
        let description = format!("{} image of {}", image.format(), format_size(device.size()));
        let mut export = Export::new(options.name.clone(), device)?.described(description);
        if options.read_only {
            export = export.read_only();
        }
        let (listeners, base, tcp) = listen(&options.socket, options.tcp, options.listen_fds)?;
        let exports = Arc::new(ExportTable::single(export));
        let server = Server::start(listeners, exports, ServerOptions::default())?;
        let named = |uri: Uri| Uri { export: options.name.clone(), ..uri };
        let uri = named(base);
        let nbd_tcp_uri = tcp.map(|uri| named(uri).to_string());
        let ready = ImageReady { nbd_uri: uri.to_string(), nbd_tcp_uri };
        Ok(Self { server, uri, ready })
    }

    /// Where the export is reached.
    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The same, for people.
    pub(crate) fn ready(&self) -> &ImageReady {
        &self.ready
    }

    /// Takes no more connections, and lets requests in flight finish.
    pub(crate) fn stop(&self) {
        if !self.server.shutdown(GRACE) {
            tracing::warn!("some requests took too long and were broken off");
        }
    }
}
