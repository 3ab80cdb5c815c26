//! The guest as a process: its command line, its time limit, its end.

use std::fmt;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use block_types::{Error, ErrorKind, Result};

use super::control::Control;
use super::{Kernel, shim};
use crate::peer;

/// What a guest said, and the status its script ended with.
#[derive(Debug)]
pub struct Output {
    /// The script's exit status, or [`POWER_CUT`](super::POWER_CUT).
    pub status: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// The kernel's log.
    pub log: String,
}

/// Opens the serial lines' files, which the guest takes by number, and becomes the guest.
const LAUNCH: &str = r#"exec "$@" 3>>"$OUT" 4>>"$ERR" 5>>"$STATUS" 6>>"$LOG""#;

/// Boots `kernel` and waits for its end.
pub(super) fn run(kernel: &Kernel) -> Result<Output> {
    let program = peer::find("linux.uml")?;
    peer::find("busybox")?;
    let shim = shim::library()?;
    let control = Control::prepare(kernel)?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", LAUNCH, "sh"]).arg(program).args(arguments(kernel, &control));
    for line in ["out", "err", "status", "log"] {
        command.env(line.to_uppercase(), control.file(line));
    }
    let log = OpenOptions::new()
        .append(true)
        .open(control.file("log"))
        .and_then(|log| Ok((log.try_clone()?, log)))
        .map_err(|error| Error::io("the kernel's log", "cannot be opened", error))?;
    let child = command
        .env("LD_PRELOAD", shim)
        .env("TMPDIR", memory_folder(&control))
        .stdin(Stdio::null())
        .stdout(log.0)
        .stderr(log.1)
        .process_group(0)
        .spawn()
        .map_err(|error| Error::io("linux.uml", "cannot be started", error))?;
    let mut guest = Guest(child);
    let in_time = peer::wait(&mut guest.0, kernel.limit).is_some();
    // The guest's processes are processes of the host in this group: none may stay, and the disks
    // are closed only when all are gone.
    drop(guest);
    conclude(kernel, &control, in_time)
}

/// The running guest; killed with all its processes when dropped.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        peer::kill_group(&mut self.0);
    }
}

/// The arguments of the guest kernel.
fn arguments(kernel: &Kernel, control: &Control) -> Vec<String> {
    let folder = control.path().display();
    let mut arguments = vec![
        format!("mem={}", kernel.memory),
        format!("uml_dir={folder}/"),
        "umid=guest".to_owned(),
        format!("init={folder}/boot.sh"),
    ];
    let fixed = "root=/dev/root rootfstype=hostfs rootflags=/ ro panic=-1 pty.legacy_count=0 \
                 random.trust_bootloader=1 con=null con0=null,fd:6 \
                 ssl=null ssl0=null,fd:3 ssl1=null,fd:4 ssl2=null,fd:5";
    arguments.extend(fixed.split_whitespace().map(str::to_owned));
    for (number, disk) in kernel.disks.iter().enumerate() {
        arguments.push(format!("ubd{number}{}={folder}/d{number}", disk.mode.flags()));
    }
    for number in 0..kernel.vhost_user.len() {
        arguments.push(format!("virtio_uml.device={folder}/v{number}:2"));
    }
    arguments
}

/// Where the guest's memory file goes: shared memory, if there is enough of it.
fn memory_folder(control: &Control) -> &Path {
    const ENOUGH: u64 = 1 << 30;
    let shared = Path::new("/dev/shm");
    match rustix::fs::statvfs(shared) {
        Ok(space) if space.f_bavail * space.f_frsize >= ENOUGH => shared,
        _ => control.path(),
    }
}

/// What came of the run.
fn conclude(kernel: &Kernel, control: &Control, in_time: bool) -> Result<Output> {
    let output = Output {
        status: 0,
        stdout: control.text("out"),
        stderr: control.text("err"),
        log: control.text("log"),
    };
    if !in_time {
        let problem = format!("still ran after {:?}\n{output}", kernel.limit);
        return Err(Error::new(ErrorKind::Cancelled, "the guest", problem));
    }
    match control.text("status").trim().parse() {
        Ok(status) => Ok(Output { status, ..output }),
        Err(_) => {
            let problem = format!("ended without a status\n{output}");
            Err(Error::new(ErrorKind::Stopped, "the guest", problem))
        }
    }
}

impl Output {
    /// What the script wrote to standard output.
    ///
    /// # Panics
    /// Unless it ended with status 0, with all that was said.
    #[track_caller]
    pub fn ok(self) -> String {
        self.expect_status(0)
    }

    /// What the script wrote to standard output.
    ///
    /// # Panics
    /// Unless it ended with this status, with all that was said.
    #[track_caller]
    pub fn expect_status(self, status: i32) -> String {
        assert!(
            self.status == status,
            "expected status {status} of the guest's script, got {self}"
        );
        self.stdout
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LOG_LINES: usize = 40;
        let lines: Vec<_> = self.log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        write!(
            f,
            "status {}\nstdout:\n{}\nstderr:\n{}\nend of the kernel's log:\n{tail}",
            self.status, self.stdout, self.stderr
        )
    }
}
