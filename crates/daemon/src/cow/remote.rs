//! An origin that a server has, reached through its control socket.

use std::path::Path;
use std::time::Duration;

use block_types::{ByteCount, Result};
use hyper::Method;
use volume::{CowReport, NewSnapshot, OriginReport};

use super::access::{CowAccess, MergeWatch};
use super::request::NewCow;
use crate::api::NewSize;
use crate::client::Client;
use crate::job::JobInfo;
use crate::report::DaemonInfo;

/// How long a server that is well may take to say who it is.
const GREETING: Duration = Duration::from_secs(5);
/// How often it is asked how far it is.
const INTERVAL: Duration = Duration::from_millis(100);

/// Access to an origin through its server.
pub(super) struct RemoteOrigin {
    client: Client,
}

impl RemoteOrigin {
    /// Connects to the server at `control`.
    pub(super) fn connect(control: &Path) -> Result<Self> {
        let client = Client::new(control)?;
        let daemon: DaemonInfo = client.get_within("/v1/version", GREETING)?;
        tracing::debug!(pid = daemon.pid, version = daemon.version, "through the server");
        Ok(Self { client })
    }
}

fn path(name: &str) -> String {
    format!("/v1/origin/snapshots/{name}")
}

impl CowAccess for RemoteOrigin {
    fn report(&self) -> Result<OriginReport> {
        self.client.ask(Method::GET, "/v1/origin")
    }

    fn create(&self, new: &NewSnapshot) -> Result<CowReport> {
        self.client.send(Method::POST, "/v1/origin/snapshots", &NewCow::of(new)?)
    }

    fn drop_snapshot(&self, name: &str, keep: bool, force: bool) -> Result<()> {
        self.client.ask(Method::DELETE, &format!("{}?keep={keep}&force={force}", path(name)))
    }

    fn merge(&self, name: &str, keep: bool, force: bool, watch: MergeWatch<'_>) -> Result<()> {
        let target = format!("{}/merge?keep={keep}&force={force}", path(name));
        let job: JobInfo = self.client.ask(Method::POST, &target)?;
        loop {
            let job: JobInfo = self.client.ask(Method::GET, &format!("/v1/jobs/{}", job.id))?;
            if let Some(error) = job.failure() {
                return Err(error);
            }
            let report = self.report()?;
            let Some(snapshot) = report.snapshots.iter().find(|one| one.name == name) else {
                // Nothing is left that could be watched on.
                let _ = watch(ByteCount::ZERO);
                return Ok(());
            };
            let left = ByteCount::new(snapshot.exceptions * snapshot.chunk_size);
            if watch(left).is_break() {
                return Ok(());
            }
            std::thread::sleep(INTERVAL);
        }
    }

    fn grow(&self, name: &str, size: ByteCount) -> Result<CowReport> {
        let new = NewSize { size: size.get() };
        self.client.send(Method::POST, &format!("{}/grow", path(name)), &new)
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}
