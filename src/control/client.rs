//! The commands' side of the control socket.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::error::reason;

use super::Address;
use super::peer::Peer;
use super::wire::{self, Reply};

/// The longest first line of a reply, in bytes.
const HEAD_MAX: usize = 64;
/// The longest text of a reply that is read, in bytes.
const TEXT_MAX: usize = 1 << 20;

/// A connection to a daemon.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// When to give up, if ever.
    deadline: Option<Instant>,
}

/// Why there is no reply.
#[derive(Debug)]
pub enum Failure {
    /// Nobody answers there, or no longer.
    NoDaemon(String),
    /// One may not connect.
    Denied(String),
    /// It took too long.
    TimedOut,
    /// What came is no reply.
    Garbled,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDaemon(why) | Self::Denied(why) => f.write_str(why),
            Self::TimedOut => f.write_str("timed out: plugd does not answer"),
            Self::Garbled => f.write_str("what answers there is no plugd, or not of this version"),
        }
    }
}

impl Connection {
    /// Connects, and gives up after `patience`, then and later.
    ///
    /// # Errors
    /// Says why one cannot.
    pub fn open(address: &Address, patience: Option<Duration>) -> Result<Self, Failure> {
        let deadline = patience.and_then(|patience| Instant::now().checked_add(patience));
        let connect = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // It waits while too many others do (unix(7)).
            socket.set_write_timeout(patience.map(|p| p.max(Duration::from_millis(1))))?;
            socket.connect(&to_sock_addr(address)?)?;
            io::Result::Ok(UnixStream::from(OwnedFd::from(socket)))
        };
        match connect() {
            Ok(stream) => Ok(Self { stream, deadline }),
            Err(error) => {
                let text = format!("cannot connect to {address}: {}", reason(&error));
                Err(match error.kind() {
                    io::ErrorKind::PermissionDenied => Failure::Denied(text),
                    io::ErrorKind::WouldBlock => Failure::TimedOut,
                    _ => Failure::NoDaemon(text),
                })
            }
        }
    }

    /// Who listens there.
    ///
    /// # Errors
    /// Those of getsockopt(2).
    pub fn peer(&self) -> io::Result<Peer> {
        Peer::of(&self.stream)
    }

    /// Refuses to speak with others than root and our own user: an abstract address is
    /// whoever's comes first.
    ///
    /// # Errors
    /// Says who it is.
    pub fn refuse_strangers(&self, address: &Address) -> Result<(), Failure> {
        let why = match self.peer() {
            Ok(peer) if peer.privileged => return Ok(()),
            Ok(peer) => format!("{address} is held by {peer}: not asked without --control"),
            Err(error) => format!("cannot tell who listens on {address}: {}", reason(&error)),
        };
        Err(Failure::NoDaemon(why))
    }

    /// Sends a request.
    ///
    /// # Errors
    /// If the daemon does not take it.
    pub fn send<W: AsRef<[u8]>>(&mut self, words: &[W]) -> Result<(), Failure> {
        let timeout = self.timeout()?;
        let sent = self
            .stream
            .set_write_timeout(timeout)
            .and_then(|()| self.stream.write_all(&wire::request(words)));
        match sent {
            // It may have told why before it went.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result.map_err(|error| failure(&error)),
        }
    }

    /// Waits for the reply to the first request that has none.
    ///
    /// # Errors
    /// If there is none.
    pub fn receive(&mut self) -> Result<Reply, Failure> {
        let mut head = Vec::new();
        while head.last() != Some(&b'\n') {
            let mut byte = [0];
            self.fill(&mut byte)?;
            head.push(byte[0]);
            if head.len() > HEAD_MAX {
                return Err(Failure::Garbled);
            }
        }
        if head == wire::TOO_MANY {
            return Ok(Reply::no("too many clients"));
        }
        let (outcome, length) =
            Reply::parse_head(&head[..head.len() - 1]).ok_or(Failure::Garbled)?;
        if length > TEXT_MAX {
            return Err(Failure::Garbled);
        }
        let mut text = vec![0; length];
        self.fill(&mut text)?;
        let text = String::from_utf8(text).map_err(|_| Failure::Garbled)?;
        Ok(Reply { outcome, text })
    }

    fn fill(&mut self, mut buffer: &mut [u8]) -> Result<(), Failure> {
        while !buffer.is_empty() {
            let timeout = self.timeout()?;
            let read =
                self.stream.set_read_timeout(timeout).and_then(|()| self.stream.read(buffer));
            match read {
                Ok(0) => return Err(Failure::NoDaemon("plugd has ended the connection".into())),
                Ok(length) => buffer = &mut buffer[length..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failure(&error)),
            }
        }
        Ok(())
    }

    fn timeout(&self) -> Result<Option<Duration>, Failure> {
        match self.deadline.map(|at| at.saturating_duration_since(Instant::now())) {
            Some(Duration::ZERO) => Err(Failure::TimedOut),
            timeout => Ok(timeout),
        }
    }
}

/// Who has something to say, or has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// The first, and perhaps the second too.
    First,
    /// The second.
    Second,
    /// Nobody, for as long as that was waited for.
    Neither,
}

/// Waits until one of two connections has something to say, or has ended; for
/// `at_most`, if that is given.
///
/// # Errors
/// If that takes too long for the first.
pub fn either(
    first: &Connection,
    second: Option<&Connection>,
    at_most: Option<Duration>,
) -> Result<Ready, Failure> {
    let streams = [Some(first), second].into_iter().flatten().map(|connection| &connection.stream);
    let mut fds: Vec<PollFd<'_>> = streams.map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    loop {
        let timeout = [first.timeout()?, at_most].into_iter().flatten().min();
        match poll(&mut fds, timeout.and_then(|timeout| Timespec::try_from(timeout).ok()).as_ref())
        {
            Ok(0) if at_most.is_none() => return Err(Failure::TimedOut),
            Ok(0) => return Ok(Ready::Neither),
            Ok(_) if fds[0].revents().is_empty() => return Ok(Ready::Second),
            Ok(_) => return Ok(Ready::First),
            Err(Errno::INTR) => {}
            Err(error) => return Err(failure(&error.into())),
        }
    }
}

fn failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::TimedOut,
        _ => Failure::NoDaemon(format!("the connection to plugd broke: {}", reason(error))),
    }
}

fn to_sock_addr(address: &Address) -> io::Result<SockAddr> {
    match address {
        // socket2 takes a path that begins with NUL for an abstract name.
        Address::Abstract(name) => {
            let path = [b"\0", &name[..]].concat();
            SockAddr::unix(OsStr::from_bytes(&path))
        }
        Address::Path(path) => SockAddr::unix(path),
    }
}
