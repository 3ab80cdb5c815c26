//! A daemon as a process of its own: signals, crashes, two at once, socket activation.
//!
//! The process is this test program once more, told by its environment to serve.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use block_types::ErrorKind;
use daemon::{Daemon, access, serve};
use rustix::process::{Pid, Signal, kill_process};
use testkit::peer::peer;

use crate::world::{MIB, World, mib, node, options, read, volume, write};

const POOL: &str = "FIRN_TEST_POOL";
const RUN: &str = "FIRN_TEST_RUN";
const TEST: &str = "process::the_process_that_others_start";

/// How long a process may take to begin and to end.
const LIMIT: Duration = Duration::from_secs(20);

/// Serves, in a process that another test started; nothing to do otherwise.
#[test]
fn the_process_that_others_start() {
    let Some(pool) = std::env::var_os(POOL) else { return };
    let mut options = options(Path::new(&pool));
    options.run = std::env::var(RUN).ok();
    options.listen_fds = true;
    let code = match serve(&options, |ready| println!("ready {}", ready.nbd_uri)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            1
        }
    };
    std::process::exit(code);
}

/// The command that serves `pool`.
fn command(pool: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([TEST, "--exact", "--nocapture"]).env(POOL, pool);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// A daemon's process, killed when dropped.
struct Process(Child);

impl Process {
    /// Starts one, and waits until its control socket is there and answers.
    fn start(world: &World) -> Self {
        let process = Self(command(&world.pool).spawn().unwrap());
        let deadline = Instant::now() + LIMIT;
        while std::os::unix::net::UnixStream::connect(world.control_socket()).is_err() {
            assert!(Instant::now() < deadline, "the daemon does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
        process
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn signals_end_it_in_good_order() {
    for signal in [Signal::TERM, Signal::INT] {
        let world = World::new();
        let mut process = Process::start(&world);
        let pool = access(&world.pool, false).unwrap();
        pool.create_volume(&volume("db"), mib(1)).unwrap();
        let device = pool.open_device(&node("db"), false).unwrap();
        write(&device, 0, 65536, 9);
        process.signal(signal);
        assert_eq!(process.wait().code(), Some(0));
        assert!(!world.control_socket().exists() && !world.nbd_socket().exists());
        assert!(device.flush().is_err());
        // Never flushed by the client, but by the end.
        let pool = access(&world.pool, true).unwrap();
        assert_eq!(read(&pool.open_device(&node("db"), true).unwrap(), 0, 65536), 9);
    }
}

#[test]
fn a_killed_one_leaves_sockets_that_the_next_replaces() {
    let world = World::new();
    let mut first = Process::start(&world);
    let pool = access(&world.pool, false).unwrap();
    pool.create_volume(&volume("db"), mib(1)).unwrap();
    first.signal(Signal::KILL);
    assert_eq!(first.wait().signal(), Some(9));
    assert!(world.control_socket().exists() && world.nbd_socket().exists());

    // With nobody behind the socket the pool is opened directly...
    let pool = access(&world.pool, false).unwrap();
    assert_eq!(pool.exports().unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(pool.volumes().unwrap().len(), 1);
    drop(pool);
    // ... and another daemon takes the paths over.
    let mut second = Process::start(&world);
    assert_eq!(access(&world.pool, false).unwrap().exports().unwrap().len(), 1);
    second.signal(Signal::TERM);
    assert_eq!(second.wait().code(), Some(0));
    assert!(!world.control_socket().exists() && !world.nbd_socket().exists());
}

#[test]
fn the_second_daemon_is_refused_and_told_of_the_first() {
    let world = World::new();
    let first = Process::start(&world);
    let error = Daemon::start(&options(&world.pool)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Busy);
    let holder = format!("firn serve (pid {})", first.0.id());
    assert!(error.to_string().contains(&holder), "{error}");
    // The first one's sockets are still its own.
    assert!(world.control_socket().exists() && world.nbd_socket().exists());
    assert_eq!(access(&world.pool, false).unwrap().exports().unwrap(), []);
}

#[test]
fn a_command_runs_with_the_address_and_lends_its_exit_code() {
    let world = World::new();
    let pool = access(&world.pool, false).unwrap();
    pool.create_volume(&volume("db"), mib(1)).unwrap();
    pool.create_volume(&volume("web"), mib(1)).unwrap();
    drop(pool);
    let said = world.pool.join("said");
    let script = format!(
        "nbdinfo --size \"$uri\" > {0}; echo $exportname $unixsocket >> {0}; exit 7",
        said.display()
    );
    let status = command(&world.pool).env(RUN, script).status().unwrap();
    assert_eq!(status.code(), Some(7));
    let said = std::fs::read_to_string(&said).unwrap();
    assert_eq!(said, format!("{MIB}\ndb {}\n", world.nbd_socket().display()));
    assert!(!world.control_socket().exists());
}

#[test]
fn a_signal_reaches_the_command() {
    let world = World::new();
    let started = world.pool.join("started");
    let script =
        format!("trap 'exit 5' TERM; touch {}; while :; do sleep 0.05; done", started.display());
    let mut process = Process(command(&world.pool).env(RUN, script).spawn().unwrap());
    let deadline = Instant::now() + LIMIT;
    while !started.exists() {
        assert!(Instant::now() < deadline, "the command does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(5));
    assert!(!world.control_socket().exists());
}

#[test]
fn the_second_signal_ends_it_at_once() {
    let world = World::new();
    let started = world.pool.join("started");
    // Deaf to the signal; it ends when the folder goes.
    let script = format!(
        "trap '' TERM; touch {0}; while [ -e {0} ]; do sleep 0.05; done",
        started.display()
    );
    let mut process = Process(command(&world.pool).env(RUN, script).spawn().unwrap());
    let deadline = Instant::now() + LIMIT;
    while !started.exists() {
        assert!(Instant::now() < deadline, "the command does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    process.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    assert!(process.0.try_wait().unwrap().is_none(), "it did not wait for the command");
    process.signal(Signal::TERM);
    assert_eq!(process.wait().code(), Some(128 + 15));
}

/// `nbdinfo [ ... ]` starts the daemon itself and hands it a socket.
#[test]
fn socket_activation() {
    let world = World::new();
    let pool = access(&world.pool, false).unwrap();
    pool.create_volume(&volume("db"), mib(3)).unwrap();
    drop(pool);
    let program = std::env::current_exe().unwrap();
    let info = peer("nbdinfo")
        .args(["--size", "--", "["])
        .arg(program)
        .args([TEST, "--exact", "--nocapture", "--quiet", "]"])
        .env(POOL, &world.pool)
        .ok();
    assert!(info.contains(&(3 * MIB).to_string()), "{info}");
    assert!(!world.nbd_socket().exists(), "a socket of its own was not asked for");
    // It was stopped in good order, not killed.
    assert!(!world.control_socket().exists());
    access(&world.pool, true).unwrap();
}

#[test]
fn the_service_manager_is_told() {
    let world = World::new();
    let address = world.pool.join("notify.sock");
    let manager = std::os::unix::net::UnixDatagram::bind(&address).unwrap();
    manager.set_read_timeout(Some(LIMIT)).unwrap();
    let received = || {
        let mut buffer = [0; 64];
        let count = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..count]).into_owned()
    };
    let spawned = command(&world.pool).env("NOTIFY_SOCKET", &address).spawn().unwrap();
    let mut process = Process(spawned);
    assert_eq!(received(), "READY=1");
    process.signal(Signal::TERM);
    assert_eq!(received(), "STOPPING=1");
    assert_eq!(process.wait().code(), Some(0));
}
