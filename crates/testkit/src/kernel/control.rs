//! The folder through which the host and the guest agree: scripts in, output out.
//!
//! ```text
//! boot.sh run.sh    the guest's first process, and what it goes on with inside the overlay
//! env.sh windows    variables for run.sh; the shared folders, one a line
//! script            the caller's
//! d0 d1 .. v0 ..    links to the disks and sockets, so that no odd name reaches a command line
//! out err status    what the serial lines brought
//! log               the kernel's log
//! ```

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::{env, io};

use block_types::{Error, Result};
use tempfile::TempDir;

use super::{DiskMode, Kernel};

/// The control folder of one run; removed when dropped.
pub(super) struct Control {
    folder: TempDir,
}

impl Control {
    /// Writes everything that the guest reads.
    pub(super) fn prepare(kernel: &Kernel) -> Result<Self> {
        // Short, for the sockets that the guest's console makes in it.
        let folder = tempfile::Builder::new()
            .prefix("uml")
            .tempdir_in("/tmp")
            .map_err(|error| Error::io("/tmp", "cannot be written", error))?;
        let control = Self { folder };
        control
            .fill(kernel)
            .map_err(|error| Error::io("the guest", "its files cannot be prepared", error))?;
        Ok(control)
    }

    /// The folder.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file of the folder.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A file of the folder as text, whatever it holds.
    pub(super) fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.file(name)).unwrap_or_default()).into_owned()
    }

    fn fill(&self, kernel: &Kernel) -> io::Result<()> {
        fs::write(self.file("boot.sh"), include_str!("boot.sh"))?;
        fs::set_permissions(self.file("boot.sh"), Permissions::from_mode(0o755))?;
        fs::write(self.file("run.sh"), include_str!("run.sh"))?;
        fs::write(self.file("env.sh"), variables(kernel))?;
        fs::write(self.file("script"), &kernel.script)?;
        let mut windows = Vec::new();
        for window in &kernel.windows {
            windows.extend(absolute(window)?.as_os_str().as_bytes());
            windows.push(b'\n');
        }
        fs::write(self.file("windows"), windows)?;
        for (number, disk) in kernel.disks.iter().enumerate() {
            let file = absolute(&disk.file)?;
            symlink(file, self.file(&format!("d{number}")))?;
        }
        for (number, socket) in kernel.vhost_user.iter().enumerate() {
            let socket = absolute(socket)?;
            symlink(socket, self.file(&format!("v{number}")))?;
        }
        for line in ["out", "err", "status", "log"] {
            File::create(self.file(line))?;
        }
        Ok(())
    }
}

/// The absolute path of a file that must be there; the error names it.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    fs::canonicalize(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// The assignments of `env.sh`.
fn variables(kernel: &Kernel) -> Vec<u8> {
    let folder = env::current_dir().unwrap_or_default();
    let mut text = Vec::new();
    let mut assign = |name: &str, value: &OsStr| {
        text.extend(name.bytes().chain(*b"="));
        text.extend(quote(value.as_bytes()));
        text.push(b'\n');
    };
    assign("FIRN_MODULES", OsStr::new(&kernel.modules.join(" ")));
    assign("FIRN_FOLDER", folder.as_os_str());
    assign("FIRN_HOST_PATH", &env::var_os("PATH").unwrap_or_default());
    for (name, value) in &kernel.env {
        assign(&format!("export {name}"), value);
    }
    text.extend(b"PATH=$PATH:$FIRN_HOST_PATH\n");
    text
}

/// `value` as one word of the shell.
fn quote(value: &[u8]) -> Vec<u8> {
    let mut word = vec![b'\''];
    for &byte in value {
        if byte == b'\'' {
            word.extend(b"'\\''");
        } else {
            word.push(byte);
        }
    }
    word.push(b'\'');
    word
}

impl DiskMode {
    /// The letters of a `ubd` argument. `d`: the file is never taken for one of the guest's own
    /// copy-on-write files; `c`: no lock on it, so that a test may look at it meanwhile.
    pub(super) const fn flags(self) -> &'static str {
        match self {
            Self::Cached => "dc",
            Self::Synchronous => "dcs",
            Self::ReadOnly => "dcr",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn quotes_for_the_shell() {
        assert_eq!(quote(b"it's $HOME"), b"'it'\\''s $HOME'");
    }
}
