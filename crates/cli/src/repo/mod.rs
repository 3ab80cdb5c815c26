//! `firn repo`: repositories of disk images.

mod change;
mod collect;
mod tree;

use std::path::{Path, PathBuf};

use block_types::Result;
use clap::{Args, Subcommand};
use daemon::{RepositoryAccess, repository_access};

use crate::exit::Outcome;
use crate::output::Output;

/// The verbs of repositories.
#[derive(Debug, Subcommand)]
pub(crate) enum RepoVerb {
    Create(change::Create),
    Scan(tree::Scan),
    Tree(tree::Tree),
    Add(change::Add),
    Snapshot(change::Snapshot),
    Clone(change::CloneVerb),
    Delete(change::Delete),
    Gc(collect::Gc),
}

/// A repository.
#[derive(Args, Debug)]
pub(crate) struct Target {
    /// The repository's directory.
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

/// Does what a verb says.
pub(crate) fn run(verb: &RepoVerb, output: Output) -> Outcome {
    match verb {
        RepoVerb::Create(create) => create.run(output),
        RepoVerb::Scan(scan) => scan.run(output),
        RepoVerb::Tree(tree) => tree.run(output),
        RepoVerb::Add(add) => add.run(output),
        RepoVerb::Snapshot(snapshot) => snapshot.run(output),
        RepoVerb::Clone(clone) => clone.run(output),
        RepoVerb::Delete(delete) => delete.run(output),
        RepoVerb::Gc(gc) => gc.run(output),
    }
}

/// Has `work` ask the repository in `dir`, or change it, and closes it.
fn with<T>(
    dir: &Path,
    read_only: bool,
    work: impl FnOnce(&dyn RepositoryAccess) -> Result<T>,
) -> Result<T> {
    let repository = repository_access(dir, read_only)?;
    let result = work(&*repository);
    let closed = repository.close();
    result.and_then(|result| closed.map(|()| result))
}
