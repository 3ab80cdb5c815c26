//! A file that has its name only once it is complete.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use block_types::{Error, ErrorKind, Result};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::create::sync_directory;

/// What is appended to the name of a file that is being written.
const UNFINISHED: &str = ".part";

/// A file that is being written as `NAME.part`. It is removed when this is dropped, unless it was
/// [published](NewFile::publish).
#[derive(Debug)]
pub struct NewFile {
    name: PathBuf,
    path: PathBuf,
    force: bool,
    published: bool,
}

impl NewFile {
    /// Begins the file `name`, which may exist only where `force` says that it is to be replaced.
    ///
    /// # Errors
    /// `Exists` for what is there already, an unfinished file among it; what the system says.
    pub fn create(name: &Path, force: bool) -> Result<Self> {
        check_free(name, force)?;
        let mut path = name.as_os_str().to_owned();
        path.push(UNFINISHED);
        let path = PathBuf::from(path);
        File::create_new(&path).map_err(|error| {
            let exists = error.kind() == std::io::ErrorKind::AlreadyExists;
            let error = Error::io(path.display().to_string(), "cannot be created", error);
            if exists {
                let advice = "another process is writing it, or was interrupted: then remove it";
                return error.advise(advice);
            }
            error
        })?;
        Ok(Self { name: name.to_owned(), path, force, published: false })
    }

    /// Where the file lies until it is published; it is there, and empty.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its name, durably. Its content has to be durable already.
    ///
    /// # Errors
    /// `Exists` if a file of this name has come up meanwhile; what the system says.
    pub fn publish(mut self) -> Result<()> {
        let flags = if self.force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        renameat_with(CWD, &self.path, CWD, &self.name, flags).map_err(|error| {
            let doing = format!("cannot be renamed to {}", self.name.display());
            Error::io(self.path.display().to_string(), doing, error.into())
        })?;
        self.published = true;
        match self.name.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => sync_directory(dir),
            _ => sync_directory(Path::new(".")),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.published {
            // It is left over if that fails, and the next who wants the name is told.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Checks that `name` may be taken.
fn check_free(name: &Path, force: bool) -> Result<()> {
    let Ok(found) = name.symlink_metadata() else { return Ok(()) };
    let refused = |problem, advice| {
        Err(Error::new(ErrorKind::Exists, name.display().to_string(), problem).advise(advice))
    };
    if !found.is_file() {
        return refused("is there, and is no regular file", "name another file");
    }
    if !force {
        return refused("is there already", "say --force to replace it, or name another file");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::NewFile;
    use block_types::ErrorKind;
    use std::fs;

    #[test]
    fn a_file_has_its_name_when_it_is_complete() {
        let dir = tempfile::tempdir().expect("a directory");
        let name = dir.path().join("dump");
        let file = NewFile::create(&name, false).expect("begun");
        fs::write(file.path(), "whole").expect("written");
        assert!(!name.exists());
        let error = NewFile::create(&name, false).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Exists);
        file.publish().expect("published");
        assert_eq!(fs::read_to_string(&name).expect("read"), "whole");

        let error = NewFile::create(&name, false).expect_err("refused");
        assert!(error.to_string().contains("--force"), "{error}");
        let path = NewFile::create(&name, true).expect("begun").path().to_owned();
        assert!(!path.exists(), "left behind");
        assert_eq!(fs::read_to_string(&name).expect("read"), "whole");
    }
}
