//! How every verb reaches an origin, or a snapshot by its store.

use std::path::{Path, PathBuf};

use block_types::{Error, ErrorKind, Result};
use clap::Args;
use daemon::{CowAccess, cow_access};
use volume::{CowOptions, CowPlace, find_snapshots};

/// How an origin is found and opened.
#[derive(Args, Debug)]
pub(super) struct Access {
    /// The store's origin, where neither its label nor what lies beside it leads there.
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<PathBuf>,

    /// Which snapshot is meant, where several share the store.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// Take the origin as it is, though it was written past its snapshots.
    #[arg(long)]
    trust_origin: bool,
}

impl Access {
    /// What `path` means.
    pub(super) fn find(&self, path: &Path) -> Result<CowPlace> {
        find_snapshots(path, self.origin.as_deref())
    }

    /// The snapshot that the store at `path` has.
    pub(super) fn find_store(&self, path: &Path) -> Result<(CowPlace, String)> {
        let place = self.find(path)?;
        let wrong = |problem: &str, advice: String| {
            Error::new(ErrorKind::Invalid, path.display().to_string(), problem).advise(advice)
        };
        let names = place.snapshots.join(", ");
        let name = match (&self.name, place.snapshots.as_slice()) {
            (_, []) => {
                let problem = "is an origin, and the store of a snapshot is wanted";
                return Err(wrong(problem, "'firn cow status' shows its stores".to_owned()));
            }
            (None, [only]) => only.clone(),
            (Some(name), names) if names.contains(name) => name.clone(),
            (Some(_), _) => {
                return Err(wrong("has no snapshot of that name", format!("it has {names}")));
            }
            (None, _) => {
                let problem = "is the store of several snapshots";
                return Err(wrong(problem, format!("say which with --name: {names}")));
            }
        };
        Ok((place, name))
    }

    /// Asks `question` of the origin at `place`, which is not changed.
    pub(super) fn ask<T>(
        &self,
        place: &CowPlace,
        question: impl FnOnce(&dyn CowAccess) -> Result<T>,
    ) -> Result<T> {
        self.with(&place.origin, true, question)
    }

    /// Has `work` change the origin.
    pub(super) fn change<T>(
        &self,
        place: &CowPlace,
        work: impl FnOnce(&dyn CowAccess) -> Result<T>,
    ) -> Result<T> {
        self.with(&place.origin, false, work)
    }

    fn with<T>(
        &self,
        origin: &Path,
        read_only: bool,
        work: impl FnOnce(&dyn CowAccess) -> Result<T>,
    ) -> Result<T> {
        with(origin, self.trust_origin, read_only, work)
    }
}

/// Has `work` done with the origin at `path`, and leaves it.
pub(super) fn with<T>(
    path: &Path,
    trust: bool,
    read_only: bool,
    work: impl FnOnce(&dyn CowAccess) -> Result<T>,
) -> Result<T> {
    let options = CowOptions { read_only, trust, ..CowOptions::default() };
    let origin = cow_access(path, &options)?;
    let result = work(&*origin);
    // Also after a failure: a snapshot of mode async that is not closed is lost.
    let closed = origin.close();
    let result = result?;
    closed?;
    Ok(result)
}
