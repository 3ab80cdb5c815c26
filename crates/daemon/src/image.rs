//! One image over NBD: an export, and the control socket beside the image.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_types::{Result, format_size};
use nbd::{ExportTable, Server, ServerOptions, Uri};
use tokio::runtime::Runtime;
use volume::DiskImage;

use crate::api;
use crate::bitmaps::ServedBitmaps;
use crate::control::Control;
use crate::daemon::{GRACE, listen};
use crate::image_access::{OpenImage, control_path};
use crate::socket::PrivateSocket;

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
    /// The control socket, where there can be one.
    pub control_socket: Option<PathBuf>,
}

/// An image with its server.
pub(crate) struct ServedImage {
    server: Server,
    image: Arc<OpenImage>,
    bitmaps: ServedBitmaps,
    /// `None` where there can be no socket, and once it is stopped.
    control: Option<Control>,
    uri: Uri,
    ready: ImageReady,
}

impl ServedImage {
    /// Serves `image`; the sockets accept when this returns.
    pub(crate) fn start(
        runtime: &Runtime,
        image: &Arc<DiskImage>,
        options: &ImageServeOptions,
    ) -> Result<Self> {
        let description = format!("{} image of {}", image.format(), format_size(image.size()));
        let bitmaps = ServedBitmaps::begin(image)?;
        let mut export = bitmaps.export(&options.name)?.described(description);
        if options.read_only {
            export = export.read_only();
        }
        let (listeners, base, tcp) = listen(&options.socket, options.tcp, options.listen_fds)?;
        let exports = Arc::new(ExportTable::single(export));
        let server = Server::start(listeners, exports, ServerOptions::default())?;
        let named = |uri: Uri| Uri { export: options.name.clone(), ..uri };
        let uri = named(base);
        let nbd_tcp_uri = tcp.map(|uri| named(uri).to_string());
        let opened = Arc::new(OpenImage::new(Arc::clone(image)));
        let path = control_path(image.path());
        let control = listen_for_control(runtime, &path, &opened);
        let control_socket = control.is_some().then_some(path);
        let ready = ImageReady { nbd_uri: uri.to_string(), nbd_tcp_uri, control_socket };
        Ok(Self { server, image: opened, bitmaps, control, uri, ready })
    }

    /// Where the export is reached.
    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The same, for people.
    pub(crate) fn ready(&self) -> &ImageReady {
        &self.ready
    }

    /// Takes no more connections, lets requests in flight finish, cancels jobs, and stores the
    /// bitmaps.
    ///
    /// # Errors
    /// If the bitmaps cannot be stored.
    pub(crate) fn stop(&mut self, runtime: &Runtime) -> Result<()> {
        let mut control = self.control.take();
        if let Some(control) = &mut control {
            control.refuse();
        }
        let orderly = std::thread::scope(|scope| {
            let jobs = scope.spawn(|| self.image.jobs.shutdown(GRACE));
            let clients = self.server.shutdown(GRACE);
            clients && jobs.join().unwrap_or(false)
        });
        if !control.is_none_or(|control| control.finish(runtime, GRACE)) || !orderly {
            tracing::warn!("some requests took too long and were broken off");
        }
        self.bitmaps.end()
    }
}

/// The control socket at `path`, if there can be one: an image may lie where nobody may write, or
/// under a name that is too long for a socket.
fn listen_for_control(runtime: &Runtime, path: &Path, image: &Arc<OpenImage>) -> Option<Control> {
    let control = PrivateSocket::listen(path)
        .and_then(|socket| Control::start(runtime, socket, api::image::router(image)));
    control.inspect_err(|error| tracing::warn!("{error}; the image is served without control")).ok()
}
