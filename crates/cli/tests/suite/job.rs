//! Jobs: what is told of them where there are none, and Ctrl-C during a long verb.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::lab::Lab;

#[test]
fn a_daemon_without_jobs_says_so() {
    let lab = Lab::with_volume();
    let sentence = lab.refused("job list lab", 1);
    assert_eq!(
        sentence,
        "lab: no daemon serves it, so it has no jobs; jobs of the command itself end with it; \
         'firn serve' begins a daemon"
    );
    let server = lab.serve("lab");
    assert_eq!(lab.ok("job list lab"), "ID  KIND  OBJECT  STATE  DONE  OF  STARTED\n");
    assert_eq!(lab.json("job list lab"), serde_json::json!([]));
    assert_eq!(lab.json("job wait lab"), serde_json::json!([]));
    for verb in ["show", "pause", "resume", "cancel", "complete", "wait"] {
        let sentence = lab.refused(&format!("job {verb} lab 7"), 1);
        let expected = "job 7: there is no such job; 'firn job list' shows what there is";
        assert_eq!(sentence, expected);
    }
    lab.refused("job rate lab 7 1M", 1);
    drop(server);
}

/// An import that would take long is broken off: it says so, and leaves no half volume.
#[test]
fn an_interrupt_cancels_what_runs() {
    let lab = Lab::new();
    lab.ok("pool create lab --size 8G");
    // All data, so that there is time enough.
    let noise = vec![7; 1 << 20];
    let mut file = std::fs::File::create(lab.path("disk.img")).unwrap();
    for _ in 0..768 {
        std::io::Write::write_all(&mut file, &noise).unwrap();
    }
    let mut command = lab.command("volume import lab/db disk.img");
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    // Once it has begun to write it has taken the signal over.
    let begun = || {
        let data = std::fs::metadata(lab.path("lab/data"));
        data.is_ok_and(|data| std::os::unix::fs::MetadataExt::blocks(&data) > 8 * 2048)
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while !begun() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{stderr}");
    assert!(stderr.contains("was cancelled after"), "{stderr}");
    assert_eq!(lab.json("volume list lab"), serde_json::json!([]));
}
