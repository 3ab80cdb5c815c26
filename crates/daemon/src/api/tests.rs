//! The document against what is served, and answers to requests that make no sense.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block_io::CacheMode;
use block_types::{ByteCount, Error, ErrorKind, Result};
use hyper::Method;
use jobs::Monitor;
use nbd::ExportSource;
use serde::Serialize;
use serde_json::Value;
use volume::{
    ChangedRange, CheckReport, CreateOptions, OriginInfo, OriginSource, PoolDirectory, PoolReport,
    SnapshotInfo, VolumeInfo, VolumeName,
};

use super::openapi;
use crate::access::access;
use crate::client::Client;
use crate::daemon::{Daemon, ServeOptions};
use crate::job::JobInfo;

/// Every request that a pool's API knows; the client, the daemon and the document agree on these.
const ROUTES: [(&str, &str); 35] = [
    ("POST", "/v1/devices/{id}/name"),
    ("GET", "/v1/diff"),
    ("GET", "/v1/events"),
    ("GET", "/v1/exports"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/{job}"),
    ("PATCH", "/v1/jobs/{job}"),
    ("POST", "/v1/jobs/{job}/cancel"),
    ("POST", "/v1/jobs/{job}/complete"),
    ("POST", "/v1/jobs/{job}/pause"),
    ("POST", "/v1/jobs/{job}/resume"),
    ("GET", "/v1/openapi.json"),
    ("GET", "/v1/pool"),
    ("POST", "/v1/pool/check"),
    ("POST", "/v1/pool/grow"),
    ("POST", "/v1/pool/grow-metadata"),
    ("POST", "/v1/pool/message"),
    ("GET", "/v1/pool/settings"),
    ("PUT", "/v1/pool/settings"),
    ("GET", "/v1/pool/status-line"),
    ("POST", "/v1/pool/trim"),
    ("GET", "/v1/version"),
    ("GET", "/v1/volumes"),
    ("POST", "/v1/volumes"),
    ("DELETE", "/v1/volumes/{name}"),
    ("GET", "/v1/volumes/{name}"),
    ("PATCH", "/v1/volumes/{name}"),
    ("POST", "/v1/volumes/{name}/hydrate"),
    ("POST", "/v1/volumes/{name}/rename"),
    ("GET", "/v1/volumes/{name}/snapshots"),
    ("POST", "/v1/volumes/{name}/snapshots"),
    ("DELETE", "/v1/volumes/{name}/snapshots/{snapshot}"),
    ("POST", "/v1/volumes/{name}/snapshots/{snapshot}/clone"),
    ("POST", "/v1/volumes/{name}/snapshots/{snapshot}/rollback"),
    ("GET", "/v1/volumes/{name}/status-line"),
];

/// The requests that only a repository's API knows.
const OF_REPOSITORIES: [(&str, &str); 8] = [
    ("POST", "/v1/collect"),
    ("POST", "/v1/disks"),
    ("POST", "/v1/disks/added"),
    ("DELETE", "/v1/disks/{name}"),
    ("POST", "/v1/disks/{name}/clone"),
    ("POST", "/v1/disks/{name}/snapshots"),
    ("GET", "/v1/nodes"),
    ("POST", "/v1/scan"),
];

fn document() -> Value {
    serde_json::from_str(&openapi()).unwrap()
}

/// A daemon on a new pool, and a client of its control API.
fn daemon(dir: &Path) -> (Daemon, Client) {
    let pool = dir.join("lab");
    let size = ByteCount::new(1 << 30);
    let create = CreateOptions { size, block_size: ByteCount::new(64 << 10) };
    PoolDirectory::create(&pool, &create).unwrap();
    let daemon = Daemon::start(&ServeOptions {
        pool,
        cache: CacheMode::Cached,
        read_only: false,
        socket: None,
        tcp: None,
        run: None,
        listen_fds: false,
    });
    let daemon = daemon.unwrap();
    let client = Client::new(&daemon.ready().control_socket).unwrap();
    (daemon, client)
}

#[test]
fn the_document_has_every_route_and_no_other() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let mut found = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            found.insert((method.to_uppercase(), path.clone()));
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.keys().any(|status| status.starts_with('2')), "{method} {path}");
        }
    }
    let known = ROUTES.into_iter().chain(OF_REPOSITORIES);
    let known = known.map(|(method, path)| (method.to_owned(), path.to_owned()));
    assert_eq!(found, known.collect());
}

/// A route that is not served answers with the problem of the fallback, which names the path.
#[test]
fn every_route_of_the_document_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let (daemon, client) = daemon(folder.path());
    for (method, path) in ROUTES {
        let target = path.replace("{name}", "no-volume").replace("{snapshot}", "no-snapshot");
        let target = target.replace("{id}", "0").replace("{job}", "0");
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        if let Err(error) = client.ask::<Value>(method.clone(), &target) {
            assert_ne!(error.object(), target, "{method} {target}: {error}");
        }
    }
    let served: Value = client.ask(Method::GET, "/v1/openapi.json").unwrap();
    assert_eq!(served, document());
    daemon.stop().unwrap();
}

/// The properties of a component of the document, with their types.
fn described(document: &Value, name: &str) -> BTreeMap<String, String> {
    let component = &document["components"]["schemas"][name];
    let properties = component["properties"].as_object();
    let properties = properties.unwrap_or_else(|| panic!("{name} is not described: {component}"));
    properties.iter().map(|(name, schema)| (name.clone(), type_of_schema(schema))).collect()
}

fn type_of_schema(schema: &Value) -> String {
    match &schema["type"] {
        Value::String(name) => name.clone(),
        // ["string", "null"]: what may be absent.
        Value::Array(names) => names[0].as_str().unwrap().to_owned(),
        _ => "object".to_owned(),
    }
}

/// The same of a value with all its fields set.
fn actual(value: &impl Serialize) -> BTreeMap<String, String> {
    let value = serde_json::to_value(value).unwrap();
    let kind = |value: &Value| match value {
        Value::String(_) => "string",
        Value::Number(_) => "integer",
        Value::Bool(_) => "boolean",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
        Value::Null => "null",
    };
    let fields = value.as_object().unwrap().iter();
    fields.map(|(name, value)| (name.clone(), kind(value).to_owned())).collect()
}

#[test]
fn the_document_describes_what_is_sent() {
    let text = || "x".to_owned();
    let document = document();
    let pool = PoolReport {
        path: text(),
        size: 1,
        block_size: 1,
        data_used: 1,
        reclaiming: 1,
        metadata_used: 1,
        metadata_size: 1,
        transaction: 1,
        volumes: 1,
        snapshots: 1,
        mode: text(),
        reason: Some(text()),
        needs_check: false,
    };
    assert_eq!(described(&document, "PoolReport"), actual(&pool));
    let origin = OriginInfo { address: text(), format: Some(text()), shown: 1 };
    assert_eq!(described(&document, "OriginInfo"), actual(&origin));
    let source =
        OriginSource { address: text(), format: Some(text()), allow_backing: vec![text()] };
    assert_eq!(described(&document, "OriginSource"), actual(&source));
    let snapshot = SnapshotInfo {
        name: text(),
        id: 1,
        size: 1,
        mapped: 1,
        created: Some(text()),
        origin: Some(origin.clone()),
    };
    assert_eq!(described(&document, "SnapshotInfo"), actual(&snapshot));
    let volume = VolumeInfo {
        name: text(),
        id: 1,
        size: 1,
        mapped: 1,
        created: Some(text()),
        parent: Some(text()),
        origin: Some(origin),
        snapshots: vec![snapshot],
    };
    assert_eq!(described(&document, "VolumeInfo"), actual(&volume));
    let range = ChangedRange { start: 1, length: 1, kind: text() };
    assert_eq!(described(&document, "ChangedRange"), actual(&range));
    assert_eq!(described(&document, "CheckReport"), actual(&CheckReport::default()));
}

#[test]
fn requests_without_sense_are_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let (daemon, client) = daemon(folder.path());
    let ask = |method, target: &str| client.ask::<Value>(method, target).unwrap_err();

    let error = ask(Method::GET, "/v2/pool");
    assert_eq!((error.kind(), error.object()), (ErrorKind::NotFound, "/v2/pool"));
    let error = ask(Method::PUT, "/v1/pool");
    assert_eq!((error.kind(), error.object()), (ErrorKind::Invalid, "/v1/pool"));
    let error = ask(Method::GET, "/v1/diff?from=db");
    assert_eq!((error.kind(), error.object()), (ErrorKind::Invalid, "request parameters"));
    assert!(error.problem().contains("`to`"), "{error}");
    let error = ask(Method::DELETE, "/v1/volumes/db?force=perhaps");
    assert_eq!((error.kind(), error.object()), (ErrorKind::Invalid, "request parameters"));
    let error = ask(Method::GET, "/v1/volumes/a%20b");
    assert_eq!((error.kind(), error.object()), (ErrorKind::Invalid, "volume name 'a b'"));

    let body = serde_json::json!({ "name": "db", "size": 1 << 20, "colour": "red" });
    let sent: Result<Value> = client.send(Method::POST, "/v1/volumes", &body);
    let error = sent.unwrap_err();
    assert_eq!((error.kind(), error.object()), (ErrorKind::Invalid, "request body"));
    assert!(error.problem().contains("colour"), "{error}");
    daemon.stop().unwrap();
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A deletion waits for somebody who looks at the export just then; so it is in flight for as long
/// as this test wants it to be.
#[test]
fn stopping_waits_for_requests_and_not_for_idle_connections() {
    let folder = tempfile::tempdir().unwrap();
    let (daemon, client) = daemon(folder.path());
    let socket = daemon.ready().control_socket.clone();
    let idle = UnixStream::connect(&socket).unwrap();
    let served = Arc::clone(&daemon.served);
    let name = VolumeName::parse("db").unwrap();
    served.pool.create_volume(&name, ByteCount::new(1 << 20)).unwrap();
    let look = served.exports.find("db").unwrap();

    let deletion = std::thread::spawn(move || {
        let deleted = client.ask::<()>(Method::DELETE, "/v1/volumes/db");
        (deleted, Instant::now())
    });
    // Nobody can have the export any more once the deletion is under way.
    wait_until(|| served.exports.find("db").is_err());
    let stopping = std::thread::spawn(move || {
        daemon.stop().unwrap();
        Instant::now()
    });
    wait_until(|| !socket.exists());
    std::thread::sleep(Duration::from_millis(100));
    assert!(!deletion.is_finished() && !stopping.is_finished());
    let released = Instant::now();
    drop(look);
    let (deleted, answered) = deletion.join().unwrap();
    deleted.unwrap();
    let stopped = stopping.join().unwrap();
    assert!(answered >= released && stopped >= released);
    assert!(stopped - released < Duration::from_secs(5), "an idle connection held the daemon up");
    drop(idle);
    drop(served);

    let pool = access(&folder.path().join("lab"), true).unwrap();
    assert_eq!(pool.volumes().unwrap(), []);
}

#[test]
fn a_job_is_seen_and_led_from_outside() {
    let folder = tempfile::tempdir().unwrap();
    let (daemon, _) = daemon(folder.path());
    let pool = folder.path().join("lab");
    let jobs = crate::jobs(&pool).unwrap();
    assert_eq!(jobs.list().unwrap(), []);
    let (go, wait) = std::sync::mpsc::channel();
    let work = move |monitor: &Monitor| {
        wait.recv().unwrap();
        monitor.set_ready(true);
        while !monitor.await_completion(Duration::from_millis(5))? {}
        Ok(serde_json::json!({ "moved": 7 }))
    };
    let size = ByteCount::new(7);
    let id = daemon.served.jobs.start("merge", "db", size, work).unwrap().get();
    assert_eq!(jobs.pause(id).unwrap().state, "paused");
    assert_eq!(jobs.set_rate(id, 9).unwrap().rate, Some(9));
    assert_eq!(jobs.set_rate(id, 0).unwrap().rate, None);
    assert_eq!(jobs.resume(id).unwrap().state, "running");
    go.send(()).unwrap();
    wait_until(|| jobs.show(id).unwrap().state == "ready");
    let job = access(&pool, false).unwrap().jobs().complete(id).unwrap();
    assert_eq!((job.kind.as_str(), job.object.as_str()), ("merge", "db"));
    wait_until(|| jobs.show(id).unwrap().is_over());
    let job = jobs.show(id).unwrap();
    assert_eq!((job.state.as_str(), job.failure().is_none()), ("done", true));
    assert_eq!(job.result, Some(serde_json::json!({ "moved": 7 })));
    assert_eq!(jobs.cancel(id).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(jobs.show(99).unwrap_err().kind(), ErrorKind::NotFound);

    // Stopping cancels what still runs.
    let endless = |monitor: &Monitor| -> Result<()> {
        while !monitor.await_completion(Duration::from_secs(1))? {}
        Ok(())
    };
    daemon.served.jobs.start("merge", "db", size, endless).unwrap();
    daemon.stop().unwrap();
    let error = crate::jobs(&pool).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn the_document_describes_jobs() {
    let problem = Error::new(ErrorKind::Io, "db", "is gone").advise("find it");
    let job = JobInfo {
        id: 1,
        kind: "merge".to_owned(),
        object: "db".to_owned(),
        state: "failed".to_owned(),
        total: 1,
        done: 1,
        rate: Some(1),
        started: "2026-11-01T00:00:00Z".to_owned(),
        elapsed: 1,
        error: Some(problem.into()),
        result: Some(serde_json::json!({ "moved": 7 })),
    };
    assert_eq!(described(&document(), "JobInfo"), actual(&job));
}
