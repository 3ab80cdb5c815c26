//! An origin together with those who use it: what its control API acts on.

use std::sync::Arc;
use std::time::Duration;

use block_types::{ByteCount, Error, ErrorKind, Result};
use jobs::{Monitor, Registry};
use nbd::{Server, Uri};
use volume::{CowMerge, CowOrigin, CowReport, NewSnapshot, OriginReport};

use super::exports::OriginExports;
use crate::job::{JobAccess, JobInfo};
use crate::report::{ClientInfo, DaemonInfo, ExportInfo};

/// How long a client that is disconnected may take to finish what it asked for.
const PATIENCE: Duration = Duration::from_secs(10);

/// An origin, its exports and the NBD server.
pub(super) struct ServedOrigin {
    pub(super) cow: Arc<CowOrigin>,
    pub(super) exports: Arc<OriginExports>,
    pub(super) server: Server,
    pub(super) base: Uri,
    pub(super) jobs: Arc<Registry>,
}

/// What jobs that merge are called.
const MERGE: &str = "merge";

impl ServedOrigin {
    pub(super) fn new(
        cow: Arc<CowOrigin>,
        exports: Arc<OriginExports>,
        server: Server,
        base: Uri,
    ) -> Self {
        Self { cow, exports, server, base, jobs: Arc::default() }
    }

    /// What there is to tell of the origin.
    pub(super) fn report(&self) -> OriginReport {
        OriginReport { served_by: Some(std::process::id()), ..self.cow.report() }
    }

    /// Who serves.
    pub(super) fn info(&self) -> DaemonInfo {
        DaemonInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            pool: self.cow.path().display().to_string(),
            uri: self.base.to_string(),
        }
    }

    /// What is served, to whom.
    pub(super) fn list(&self) -> Vec<ExportInfo> {
        let clients = self.server.clients();
        let export = |name: String| {
            let mine = clients.iter().filter(|client| client.export.as_ref() == Some(&name));
            ExportInfo {
                uri: Uri { export: name.clone(), ..self.base.clone() }.to_string(),
                read_only: self.exports.is_read_only(),
                clients: mine.map(|client| ClientInfo { peer: client.peer.clone() }).collect(),
                name,
            }
        };
        self.exports.names().into_iter().map(export).collect()
    }

    /// Takes a snapshot.
    pub(super) fn create(&self, new: &NewSnapshot) -> Result<CowReport> {
        let report = self.cow.create(new)?;
        self.exports.restore(&report.name);
        Ok(report)
    }

    /// Drops a snapshot that has no clients, or whose clients may be disconnected.
    pub(super) fn drop_snapshot(&self, name: &str, keep: bool, force: bool) -> Result<()> {
        self.without_clients(name, force, || self.cow.drop_snapshot(name, keep))
    }

    /// Begins to merge a snapshot that has no clients, or takes up a merge that was broken off: as
    /// a job, which may be paused and cancelled. The origin reads the same all the while.
    pub(super) fn begin_merge(&self, name: &str, keep: bool, force: bool) -> Result<JobInfo> {
        let running = |job: &JobInfo| job.kind == MERGE && !job.is_over();
        if let Some(job) = JobAccess::list(&*self.jobs)?.into_iter().find(running) {
            let problem = format!("is merging the snapshot {} already", job.object);
            let origin = self.cow.path().display().to_string();
            return Err(Error::new(ErrorKind::Busy, origin, problem)
                .advise(format!("'firn job show' has job {}", job.id)));
        }
        let mut begun = None;
        self.without_clients(name, force, || {
            begun = Some(self.cow.begin_merge(name, keep)?);
            Ok(())
        })?;
        let merge = begun.expect("it was begun, or that has failed");
        let id = self.jobs.start(MERGE, name, merge.left(), move |monitor| run(&merge, monitor))?;
        JobAccess::show(&*self.jobs, id.get())
    }

    /// Has a merge go on that was begun before.
    pub(super) fn resume_merge(&self) -> Result<()> {
        if let Some(name) = self.cow.merging() {
            tracing::info!(snapshot = name, "goes on with a merge");
            self.begin_merge(&name, false, true)?;
        }
        Ok(())
    }

    /// Does `work` while nobody can have the export of a snapshot; that stays so if it is done.
    fn without_clients(
        &self,
        snapshot: &str,
        force: bool,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        self.exports.withdraw(snapshot);
        let done = self.disconnect(snapshot, force).and_then(|()| work());
        if done.is_err() {
            self.exports.restore(snapshot);
        }
        done
    }

    fn disconnect(&self, snapshot: &str, force: bool) -> Result<()> {
        let name = self.exports.full_name(snapshot);
        let clients = self.server.clients().into_iter();
        let mine = clients.filter(|client| client.export.as_ref() == Some(&name));
        let peers: Vec<_> = mine.map(|client| client.peer).collect();
        if peers.is_empty() {
            return Ok(());
        }
        if !force {
            let problem = format!("has NBD clients: {}", peers.join(", "));
            return Err(Error::new(ErrorKind::Busy, format!("snapshot {name}"), problem)
                .advise("disconnect them, or say --force, which does that first"));
        }
        let orderly = self.server.disconnect_export(&name, PATIENCE);
        tracing::info!(export = name, clients = peers.len(), orderly, "disconnected by force");
        Ok(())
    }
}

/// Merges step by step.
fn run(merge: &CowMerge, monitor: &Monitor) -> Result<()> {
    let mut left = merge.left();
    while !left.is_zero() {
        monitor.checkpoint()?;
        let now = merge.step()?;
        monitor.advance(ByteCount::new(left.get().saturating_sub(now.get())));
        left = now;
    }
    // One without exceptions ends with its first step.
    if monitor.total().is_zero() { merge.step().map(drop) } else { Ok(()) }
}
