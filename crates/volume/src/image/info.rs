//! What an image says of itself, under the names that qemu-img has for it.

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode};
use block_types::{Error, Result};
use disk_image::qcow2::{self, Compression, Encryption};
use disk_image::vhd::{self, VhdImage};
use serde::{Deserialize, Serialize};

use super::chain::open_file;
use super::gate::has_protocol;
use super::{ImageBitmap, ImageFormat};

/// What an image says of itself. Sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// The file, as it was named.
    pub filename: String,
    /// The format, as qemu-img calls it.
    pub format: &'static str,
    /// The size of the disk.
    pub virtual_size: u64,
    /// The space that the file takes.
    pub actual_size: u64,
    /// The unit in which the format gives space to the disk; none for a raw image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// Whether it was not closed, and its reference counts are to be made up for.
    pub dirty_flag: bool,
    /// Whether its data are encrypted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
    /// What it stands on, as it says itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename: Option<String>,
    /// The same as a path; it was not looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_backing_filename: Option<String>,
    /// The format of that, if it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename_format: Option<String>,
    /// Its internal snapshots.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<ImageSnapshot>,
    /// What only its format has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format_specific: Option<FormatSpecific>,
}

/// What only one format has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "lowercase")]
pub enum FormatSpecific {
    /// Of a qcow2 image.
    #[serde(rename_all = "kebab-case")]
    Qcow2 {
        /// The version of the format as QEMU's: 0.10 for 2, 1.1 for 3.
        compat: &'static str,
        /// How compressed clusters are compressed.
        compression_type: &'static str,
        /// Whether reference counts may be postponed.
        lazy_refcounts: bool,
        /// Bits of a reference count.
        refcount_bits: u32,
        /// Whether somebody found it corrupt.
        corrupt: bool,
        /// Whether clusters have subclusters.
        extended_l2: bool,
        /// The external data file, as the image names it.
        #[serde(skip_serializing_if = "Option::is_none")]
        data_file: Option<String>,
        /// Whether that alone is a raw image of the disk.
        #[serde(skip_serializing_if = "Option::is_none")]
        data_file_raw: Option<bool>,
        /// Its persistent dirty bitmaps.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        bitmaps: Vec<ImageBitmap>,
        /// How its data are encrypted.
        #[serde(skip_serializing_if = "Option::is_none")]
        encrypt: Option<EncryptionInfo>,
    },
    /// Of a VHD.
    #[serde(rename = "vpc", rename_all = "kebab-case")]
    Vhd {
        /// fixed, dynamic or differencing.
        subformat: &'static str,
        /// Its UUID, which children name.
        id: String,
        /// Whether it is an inner node, not for users (XenServer).
        hidden: bool,
        /// The UUID of its parent.
        #[serde(skip_serializing_if = "Option::is_none")]
        parent_id: Option<String>,
    },
}

/// How the data of an image are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct EncryptionInfo {
    /// luks, or aes for QEMU's old scheme.
    pub format: &'static str,
}

/// An internal snapshot. Sizes are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageSnapshot {
    /// Unique in its image.
    pub id: String,
    /// What the user called it.
    pub name: String,
    /// The size of the disk then.
    pub disk_size: u64,
    /// The size of the virtual machine's state.
    pub vm_state_size: u64,
    /// When it was taken, in seconds since 1970.
    pub date_sec: u64,
    /// And nanoseconds.
    pub date_nsec: u32,
    /// How long the machine had been running, in seconds.
    pub vm_clock_sec: u64,
    /// And nanoseconds.
    pub vm_clock_nsec: u32,
    /// Instructions of a machine that is replayed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icount: Option<u64>,
}

impl ImageInfo {
    /// What the image at `path` says of itself. Nothing but that file is opened, whatever it says,
    /// and no lock is taken.
    ///
    /// # Errors
    /// Those of the file and of its format.
    pub fn read(path: &Path, format: Option<ImageFormat>) -> Result<Self> {
        let (format, file) = open_file(path, format, true, CacheMode::Cached)?;
        let mut info = Self::of_file(path, format, &*file)?;
        match format {
            ImageFormat::Raw => {}
            ImageFormat::Qcow2 => info.add_qcow2(path, &file)?,
            ImageFormat::Vhd => info.add_vhd(path, &file)?,
        }
        Ok(info)
    }

    /// What there is to say of any file.
    fn of_file(path: &Path, format: ImageFormat, file: &dyn BlockDevice) -> Result<Self> {
        let name = path.display().to_string();
        let found = path
            .metadata()
            .map_err(|error| Error::io(name.clone(), "cannot be examined", error))?;
        Ok(Self {
            filename: name,
            format: format.qemu_name(),
            virtual_size: file.size().get(),
            actual_size: found.blocks() * 512,
            cluster_size: None,
            dirty_flag: false,
            encrypted: false,
            backing_filename: None,
            full_backing_filename: None,
            backing_filename_format: None,
            snapshots: Vec::new(),
            format_specific: None,
        })
    }

    fn add_qcow2(&mut self, path: &Path, file: &Arc<dyn BlockDevice>) -> Result<()> {
        let header = qcow2::Header::read(&**file)?;
        let text = |name: OsString| name.to_string_lossy().into_owned();
        self.virtual_size = header.size().get();
        self.cluster_size = Some(header.cluster_size().get());
        self.dirty_flag = header.is_dirty();
        self.encrypted = header.encryption().is_some();
        self.add_backing(path, header.backing_file().map(text), header.backing_format().map(text));
        self.snapshots = qcow2::snapshots(&**file)?.iter().map(ImageSnapshot::from).collect();
        self.format_specific = Some(FormatSpecific::Qcow2 {
            compat: if header.version() == 2 { "0.10" } else { "1.1" },
            compression_type: match header.compression() {
                Compression::Zlib => "zlib",
                Compression::Zstd => "zstd",
            },
            lazy_refcounts: header.lazy_refcounts(),
            refcount_bits: header.refcount_bits(),
            corrupt: header.is_corrupt(),
            extended_l2: header.extended_l2(),
            data_file: header.data_file().map(text),
            data_file_raw: header.has_data_file().then(|| header.data_file_raw()),
            bitmaps: qcow2::bitmaps(&**file)?.iter().map(ImageBitmap::from).collect(),
            encrypt: header.encryption().map(|encryption| EncryptionInfo {
                format: match encryption {
                    Encryption::Aes => "aes",
                    Encryption::Luks => "luks",
                },
            }),
        });
        Ok(())
    }

    fn add_vhd(&mut self, path: &Path, file: &Arc<dyn BlockDevice>) -> Result<()> {
        let options = vhd::OpenOptions { read_only: true, ..vhd::OpenOptions::default() };
        let info = VhdImage::open(Arc::clone(file), None, options)?.info()?;
        self.virtual_size = info.size.get();
        self.cluster_size = info.sparse.map(|sparse| sparse.block_size.bytes().get());
        let parent_id = info.parent.as_ref().and_then(|parent| parent.id);
        if let Some(parent) = &info.parent {
            let located = parent.locators.iter().find_map(vhd::Locator::relative_path);
            let format = if parent_id.is_some() { ImageFormat::Vhd } else { ImageFormat::Raw };
            let name = located.unwrap_or_else(|| parent.name.clone());
            self.add_backing(path, Some(name), Some(format.qemu_name().to_owned()));
        }
        self.format_specific = Some(FormatSpecific::Vhd {
            subformat: match info.kind {
                vhd::Kind::Fixed => "fixed",
                vhd::Kind::Dynamic => "dynamic",
                vhd::Kind::Differencing => "differencing",
            },
            id: info.id.to_string(),
            hidden: info.hidden,
            parent_id: parent_id.map(|id| id.to_string()),
        });
        Ok(())
    }

    fn add_backing(&mut self, path: &Path, name: Option<String>, format: Option<String>) {
        let folder = path.parent().unwrap_or(Path::new(""));
        self.full_backing_filename = name.as_ref().map(|name| match has_protocol(name.as_ref()) {
            true => name.clone(),
            false => folder.join(name).display().to_string(),
        });
        self.backing_filename = name;
        self.backing_filename_format = format;
    }
}
