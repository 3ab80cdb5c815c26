//! Options of an image changed.

use std::path::Path;

use block_io::CacheMode;
use block_types::{Error, ErrorKind, Result};
use disk_image::qcow2;

use super::chain;
use super::open::Opened;
use super::{ImageFormat, ImageOptions, ImageSettings};

/// Changes options of the qcow2 image at `path`, which nobody else uses.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for other formats, and for what version 2 does not know;
/// [`ErrorKind::Invalid`] for options that are not to be had.
pub fn amend_image(path: &Path, options: &ImageOptions, settings: &ImageSettings) -> Result<()> {
    let what = settings.amendment()?;
    let options = ImageOptions { cache: CacheMode::Cached, read_only: false, ..options.clone() };
    let mut links = chain::walk(path, &options)?;
    let mut below = None;
    let mut locks = Vec::new();
    while links.len() > 1
        && let Some(mut link) = links.pop()
    {
        below = Some(Opened::open(&link, below.as_ref(), true)?);
        locks.append(&mut link.locks);
    }
    let top = &links[0];
    if top.format != ImageFormat::Qcow2 {
        let problem = format!("is a {} image, which has nothing to amend", top.format);
        return Err(Error::new(ErrorKind::Unsupported, path.display().to_string(), problem));
    }
    let open = qcow2::OpenOptions {
        backing: below.as_ref().map(Opened::device),
        data: top.data.clone(),
        secret: top.secret.clone(),
        ..qcow2::OpenOptions::default()
    };
    qcow2::amend(&top.file, &open, what)
}
