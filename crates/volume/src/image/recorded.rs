//! The bitmaps of an image while its disk is being written.

use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{DirtyBitmap, Result};
use disk_image::qcow2;
use parking_lot::Mutex;

use super::DiskImage;
use super::open::Opened;
use crate::dirty::{BitmapPart, BitmapStore, Recorder, Tracked};

/// The disk of an image, whose writes are noted in the image's bitmaps.
///
/// Whoever has written [ends](RecordedImage::end) it before the image is closed. What is dropped is
/// as after a crash: the bitmaps come back too coarse, and never too clean.
pub struct RecordedImage {
    tracked: Arc<Tracked>,
    image: Option<Arc<qcow2::Image>>,
    /// Bitmaps that do not record.
    still: Vec<(String, Arc<DirtyBitmap>)>,
    /// How much was dirty at the last look.
    seen: Mutex<u64>,
}

/// Bits in an image.
struct ImageStore {
    image: Arc<qcow2::Image>,
    name: String,
}

impl BitmapStore for ImageStore {
    fn put(&self, parts: &[BitmapPart]) -> Result<()> {
        let parts: Vec<_> = parts.iter().map(|part| (part.at, part.bytes.as_slice())).collect();
        self.image.put_bits(&self.name, Recorder::REGION_BITS, &parts)
    }
}

impl RecordedImage {
    /// Begins to record in every bitmap of `image` that is to record and can be believed; in none
    /// of an image that is open for reading only. An image of another format than qcow2 has none.
    ///
    /// # Errors
    /// [`block_types::ErrorKind::Corrupt`] for bitmaps that cannot be read.
    pub fn begin(image: &DiskImage) -> Result<Self> {
        let tracked = Arc::new(Tracked::new(image.device()));
        let Opened::Qcow2(image) = image.opened() else {
            return Ok(Self { tracked, image: None, still: Vec::new(), seen: Mutex::default() });
        };
        let writable = !image.limits().read_only;
        let (mut recorders, mut still) = (Vec::new(), Vec::new());
        for info in image.bitmaps()?.into_iter().filter(|info| !info.inconsistent) {
            if info.recording && writable {
                let bits = image.begin_recording(&info.name)?;
                let store = ImageStore { image: Arc::clone(image), name: info.name.clone() };
                recorders.push(Arc::new(Recorder::new(info.name, bits, Box::new(store))?));
            } else {
                still.push((info.name.clone(), Arc::new(image.bitmap(&info.name)?)));
            }
        }
        tracked.begin(&recorders)?;
        Ok(Self { tracked, image: Some(Arc::clone(image)), still, seen: Mutex::default() })
    }

    /// The disk. Where nothing records, that is the image's own, and nothing stands in between.
    pub fn device(&self) -> Arc<dyn BlockDevice> {
        if self.recorders().is_empty() {
            return self.tracked.below();
        }
        Arc::clone(&self.tracked) as Arc<dyn BlockDevice>
    }

    /// Those that record.
    pub fn recorders(&self) -> Vec<Arc<Recorder>> {
        self.tracked.recorders()
    }

    /// The bitmaps that do not record, with what they hold.
    pub fn still(&self) -> &[(String, Arc<DirtyBitmap>)] {
        &self.still
    }

    /// To be called now and then: where nothing has become dirty since the last call, exact bits
    /// are put in the place of coarse ones.
    ///
    /// # Errors
    /// Those of the image.
    pub fn refine_in_lull(&self) -> Result<()> {
        let dirty = self.recorders().iter().map(|recorder| recorder.bits().dirty().get()).sum();
        let before = std::mem::replace(&mut *self.seen.lock(), dirty);
        if before == dirty { self.tracked.refine() } else { Ok(()) }
    }

    /// Records no more, and stores all bitmaps as they are. Clients of the device are to be gone.
    ///
    /// # Errors
    /// The first of the image's; the others are stored all the same.
    pub fn end(&self) -> Result<()> {
        let Some(image) = &self.image else { return Ok(()) };
        let mut outcome = Ok(());
        for recorder in self.recorders() {
            self.tracked.end(recorder.name());
            let stored = image.end_recording(recorder.name(), recorder.bits().clone());
            outcome = outcome.and(stored);
        }
        outcome
    }
}
