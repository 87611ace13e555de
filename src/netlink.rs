//! Sockets that uevents come from: the kernel's netlink socket, or any
//! datagram socket handed over.
//!
//! Owns the sockets. Receives into the caller's buffer; what the bytes mean is
//! [`crate::uevent`]'s business.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, ReturnFlags, SocketFlags, SocketType, sockopt,
};
use socket2::SockRef;

use crate::error::{Fatal, reason};
use crate::uevent::Header;

/// The multicast group that the kernel sends its uevents to; udev's own format
/// is in group 2 (lib/kobject_uevent.c).
pub const KERNEL_GROUP: u32 = 1;

/// The size of the buffer to receive into, in bytes. The kernel's own events
/// have at most 2048 (UEVENT_BUFFER_SIZE) and a header; other producers may
/// have more to say.
pub const DATAGRAM_MAX: usize = 64 * 1024;

/// A socket that datagrams are received from.
#[derive(Debug)]
pub struct Source {
    fd: OwnedFd,
    kind: Kind,
}

/// What a socket's rules are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Only what the kernel sent counts, and it has a header.
    Netlink,
    /// Whoever may send here is trusted.
    Datagram,
    /// The same, and nothing received means that nothing will come any more.
    Seqpacket,
}

/// The outcome of one attempt to receive.
#[derive(Debug)]
pub enum Received {
    /// That many bytes of the buffer are a datagram.
    Datagram(usize),
    /// Nothing is there now.
    Empty,
    /// Events were lost, as the kernel's receive buffer was full. Those that
    /// are in it can still be read (netlink(7), ENOBUFS).
    Overrun,
    /// A datagram did not fit into the buffer, and is gone.
    Truncated,
    /// A datagram came from the process with this port id, not from the
    /// kernel, and is gone. Whoever has CAP_NET_ADMIN can send such a thing
    /// (CVE-2009-1185).
    Foreign(u32),
    /// Nothing will ever come any more.
    EndOfInput,
    /// Receiving failed otherwise.
    Failed(io::Error),
}

/// How large a socket's receive buffer became.
#[derive(Debug)]
pub struct BufferSize {
    /// The size asked for, in bytes.
    pub asked: usize,
    /// The size got, in bytes, as the kernel counts it: it doubles the size
    /// asked for, to have space for its own bookkeeping (socket(7)).
    pub got: usize,
    /// Why the limit for ordinary users, net.core.rmem_max, applied.
    pub unprivileged: Option<io::Error>,
}

impl fmt::Display for BufferSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes (asked for {}, which the kernel doubles", self.got, self.asked)?;
        match &self.unprivileged {
            None => f.write_str(")"),
            Some(error) => write!(
                f,
                "; limited by net.core.rmem_max, as SO_RCVBUFFORCE says: {})",
                reason(error)
            ),
        }
    }
}

impl Source {
    /// Opens a socket for the kernel's uevents, non-blocking and close-on-exec,
    /// with a receive buffer of `buffer_size` bytes or as near as may be.
    ///
    /// # Errors
    /// Those of socket(2), setsockopt(2) and bind(2), with the step named.
    pub fn open_kernel(buffer_size: usize) -> Result<(Self, BufferSize), Fatal> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::DGRAM,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            Some(netlink::KOBJECT_UEVENT),
        )
        .map_err(|e| Fatal::system("open netlink socket", e))?;
        // Before bind, so that no event is ever counted against the smaller one.
        let buffer = set_receive_buffer(&fd, buffer_size)
            .map_err(|e| Fatal::system("set the receive buffer of netlink socket", e))?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, KERNEL_GROUP))
            .map_err(|e| Fatal::system("bind netlink socket", e))?;
        Ok((Self { fd, kind: Kind::Netlink }, buffer))
    }

    /// Takes a socket of a datagram kind that somebody else opened, and makes
    /// it non-blocking.
    ///
    /// # Errors
    /// If it is no socket, listens for connections, or is of another kind.
    pub fn from_inherited(fd: OwnedFd) -> io::Result<Self> {
        let kind = match sockopt::socket_type(&fd)? {
            SocketType::SEQPACKET => Kind::Seqpacket,
            SocketType::DGRAM | SocketType::RAW => match sockopt::socket_domain(&fd)? {
                AddressFamily::NETLINK => Kind::Netlink,
                _ => Kind::Datagram,
            },
            _ => return Err(io::Error::other("not a datagram socket")),
        };
        if kind == Kind::Seqpacket && sockopt::socket_acceptconn(&fd)? {
            return Err(io::Error::other("a socket that listens for connections"));
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd, kind })
    }

    /// Whether a datagram from here has to begin with a header.
    pub fn header(&self) -> Header {
        match self.kind {
            Kind::Netlink => Header::Required,
            Kind::Datagram | Kind::Seqpacket => Header::Optional,
        }
    }

    /// Receives one datagram, without waiting.
    pub fn receive(&self, buffer: &mut [u8]) -> Received {
        let mut into = [IoSliceMut::new(buffer)];
        let mut control = RecvAncillaryBuffer::default();
        let result = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(&self.fd, &mut into, &mut control, RecvFlags::DONTWAIT)
        });
        let message = match result {
            Ok(message) => message,
            Err(Errno::AGAIN) => return Received::Empty,
            Err(Errno::NOBUFS) => return Received::Overrun,
            Err(error) => return Received::Failed(error.into()),
        };
        if self.kind == Kind::Netlink {
            let sender = message.address.map(SocketAddrNetlink::try_from);
            match sender {
                Some(Ok(sender)) if sender.pid() == 0 => {}
                Some(Ok(sender)) => return Received::Foreign(sender.pid()),
                Some(Err(error)) => return Received::Failed(error.into()),
                None => return Received::Failed(Errno::DESTADDRREQ.into()),
            }
        }
        if message.flags.contains(ReturnFlags::TRUNC) {
            return Received::Truncated;
        }
        if self.kind == Kind::Seqpacket && message.bytes == 0 {
            return Received::EndOfInput;
        }
        Received::Datagram(message.bytes)
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Source {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Sets a receive buffer beyond the limit for ordinary users if allowed, else
/// up to that limit.
fn set_receive_buffer(fd: &OwnedFd, asked: usize) -> io::Result<BufferSize> {
    let unprivileged = match sockopt::set_socket_recv_buffer_size_force(fd, asked) {
        Ok(()) => None,
        Err(error) => {
            SockRef::from(fd).set_recv_buffer_size(asked)?;
            Some(error.into())
        }
    };
    let got = SockRef::from(fd).recv_buffer_size()?;
    Ok(BufferSize { asked, got, unprivileged })
}
