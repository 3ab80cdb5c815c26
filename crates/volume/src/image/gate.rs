//! GATED-OPEN: which of the paths that are written inside images are followed.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use block_types::{Error, ErrorKind, Result};

/// Which files an image may name as its backing file, its parent or its data file.
///
/// Paths are judged after links are resolved. URIs, other protocols and `json:` are never followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BackingPolicy {
    /// Those in the folder of the image that names them, or below it.
    #[default]
    SameFolder,
    /// Those, and the ones in these folders or below them.
    Folders(Vec<PathBuf>),
    /// Any file of the host.
    Any,
}

impl BackingPolicy {
    /// The file that the image at `image` calls `name`, if it may be opened: an absolute path
    /// without links. A relative name is relative to the image's folder.
    ///
    /// # Errors
    /// [`ErrorKind::Denied`] for what may not; [`ErrorKind::NotFound`].
    pub(super) fn admit(&self, name: &OsStr, image: &Path) -> Result<PathBuf> {
        let refused = |problem: &str, advice: &str| {
            let problem = format!("names '{}', {problem}", name.display());
            Err(Error::new(ErrorKind::Denied, image.display().to_string(), problem).advise(advice))
        };
        if has_protocol(name) {
            return refused(
                "which is no path, and nothing else is followed",
                "make it a path with 'qemu-img rebase -u'",
            );
        }
        let folder = canonical(folder_of(image), image)?;
        let path = canonical(&folder.join(name), image)?;
        if self.allows(&path, &folder, image)? {
            return Ok(path);
        }
        refused(
            &format!("that is {}, outside its folder", path.display()),
            "if you trust the image, let it: --allow-backing FOLDER, or --allow-backing any",
        )
    }

    fn allows(&self, path: &Path, folder: &Path, image: &Path) -> Result<bool> {
        match self {
            _ if path.starts_with(folder) => Ok(true),
            Self::SameFolder => Ok(false),
            Self::Any => Ok(true),
            Self::Folders(folders) => {
                for folder in folders {
                    if path.starts_with(canonical(folder, image)?) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }
}

/// The folder of a file.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Whether QEMU would take `name` for something else than a path: a colon before the first slash.
pub(super) fn has_protocol(name: &OsStr) -> bool {
    let first = name.as_bytes().iter().find(|byte| matches!(byte, b':' | b'/'));
    first == Some(&b':')
}

fn canonical(path: &Path, image: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|error| {
        let doing = format!("needs '{}', which cannot be reached", path.display());
        Error::io(image.display().to_string(), doing, error)
    })
}

#[cfg(test)]
mod tests {
    use super::{BackingPolicy, has_protocol};
    use block_types::ErrorKind;
    use std::ffi::OsStr;
    use std::fs;
    use std::path::Path;

    #[test]
    fn protocols_have_a_colon_before_the_first_slash() {
        for name in ["json:{}", "nbd://host", "nbd:unix:/x", "file:x", "C:\\x", ":"] {
            assert!(has_protocol(OsStr::new(name)), "{name}");
        }
        for name in ["a", "./a:b", "/a:b", "", "a/b:c"] {
            assert!(!has_protocol(OsStr::new(name)), "{name}");
        }
    }

    /// What the image `vm/image` may open.
    fn admitted(policy: &BackingPolicy, root: &Path, name: &str) -> Result<(), ErrorKind> {
        let admitted = policy.admit(OsStr::new(name), &root.join("vm/image"));
        admitted.map(|_| ()).map_err(|error| error.kind())
    }

    #[test]
    fn only_what_lies_in_the_folder_unless_more_is_allowed() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path();
        fs::create_dir_all(root.join("vm/old")).expect("made");
        fs::create_dir_all(root.join("vm2")).expect("made");
        for file in ["vm/base", "vm/old/base", "vm2/base", "secret"] {
            fs::write(root.join(file), "").expect("written");
        }
        std::os::unix::fs::symlink(root.join("secret"), root.join("vm/link")).expect("linked");
        let secret = root.join("secret").display().to_string();
        let own = BackingPolicy::SameFolder;
        let inside = root.join("vm/base").display().to_string();
        for good in ["base", "./base", "old/base", "old/../base", &inside] {
            assert_eq!(admitted(&own, root, good), Ok(()), "{good}");
        }
        for bad in ["../secret", "../vm2/base", "link", "old/../../secret", &secret] {
            assert_eq!(admitted(&own, root, bad), Err(ErrorKind::Denied), "{bad}");
            assert_eq!(admitted(&BackingPolicy::Any, root, bad), Ok(()), "{bad}");
        }
        assert_eq!(admitted(&own, root, "none"), Err(ErrorKind::NotFound));
        let more = BackingPolicy::Folders(vec![root.join("vm2")]);
        assert_eq!(admitted(&more, root, "../vm2/base"), Ok(()));
        assert_eq!(admitted(&more, root, "../secret"), Err(ErrorKind::Denied));
        assert_eq!(admitted(&BackingPolicy::Any, root, "json:{}"), Err(ErrorKind::Denied));
    }
}
