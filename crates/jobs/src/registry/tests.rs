use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use block_types::{ByteCount, Error, ErrorKind, Result};

use super::{REMEMBERED, Registry};
use crate::{JobId, JobState, Monitor};

const LONG: Duration = Duration::from_secs(20);

fn total() -> ByteCount {
    ByteCount::new(100)
}

/// Works until it is cancelled.
fn endless(monitor: &Monitor) -> Result<()> {
    loop {
        monitor.checkpoint()?;
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn wait_for(registry: &Registry, id: JobId, state: JobState) {
    let deadline = std::time::Instant::now() + LONG;
    while registry.show(id).unwrap().state != state {
        assert!(std::time::Instant::now() < deadline, "{:?}", registry.show(id));
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_job_runs_and_leaves_its_result() {
    let registry = Registry::new();
    let (go, wait) = channel();
    let id = registry.start("copy", "lab/db", total(), move |monitor| {
        wait.recv().unwrap();
        let thread = std::thread::current().name().unwrap().to_owned();
        monitor.advance(total());
        Ok(thread)
    });
    let id = id.unwrap();
    let report = registry.show(id).unwrap();
    assert_eq!((report.kind.as_str(), report.object.as_str()), ("copy", "lab/db"));
    assert_eq!((report.state, report.done), (JobState::Running, ByteCount::ZERO));
    assert!(report.result.is_none() && report.error.is_none());
    go.send(()).unwrap();
    let report = registry.wait(id, LONG).unwrap();
    assert_eq!((report.state, report.done), (JobState::Done, total()));
    assert_eq!(report.result, Some("copy 1".into()));
    assert_eq!(registry.monitor(id).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(registry.show(JobId::new(7)).unwrap_err().kind(), ErrorKind::NotFound);
    let next = registry.start("copy", "lab/db", total(), |_| Ok(())).unwrap();
    assert!(next > id);
    assert_eq!(registry.wait(next, LONG).unwrap().result, None);
}

#[test]
fn a_job_is_paused_resumed_and_cancelled() {
    let registry = Registry::new();
    let id = registry.start("copy", "lab/db", total(), endless).unwrap();
    registry.monitor(id).unwrap().pause();
    assert_eq!(registry.show(id).unwrap().state, JobState::Paused);
    registry.monitor(id).unwrap().resume();
    assert_eq!(registry.show(id).unwrap().state, JobState::Running);
    registry.monitor(id).unwrap().set_ready(true);
    assert_eq!(registry.show(id).unwrap().state, JobState::Ready);
    assert_eq!(registry.wait(id, Duration::from_millis(5)).unwrap().state, JobState::Ready);
    registry.monitor(id).unwrap().cancel();
    wait_for(&registry, id, JobState::Cancelled);
    assert_eq!(registry.show(id).unwrap().error.unwrap().kind(), ErrorKind::Cancelled);
}

#[test]
fn failures_and_panics_are_how_a_job_ends() {
    let registry = Registry::new();
    let fail =
        |_: &Monitor| -> Result<()> { Err(Error::new(ErrorKind::OutOfSpace, "lab", "is full")) };
    let id = registry.start("copy", "lab/db", total(), fail).unwrap();
    let report = registry.wait(id, LONG).unwrap();
    assert_eq!(report.state, JobState::Failed);
    assert_eq!(report.error.unwrap().to_string(), "lab: is full");
    let panic = |_: &Monitor| -> Result<()> { panic!("no {}", "way") };
    let id = registry.start("copy", "lab/db", total(), panic).unwrap();
    let report = registry.wait(id, LONG).unwrap();
    assert_eq!(report.state, JobState::Failed);
    assert_eq!(report.error.unwrap().to_string(), "lab/db: the job panicked: no way");
}

#[test]
fn the_end_cancels_and_joins() {
    let registry = Registry::new();
    let held = Arc::new(());
    for _ in 0..3 {
        let held = Arc::clone(&held);
        let work = move |monitor: &Monitor| {
            let _held = &held;
            endless(monitor)
        };
        registry.start("copy", "lab/db", total(), work).unwrap();
    }
    registry.monitor(JobId::new(2)).unwrap().pause();
    assert!(registry.shutdown(LONG));
    assert_eq!(Arc::strong_count(&held), 1, "a job is over and holds what it used");
    assert!(registry.list().iter().all(|job| job.state == JobState::Cancelled));
    let error = registry.start("copy", "lab/db", total(), |_| Ok(())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Stopped);

    let stubborn = Registry::new();
    let (go, wait) = channel::<()>();
    let work = move |_: &Monitor| {
        let _ = wait.recv();
        Ok(())
    };
    stubborn.start("copy", "lab/db", total(), work).unwrap();
    assert!(!stubborn.shutdown(Duration::from_millis(5)));
    drop(go);
    assert!(stubborn.shutdown(LONG));
}

#[test]
fn the_latest_are_remembered() {
    let registry = Registry::new();
    let running = registry.start("copy", "lab/db", total(), endless).unwrap();
    for _ in 0..REMEMBERED + 5 {
        let id = registry.start("copy", "lab/db", total(), |_| Ok(())).unwrap();
        registry.wait(id, LONG).unwrap();
    }
    let list = registry.list();
    assert_eq!(list[0].id, running, "one that runs is never forgotten");
    // Forgetting happens when the next one begins.
    assert!(list.len() <= REMEMBERED + 2, "{}", list.len());
    assert_eq!(registry.show(JobId::new(2)).unwrap_err().kind(), ErrorKind::NotFound);
}
