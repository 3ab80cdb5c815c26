//! Linux 6.1 as a test peer: Debian's `user-mode-linux`, an ordinary process without privileges.
//!
//! The guest sees the host's whole `/` through an overlay in memory: every program and every fresh
//! build, at its own path; what it changes there is gone afterwards. `/run`, `/mnt`, `/dev`,
//! `/proc` and `/sys` are its own. Files of the host are its disks `/dev/ubda`, `/dev/ubdb` and so
//! on, and folders may be shared for writing. It has one processor and no network but loopback.
//!
//! ```no_run
//! # use testkit::kernel::Kernel;
//! let output = Kernel::new().disk("meta").disk("data").script("dmsetup targets").run().unwrap();
//! assert!(output.ok().contains("thin-pool"));
//! ```
//!
//! A boot takes one to two seconds. Inside, `power-cut` ends the run at once: what the disks had
//! been given stays, nothing else is written.

mod control;
mod process;
mod shim;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use block_types::Result;

pub use process::Output;

/// The exit status of a run that its script ended by `power-cut`.
pub const POWER_CUT: i32 = 99;

/// A run to come: the disks, folders and modules of the guest, and the script.
#[derive(Debug, Clone)]
pub struct Kernel {
    disks: Vec<Disk>,
    vhost_user: Vec<PathBuf>,
    windows: Vec<PathBuf>,
    modules: Vec<String>,
    env: Vec<(String, OsString)>,
    memory: String,
    limit: Duration,
    script: String,
}

/// A file of the host as a disk of the guest.
#[derive(Debug, Clone)]
struct Disk {
    file: PathBuf,
    mode: DiskMode,
}

/// How the guest uses a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DiskMode {
    /// Through the host's page cache; a flush is an fsync.
    Cached,
    /// Every write is durable when it returns.
    Synchronous,
    /// Never written.
    ReadOnly,
}

impl Default for Kernel {
    fn default() -> Self {
        Self::new()
    }
}

impl Kernel {
    /// A guest without disks, with the device mapper's thin and snapshot targets loaded.
    pub fn new() -> Self {
        Self {
            disks: Vec::new(),
            vhost_user: Vec::new(),
            windows: Vec::new(),
            modules: ["dm-mod", "dm-thin-pool", "dm-snapshot"].map(str::to_owned).to_vec(),
            env: Vec::new(),
            memory: "384M".to_owned(),
            limit: Duration::from_secs(120),
            script: String::new(),
        }
    }

    /// The next disk, `/dev/ubda` and so on, at most 16.
    #[must_use]
    pub fn disk(self, file: impl AsRef<Path>) -> Self {
        self.add_disk(file.as_ref(), DiskMode::Cached)
    }

    /// The next disk, with every write durable when it returns.
    #[must_use]
    pub fn synchronous_disk(self, file: impl AsRef<Path>) -> Self {
        self.add_disk(file.as_ref(), DiskMode::Synchronous)
    }

    /// The next disk, read-only.
    #[must_use]
    pub fn read_only_disk(self, file: impl AsRef<Path>) -> Self {
        self.add_disk(file.as_ref(), DiskMode::ReadOnly)
    }

    fn add_disk(mut self, file: &Path, mode: DiskMode) -> Self {
        self.disks.push(Disk { file: file.to_owned(), mode });
        self
    }

    /// The vhost-user-blk server at `socket` as `/dev/vda` and so on; loads `virtio_blk`.
    #[must_use]
    pub fn vhost_user_disk(mut self, socket: impl AsRef<Path>) -> Self {
        if self.vhost_user.is_empty() {
            self.modules.push("virtio_blk".to_owned());
        }
        self.vhost_user.push(socket.as_ref().to_owned());
        self
    }

    /// Shares `folder` for writing, at the same path. Not below `/run`, `/mnt`, `/dev`, `/proc` or
    /// `/sys`.
    #[must_use]
    pub fn share(mut self, folder: impl AsRef<Path>) -> Self {
        self.windows.push(folder.as_ref().to_owned());
        self
    }

    /// Loads these modules instead of the usual ones; others load by `modprobe` inside.
    #[must_use]
    pub fn modules(mut self, modules: &[&str]) -> Self {
        self.modules = modules.iter().map(|&module| module.to_owned()).collect();
        self
    }

    /// Sets a variable of the script's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Gives the guest so much memory (`384M` otherwise); it is taken as it is used.
    #[must_use]
    pub fn memory(mut self, size: &str) -> Self {
        size.clone_into(&mut self.memory);
        self
    }

    /// Lets the guest run for at most `limit` (two minutes otherwise).
    #[must_use]
    pub const fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// What the guest runs as root, by `/bin/sh`, in the caller's working directory.
    #[must_use]
    pub fn script(mut self, script: &str) -> Self {
        script.clone_into(&mut self.script);
        self
    }

    /// Boots, runs the script and powers off; returns once every disk is closed.
    ///
    /// # Errors
    /// [`NotFound`](block_types::ErrorKind::NotFound) if a package or a file is missing,
    /// [`Cancelled`](block_types::ErrorKind::Cancelled) at the time limit,
    /// [`Stopped`](block_types::ErrorKind::Stopped) if the kernel ended without a status. The last
    /// two tell what the guest said.
    pub fn run(&self) -> Result<Output> {
        process::run(self)
    }
}
