//! Naming another backing file.

use std::ffi::OsString;

use block_io::BlockDevice;
use block_types::{ByteOffset, Error, ErrorKind, Result};

use super::bytes::write_any;
use super::extension::name_bytes;
use super::header::{Header, SECTOR_ZERO};
use super::header_layout::HeaderChange;
use super::image::{Gate, Image};
use super::layout::extension;
use super::stage::Stage;

/// A backing file as an image names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingName {
    /// Its path.
    pub file: OsString,
    /// Its format.
    pub format: OsString,
}

impl Image {
    /// Makes `backing` what the image says it stands on, or has it say that it stands on nothing.
    /// Durable when it returns, after everything that was written before; after a crash the image
    /// names the old one or the new one.
    ///
    /// The device that the image was opened over stays the one that it reads: who changes the name
    /// sees to it that both read the same.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the name does not fit; [`ErrorKind::Invalid`] for an image
    /// with a raw data file, which stands alone; those of the file.
    pub fn set_backing(&self, backing: Option<&BackingName>) -> Result<()> {
        self.state()?;
        if backing.is_some() && self.header.read().data_file_raw() {
            let problem = "has a raw data file, which cannot stand on another";
            return Err(Error::new(ErrorKind::Invalid, self.name(), problem));
        }
        self.prepare_tables()?;
        // What the name is to stand for has been written, and is flushed before the header changes.
        self.alone(Gate::Reads, || {
            let mut header = self.header.write();
            let mut next = header.clone();
            let change = next.rename_backing(&header, self.name(), backing)?;
            self.flip(&mut Stage::default(), change)?;
            *header = next;
            Ok(())
        })
    }
}

/// The same for an image that is not open for writing.
///
/// # Errors
/// Likewise.
pub fn set_backing(file: &dyn BlockDevice, backing: Option<&BackingName>) -> Result<()> {
    let old = Header::read(file)?;
    let change = old.clone().rename_backing(&old, file.name(), backing)?;
    let write = |bytes: &[u8], at| write_any(file, bytes, at).and_then(|()| file.flush());
    if let Some((at, bytes)) = change.ahead {
        write(&bytes, at)?;
    }
    write(&change.sector, ByteOffset::ZERO)?;
    if let Some((names, sector)) = change.names {
        write(&names, ByteOffset::new(SECTOR_ZERO as u64))?;
        write(&sector, ByteOffset::ZERO)?;
    }
    Ok(())
}

impl Header {
    /// Changes the backing file's name, and says what has to be written for it.
    fn rename_backing(
        &mut self,
        old: &Self,
        object: &str,
        backing: Option<&BackingName>,
    ) -> Result<HeaderChange> {
        self.extensions = self.extensions.without(extension::BACKING_FORMAT);
        if let Some(backing) = backing {
            self.extensions.set(extension::BACKING_FORMAT, name_bytes(&backing.format));
        }
        self.backing = backing.map(|backing| backing.file.clone());
        self.change_from(old, object)
    }
}
