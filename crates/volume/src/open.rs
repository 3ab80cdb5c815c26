//! Opening a block device by path or URI.

use std::path::Path;
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::Result;

use crate::{DiskImage, ImageOptions};

/// How a device is opened.
#[derive(Clone, Copy, Debug)]
pub struct DeviceOptions {
    /// For reading only.
    pub read_only: bool,
    /// Through the page cache or not, for files and block devices of the host.
    pub cache: CacheMode,
}

/// Opens what `address` names: a URI of an NBD export (`nbd://`, `nbd+unix://`), or the path of a
/// raw file or block device. Nothing is guessed from what lies there.
///
/// # Errors
/// As opening the file or connecting to the server fails.
pub fn open_device(address: &str, options: &DeviceOptions) -> Result<Arc<dyn BlockDevice>> {
    if is_uri(address) {
        let client = nbd::Client::connect(&address.parse()?)?;
        return Ok(Arc::new(if options.read_only { client.read_only() } else { client }));
    }
    let file = FileOptions { cache: options.cache, read_only: options.read_only };
    Ok(Arc::new(HostFile::open(Path::new(address), file)?))
}

/// Opens what `address` names: a URI of an NBD export, or the path of an image of any format with
/// what is below it, as far as the options let it (GATED-OPEN). A file stays locked as long as
/// anybody has the device. Who writes to a qcow2 image or a VHD opens it as a [`DiskImage`], which
/// can be closed in order.
///
/// # Errors
/// As [`DiskImage::open`], or as connecting to the server fails.
pub fn open_image(address: &str, options: &ImageOptions) -> Result<Arc<dyn BlockDevice>> {
    if is_uri(address) {
        let device = DeviceOptions { read_only: options.read_only, cache: options.cache };
        return open_device(address, &device);
    }
    Ok(DiskImage::open(Path::new(address), options)?.into_device())
}

/// Whether `address` is one of an NBD export.
pub(crate) fn is_uri(address: &str) -> bool {
    address.starts_with("nbd://") || address.starts_with("nbd+unix://")
}

#[cfg(test)]
mod tests {
    use super::{DeviceOptions, open_device};
    use block_io::{CacheMode, MemoryDevice};
    use block_types::{ByteCount, ByteOffset, ErrorKind};
    use std::sync::Arc;

    fn options(read_only: bool) -> DeviceOptions {
        DeviceOptions { read_only, cache: CacheMode::Cached }
    }

    #[test]
    fn read_only_holds_for_files_and_for_uris() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("disk");
        std::fs::write(&file, [0; 4096]).expect("written");
        let socket = folder.path().join("socket");
        let device = Arc::new(MemoryDevice::new("disk", ByteCount::new(4096)));
        let export = nbd::Export::new("disk", device).expect("an export");
        let listener = nbd::Listener::unix(&socket).expect("listening");
        let source = Arc::new(nbd::ExportTable::single(export));
        let _server =
            nbd::Server::start(vec![listener], source, nbd::ServerOptions::default()).expect("up");
        let uri = format!("nbd+unix:///disk?socket={}", socket.display());
        for address in [file.to_str().expect("text"), &uri] {
            let device = open_device(address, &options(true)).expect("opened");
            let error = device.write_at(&[1; 512], ByteOffset::ZERO).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::ReadOnly, "{address}");
            let device = open_device(address, &options(false)).expect("opened");
            device.write_at(&[1; 512], ByteOffset::ZERO).expect("written");
        }
    }
}
