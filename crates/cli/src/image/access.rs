//! How an image is opened: the options of every verb that does.

use std::path::PathBuf;

use block_io::CacheMode;
use clap::Args;
use volume::{BackingPolicy, ImageFormat, ImageOptions, Secret};

/// The word that allows everything.
const ANY: &str = "any";

/// Format and policy of an image that is there.
#[derive(Args, Clone, Debug)]
pub(crate) struct Access {
    /// The image's format: raw, qcow2 or vhd. Found out if not said.
    #[arg(short = 'f', long, value_name = "FORMAT")]
    pub(super) format: Option<ImageFormat>,

    /// Let the image name files in this folder as backing files, or 'any' file.
    ///
    /// Without it, only what lies in the image's own folder, or below it, is opened. May be
    /// repeated.
    #[arg(long, value_name = "FOLDER")]
    allow_backing: Vec<PathBuf>,

    /// The file that holds the secret of an encrypted image, of which every byte counts.
    #[arg(long, value_name = "FILE", value_parser = secret)]
    secret_file: Option<Secret>,
}

/// Whether an image may be looked at that somebody writes.
#[derive(Args, Debug)]
pub(super) struct Sharing {
    /// Look at it even while somebody writes it. What is found may be out of date or look damaged.
    #[arg(short = 'U', long)]
    pub(super) force_share: bool,
}

impl Access {
    /// How to open the image.
    pub(crate) fn options(&self, read_only: bool, cache: CacheMode) -> ImageOptions {
        let backing = self.policy();
        let (format, secret) = (self.format, self.secret_file.clone());
        ImageOptions { format, read_only, cache, backing, force_share: false, secret }
    }

    /// To read it, through the page cache.
    pub(super) fn reading(&self) -> ImageOptions {
        self.options(true, CacheMode::Cached)
    }

    /// To change it, through the page cache.
    pub(super) fn changing(&self) -> ImageOptions {
        self.options(false, CacheMode::Cached)
    }

    /// What it may name.
    fn policy(&self) -> BackingPolicy {
        backing_policy(&self.allow_backing)
    }
}

/// What an image may name where these folders, or the word for any, are allowed.
pub(crate) fn backing_policy(allowed: &[PathBuf]) -> BackingPolicy {
    if allowed.iter().any(|folder| folder.as_os_str() == ANY) {
        return BackingPolicy::Any;
    }
    match allowed {
        [] => BackingPolicy::SameFolder,
        folders => BackingPolicy::Folders(folders.to_vec()),
    }
}

/// The secret in the file at `path`, as it stands there.
pub(super) fn secret(path: &str) -> Result<Secret, String> {
    std::fs::read(path).map(Secret::new).map_err(|error| format!("cannot be read: {error}"))
}
