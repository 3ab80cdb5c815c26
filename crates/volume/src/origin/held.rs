//! The origins that a pool has open.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use block_io::BlockDevice;
use block_types::Result;
use parking_lot::Mutex;

use crate::OriginSource;

/// Files stay open, and locked, as long as anything in the pool stands on them; connections as long
/// as a volume is open that does.
#[derive(Default)]
pub(crate) struct Origins(Mutex<HashMap<OriginSource, Open>>);

enum Open {
    Kept(Arc<dyn BlockDevice>),
    Lent(Weak<dyn BlockDevice>),
}

impl Origins {
    /// The origin, if it is open.
    pub(crate) fn get(&self, source: &OriginSource) -> Option<Arc<dyn BlockDevice>> {
        match self.0.lock().get(source)? {
            Open::Kept(device) => Some(Arc::clone(device)),
            Open::Lent(device) => device.upgrade(),
        }
    }

    /// Opens it, which for a server may take a while. The caller holds no lock.
    pub(crate) fn open(&self, source: &OriginSource) -> Result<Arc<dyn BlockDevice>> {
        let device = source.open()?;
        let open = match source.is_remote() {
            true => Open::Lent(Arc::downgrade(&device)),
            false => Open::Kept(Arc::clone(&device)),
        };
        self.0.lock().insert(source.clone(), open);
        Ok(device)
    }

    /// Opens the files among `sources`, so that nobody writes them from now on. One that cannot be
    /// opened keeps its volumes from being opened, and is tried again then.
    pub(crate) fn keep(&self, sources: impl Iterator<Item = OriginSource>) {
        for source in sources {
            if !source.is_remote()
                && self.get(&source).is_none()
                && let Err(error) = self.open(&source)
            {
                tracing::warn!("an external origin is not to be had: {error}");
            }
        }
    }

    /// Takes `device` for the origin.
    #[cfg(test)]
    pub(crate) fn lend(&self, source: OriginSource, device: Arc<dyn BlockDevice>) {
        self.0.lock().insert(source, Open::Kept(device));
    }

    /// Lets go of those that nothing stands on any more.
    pub(crate) fn retain(&self, is_used: impl Fn(&OriginSource) -> bool) {
        self.0.lock().retain(|source, _| is_used(source));
    }
}
