//! Following a chain of images from the topmost down: files, formats, and what they name.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{Error, ErrorKind, Result, SECTOR};
use disk_image::{qcow2, vhd};

use super::lock::ImageLock;
use super::probe::{is_called_raw, probe, refuse_to_follow, refuse_to_write};
use super::{BackingPolicy, ImageFormat, ImageOptions};
use crate::cow::check_plain;

/// The most backing files under an image. Every one of them costs descriptors, and a read that ends
/// in the lowest goes through all the others.
const DEEPEST: usize = 256;

/// A file of a chain, open, and what is known of it.
pub(super) struct Link {
    pub(super) path: PathBuf,
    pub(super) format: ImageFormat,
    pub(super) file: Arc<dyn BlockDevice>,
    /// The external data file of a qcow2 image.
    pub(super) data: Option<Arc<dyn BlockDevice>>,
    /// What opens it, if it is encrypted.
    pub(super) secret: Option<qcow2::Secret>,
    /// Of the file, and of the data file.
    pub(super) locks: Vec<ImageLock>,
}

/// What an image says is below it.
struct Below {
    /// Its names, the best first: one will do.
    names: Vec<OsString>,
    /// Its format, if that is said.
    format: Option<ImageFormat>,
}

/// Opens the files of the chain under `path`, that one first.
///
/// # Errors
/// [`ErrorKind::Denied`] for what the policy does not let; [`ErrorKind::Corrupt`] for loops and for
/// more than 256 backing files; those of the files and of the formats.
pub(super) fn walk(path: &Path, options: &ImageOptions) -> Result<Vec<Link>> {
    let top = open_link(path, options.format, options.read_only, options)?;
    let mut seen = HashSet::from([identity(path)?]);
    let mut links = vec![top];
    loop {
        let last = &links[links.len() - 1];
        let Some(below) = below(last)? else { return Ok(links) };
        let object = || last.path.display().to_string();
        if links.len() > DEEPEST {
            let problem = format!("has more than {DEEPEST} backing files below it");
            return Err(Error::new(ErrorKind::Corrupt, path.display().to_string(), problem)
                .advise("flatten the chain with 'qemu-img rebase' or 'qemu-img commit'"));
        }
        let found = admit(&below.names, &last.path, &options.backing)?;
        if !seen.insert(identity(&found)?) {
            let problem = format!("stands on {}, which stands on it", found.display());
            return Err(Error::new(ErrorKind::Corrupt, object(), problem)
                .advise("give one of them another backing file with 'qemu-img rebase -u'"));
        }
        let next = open_link(&found, below.format, true, options)
            .map_err(|error| error.within(&object()))?;
        links.push(next);
    }
}

/// The first of `names` that exists and may be opened, or what is wrong with the first.
fn admit(names: &[OsString], image: &Path, policy: &BackingPolicy) -> Result<PathBuf> {
    let mut first = None;
    for name in names {
        match policy.admit(name, image) {
            Ok(path) => return Ok(path),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| {
        let problem = "has a parent, and does not say where";
        Error::new(ErrorKind::NotFound, image.display().to_string(), problem)
    }))
}

/// Opens one file; its format is `said`, or found out.
fn open_link(
    path: &Path,
    said: Option<ImageFormat>,
    read_only: bool,
    options: &ImageOptions,
) -> Result<Link> {
    check_plain(path, read_only)?;
    // Nothing is read before the lock is there: somebody may be changing it.
    let locks = take_lock(path, read_only, options)?;
    let (format, file) = open_file(path, said, read_only, options.cache)?;
    let (path_buf, secret) = (path.to_owned(), options.secret.clone());
    let mut link = Link { path: path_buf, format, file, data: None, secret, locks };
    let data = data_name(&link)?;
    let trusted = said.is_some() || !is_called_raw(path);
    if !trusted && (data.is_some() || below(&link)?.is_some()) {
        return Err(refuse_to_follow(path, format));
    }
    if let Some(name) = data {
        let data = options.backing.admit(&name, path)?;
        // Its lock keeps it from being another file of this chain, too, if it is written.
        link.locks.extend(take_lock(&data, read_only, options)?);
        let file = HostFile::open(&data, FileOptions { cache: options.cache, read_only })?;
        link.data = Some(Arc::new(file));
    }
    Ok(link)
}

/// The lock of a file, unless that is to be read whoever writes it.
fn take_lock(path: &Path, read_only: bool, options: &ImageOptions) -> Result<Vec<ImageLock>> {
    if read_only && options.force_share {
        return Ok(Vec::new());
    }
    ImageLock::take(path, read_only).map(|lock| vec![lock])
}

/// Opens a file as what it is `said` to be, or as what it seems to be.
pub(super) fn open_file(
    path: &Path,
    said: Option<ImageFormat>,
    read_only: bool,
    cache: CacheMode,
) -> Result<(ImageFormat, Arc<dyn BlockDevice>)> {
    let file = HostFile::open(path, FileOptions { cache, read_only })?;
    let format = match said {
        Some(format) => format,
        None => probe(&file)?,
    };
    if format == ImageFormat::Raw && said.is_none() && !read_only && !is_called_raw(path) {
        return Err(refuse_to_write(path));
    }
    if format == ImageFormat::Vhd && file.alignment().get() > SECTOR {
        // It is written by the sector, which O_DIRECT does not do here.
        let cached = FileOptions { cache: CacheMode::Cached, read_only };
        return Ok((format, Arc::new(HostFile::open(path, cached)?)));
    }
    Ok((format, Arc::new(file)))
}

/// What the image of `link` calls its external data file, if it has one.
fn data_name(link: &Link) -> Result<Option<OsString>> {
    if link.format != ImageFormat::Qcow2 {
        return Ok(None);
    }
    Ok(qcow2::Header::read(&*link.file)?.data_file())
}

/// What the image of `link` stands on.
fn below(link: &Link) -> Result<Option<Below>> {
    match link.format {
        ImageFormat::Raw => Ok(None),
        ImageFormat::Qcow2 => {
            let header = qcow2::Header::read(&*link.file)?;
            let Some(name) = header.backing_file() else { return Ok(None) };
            let format = header.backing_format();
            let format =
                format.as_deref().map(|format| backing_format(link, format)).transpose()?;
            Ok(Some(Below { names: vec![name], format }))
        }
        ImageFormat::Vhd => {
            let Some(parent) = vhd::probe_parent(&*link.file)? else { return Ok(None) };
            // A raw parent has no UUID (XenServer); anything with one is a VHD.
            let format = if parent.id.is_some() { ImageFormat::Vhd } else { ImageFormat::Raw };
            Ok(Some(Below { names: parent_names(&parent), format: Some(format) }))
        }
    }
}

/// The format of a backing file as the image calls it.
fn backing_format(link: &Link, name: &OsStr) -> Result<ImageFormat> {
    name.to_string_lossy().parse().map_err(|_: Error| {
        let problem = format!("stands on a backing file of format '{}'", name.display());
        Error::new(ErrorKind::Unsupported, link.path.display().to_string(), problem)
            .advise("Firn reads raw, qcow2 and vpc below an image")
    })
}

/// What a VHD calls its parent, the most likely name first.
fn parent_names(parent: &vhd::ParentInfo) -> Vec<OsString> {
    let located = parent.locators.iter().filter_map(vhd::Locator::relative_path);
    let mut names: Vec<OsString> = Vec::new();
    for name in located.chain([parent.name.clone()]).filter(|name| !name.is_empty()) {
        if !names.iter().any(|known| *known == *name) {
            names.push(name.into());
        }
    }
    names
}

/// What tells a file from all others, whatever it is called.
fn identity(path: &Path) -> Result<(u64, u64)> {
    let found = path
        .metadata()
        .map_err(|error| Error::io(path.display().to_string(), "cannot be examined", error))?;
    Ok((found.dev(), found.ino()))
}
