//! Finding out what format a file has.
//!
//! A file without a known beginning is raw, and whoever writes a raw disk chooses its beginning: a
//! guest can make its disk look like a qcow2 image that names any file of the host as its backing
//! file, and whoever probes again opens that. So what was not said to be raw is written only where
//! its name says so, and what is called raw is not believed to name other files.

use std::path::Path;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, Error, ErrorKind, Result, SECTOR};
use disk_image::vhd;

use super::ImageFormat;

/// How a qcow2 image begins.
const QCOW2: &[u8] = b"QFI\xfb";

/// How images begin that Firn does not read, and what they are: none of them is raw.
const OTHERS: &[(&[u8], &str)] = &[
    (b"KDMV", "a VMDK image"),
    (b"COWD", "a VMDK image"),
    (b"vhdxfile", "a VHDX image"),
    (b"QED\0", "a QED image"),
];

/// The format that `file` seems to have.
///
/// # Errors
/// Those of the file; [`ErrorKind::Unsupported`] for the formats of others.
pub(super) fn probe(file: &dyn BlockDevice) -> Result<ImageFormat> {
    let unit = file.limits().minimum.get().max(SECTOR);
    let mut head = vec![0; ByteCount::new(unit).min(file.size()).as_usize()];
    file.read_at(&mut head, ByteOffset::ZERO)?;
    if head.starts_with(QCOW2) {
        return Ok(ImageFormat::Qcow2);
    }
    if let Some((_, what)) = OTHERS.iter().find(|(magic, _)| head.starts_with(magic)) {
        let problem = format!("is {what}, which Firn does not read");
        return Err(Error::new(ErrorKind::Unsupported, file.name(), problem)
            .advise("convert it with 'qemu-img convert' to qcow2"));
    }
    Ok(if vhd::probe(file)? { ImageFormat::Vhd } else { ImageFormat::Raw })
}

/// Whether the name of a file says that it is raw.
pub(super) fn is_called_raw(path: &Path) -> bool {
    ImageFormat::of_name(path).is_ok_and(|format| format == ImageFormat::Raw)
}

/// The refusal to write what was only found to be raw.
pub(super) fn refuse_to_write(path: &Path) -> Error {
    let problem = "has no known format, and is not written as raw on a guess: who writes it could \
                   make it look like another format next time, and name files of the host";
    Error::new(ErrorKind::Denied, path.display().to_string(), problem)
        .advise("say '-f raw', or call it .raw or .img")
}

/// The refusal to follow what a file says that is called raw.
pub(super) fn refuse_to_follow(path: &Path, format: ImageFormat) -> Error {
    let problem = format!(
        "is called raw, but begins like a {format} image that names another file: \
         perhaps a guest wrote that"
    );
    Error::new(ErrorKind::Denied, path.display().to_string(), problem)
        .advise(format!("say '-f raw' if it is raw, '-f {format}' if you trust it"))
}

#[cfg(test)]
mod tests {
    use super::{is_called_raw, probe};
    use crate::ImageFormat;
    use block_io::{BlockDevice, MemoryDevice};
    use block_types::{ByteCount, ByteOffset, ErrorKind};
    use std::path::Path;

    fn probed(head: &[u8], size: u64) -> block_types::Result<ImageFormat> {
        let file = MemoryDevice::new("file", ByteCount::new(size));
        file.write_at(head, ByteOffset::ZERO).expect("written");
        probe(&file)
    }

    #[test]
    fn what_is_not_known_is_raw() {
        assert_eq!(probed(b"", 0).expect("probed"), ImageFormat::Raw);
        assert_eq!(probed(b"QFI", 3).expect("probed"), ImageFormat::Raw);
        assert_eq!(probed(b"conectix", 4096).expect("probed"), ImageFormat::Raw);
        assert_eq!(probed(b"QFI\xfb", 4096).expect("probed"), ImageFormat::Qcow2);
        let error = probed(b"vhdxfile", 4096).expect_err("not read");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn names_that_say_raw() {
        assert!(is_called_raw(Path::new("a/b.raw")) && is_called_raw(Path::new("disk.img")));
        assert!(!is_called_raw(Path::new("img")) && !is_called_raw(Path::new("disk.qcow2")));
    }
}
