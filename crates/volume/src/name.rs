//! Names of volumes and snapshots.

use std::fmt;

use block_types::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// The longest name, in bytes.
const LONGEST: usize = 128;

/// The name of a volume: 1 to 128 of `A-Z a-z 0-9 . _ + -`, not beginning with `.` or `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

/// The name of a snapshot within its volume; the rules are those of [`VolumeName`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName(String);

/// Checks a name of a `what`.
fn check(what: &str, name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._+-".contains(c);
    let problem = if name.is_empty() {
        "is empty"
    } else if name.len() > LONGEST {
        "is longer than 128 characters"
    } else if name.starts_with(['.', '-']) {
        "begins with '.' or '-'"
    } else if !name.chars().all(allowed) {
        "has characters other than letters, digits and . _ + -"
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Invalid, format!("{what} name '{name}'"), problem))
}

macro_rules! name_type {
    ($name:ident, $what:literal) => {
        impl $name {
            /// Reads a name.
            ///
            /// # Errors
            /// `Invalid` where it breaks the rules.
            pub fn parse(name: &str) -> Result<Self> {
                check($what, name)?;
                Ok(Self(name.to_owned()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(name: String) -> Result<Self> {
                Self::parse(&name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }
    };
}

name_type!(VolumeName, "volume");
name_type!(SnapshotName, "snapshot");

#[cfg(test)]
mod tests {
    use super::VolumeName;

    #[test]
    fn rules() {
        for good in ["db", "a", "web-1.2_x+y", &"x".repeat(128)] {
            assert!(VolumeName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "-x", "a/b", "a@b", "a b", "ä", &"x".repeat(129)] {
            assert!(VolumeName::parse(bad).is_err(), "{bad}");
        }
    }
}
