//! The messages of the kernel's thin-pool target, as `dmsetup message` sends them.

use std::fmt;

use block_types::{Error, ErrorKind, Result};

use crate::words::split;
use crate::{Change, DeviceId, Pool};

/// A message to a pool, in the kernel's spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// `create_thin ID`: a device that reads as zeros.
    CreateThin(DeviceId),
    /// `create_snap ID ORIGIN`: a device that reads as its origin does now.
    CreateSnap {
        /// The new device.
        id: DeviceId,
        /// The device that it is a snapshot of.
        origin: DeviceId,
    },
    /// `delete ID`.
    Delete(DeviceId),
    /// `set_transaction_id CURRENT NEW`, refused unless `CURRENT` is what it is.
    SetTransaction {
        /// What the sender thinks it is.
        current: u64,
        /// What it becomes.
        new: u64,
    },
    /// `reserve_metadata_snap`.
    ReserveMetadataSnapshot,
    /// `release_metadata_snap`.
    ReleaseMetadataSnapshot,
}

impl Message {
    /// Reads a message. The verb may be in capitals, words are divided by blanks of any number, and
    /// a backslash takes the meaning out of what follows it.
    ///
    /// # Errors
    /// `Invalid`, as EINVAL, for what is no message, a wrong number of arguments, an identifier of
    /// more than 24 bits, and a transaction id of more than 64.
    pub fn parse(text: &str) -> Result<Self> {
        let words = split(text);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Self::read(&words).map_err(|error| refused(text.trim(), error))
    }

    fn read(words: &[&str]) -> Result<Self> {
        let Some((verb, arguments)) = words.split_first() else {
            return Err(Error::new(ErrorKind::Invalid, "the message", "is empty").advise(KNOWN));
        };
        Ok(match verb.to_ascii_lowercase().as_str() {
            "create_thin" => {
                let [id] = take(arguments)?;
                Self::CreateThin(device(id)?)
            }
            "create_snap" => {
                let [id, origin] = take(arguments)?;
                Self::CreateSnap { id: device(id)?, origin: device(origin)? }
            }
            "delete" => {
                let [id] = take(arguments)?;
                Self::Delete(device(id)?)
            }
            "set_transaction_id" => {
                let [current, new] = take(arguments)?;
                Self::SetTransaction { current: transaction(current)?, new: transaction(new)? }
            }
            "reserve_metadata_snap" => {
                let [] = take(arguments)?;
                Self::ReserveMetadataSnapshot
            }
            "release_metadata_snap" => {
                let [] = take(arguments)?;
                Self::ReleaseMetadataSnapshot
            }
            _ => {
                let problem = "is no message of a thin pool";
                return Err(
                    Error::new(ErrorKind::Invalid, format!("'{verb}'"), problem).advise(KNOWN)
                );
            }
        })
    }

    /// What the message asks for.
    pub fn change(self) -> Change {
        match self {
            Self::CreateThin(id) => Change::CreateThin(id),
            Self::CreateSnap { id, origin } => Change::CreateSnapshot { id, origin },
            Self::Delete(id) => Change::Delete(id),
            Self::SetTransaction { current, new } => Change::SetTransaction { current, new },
            Self::ReserveMetadataSnapshot => Change::ReserveMetadataSnapshot,
            Self::ReleaseMetadataSnapshot => Change::ReleaseMetadataSnapshot,
        }
    }

    /// The refusal of this message because of `error`, with the kernel's name for it.
    #[must_use]
    pub fn refused(self, error: Error) -> Error {
        refused(&self.to_string(), error)
    }
}

/// The kernel's spelling.
impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateThin(id) => write!(f, "create_thin {id}"),
            Self::CreateSnap { id, origin } => write!(f, "create_snap {id} {origin}"),
            Self::Delete(id) => write!(f, "delete {id}"),
            Self::SetTransaction { current, new } => {
                write!(f, "set_transaction_id {current} {new}")
            }
            Self::ReserveMetadataSnapshot => f.write_str("reserve_metadata_snap"),
            Self::ReleaseMetadataSnapshot => f.write_str("release_metadata_snap"),
        }
    }
}

impl Pool {
    /// Does what a message says, durably.
    ///
    /// # Errors
    /// As [`Pool::change`], with the kernel's name for it: EEXIST, ENODATA, EINVAL, EBUSY, ENOSPC;
    /// EOPNOTSUPP from a pool that takes no writes.
    pub fn message(&self, message: Message) -> Result<()> {
        self.change(&[message.change()]).map_err(|error| message.refused(error))
    }
}

const KNOWN: &str = "send create_thin ID, create_snap ID ORIGIN, delete ID, \
                     set_transaction_id CURRENT NEW, reserve_metadata_snap or \
                     release_metadata_snap";

/// The arguments of a message that takes so many.
fn take<'w, const COUNT: usize>(arguments: &[&'w str]) -> Result<[&'w str; COUNT]> {
    arguments.try_into().map_err(|_| {
        let problem = format!("has {} arguments, not {COUNT}", arguments.len());
        Error::new(ErrorKind::Invalid, "the message", problem).advise(KNOWN)
    })
}

fn device(word: &str) -> Result<DeviceId> {
    match word.parse::<u64>().map(u32::try_from) {
        Ok(Ok(id)) => DeviceId::new(id),
        // Any number past 24 bits is refused alike.
        _ => {
            let problem = format!("is no identifier from 0 to {}", DeviceId::MAX);
            Err(Error::new(ErrorKind::Invalid, format!("device '{word}'"), problem))
        }
    }
}

fn transaction(word: &str) -> Result<u64> {
    word.parse().map_err(|_| {
        let object = format!("transaction id '{word}'");
        Error::new(ErrorKind::Invalid, object, "is no number of 64 bits")
    })
}

fn refused(text: &str, error: Error) -> Error {
    let (kind, object) = (error.kind(), format!("message '{text}'"));
    Error::new(kind, object, kernel_name(kind)).because(error)
}

/// What the kernel calls a failure of a message.
fn kernel_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Exists => "EEXIST",
        ErrorKind::NotFound => "ENODATA",
        ErrorKind::Invalid | ErrorKind::OutOfRange => "EINVAL",
        ErrorKind::Busy => "EBUSY",
        ErrorKind::OutOfSpace => "ENOSPC",
        ErrorKind::Denied => "EPERM",
        ErrorKind::Io | ErrorKind::Cancelled => "EIO",
        // The states in which a pool takes no writes, whatever brought it there.
        ErrorKind::ReadOnly | ErrorKind::Unsupported | ErrorKind::Corrupt | ErrorKind::Stopped => {
            "EOPNOTSUPP"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Message;
    use crate::DeviceId;
    use block_types::ErrorKind;
    use proptest::prelude::{prop_assert_eq, proptest};

    fn id(number: u32) -> DeviceId {
        DeviceId::new(number).expect("24 bits")
    }

    #[test]
    fn reads_what_the_kernel_reads() {
        let cases = [
            ("create_thin 0", Message::CreateThin(id(0))),
            ("  CREATE_THIN\t16777215 \n", Message::CreateThin(DeviceId::MAX)),
            ("create_snap 7 +1", Message::CreateSnap { id: id(7), origin: id(1) }),
            ("Delete 3", Message::Delete(id(3))),
            (
                "set_transaction_id 0 18446744073709551615",
                Message::SetTransaction { current: 0, new: u64::MAX },
            ),
            ("reserve_metadata_snap", Message::ReserveMetadataSnapshot),
            ("release_metadata_snap", Message::ReleaseMetadataSnapshot),
        ];
        for (text, expected) in cases {
            let message = Message::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(message, expected, "{text}");
            assert_eq!(Message::parse(&message.to_string()).expect("its own words"), expected);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            if let Ok(message) = Message::parse(&text) {
                let again = Message::parse(&message.to_string());
                prop_assert_eq!(again.expect("its own words"), message);
            }
        }
    }

    #[test]
    fn refuses_what_the_kernel_refuses() {
        for text in [
            "",
            "trim 0 10",
            "create_thin",
            "create_thin 1 2",
            "create_thin x",
            "create_thin -1",
            "create_thin 0x1",
            "create_thin 16777216",
            "create_thin 18446744073709551616",
            "create_snap 1",
            "create_snap 1 16777216",
            "create_snap 1 2 3",
            "delete",
            "set_transaction_id 1",
            "set_transaction_id 1 -2",
            "set_transaction_id 1 18446744073709551616",
            "reserve_metadata_snap 1",
            "release_metadata_snap now",
        ] {
            let error = Message::parse(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
            let head = format!("message '{text}': EINVAL: ");
            assert!(error.to_string().starts_with(&head), "{error}");
        }
    }
}
