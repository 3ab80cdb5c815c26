//! Making an image.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result, SECTOR};
use disk_image::qcow2;
use disk_image::vhd::{self, Content, DiskId, ParentLink, Timestamp, VhdImage};
use uuid::Uuid;

use super::chain::open_file;
use super::gate::folder_of;
use super::{ImageFormat, ImageInfo, ImageSettings};
use crate::NewFile;

/// What image to make.
#[derive(Clone, Debug)]
pub struct CreateImage {
    /// In which format.
    pub format: ImageFormat,
    /// The size of the disk; without it, that of the backing file.
    pub size: Option<ByteCount>,
    /// What it stands on, as the image is to name it, relative to its own folder; and its format.
    pub backing: Option<(String, ImageFormat)>,
    /// The options of the format.
    pub settings: ImageSettings,
    /// What is to open it, if it is to be encrypted.
    pub secret: Option<qcow2::Secret>,
}

/// Makes an image at `path`, where there must be nothing yet, and returns the size of its disk. Of
/// a backing file only its own size is looked at.
///
/// # Errors
/// [`ErrorKind::Exists`]; [`ErrorKind::Invalid`] for what the format cannot be; those of the files.
/// Nothing is left behind then.
pub fn create_image(path: &Path, wanted: &CreateImage) -> Result<ByteCount> {
    let new = NewFile::create(path, false)?;
    let size = fill_image(new.path(), wanted)?;
    new.publish()?;
    Ok(size)
}

/// Makes an image of the empty file at `path`, like [`create_image`]: to be filled before it has
/// its name.
///
/// # Errors
/// Likewise.
pub fn fill_image(path: &Path, wanted: &CreateImage) -> Result<ByteCount> {
    let size = disk_size(path, wanted)?;
    let options = FileOptions { cache: CacheMode::Cached, read_only: false };
    let file: Arc<dyn BlockDevice> = Arc::new(HostFile::open(path, options)?);
    match wanted.format {
        ImageFormat::Raw => fill_raw(path, &*file, size, wanted)?,
        ImageFormat::Qcow2 => fill_qcow2(path, &file, size, wanted)?,
        ImageFormat::Vhd => fill_vhd(path, &*file, size, wanted)?,
    }
    Ok(size)
}

/// The size that was asked for, in whole sectors, or that of the backing file.
fn disk_size(path: &Path, wanted: &CreateImage) -> Result<ByteCount> {
    let size = match (wanted.size, &wanted.backing) {
        (Some(size), _) => size.get(),
        (None, Some((name, format))) => {
            ImageInfo::read(&folder_of(path).join(name), Some(*format))?.virtual_size
        }
        (None, None) => {
            let object = path.display().to_string();
            return Err(Error::new(ErrorKind::Invalid, object, "is to have no size")
                .advise("say how large it is to be, as in 20G, or name a backing file"));
        }
    };
    Ok(ByteCount::from_sectors(size.div_ceil(SECTOR)))
}

fn fill_raw(
    path: &Path,
    file: &dyn BlockDevice,
    size: ByteCount,
    wanted: &CreateImage,
) -> Result<()> {
    if wanted.backing.is_some() {
        let object = path.display().to_string();
        return Err(Error::new(ErrorKind::Invalid, object, "is raw, and stands on nothing")
            .advise("make it a qcow2 image with '-f qcow2'"));
    }
    let provisioned = wanted.settings.provisioned_raw()?;
    file.resize(size)?;
    if provisioned {
        file.provision(ByteRange::new(ByteOffset::ZERO, size))?;
    }
    file.flush()
}

fn fill_qcow2(
    path: &Path,
    file: &Arc<dyn BlockDevice>,
    size: ByteCount,
    wanted: &CreateImage,
) -> Result<()> {
    let mut options = qcow2::CreateOptions::new(size);
    wanted.settings.apply_to_qcow2(&mut options)?;
    if let Some(encryption) = &mut options.encryption {
        encryption.secret = wanted.secret.clone().ok_or_else(|| {
            let object = path.display().to_string();
            Error::new(ErrorKind::Invalid, object, "is to be encrypted, and has no secret")
                .advise("name the file that holds its secret with --secret-file")
        })?;
        encryption.uuid = Uuid::new_v4().to_string();
    }
    let backing = wanted.backing.as_ref();
    options.backing = backing.map(|(name, format)| (name.into(), format.qemu_name().into()));
    let Some(name) = &options.data_file else {
        return qcow2::create(file, None, &options);
    };
    let data_path = folder_of(path).join(name);
    let data = HostFile::create(&data_path, ByteCount::ZERO, CacheMode::Cached)?;
    let data: Arc<dyn BlockDevice> = Arc::new(data);
    qcow2::create(file, Some(&data), &options).inspect_err(|_| {
        // It was made for this image alone; why that could not be made matters more.
        let _ = std::fs::remove_file(&data_path);
    })
}

fn fill_vhd(
    path: &Path,
    file: &dyn BlockDevice,
    size: ByteCount,
    wanted: &CreateImage,
) -> Result<()> {
    let fixed = wanted.settings.fixed_vhd()?;
    let now = Timestamp::of(SystemTime::now());
    let id = DiskId::new(Uuid::new_v4().into_bytes());
    let mut options = vhd::CreateOptions::new(size, id, now);
    options.content = match &wanted.backing {
        None if fixed => Content::Fixed,
        None => Content::Dynamic,
        Some(_) if fixed => {
            let object = path.display().to_string();
            let problem = "is to be fixed, and to stand on another";
            return Err(Error::new(ErrorKind::Invalid, object, problem)
                .advise("leave subformat=fixed out, or the backing file"));
        }
        Some((name, format)) => Content::Differencing(parent_link(path, name, *format)?),
    };
    vhd::create(file, &options)
}

/// How a VHD at `path` names its parent `name`.
fn parent_link(path: &Path, name: &str, format: ImageFormat) -> Result<ParentLink> {
    let parent = folder_of(path).join(name);
    let refused = |problem: &str, advice: &str| {
        Err(Error::new(ErrorKind::Invalid, parent.display().to_string(), problem).advise(advice))
    };
    if Path::new(name).is_absolute() {
        return refused(
            "is an absolute path, and VHDs name their parents relative to themselves",
            "name it relative to the new image",
        );
    }
    let id = match format {
        ImageFormat::Raw => None,
        ImageFormat::Vhd => {
            let (_, file) = open_file(&parent, Some(format), true, CacheMode::Cached)?;
            let options = vhd::OpenOptions { read_only: true, ..vhd::OpenOptions::default() };
            Some(VhdImage::open(file, None, options)?.id())
        }
        ImageFormat::Qcow2 => {
            return refused(
                "is a qcow2 image, and VHDs stand on VHDs or raw images only",
                "make the new image a qcow2 image, too",
            );
        }
    };
    let modified = parent
        .metadata()
        .and_then(|found| found.modified())
        .map_err(|error| Error::io(parent.display().to_string(), "cannot be examined", error))?;
    Ok(ParentLink { id, modified: Timestamp::of(modified), path: name.to_owned() })
}
