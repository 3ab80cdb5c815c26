//! One client from its first byte to its last.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use block_io::IoQueue;
use block_types::{Error, ErrorKind, Result};

use super::Shared;
use super::execute::{Equipment, MAX_REQUESTS};
use super::negotiate::{Agreed, Negotiation, Next};
use super::registry::Registration;
use super::session::Session;
use crate::channel::Channel;
use crate::wire::{
    CLIENT_FLAGS_LEN, ClientFlags, Greeting, MAX_OPTION_DATA, MAX_PAYLOAD, OPTION_HEAD_LEN,
    OptionHead, ReplyType, push_error,
};

/// How long a handshake may take unless the options say otherwise.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves the client at `socket` until it leaves.
pub(super) fn serve(
    shared: &Shared,
    socket: &Arc<OwnedFd>,
    registration: &Registration,
) -> Result<()> {
    let Some(agreed) = negotiate(shared, socket, registration)? else { return Ok(()) };
    tracing::debug!(
        client = registration.id(),
        export = agreed.export.name(),
        dialect = ?agreed.dialect,
        "transmission begins"
    );
    let equipment = Equipment {
        queue: IoQueue::new(shared.options.queue, MAX_REQUESTS as u32)?,
        export: &agreed.export,
        dialect: agreed.dialect,
        contexts: agreed.contexts,
        socket: socket.as_fd(),
        workers: &shared.workers,
        stop: Arc::clone(&registration.stop),
    };
    Session::new(equipment, &registration.stop)?.run()
}

/// The handshake, in the time that is given for it; `None` if the client leaves.
fn negotiate(
    shared: &Shared,
    socket: &OwnedFd,
    registration: &Registration,
) -> Result<Option<Agreed>> {
    let channel = Channel::until(socket.as_fd(), shared.options.handshake_timeout);
    let broken = |error| Error::io("NBD client", "does not finish the handshake", error);
    channel.write_all(&Greeting { no_zeroes: true }.to_bytes()).map_err(broken)?;
    let mut flags = [0; CLIENT_FLAGS_LEN];
    channel.read_exact(&mut flags).map_err(broken)?;
    let flags = ClientFlags::parse(flags).ok_or_else(|| refuse("has unknown handshake flags"))?;
    let mut negotiation = Negotiation::new(&*shared.source, flags.no_zeroes);
    let mut out = Vec::new();
    loop {
        let mut head = [0; OPTION_HEAD_LEN];
        channel.read_exact(&mut head).map_err(broken)?;
        let head = OptionHead::parse(&head).ok_or_else(|| refuse("sends no option"))?;
        if head.len > MAX_PAYLOAD {
            return Err(refuse("sends an option of more than 32 MiB"));
        }
        out.clear();
        let next = if head.len > MAX_OPTION_DATA {
            channel.skip(head.len as usize).map_err(broken)?;
            push_error(&mut out, head.code, ReplyType::ERR_TOO_BIG, "the option is too long");
            Next::Option
        } else {
            let data = channel.read_vec(head.len as usize).map_err(broken)?;
            negotiation.answer(head.code, &data, &mut out)
        };
        if let Next::Transmit(agreed) = &next {
            confirm(shared, registration, agreed)?;
        }
        channel.write_all(&out).map_err(broken)?;
        match next {
            Next::Option => {}
            Next::Close => return Ok(None),
            Next::Transmit(agreed) => return Ok(Some(agreed)),
        }
    }
}

/// Notes the client's choice, and checks that the export was not withdrawn at the same moment: who
/// withdraws one first makes it unknown, and then disconnects whom the registry shows.
fn confirm(shared: &Shared, registration: &Registration, agreed: &Agreed) -> Result<()> {
    registration.chose(agreed.export.name(), agreed.dialect);
    if agreed.export.is_of_one_connection() {
        // It was made for this client; the source would make another.
        return Ok(());
    }
    let still = shared.source.find(&agreed.name)?;
    if Arc::ptr_eq(&still, &agreed.export) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NotFound, agreed.export.name(), "was withdrawn"))
}

fn refuse(problem: &str) -> Error {
    Error::new(ErrorKind::Invalid, "NBD client", problem)
}
