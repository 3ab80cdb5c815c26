//! From Firn's errors to the wire's.

use std::io;

use block_types::{Error, ErrorKind};

use crate::wire::{Command, Errno};

/// The error number that tells a client why `command` failed.
pub(super) fn errno_of(command: Command, kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::OutOfSpace => Errno::NoSpace,
        ErrorKind::ReadOnly | ErrorKind::Denied => Errno::Perm,
        ErrorKind::OutOfRange => past_the_end(command),
        ErrorKind::Invalid => Errno::Invalid,
        ErrorKind::Unsupported => Errno::NotSupported,
        ErrorKind::Cancelled => Errno::Shutdown,
        ErrorKind::Io
        | ErrorKind::Corrupt
        | ErrorKind::Stopped
        | ErrorKind::NotFound
        | ErrorKind::Exists
        | ErrorKind::Busy => Errno::Io,
    }
}

/// What a request past the end of the export is answered with.
pub(super) fn past_the_end(command: Command) -> Errno {
    match command {
        Command::WRITE | Command::WRITE_ZEROES => Errno::NoSpace,
        _ => Errno::Invalid,
    }
}

/// Makes an error of what the system said about I/O on resolved places of a device.
pub(super) fn device_error(device: &str, command: Command, source: io::Error) -> Error {
    let doing = if command == Command::READ { "cannot be read" } else { "cannot be written" };
    Error::io(device, doing, source)
}
