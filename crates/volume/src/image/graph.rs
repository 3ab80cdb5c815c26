//! The chain of an open image, and exchanging its parts.

use std::path::PathBuf;
use std::sync::Arc;

use block_io::{CacheMode, FileOptions, HostFile};
use block_types::{Error, ErrorKind, Result};
use disk_image::qcow2::{self, BackingName};
use serde::{Deserialize, Serialize};

use super::node::Node;
use super::open::{DiskImage, Opened, Working};

/// An image of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChainImage {
    /// Its path.
    pub filename: String,
    /// Its format, as QEMU calls it.
    pub format: String,
    /// The size of its disk.
    pub virtual_size: u64,
}

impl DiskImage {
    /// The images of the chain, the topmost first.
    pub fn chain(&self) -> Vec<ChainImage> {
        let image = |node: &Arc<Node>| ChainImage {
            filename: node.path.display().to_string(),
            format: node.format.qemu_name().to_owned(),
            virtual_size: node.device.device().size().get(),
        };
        self.nodes().iter().map(image).collect()
    }

    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        self.nodes.lock().clone()
    }

    pub(super) fn node(&self, place: usize) -> Result<Arc<Node>> {
        self.nodes.lock().get(place).cloned().ok_or_else(|| {
            let object = self.path().display().to_string();
            Error::new(ErrorKind::NotFound, object, "its chain has changed meanwhile")
        })
    }

    /// Begins work on the chain: one at a time.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`].
    pub(super) fn begin(&self) -> Result<Working> {
        Working::begin(&self.working).ok_or_else(|| {
            let object = self.path().display().to_string();
            Error::new(ErrorKind::Busy, object, "other work on its chain goes on")
                .advise("wait for it, or cancel it: 'firn job list' shows it")
        })
    }

    /// Opens the image at `place` for writing, and lets what stands on it read it so.
    pub(super) fn reopen_for_writing(&self, place: usize) -> Result<Opened> {
        let node = self.node(place)?;
        let target = node.reopen(false, CacheMode::Cached)?;
        self.put(place, &node, target.clone())?;
        Ok(target)
    }

    /// Opens the image at `place` for reading only, after it was closed.
    pub(super) fn restore(&self, place: usize) -> Result<()> {
        let node = self.node(place)?;
        let opened = node.reopen(true, self.cache)?;
        self.put(place, &node, opened)
    }

    /// Puts an image that was opened anew in its own place.
    fn put(&self, place: usize, node: &Node, device: Opened) -> Result<()> {
        let new = Arc::new(node.with(device));
        let above = self.node(place - 1)?;
        if let Some(below) = &above.below {
            below.exchange(Some(new.device.device()));
        }
        self.nodes.lock()[place] = new;
        Ok(())
    }

    /// Has an image of the chain name another backing file.
    pub(super) fn relink(&self, above: &Node, name: &BackingName) -> Result<()> {
        match &above.device {
            Opened::Qcow2(image) if !block_io::BlockDevice::limits(&**image).read_only => {
                image.set_backing(Some(name))
            }
            _ => {
                let options = FileOptions { cache: self.cache, read_only: false };
                let file = HostFile::open(&above.path, options)?;
                qcow2::set_backing(&file, Some(name))
            }
        }
    }

    /// Puts another chain below the topmost image, and returns the paths of the old one.
    pub(super) fn replace_below(&self, new: Vec<Arc<Node>>) -> Vec<String> {
        let dropped = self.drop_nodes(1, self.nodes().len());
        self.nodes.lock().extend(new);
        dropped
    }

    /// Closes the images from `first` to the one before `end`, and returns their paths.
    pub(super) fn drop_nodes(&self, first: usize, end: usize) -> Vec<String> {
        let gone: Vec<_> = self.nodes.lock().drain(first..end).collect();
        gone.iter().map(|node| PathBuf::from(&node.path).display().to_string()).collect()
    }
}
