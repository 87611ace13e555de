//! Readiness: telling whoever started the daemon that it is up.
//!
//! Owns the notification descriptor until it is used, and a socket for
//! sd_notify(3)'s protocol. Where neither is given nothing is done.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::error::{Fatal, reason};

/// How long the manager may take to read what comes before.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whom to tell, and how.
#[derive(Debug, Default)]
pub struct Notifier {
    descriptor: Option<File>,
    socket: Option<(UnixDatagram, SocketAddr)>,
    said_ready: bool,
    said_stopping: bool,
}

impl Notifier {
    /// `descriptor` gets a newline and is closed when the daemon is ready, as
    /// s6 and dinit have it; `socket` is what NOTIFY_SOCKET holds: a path, or
    /// `@` and a name in the abstract namespace.
    ///
    /// # Errors
    /// If NOTIFY_SOCKET makes no sense, or no socket can be had: whoever set
    /// it would wait for ever.
    pub fn new(descriptor: Option<OwnedFd>, socket: Option<&OsStr>) -> Result<Self, Fatal> {
        let socket = match socket {
            None => None,
            Some(name) if name.is_empty() => None,
            Some(name) => Some(open(name).map_err(|error| {
                let name = name.as_bytes().escape_ascii();
                Fatal::system(format_args!("notify NOTIFY_SOCKET {name}"), error)
            })?),
        };
        let descriptor = descriptor.map(File::from);
        Ok(Self { descriptor, socket, said_ready: false, said_stopping: false })
    }

    /// After an update: the notification descriptor was used long ago.
    pub fn was_ready(&mut self) {
        self.said_ready = true;
    }

    /// Everything is set up. `status` is a line for people.
    ///
    /// # Errors
    /// The first time: those of write(2) on the notification descriptor, and of
    /// sendto(2) to NOTIFY_SOCKET. Whoever waits for it would wait for ever.
    pub fn ready(&mut self, status: &str) -> io::Result<()> {
        if let Some(mut descriptor) = self.descriptor.take() {
            descriptor.write_all(b"\n")?;
        }
        if std::mem::replace(&mut self.said_ready, true) {
            let pid = std::process::id();
            self.send(&format!("READY=1\nMAINPID={pid}\nSTATUS={status}\n"));
            return Ok(());
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.try_send(&format!("READY=1\nSTATUS={status}\n")) {
                // The manager has much to read.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !left.is_zero() => {
                    self.await_room(left)?;
                }
                result => return result,
            }
        }
    }

    /// Waits until the manager has room for one more datagram.
    fn await_room(&self, at_most: Duration) -> io::Result<()> {
        let Some((_, address)) = &self.socket else { return Ok(()) };
        // poll(2) tells that of a connected socket only, which would not outlive the
        // manager's.
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(address)?;
        let timeout = Timespec::try_from(at_most).ok();
        let polled = poll(&mut [PollFd::new(&socket, PollFlags::OUT)], timeout.as_ref());
        match polled {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The configuration is about to be read again; [`Notifier::ready`] follows.
    pub fn reloading(&self) {
        // Compared with the manager's own time, so that an answer to an
        // earlier request is not taken for one to this.
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}\n"));
    }

    /// The end has begun. Told once.
    pub fn stopping(&mut self) {
        if !std::mem::replace(&mut self.said_stopping, true) {
            self.send("STOPPING=1\nSTATUS=stopping\n");
        }
    }

    /// A line for people has changed.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={status}\n"));
    }

    /// Without waiting: a manager that does not read must not hold us up.
    fn send(&self, text: &str) {
        if let Err(error) = self.try_send(text) {
            log::warn!("cannot notify NOTIFY_SOCKET: {}", reason(&error));
        }
    }

    fn try_send(&self, text: &str) -> io::Result<()> {
        let Some((socket, address)) = &self.socket else { return Ok(()) };
        socket.send_to_addr(text.as_bytes(), address).map(drop)
    }
}

fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::other("neither an absolute path nor @ and a name")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    /// A notifier, and what it tells the manager on its socket.
    fn with_socket(descriptor: Option<OwnedFd>) -> (Notifier, impl Fn() -> String) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let notifier = Notifier::new(descriptor, Some(path.as_os_str())).unwrap();
        let heard = move || {
            let _keep = &dir;
            let mut buffer = [0; 1000];
            let length = manager.recv(&mut buffer).unwrap();
            String::from_utf8(buffer[..length].to_vec()).unwrap()
        };
        (notifier, heard)
    }

    #[test]
    fn a_descriptor_gets_a_newline_and_is_closed() {
        let (mut read, write) = io::pipe().unwrap();
        let mut notifier = Notifier::new(Some(write.into()), None).unwrap();
        notifier.ready("ready").unwrap();
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "\n");
        notifier.ready("again").unwrap();
    }

    #[test]
    fn nobody_to_read_the_newline_is_an_error() {
        let (read, write) = io::pipe().unwrap();
        drop(read);
        assert!(Notifier::new(Some(write.into()), None).unwrap().ready("").is_err());
    }

    #[test]
    fn a_manager_is_told_everything() {
        let (mut notifier, heard) = with_socket(None);
        notifier.ready("idle").unwrap();
        assert_eq!(heard(), "READY=1\nSTATUS=idle\n");
        notifier.reloading();
        let text = heard();
        let time = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim_end();
        assert!(time.parse::<u64>().unwrap() > 0);
        notifier.status("paused");
        assert_eq!(heard(), "STATUS=paused\n");
        notifier.ready("idle").unwrap();
        assert_eq!(heard(), format!("READY=1\nMAINPID={}\nSTATUS=idle\n", std::process::id()));
        notifier.stopping();
        assert_eq!(heard(), "STOPPING=1\nSTATUS=stopping\n");
    }

    #[test]
    fn nonsense_in_notify_socket_is_an_error() {
        for name in ["x", "relative/path", "vsock:1:2", "/with\0nul"] {
            assert!(Notifier::new(None, Some(name.as_ref())).is_err(), "{name}");
        }
        for name in ["/x", "@x", ""] {
            assert!(Notifier::new(None, Some(name.as_ref())).is_ok(), "{name}");
        }
    }
}
