//! NBD addresses: `nbd://host:port/export` and `nbd+unix:///export?socket=PATH`.

use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::str::FromStr;

use block_types::{Error, ErrorKind, Result};

use crate::wire::MAX_STRING;

/// The port of NBD.
const DEFAULT_PORT: u16 = 10809;

/// How a server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// The address of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// The server.
    pub transport: Transport,
    /// The export's name; empty for the server's default.
    pub export: String,
}

impl Uri {
    /// An export behind a Unix socket.
    pub fn unix(socket: impl Into<PathBuf>, export: impl Into<String>) -> Self {
        Self { transport: Transport::Unix(socket.into()), export: export.into() }
    }
}

impl FromStr for Uri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |problem: &str| {
            Error::new(ErrorKind::Invalid, format!("NBD address '{text}'"), problem)
                .advise("write nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH")
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| refuse("is not a URI"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let export = decode(path)
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .filter(|export| export.len() <= MAX_STRING)
            .ok_or_else(|| refuse("has a malformed export name"))?;
        let transport = match scheme {
            "nbd" => tcp(authority).ok_or_else(|| refuse("has a malformed host or port"))?,
            "nbd+unix" if !authority.is_empty() => {
                return Err(refuse("names a host beside a Unix socket"));
            }
            "nbd+unix" => unix(query).ok_or_else(|| refuse("names no socket"))?,
            "nbds" | "nbds+unix" => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("NBD address '{text}'"),
                    "asks for TLS, which is not supported",
                ));
            }
            _ => return Err(refuse("has an unknown scheme")),
        };
        Ok(Self { transport, export })
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let export = encode(self.export.as_bytes());
        match &self.transport {
            Transport::Unix(path) => {
                write!(f, "nbd+unix:///{export}?socket={}", encode(path.as_os_str().as_bytes()))
            }
            Transport::Tcp { host, port } => {
                f.write_str("nbd://")?;
                if host.contains(':') {
                    write!(f, "[{host}]")?;
                } else {
                    f.write_str(host)?;
                }
                if *port != DEFAULT_PORT {
                    write!(f, ":{port}")?;
                }
                write!(f, "/{export}")
            }
        }
    }
}

fn tcp(authority: &str) -> Option<Transport> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, behind) = rest.split_once(']')?;
        (host, if behind.is_empty() { None } else { Some(behind.strip_prefix(':')?) })
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let port = port.map_or(Some(DEFAULT_PORT), |port| port.parse().ok())?;
    let host = if host.is_empty() { "localhost" } else { host };
    Some(Transport::Tcp { host: host.to_owned(), port })
}

fn unix(query: &str) -> Option<Transport> {
    let socket = query.split('&').find_map(|pair| pair.strip_prefix("socket="))?;
    let path = decode(socket).filter(|path| !path.is_empty())?;
    Some(Transport::Unix(PathBuf::from(std::ffi::OsString::from_vec(path))))
}

/// Undoes percent encoding; `None` for a broken escape or an encoded zero byte.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let value = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        bytes.push(value);
        rest = behind;
    }
    (!bytes.contains(&0)).then_some(bytes)
}

/// Percent encoding of everything that is not unreserved, except for slashes.
fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-._~/@".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Transport, Uri};
    use block_types::ErrorKind;

    #[test]
    fn reads_what_the_peers_print() {
        let uri: Uri = "nbd+unix:///db@monday?socket=/run/a%20b.sock".parse().unwrap();
        assert_eq!(uri, Uri::unix("/run/a b.sock", "db@monday"));
        let uri: Uri = "nbd://host".parse().unwrap();
        let host = Transport::Tcp { host: "host".to_owned(), port: 10809 };
        assert_eq!(uri, Uri { transport: host, export: String::new() });
        let uri: Uri = "nbd://[::1]:99/a/b".parse().unwrap();
        let host = Transport::Tcp { host: "::1".to_owned(), port: 99 };
        assert_eq!(uri, Uri { transport: host, export: "a/b".to_owned() });
    }

    #[test]
    fn prints_what_it_reads() {
        for text in [
            "nbd+unix:///?socket=/tmp/x",
            "nbd+unix:///a%3Fb%25?socket=/tmp/%C3%A4%20y",
            "nbd://[fe80::1]:1/x",
            "nbd://localhost/",
        ] {
            assert_eq!(text.parse::<Uri>().expect(text).to_string(), text);
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "",
            "disk.img",
            "nbd+unix:///x",
            "nbd+unix:///x?socket=",
            "nbd+unix://h/x?socket=/a",
            "nbd://h:port/",
            "nbd://h:65536/",
            "nbd://[::1",
            "nbd:///%zz",
            "nbd:///%+1",
            "nbd:///%00",
            "http://h/",
            "nbd:///%ff",
        ] {
            assert_eq!(text.parse::<Uri>().expect_err(text).kind(), ErrorKind::Invalid, "{text}");
        }
        let tls = "nbds://h/".parse::<Uri>().unwrap_err();
        assert_eq!(tls.kind(), ErrorKind::Unsupported);
    }
}
