//! syslog(3): messages to the system's log daemon, through /dev/log.
//!
//! Owns the socket. A log daemon that is gone or hangs costs messages, but
//! never time.

use std::fmt::Write as _;
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use log::Level;

/// Where the log daemon listens.
pub const PATH: &str = "/dev/log";

/// LOG_DAEMON, in the place where a priority has its facility.
const FACILITY: u32 = 3 << 3;

/// A connection to the log daemon.
#[derive(Debug)]
pub struct Syslog {
    socket: UnixDatagram,
    path: PathBuf,
    program: &'static str,
}

impl Syslog {
    /// Connects, to speak in the name of `program`.
    ///
    /// # Errors
    /// Those of socket(2) and connect(2).
    pub fn connect(path: &Path, program: &'static str) -> io::Result<Self> {
        Ok(Self { socket: connect(path)?, path: path.to_owned(), program })
    }

    /// Sends one message; if the log daemon was started anew meanwhile, to the
    /// new one.
    pub fn send(&mut self, level: Level, text: &str) {
        let message = message(level, self.program, std::process::id(), text);
        match self.socket.send(message.as_bytes()) {
            Ok(_) => {}
            // It has no room: it is busy, or hangs.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                if let Ok(socket) = connect(&self.path) {
                    self.socket = socket;
                    let _ = self.socket.send(message.as_bytes());
                }
            }
        }
    }
}

fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// As RFC 3164 has it, without a time: log daemons fill in their own.
fn message(level: Level, program: &str, pid: u32, text: &str) -> String {
    let severity = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let mut message = String::new();
    let _ = write!(message, "<{}>{program}[{pid}]: {text}", FACILITY | severity);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn messages_have_a_priority_and_a_tag() {
        assert_eq!(message(Level::Error, "x", 7, "a"), "<27>x[7]: a");
        assert_eq!(message(Level::Info, "x", 7, ""), "<30>x[7]: ");
    }

    #[test]
    fn a_log_daemon_may_be_restarted_and_may_hang() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert!(Syslog::connect(&path, "x").is_err());
        let daemon = UnixDatagram::bind(&path).unwrap();
        let mut syslog = Syslog::connect(&path, "x").unwrap();
        syslog.send(Level::Warn, "one");
        assert!(receive(&daemon).ends_with(": one"));

        drop(daemon);
        syslog.send(Level::Warn, "lost");
        std::fs::remove_file(&path).unwrap();
        let daemon = UnixDatagram::bind(&path).unwrap();
        syslog.send(Level::Warn, "two");
        assert!(receive(&daemon).ends_with(": two"));

        // Nobody receives, and no send waits for that.
        for _ in 0..10_000 {
            syslog.send(Level::Warn, "more than fits");
        }
    }
}
