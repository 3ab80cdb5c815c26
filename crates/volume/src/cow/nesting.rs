//! Whether a file lies on a device: a store that lay on its own origin would be written by every
//! write to it, and copy what it copies.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use block_types::{Error, ErrorKind, Result};
use rustix::fs::{major, minor};

/// Devices stand on devices, but not on so many.
const DEEPEST: u32 = 16;

/// Refuses a store that is its origin, or lies on it.
///
/// # Errors
/// [`ErrorKind::Invalid`].
pub(super) fn check_apart(origin: &Path, store: &Path) -> Result<()> {
    let nested = Identity::of(store)?.stands_on(&Identity::of(origin)?, Path::new("/sys"), 0);
    if !nested {
        return Ok(());
    }
    let problem = format!("lies on {}, whose past it is to hold", origin.display());
    Err(Error::new(ErrorKind::Invalid, store.display().to_string(), problem)
        .advise("put the store on another disk"))
}

/// What a path is: a file on a device, or a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    File { device: u64, inode: u64 },
    Device(u64),
}

impl Identity {
    fn of(path: &Path) -> Result<Self> {
        let found = path
            .metadata()
            .map_err(|error| Error::io(path.display().to_string(), "cannot be found", error))?;
        Ok(if found.file_type().is_block_device() {
            Self::Device(found.rdev())
        } else {
            Self::File { device: found.dev(), inode: found.ino() }
        })
    }

    /// Whether this is `origin`, or lies on it, as the system at `sys` tells it.
    fn stands_on(self, origin: &Self, sys: &Path, depth: u32) -> bool {
        if self == *origin {
            return true;
        }
        if depth == DEEPEST {
            return false;
        }
        let device = match self {
            // The file system that it lies in.
            Self::File { device, .. } => {
                return Self::Device(device).stands_on(origin, sys, depth + 1);
            }
            Self::Device(device) => device,
        };
        let folder = sys.join(format!("dev/block/{}:{}", major(device), minor(device)));
        below(&folder).into_iter().any(|one| one.stands_on(origin, sys, depth + 1))
    }
}

/// What the device with this folder stands on: the disk of a partition, the parts of a mapped
/// device, the file of a loop device.
fn below(folder: &Path) -> Vec<Identity> {
    let mut found = Vec::new();
    if folder.join("partition").exists()
        && let Some(disk) = number(&folder.join("../dev"))
    {
        found.push(disk);
    }
    let slaves = fs::read_dir(folder.join("slaves")).into_iter().flatten().flatten();
    found.extend(slaves.filter_map(|slave| number(&slave.path().join("dev"))));
    if let Ok(file) = fs::read_to_string(folder.join("loop/backing_file")) {
        found.extend(Identity::of(&PathBuf::from(file.trim_end_matches('\n'))).ok());
    }
    found
}

/// The device whose numbers this file of the system has, as `8:1`.
fn number(file: &Path) -> Option<Identity> {
    let text = fs::read_to_string(file).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(Identity::Device(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::{Identity, check_apart};
    use rustix::fs::makedev;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    #[test]
    fn a_store_is_another_file_than_its_origin() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("origin"), "").expect("written");
        fs::write(path("store"), "").expect("written");
        fs::hard_link(path("origin"), path("hard")).expect("linked");
        symlink(path("origin"), path("soft")).expect("linked");
        check_apart(&path("origin"), &path("store")).expect("apart");
        for same in ["origin", "hard", "soft"] {
            assert!(check_apart(&path("origin"), &path(same)).is_err(), "{same}");
        }
    }

    /// The file system of a store on a partition of a disk, on a mapped device over that, and on a
    /// loop device whose file is the origin.
    #[test]
    fn what_lies_between_is_followed() {
        let sys = tempfile::tempdir().expect("a folder");
        let folder = |numbers: &str| sys.path().join("devices/disk").join(numbers);
        let put = |path: &Path, text: &str| {
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, text).expect("written");
        };
        let file = sys.path().join("origin.img");
        put(&file, "");
        put(&sys.path().join("devices/disk/dev"), "8:0\n");
        put(&folder("8:1").join("partition"), "1\n");
        put(&folder("253:0").join("slaves/sda1/dev"), "8:1\n");
        put(&folder("7:0").join("loop/backing_file"), &format!("{}\n", file.display()));
        fs::create_dir_all(sys.path().join("dev/block")).expect("made");
        for numbers in ["8:1", "253:0", "7:0"] {
            symlink(folder(numbers), sys.path().join("dev/block").join(numbers)).expect("linked");
        }
        let on = |device, origin: &Identity| {
            Identity::File { device, inode: 1 }.stands_on(origin, sys.path(), 0)
        };
        let disk = Identity::Device(makedev(8, 0));
        assert!(on(makedev(8, 0), &disk) && on(makedev(8, 1), &disk) && on(makedev(253, 0), &disk));
        assert!(!on(makedev(8, 16), &disk) && !on(makedev(7, 0), &disk));
        assert!(on(makedev(7, 0), &Identity::of(&file).expect("found")));
    }
}
