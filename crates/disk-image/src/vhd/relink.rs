//! What is changed about an image as a node of a tree: its parent, its name, whether users see it.

use std::sync::atomic::Ordering;

use block_io::BlockDevice;
use block_types::{Error, ErrorKind, Result};

use super::footer::Kind;
use super::header::ParentLink;
use super::heads::Change;
use super::identity::DiskId;
use super::image::VhdImage;
use super::locator::Locator;

impl VhdImage {
    /// Makes `link` the parent that this differencing disk names: UUID, time, name and locators.
    /// Durable when it returns; after a crash the disk names the old one or the new one.
    ///
    /// The device that the image was opened with stays the one that it reads: who changes the
    /// parent sees to it that both read the same, and opens the image anew.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] for a disk that has no parent, or a path that does not fit;
    /// [`ErrorKind::Unsupported`] where the file has no room for locators.
    pub fn relink(&self, link: &ParentLink) -> Result<()> {
        self.check_writable()?;
        let sparse = self.sparse.as_ref().filter(|_| self.kind() == Kind::Differencing);
        let Some(sparse) = sparse else {
            let problem = "is no differencing disk, so it can have no parent";
            return Err(Error::new(ErrorKind::Invalid, self.name(), problem));
        };
        let own = self.heads.lock().footer.id();
        if link.id == Some(own) {
            let problem = format!("cannot be its own parent ({own})");
            return Err(Error::new(ErrorKind::Invalid, self.name(), problem));
        }
        self.replace_header(sparse, Change::Parent(link), &Locator::for_parent(&link.path))
    }

    /// Makes a differencing disk a dynamic one: it has no parent any more. What it does not hold
    /// itself reads as zeros from then on; the caller has filled in the rest
    /// ([`fill_absent`](Self::fill_absent)). Durable when it returns; after a crash the disk is
    /// the one or the other. Does nothing for a disk without a parent.
    ///
    /// # Errors
    /// Those of the file.
    pub fn detach(&self) -> Result<()> {
        self.check_writable()?;
        let Some(sparse) = self.sparse.as_ref() else { return Ok(()) };
        if self.kind() != Kind::Differencing {
            return Ok(());
        }
        self.commit()?;
        {
            // The kind is in the footer, so that one sector says it; what the header still says of
            // a parent means nothing from then on.
            let mut heads = self.heads.lock();
            let footer = heads.footer.with_kind(Kind::Dynamic);
            self.write_footers(&mut heads, footer)?;
            self.detached.store(true, Ordering::SeqCst);
        }
        self.replace_header(sparse, Change::NoParent, &[])
    }

    /// Marks the disk as an inner node that is not for users, or as one that is (XenServer).
    /// Durable when it returns.
    ///
    /// # Errors
    /// Those of the file.
    pub fn set_hidden(&self, hidden: bool) -> Result<()> {
        self.check_writable()?;
        let mut heads = self.heads.lock();
        let footer = heads.footer.with_hidden(hidden);
        self.write_footers(&mut heads, footer)
    }

    /// Gives the disk another UUID. Its children name the old one. Durable when it returns.
    ///
    /// # Errors
    /// Those of the file.
    pub fn set_id(&self, id: DiskId) -> Result<()> {
        self.check_writable()?;
        let mut heads = self.heads.lock();
        let footer = heads.footer.with_id(id);
        self.write_footers(&mut heads, footer)
    }
}
