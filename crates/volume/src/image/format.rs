//! The formats of images, by name.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use block_types::{Error, ErrorKind, Result};

/// What an image is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// The bytes of the disk and nothing else.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
    /// Microsoft's and XenServer's; qemu-img calls it `vpc`.
    Vhd,
}

impl ImageFormat {
    /// The name that qemu-img has for it, and that images use for their backing files.
    pub const fn qemu_name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vpc",
        }
    }

    /// The format that the name of a file promises.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a name that promises none.
    pub fn of_name(path: &Path) -> Result<Self> {
        let suffix = path.extension().unwrap_or_default();
        match suffix.to_str() {
            Some("raw" | "img") => Ok(Self::Raw),
            Some("qcow2") => Ok(Self::Qcow2),
            Some("vhd" | "vpc") => Ok(Self::Vhd),
            _ => {
                let problem = "does not say by its name what format it is to have";
                Err(Error::new(ErrorKind::Invalid, path.display().to_string(), problem)
                    .advise("say raw, qcow2 or vhd, or call it .raw, .img, .qcow2 or .vhd"))
            }
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vhd => "vhd",
            other => other.qemu_name(),
        })
    }
}

impl FromStr for ImageFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            "vhd" | "vpc" => Ok(Self::Vhd),
            _ => Err(Error::new(ErrorKind::Invalid, format!("format '{text}'"), "is not known")
                .advise("say raw, qcow2 or vhd")),
        }
    }
}
