//! The size of a new image foretold.

use std::ops::ControlFlow;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset, ByteRange, Error, ErrorKind, Result, SECTOR};
use disk_image::qcow2;
use serde::Serialize;

use super::{DiskImage, ImageFormat, ImageSettings};

/// How large the file of a new image will be, under the names that qemu-img has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageMeasure {
    /// Bytes with the data that are to be copied, at most.
    pub required: u64,
    /// Bytes with data everywhere.
    pub fully_allocated: u64,
    /// Bytes that the bitmaps take besides, if the source may have some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmaps: Option<u64>,
}

/// How large a new image of `format` will be: with the content of `source`, or empty and of `size`.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for VHD; [`ErrorKind::Invalid`].
pub fn measure_image(
    source: Option<&DiskImage>,
    size: Option<ByteCount>,
    format: ImageFormat,
    settings: &ImageSettings,
) -> Result<ImageMeasure> {
    let size = source.map(DiskImage::size).or(size).ok_or_else(|| {
        Error::new(ErrorKind::Invalid, "a new image", "is to have no size")
            .advise("name an image, or say --size")
    })?;
    let size = ByteCount::from_sectors(size.get().div_ceil(SECTOR));
    match format {
        ImageFormat::Raw => {
            let whole = size.get();
            Ok(ImageMeasure { required: whole, fully_allocated: whole, bitmaps: None })
        }
        ImageFormat::Vhd => {
            let problem = "cannot be told before it is made";
            Err(Error::new(ErrorKind::Unsupported, "the size of a VHD", problem))
        }
        ImageFormat::Qcow2 => {
            let mut options = qcow2::CreateOptions::new(size);
            settings.apply_to_qcow2(&mut options)?;
            let data = match source {
                Some(source) => data_of(&source.device(), options.cluster_size)?,
                None => ByteCount::ZERO,
            };
            let found = qcow2::measure(&options, data)?;
            Ok(ImageMeasure {
                required: found.required.get(),
                fully_allocated: found.fully_allocated.get(),
                bitmaps: bitmaps(source, &options)?,
            })
        }
    }
}

/// What the bitmaps of `source` will take, if it may have some and the new image, too.
fn bitmaps(source: Option<&DiskImage>, options: &qcow2::CreateOptions) -> Result<Option<u64>> {
    let image = source.and_then(|source| source.qcow2("bitmaps").ok());
    let Some(image) = image.filter(|image| options.version > 2 && image.header().version() > 2)
    else {
        return Ok(None);
    };
    let infos = image.bitmaps()?;
    let whole = infos.iter().filter(|info| !info.inconsistent);
    let contents = whole.map(|info| Ok((info.name.as_str(), image.bitmap(&info.name)?)));
    let contents = contents.collect::<Result<Vec<_>>>()?;
    let pairs = contents.iter().map(|(name, bits)| (*name, bits));
    Ok(Some(qcow2::measure_bitmaps(options, pairs).get()))
}

/// Bytes of the clusters of `cluster` bytes in which the disk does not read as zeros.
fn data_of(disk: &Arc<dyn BlockDevice>, cluster: ByteCount) -> Result<ByteCount> {
    let unit = cluster.get().max(1);
    // The end of the last cluster that was counted.
    let (mut data, mut counted) = (0, 0);
    let whole = ByteRange::new(ByteOffset::ZERO, disk.size());
    disk.extents(whole, &mut |extent| {
        if !extent.state.reads_zero() {
            let start = (extent.range.start.get() / unit * unit).max(counted);
            let end = extent.range.end().get().next_multiple_of(unit);
            data += end.saturating_sub(start);
            counted = counted.max(end);
        }
        ControlFlow::Continue(())
    })?;
    Ok(ByteCount::new(data))
}
