//! One repository, whoever has it open: [`RepositoryAccess`].

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_types::{ByteCount, ErrorKind, Result};
use hyper::Method;
use repository::{NodeReport, OpenOptions, Repository};
use volume::{NodeName, SnapshotName};

use crate::api::{AddedDisk, NewDisk, NewName};
use crate::client::Client;
use crate::control;
use crate::daemon::absolute;
use crate::job::JobInfo;
use crate::report::DaemonInfo;

/// How long a repository may be busy.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a daemon that is well may take to say who it is.
const GREETING: Duration = Duration::from_secs(5);

/// What the command may ask of a repository. The methods are those of [`Repository`].
pub trait RepositoryAccess: Send + Sync {
    /// All nodes, each behind its parent.
    fn nodes(&self) -> Result<Vec<NodeReport>>;

    /// Reads the directory anew.
    fn scan(&self) -> Result<()>;

    /// Makes an empty disk.
    fn create_disk(&self, name: &NodeName, size: ByteCount) -> Result<()>;

    /// Copies a VHD into the repository.
    fn add(&self, path: &Path, name: &NodeName) -> Result<()>;

    /// Takes a snapshot.
    fn snapshot(&self, name: &NodeName, snapshot: &SnapshotName) -> Result<()>;

    /// Makes a new volume that begins as `source` is.
    fn clone_disk(&self, source: &NodeName, new: &NodeName) -> Result<()>;

    /// Deletes a disk.
    fn delete(&self, name: &NodeName) -> Result<()>;

    /// Has the daemon collect, which is a job of it; `None` where none serves the repository.
    fn begin_collecting(&self) -> Result<Option<JobInfo>>;

    /// The repository, if it is open in this process.
    fn local(&self) -> Option<Arc<Repository>>;

    /// Closes what is open here.
    fn close(&self) -> Result<()>;
}

/// Reaches the repository in `dir`: through the daemon that serves it if there is one, else by
/// opening it here, under its lock.
///
/// # Errors
/// [`ErrorKind::Busy`] with who else has it open; else as [`Repository::open`].
pub fn repository_access(dir: &Path, read_only: bool) -> Result<Box<dyn RepositoryAccess>> {
    let deadline = Instant::now() + PATIENCE;
    let options = OpenOptions { read_only, ..OpenOptions::new("firn") };
    loop {
        let busy = match Repository::open(dir, &options) {
            Ok(repository) => return Ok(Box::new(Local(repository))),
            Err(error) if error.kind() == ErrorKind::Busy => error,
            Err(error) => return Err(error),
        };
        match Remote::connect(dir) {
            Ok(remote) => return Ok(Box::new(remote)),
            Err(error) => tracing::debug!(%error, "no daemon answers"),
        }
        if Instant::now() >= deadline {
            return Err(busy);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A repository that is open here.
struct Local(Arc<Repository>);

impl RepositoryAccess for Local {
    fn nodes(&self) -> Result<Vec<NodeReport>> {
        Ok(self.0.report())
    }

    fn scan(&self) -> Result<()> {
        self.0.scan()
    }

    fn create_disk(&self, name: &NodeName, size: ByteCount) -> Result<()> {
        self.0.create_disk(name, size)
    }

    fn add(&self, path: &Path, name: &NodeName) -> Result<()> {
        self.0.add(path, name)
    }

    fn snapshot(&self, name: &NodeName, snapshot: &SnapshotName) -> Result<()> {
        self.0.snapshot(name, snapshot).map(|_| ())
    }

    fn clone_disk(&self, source: &NodeName, new: &NodeName) -> Result<()> {
        self.0.clone_disk(source, new)
    }

    fn delete(&self, name: &NodeName) -> Result<()> {
        self.0.delete(name)
    }

    fn begin_collecting(&self) -> Result<Option<JobInfo>> {
        Ok(None)
    }

    fn local(&self) -> Option<Arc<Repository>> {
        Some(Arc::clone(&self.0))
    }

    fn close(&self) -> Result<()> {
        self.0.close()
    }
}

/// A repository that a daemon serves.
struct Remote {
    client: Client,
}

impl Remote {
    fn connect(dir: &Path) -> Result<Self> {
        let client = Client::new(&dir.join(control::SOCKET))?;
        client.get_within::<DaemonInfo>("/v1/version", GREETING)?;
        Ok(Self { client })
    }
}

/// The path of a disk. Names hold nothing that a path would have to escape.
fn path_of(name: &NodeName) -> String {
    format!("/v1/disks/{name}")
}

impl RepositoryAccess for Remote {
    fn nodes(&self) -> Result<Vec<NodeReport>> {
        self.client.ask(Method::GET, "/v1/nodes")
    }

    fn scan(&self) -> Result<()> {
        self.client.ask(Method::POST, "/v1/scan")
    }

    fn create_disk(&self, name: &NodeName, size: ByteCount) -> Result<()> {
        let new = NewDisk { name: name.to_string(), size: size.get() };
        self.client.send(Method::POST, "/v1/disks", &new)
    }

    fn add(&self, path: &Path, name: &NodeName) -> Result<()> {
        let path = absolute(path)?.display().to_string();
        let added = AddedDisk { name: name.to_string(), path };
        self.client.send(Method::POST, "/v1/disks/added", &added)
    }

    fn snapshot(&self, name: &NodeName, snapshot: &SnapshotName) -> Result<()> {
        let new = NewName { name: snapshot.to_string() };
        self.client.send(Method::POST, &format!("{}/snapshots", path_of(name)), &new)
    }

    fn clone_disk(&self, source: &NodeName, new: &NodeName) -> Result<()> {
        let new = NewName { name: new.to_string() };
        self.client.send(Method::POST, &format!("{}/clone", path_of(source)), &new)
    }

    fn delete(&self, name: &NodeName) -> Result<()> {
        self.client.ask(Method::DELETE, &path_of(name))
    }

    fn begin_collecting(&self) -> Result<Option<JobInfo>> {
        self.client.ask(Method::POST, "/v1/collect").map(Some)
    }

    fn local(&self) -> Option<Arc<Repository>> {
        None
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}
