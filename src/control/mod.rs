//! The control socket: where one asks the daemon something, or tells it to do
//! something. plugd-control(7) is its description for users.
//!
//! - [`wire`]: the line protocol; pure.
//! - [`server`]: the daemon's side, a part of the loop.
//! - [`client`]: the commands' side.
//! - [`socket`]: what the daemon listens on.
//! - [`peer`]: who is at the other end.

pub mod client;
pub mod peer;
pub mod server;
pub mod socket;
pub mod wire;

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr;
use std::path::PathBuf;

/// Where the control socket is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A name in the abstract namespace, which needs no file system and leaves
    /// nothing behind (unix(7)). It belongs to the network namespace.
    Abstract(Vec<u8>),
    /// A file.
    Path(PathBuf),
}

/// What [`Address::parse`] reads.
pub const ADDRESS: &str = "@ and a name, or the path of a socket, of at most 107 bytes";

impl Default for Address {
    fn default() -> Self {
        Self::Abstract(b"plugd".into())
    }
}

impl Address {
    /// Reads `@NAME` or a path.
    pub fn parse(text: &OsStr) -> Option<Self> {
        let address = match text.as_bytes() {
            [b'@', name @ ..] if !name.is_empty() => Self::Abstract(name.into()),
            [b'@'] | [] => return None,
            _ => Self::Path(text.into()),
        };
        address.to_socket_address().ok().map(|_| address)
    }

    /// The same, from any working directory.
    ///
    /// # Errors
    /// Those of getcwd(2).
    pub fn absolute(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Abstract(_) => self.clone(),
            Self::Path(path) => Self::Path(std::path::absolute(path)?),
        })
    }

    /// As bind(2) and connect(2) take it.
    ///
    /// # Errors
    /// If it is too long, or has a NUL in a path.
    fn to_socket_address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Abstract(name) => SocketAddr::from_abstract_name(name),
            Self::Path(path) => SocketAddr::from_pathname(path),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
            Self::Path(path) => write!(f, "{}", path.as_os_str().as_bytes().escape_ascii()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_names_or_paths() {
        for (text, expected) in [
            ("@plugd", Some("@plugd")),
            ("@a/b c", Some("@a/b c")),
            ("/run/plugd", Some("/run/plugd")),
            ("run@1", Some("run@1")),
            ("@", None),
            ("", None),
            (&format!("@{}", "x".repeat(107)), Some(&*format!("@{}", "x".repeat(107)))),
            (&format!("@{}", "x".repeat(108)), None),
            (&format!("/{}", "x".repeat(107)), None),
        ] {
            let address = Address::parse(text.as_ref()).map(|address| address.to_string());
            assert_eq!(address.as_deref(), expected, "{text}");
        }
    }
}
