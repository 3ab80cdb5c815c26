//! What one image of a chain has by itself.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteOffset, ByteRange, Extent, Result};
use disk_image::qcow2::{self, Own};
use disk_image::vhd::{self, VhdImage};

use super::ImageFormat;
use super::chain::Link;
use super::lock::ImageLock;
use super::open::Opened;

/// An image of a chain, open for reading without what is below it.
pub(super) struct Layer {
    pub(super) device: Opened,
    _locks: Vec<ImageLock>,
}

/// A run of an image, and what it has there; `None` where it leaves that to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OwnRun {
    pub(super) range: ByteRange,
    pub(super) own: Option<Held>,
}

/// What an image has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// Zeros; at a place of the file, if there is one to tell.
    Zero(Option<ByteOffset>),
    /// Data at this place of the file.
    At(ByteOffset),
    /// Data that the device knows the place of.
    Somewhere,
    /// Data that are compressed.
    Compressed,
}

impl Layer {
    /// Opens the image of `link`.
    ///
    /// # Errors
    /// Those of the format.
    pub(super) fn open(link: Link) -> Result<Self> {
        let device = if link.format == ImageFormat::Qcow2 {
            let options = qcow2::OpenOptions {
                data: link.data.clone(),
                without_backing: true,
                read_only: true,
                secret: link.secret.clone(),
                ..qcow2::OpenOptions::default()
            };
            Opened::Qcow2(qcow2::Image::open(Arc::clone(&link.file), options)?)
        } else {
            Opened::open(&link, None, true)?
        };
        Ok(Self { device, _locks: link.locks })
    }

    /// What it has of `range`, in order and without gaps.
    ///
    /// # Errors
    /// Those of the file.
    pub(super) fn own_runs(&self, range: ByteRange) -> Result<Vec<OwnRun>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        match &self.device {
            Opened::Vhd(image) => vhd_runs(image, range),
            Opened::Qcow2(image) => qcow2_runs(image, range),
            Opened::Raw(file) => raw_runs(&**file, range),
        }
    }
}

fn qcow2_runs(image: &qcow2::Image, range: ByteRange) -> Result<Vec<OwnRun>> {
    let mut runs = Vec::new();
    image.own_extents(range, &mut |extent| {
        let own = match extent.own {
            Own::Absent => None,
            Own::Zero(_) => Some(Held::Zero(None)),
            Own::Data(at) => Some(at.map_or(Held::Somewhere, Held::At)),
            Own::Compressed => Some(Held::Compressed),
        };
        runs.push(OwnRun { range: extent.range, own });
        ControlFlow::Continue(())
    })?;
    Ok(runs)
}

/// What a raw file has: all of it, its holes, too.
fn raw_runs(file: &dyn BlockDevice, range: ByteRange) -> Result<Vec<OwnRun>> {
    let mut runs = Vec::new();
    file.extents(range, &mut |Extent { range, state }| {
        let zero = state.reads_zero().then_some(Held::Zero(Some(range.start)));
        runs.push(OwnRun { range, own: Some(zero.unwrap_or(Held::At(range.start))) });
        ControlFlow::Continue(())
    })?;
    Ok(runs)
}

/// What a VHD has. One without a parent has its holes, too.
fn vhd_runs(image: &VhdImage, range: ByteRange) -> Result<Vec<OwnRun>> {
    let others = match image.kind() {
        vhd::Kind::Differencing => None,
        vhd::Kind::Fixed | vhd::Kind::Dynamic => Some(Held::Zero(None)),
    };
    let mut runs = Vec::new();
    let mut at = range.start;
    image.own_extents(range, &mut |own| {
        if at < own.start {
            runs.push(OwnRun { range: ByteRange::between(at, own.start), own: others });
        }
        runs.push(OwnRun { range: own, own: Some(Held::Somewhere) });
        at = own.end();
        ControlFlow::Continue(())
    })?;
    if at < range.end() {
        runs.push(OwnRun { range: ByteRange::between(at, range.end()), own: others });
    }
    Ok(runs)
}
