//! The command of `--run`: a shell command that finds the server in its environment.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{self, ExitStatus};

use block_types::{Error, Result};
use nbd::{Transport, Uri};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::sync::oneshot;

/// A command that runs.
pub(crate) struct Command {
    /// The process, not its number, which might be another's by the time of a signal.
    process: OwnedFd,
    ended: oneshot::Receiver<std::io::Result<ExitStatus>>,
}

impl Command {
    /// Runs `text` in a shell, with the export at `uri` in its environment.
    pub(crate) fn start(text: &str, uri: &Uri) -> Result<Self> {
        let failed = |error| Error::io(format!("command '{text}'"), "cannot be started", error);
        let mut command = process::Command::new("sh");
        command.arg("-c").arg(text).envs(environment(uri));
        for mine in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET"] {
            command.env_remove(mine);
        }
        let mut child = command.spawn().map_err(failed)?;
        let pid = Pid::from_child(&child);
        let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
        let (tell, ended) = oneshot::channel();
        let wait = move || {
            // Nobody listens any more where a signal has ended the daemon before.
            let _ = tell.send(child.wait());
        };
        let thread = std::thread::Builder::new().name("run".to_owned());
        thread.spawn(wait).map_err(failed)?;
        Ok(Self { process, ended })
    }

    /// Waits for its end and returns its exit code, as a shell would. Where the wait was given up,
    /// it may be taken up again.
    pub(crate) async fn finish(&mut self) -> Result<i32> {
        let status = (&mut self.ended).await.expect("the thread that waits sends before it ends");
        let status = status.map_err(|error| Error::io("command", "cannot be waited for", error))?;
        Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
    }

    /// Passes a signal on to it.
    pub(crate) fn signal(&self, number: i32) {
        if let Some(signal) = Signal::from_named_raw(number) {
            // Fails only if it has ended already.
            let _ = pidfd_send_signal(&self.process, signal);
        }
    }
}

/// What nbdkit's users expect in the environment.
fn environment(uri: &Uri) -> Vec<(&'static str, String)> {
    let (socket, port, short) = match &uri.transport {
        Transport::Unix(path) => {
            let path = path.display().to_string();
            let short = format!("nbd:unix:{path}");
            (path, String::new(), short)
        }
        Transport::Tcp { host, port } => {
            (String::new(), port.to_string(), format!("nbd:{host}:{port}"))
        }
    };
    let short = match uri.export.as_str() {
        "" => short,
        export => format!("{short}:exportname={export}"),
    };
    vec![
        ("uri", uri.to_string()),
        ("unixsocket", socket),
        ("port", port),
        ("exportname", uri.export.clone()),
        ("nbd", short),
    ]
}

#[cfg(test)]
mod tests {
    use super::environment;
    use nbd::{Transport, Uri};

    #[test]
    fn tells_where_the_server_is() {
        let get = |uri: &Uri, name| {
            environment(uri).into_iter().find(|(known, _)| *known == name).unwrap().1
        };
        let unix = Uri::unix("/run/lab/nbd.sock", "db");
        assert_eq!(get(&unix, "uri"), "nbd+unix:///db?socket=/run/lab/nbd.sock");
        assert_eq!(get(&unix, "unixsocket"), "/run/lab/nbd.sock");
        assert_eq!(get(&unix, "nbd"), "nbd:unix:/run/lab/nbd.sock:exportname=db");
        let transport = Transport::Tcp { host: "127.0.0.1".to_owned(), port: 99 };
        let tcp = Uri { transport, export: String::new() };
        assert_eq!(get(&tcp, "uri"), "nbd://127.0.0.1:99/");
        assert_eq!(get(&tcp, "nbd"), "nbd:127.0.0.1:99");
        assert_eq!(get(&tcp, "unixsocket"), "");
    }
}
