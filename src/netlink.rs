//! What uevents come from: the kernel's netlink socket, any datagram socket
//! handed over, or a stream.
//!
//! Owns the sockets. Receives into the caller's buffer; what the bytes mean is
//! [`crate::uevent`]'s business.

pub mod credentials;
pub mod protocol;
mod stream;

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, sockopt};
use socket2::SockRef;

use crate::error::{Fatal, reason};
use crate::sys::{self, SocketOption};
use crate::uevent::Header;
use crate::uevent::stream::Invalid;
use crate::user_ids::UserIds;

use credentials::{Check, Sender};
use protocol::{Groups, Protocol};
use stream::Stream;

/// The mask of the multicast group that the kernel sends its uevents to; udev's
/// own format is in group 2 (lib/kobject_uevent.c).
pub const KERNEL_GROUP: u32 = 1;

/// The size of the buffer to receive into, in bytes. The kernel's own events
/// have at most 2048 (UEVENT_BUFFER_SIZE) and a header; other producers may
/// have more to say.
pub const DATAGRAM_MAX: usize = 64 * 1024;

/// No netlink datagram takes less of the receive buffer, in bytes: the kernel counts its
/// own bookkeeping too.
pub const LEAST_COST: u64 = 512;

/// The largest receive buffer that the kernel takes, in bytes: what it doubles has
/// to fit an int (__sock_set_rcvbuf in net/core/sock.c).
const LARGEST_BUFFER: usize = i32::MAX as usize / 2;

/// Something that events are received from, one at a time.
#[derive(Debug)]
pub struct Source {
    fd: OwnedFd,
    kind: Kind,
    /// Of the sender, on a netlink socket.
    check: Check,
    /// The mask of groups by which processes may send: only those that may
    /// administer the network can (CAP_NET_ADMIN).
    open_groups: u32,
}

/// What the rules are for what comes.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// Only what the kernel sent counts, and it has a header.
    Netlink,
    /// Whoever may send here is trusted.
    Datagram,
    /// The same, and nothing received means that nothing will come any more.
    Seqpacket,
    /// Bytes that are events one after the other.
    Stream(Stream),
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
    /// A datagram came from a process, not from the kernel, and is gone.
    /// Whoever has CAP_NET_ADMIN can send such a thing (CVE-2009-1185).
    Foreign(Sender),
    /// Nothing will ever come any more.
    EndOfInput,
    /// A stream has something else than an event, and cannot be read on.
    Invalid(Invalid),
    /// Receiving failed otherwise.
    Failed(io::Error),
}

/// How large a socket's receive buffer became.
#[derive(Debug)]
pub struct BufferSize {
    /// The size asked for, in bytes, if any was.
    pub asked: Option<usize>,
    /// The size got, in bytes, as the kernel counts it: it doubles the size
    /// asked for, to have space for its own bookkeeping (socket(7)).
    pub got: usize,
    /// Why the limit for ordinary users, net.core.rmem_max, applied.
    pub unprivileged: Option<io::Error>,
}

impl BufferSize {
    /// Whether it is smaller than what was asked for; by one byte does not count,
    /// which is what 1G is too large by (`LARGEST_BUFFER`).
    pub fn is_limited(&self) -> bool {
        self.asked.is_some_and(|asked| self.got / 2 + 1 < asked)
    }
}

impl fmt::Display for BufferSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(asked) = self.asked else {
            return write!(f, "{} bytes (the kernel's default)", self.got);
        };
        write!(f, "{} bytes (asked for {asked}, which the kernel doubles", self.got)?;
        match &self.unprivileged {
            None if asked > LARGEST_BUFFER => write!(f, "; at most {LARGEST_BUFFER})"),
            None => f.write_str(")"),
            Some(error) => write!(
                f,
                "; limited by net.core.rmem_max, as SO_RCVBUFFORCE says: {})",
                reason(error)
            ),
        }
    }
}

/// What a netlink socket shall be.
#[derive(Debug)]
pub struct Wanted {
    /// Its protocol.
    pub protocol: Protocol,
    /// The multicast groups to be a member of.
    pub groups: Groups,
    /// SOCK_RAW instead of SOCK_DGRAM. Netlink makes no difference, but some
    /// programs do.
    pub raw: bool,
    /// The size of its receive buffer in bytes, if not the kernel's default.
    pub receive_buffer_size: Option<usize>,
    /// Options to switch on, mostly for what comes along with every datagram.
    pub options: Vec<SocketOption>,
}

/// Opens a netlink socket, blocking and close-on-exec. Its port id is the
/// process id, unless another socket has that; then the kernel chooses one
/// (netlink_autobind in net/netlink/af_netlink.c).
///
/// # Errors
/// Those of socket(2), setsockopt(2) and bind(2), with the step and what it
/// was about named.
pub fn open(wanted: &Wanted) -> Result<(OwnedFd, BufferSize), Fatal> {
    let Wanted { protocol, groups, .. } = wanted;
    let fd = rustix::net::socket_with(
        AddressFamily::NETLINK,
        if wanted.raw { SocketType::RAW } else { SocketType::DGRAM },
        SocketFlags::CLOEXEC,
        std::num::NonZero::new(protocol.number()).map(rustix::net::Protocol::from_raw),
    )
    .map_err(|e| Fatal::system(format_args!("open a {protocol} socket"), e))?;
    // All before bind, so that no datagram is ever counted against the smaller
    // buffer or comes without what was asked for.
    let buffer = set_receive_buffer(&fd, wanted.receive_buffer_size).map_err(|e| {
        Fatal::system(format_args!("set the receive buffer of the {protocol} socket"), e)
    })?;
    for &option in &wanted.options {
        sys::set_socket_option(fd.as_fd(), option, 1)
            .map_err(|e| Fatal::system(format_args!("set {option} on the {protocol} socket"), e))?;
    }
    rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups.mask()))
        .map_err(|e| Fatal::system(format_args!("bind {protocol} {groups}"), e))?;
    for &group in groups.numbers() {
        sys::set_socket_option(fd.as_fd(), SocketOption::AddMembership, group)
            .map_err(|e| Fatal::system(format_args!("join {protocol} group:{group}"), e))?;
    }
    Ok((fd, buffer))
}

impl Source {
    /// Opens a socket for the kernel's uevents, non-blocking and close-on-exec,
    /// with a receive buffer of `buffer_size` bytes or as near as may be.
    ///
    /// # Errors
    /// Those of socket(2), setsockopt(2) and bind(2), with the step named.
    pub fn open_kernel(buffer_size: usize) -> Result<(Self, BufferSize), Fatal> {
        Self::open_groups(KERNEL_GROUP, buffer_size)
    }

    /// The same for the groups of a mask. By those that are not the kernel's
    /// come events that were passed on by a device manager.
    ///
    /// # Errors
    /// The same.
    pub fn open_groups(groups: u32, buffer_size: usize) -> Result<(Self, BufferSize), Fatal> {
        let (fd, buffer) = open(&Wanted {
            protocol: Protocol::KOBJECT_UEVENT,
            groups: Groups::Mask(groups),
            raw: false,
            receive_buffer_size: Some(buffer_size),
            options: Vec::new(),
        })?;
        rustix::io::ioctl_fionbio(&fd, true).map_err(|e| Fatal::system("set non-blocking", e))?;
        let open_groups = groups & !KERNEL_GROUP;
        Ok((Self { fd, kind: Kind::Netlink, check: Check::Port, open_groups }, buffer))
    }

    /// Takes a socket of a datagram kind that somebody else opened, and makes
    /// it non-blocking. On a netlink socket that has SO_PASSCRED, credentials
    /// are checked.
    ///
    /// # Errors
    /// If it is no socket, listens for connections, is not connected though of a
    /// kind that has to be, is of another kind, or of a netlink protocol other
    /// than that of uevents.
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
        if kind == Kind::Seqpacket {
            rustix::net::getpeername(&fd)?;
        }
        if kind == Kind::Netlink {
            let number =
                sockopt::socket_protocol(&fd)?.map_or(0, |protocol| protocol.as_raw().get());
            let protocol = Protocol::from_number(number);
            if protocol != Protocol::KOBJECT_UEVENT {
                let text =
                    format!("a netlink socket of the protocol {protocol}: no uevents come there");
                return Err(io::Error::other(text));
            }
        }
        let check = if kind == Kind::Netlink && sockopt::socket_passcred(&fd)? {
            Check::Credentials(UserIds::own())
        } else {
            Check::Port
        };
        if kind == Kind::Netlink {
            // Else nobody would know that events are missing. Old kernels have no such option.
            let _ = sys::set_socket_option(fd.as_fd(), SocketOption::NoEnobufs, 0);
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd, kind, check, open_groups: 0 })
    }

    /// Takes what events can be read from one after the other, as
    /// [`crate::uevent::stream`] has it: a pipe, a stream socket, a regular
    /// file. It is left as it is, not made non-blocking: others may have it too.
    ///
    /// # Errors
    /// If it is a directory, or not open for reading.
    pub fn from_stream(fd: OwnedFd) -> io::Result<Self> {
        let kind = Kind::Stream(Stream::new(&fd)?);
        Ok(Self { fd, kind, check: Check::Port, open_groups: 0 })
    }

    /// From now on takes only what comes with the kernel's credentials, if it
    /// is a netlink socket.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn require_credentials(&mut self) -> io::Result<()> {
        if self.kind == Kind::Netlink {
            sys::set_socket_option(self.fd.as_fd(), SocketOption::PassCredentials, 1)?;
            self.check = Check::Required;
        }
        Ok(())
    }

    /// The mask of the multicast groups that come here, of netlink. Groups
    /// beyond the 32nd are not in it.
    pub fn groups(&self) -> u32 {
        let address = rustix::net::getsockname(&self.fd).ok();
        let address = address.and_then(|address| SocketAddrNetlink::try_from(address).ok());
        address.map_or(0, |address| address.groups())
    }

    /// Whether this is where the kernel sends its uevents.
    pub fn is_kernels(&self) -> bool {
        self.kind == Kind::Netlink && self.groups() & KERNEL_GROUP != 0
    }

    /// Whether nothing will be received: from netlink only the kernel's events are taken,
    /// and it sends them to another group.
    pub fn is_in_vain(&self) -> bool {
        self.kind == Kind::Netlink && !self.is_kernels()
    }

    /// Whether events of the network interfaces of other namespaces come from
    /// here too.
    pub fn listens_to_all_namespaces(&self) -> bool {
        sys::has_socket_option(self.fd.as_fd(), SocketOption::ListenAllNsid).unwrap_or(false)
    }

    /// Whether a datagram from here has to begin with a header.
    pub fn header(&self) -> Header {
        match self.kind {
            Kind::Netlink => Header::Required,
            Kind::Datagram | Kind::Seqpacket | Kind::Stream(_) => Header::Optional,
        }
    }

    /// Whether its events say all of their devices that sysfs does, as the
    /// kernel's own do: the numbers and the name are in them if there are any
    /// (dev_uevent in drivers/base/core.c, since Linux 2.6.31).
    pub fn says_all(&self) -> bool {
        self.kind == Kind::Netlink
    }

    /// How much waits to be received, in bytes, where that can be told. The weights of
    /// all that is received of it may be less, but never more.
    pub fn queued(&self) -> Option<u64> {
        match self.kind {
            Kind::Netlink => sys::socket_memory(&self.fd).ok().map(|memory| memory.queued.into()),
            // Counts all that is queued (unix_inq_len in net/unix/af_unix.c).
            Kind::Seqpacket => rustix::io::ioctl_fionread(&self.fd).ok(),
            Kind::Datagram => self.peek_at_all().ok(),
            Kind::Stream(_) => None,
        }
    }

    /// How much of what was queued something received was, in bytes, at least.
    pub fn weight(&self, received: &Received) -> u64 {
        match (&self.kind, received) {
            (Kind::Netlink, Received::Datagram(_) | Received::Truncated | Received::Foreign(_)) => {
                LEAST_COST
            }
            (Kind::Seqpacket | Kind::Datagram, Received::Datagram(length)) => *length as u64,
            (Kind::Seqpacket | Kind::Datagram, Received::Truncated) => DATAGRAM_MAX as u64,
            _ => 0,
        }
    }

    /// How much waits in an AF_UNIX socket for datagrams: FIONREAD tells of the first one
    /// only. Each look is at the next one (SO_PEEK_OFF in socket(7)).
    fn peek_at_all(&self) -> io::Result<u64> {
        let option = SocketOption::PeekOffset;
        sys::set_socket_option(self.fd.as_fd(), option, 0)?;
        let (mut buffer, mut bytes) = (vec![0; DATAGRAM_MAX], 0);
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let end = loop {
            match rustix::net::recv(&self.fd, &mut buffer[..], flags) {
                Ok((length, _)) => bytes += length as u64,
                Err(Errno::INTR) => {}
                Err(error) => break error,
            }
        };
        // -1: no such offset.
        sys::set_socket_option(self.fd.as_fd(), option, u32::MAX)?;
        if end == Errno::AGAIN { Ok(bytes) } else { Err(end.into()) }
    }

    /// Receives one datagram, or an event of a stream, without waiting.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Received {
        if let Kind::Stream(stream) = &mut self.kind {
            return stream.receive(&self.fd, buffer);
        }
        let with_credentials = self.check != Check::Port;
        let result =
            rustix::io::retry_on_intr(|| sys::receive(self.fd.as_fd(), buffer, with_credentials));
        let message = match result {
            Ok(message) => message,
            Err(Errno::AGAIN) => return Received::Empty,
            Err(Errno::NOBUFS) => return Received::Overrun,
            Err(error) => return Received::Failed(error.into()),
        };
        if self.kind == Kind::Netlink {
            let Some(port) = message.port else {
                return Received::Failed(Errno::DESTADDRREQ.into());
            };
            let sender = Sender { port, credentials: message.credentials };
            if message.group & self.open_groups == 0 && !self.check.admits(sender) {
                return Received::Foreign(sender);
            }
        }
        if message.truncated {
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
fn set_receive_buffer(fd: &OwnedFd, asked: Option<usize>) -> io::Result<BufferSize> {
    let unprivileged = asked.and_then(|asked| {
        let forced = sockopt::set_socket_recv_buffer_size_force(fd, asked);
        forced.err().map(|error| (asked, error))
    });
    if let Some((asked, _)) = unprivileged {
        SockRef::from(fd).set_recv_buffer_size(asked)?;
    }
    let got = SockRef::from(fd).recv_buffer_size()?;
    Ok(BufferSize { asked, got, unprivileged: unprivileged.map(|(_, error)| error.into()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_is_too_small_has_a_reason() {
        let size = |asked, got| BufferSize { asked: Some(asked), got, unprivileged: None };
        let all = size(1 << 30, 2 * LARGEST_BUFFER);
        assert!(!all.is_limited());
        let limited = size(2 * LARGEST_BUFFER, 2 * LARGEST_BUFFER);
        assert!(limited.is_limited());
        let told = "2147483646 bytes (asked for 2147483646, which the kernel doubles; at most ";
        assert_eq!(limited.to_string(), format!("{told}1073741823)"));
        assert!(size(1 << 20, 1 << 20).is_limited());
    }
}
