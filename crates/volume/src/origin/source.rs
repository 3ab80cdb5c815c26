//! Naming an origin so that it is found again: absolutely, and by its format.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{Error, ErrorKind, Result};
use nbd::{Transport, Uri};

use crate::open::{is_uri, open_image};
use crate::{BackingPolicy, DiskImage, ImageFormat, ImageOptions, OriginSource};

/// What allows every backing file.
const ANY: &str = "any";

impl OriginSource {
    /// The origin that `address` names, a path or an NBD URI, as seen from here. A file whose
    /// format is not said is opened to find out, and the URI of an export is taken as it is.
    ///
    /// # Errors
    /// Those of opening the file: `NotFound`, `Denied` for backing files outside its folder that
    /// `backing` does not allow, `Busy` while somebody writes it.
    pub fn locate(
        address: &str,
        format: Option<ImageFormat>,
        backing: &BackingPolicy,
    ) -> Result<Self> {
        if is_uri(address) {
            let uri: Uri = address.parse()?;
            let transport = match uri.transport {
                Transport::Unix(socket) => Transport::Unix(absolute(&socket)?),
                tcp @ Transport::Tcp { .. } => tcp,
            };
            let address = Uri { transport, ..uri }.to_string();
            return Ok(Self { address, format: None, allow_backing: Vec::new() });
        }
        let path = canonical(Path::new(address))?;
        let options = ImageOptions { format, backing: backing.clone(), ..ImageOptions::reading() };
        let format = DiskImage::open(&path, &options)?.format();
        let allow_backing = match backing {
            BackingPolicy::SameFolder => Vec::new(),
            BackingPolicy::Any => vec![ANY.to_owned()],
            BackingPolicy::Folders(folders) => folders
                .iter()
                .map(|folder| canonical(folder).and_then(|folder| text(&folder)))
                .collect::<Result<_>>()?,
        };
        Ok(Self { address: text(&path)?, format: Some(format.to_string()), allow_backing })
    }

    /// Whether it is reached by way of a server.
    pub(crate) fn is_remote(&self) -> bool {
        is_uri(&self.address)
    }

    /// Opens it for reading; a file also under the lock that keeps writers away.
    pub(crate) fn open(&self) -> Result<Arc<dyn BlockDevice>> {
        open_image(&self.address, &self.options(true)?)
    }

    /// How a file of this name is opened.
    pub(super) fn options(&self, read_only: bool) -> Result<ImageOptions> {
        let format = match &self.format {
            Some(format) => Some(format.parse()?),
            None if self.is_remote() => None,
            None => {
                let problem = "is an origin without a format";
                return Err(Error::new(ErrorKind::Invalid, &*self.address, problem)
                    .advise("say raw, qcow2 or vhd: it is not guessed"));
            }
        };
        let backing = match self.allow_backing.as_slice() {
            [] => BackingPolicy::SameFolder,
            folders if folders.iter().any(|folder| folder == ANY) => BackingPolicy::Any,
            folders => BackingPolicy::Folders(folders.iter().map(PathBuf::from).collect()),
        };
        Ok(ImageOptions { format, read_only, backing, ..ImageOptions::reading() })
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| {
        Error::io(path.display().to_string(), "cannot be made an absolute path", error)
    })
}

fn canonical(path: &Path) -> Result<PathBuf> {
    path.canonicalize()
        .map_err(|error| Error::io(path.display().to_string(), "cannot be reached", error))
}

/// A path as the names keep it.
fn text(path: &Path) -> Result<String> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        let problem = "is no text in UTF-8, and cannot be noted among the names of a pool";
        Error::new(ErrorKind::Unsupported, path.display().to_string(), problem)
            .advise("reach it by another name, by a link if need be")
    })
}
