//! Uevents made by a test: sent to the kernel, which broadcasts them in this
//! network namespace as its own; or to the listeners directly, as no process
//! should. For use inside of [`super::ns`].

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::process::Command;

use plugd::netlink::KERNEL_GROUP;
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use socket2::SockRef;

use super::eventually;

/// linux/netlink.h: the header's size, and flags.
const NLMSG_HDRLEN: usize = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// The lowest type that a protocol may give a meaning to (NLMSG_MIN_TYPE).
const TYPE: u16 = 0x10;

/// How many events to send between two looks at the queue.
const BATCH: usize = 16;

/// The bytes of a uevent; the kernel will append SEQNUM.
pub(crate) fn uevent(action: &str, devpath: &str, fields: &[&str]) -> Vec<u8> {
    let mut bytes =
        format!("{action}@{devpath}\0ACTION={action}\0DEVPATH={devpath}\0").into_bytes();
    for field in fields {
        bytes.extend_from_slice(field.as_bytes());
        bytes.push(0);
    }
    bytes
}

/// A netlink socket for uevents, non-blocking and close-on-exec; member of
/// these groups, with a port id chosen by the kernel.
pub(crate) fn socket(groups: u32) -> OwnedFd {
    let fd = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(KOBJECT_UEVENT),
    )
    .unwrap();
    rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups)).unwrap();
    fd
}

/// The port id of a netlink socket.
pub(crate) fn port(socket: &OwnedFd) -> u32 {
    SocketAddrNetlink::try_from(rustix::net::getsockname(socket).unwrap()).unwrap().pid()
}

/// The way to the kernel.
pub(crate) struct Injector {
    socket: OwnedFd,
}

impl Injector {
    pub(crate) fn new() -> Self {
        Self { socket: socket(0) }
    }

    /// Has the kernel broadcast this, and waits until it has. It is in every
    /// listener's queue then, or lost there.
    pub(crate) fn send(&self, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(NLMSG_HDRLEN + payload.len()).unwrap();
        let mut message = Vec::with_capacity(NLMSG_HDRLEN + payload.len());
        message.extend(length.to_ne_bytes());
        message.extend(TYPE.to_ne_bytes());
        message.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(payload);
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.socket, &message, SendFlags::empty(), &kernel)?;
        // The kernel answers before sendto returns: a header and the negative errno.
        let mut answer = [0; 4096];
        let (length, _) = rustix::net::recv(&self.socket, &mut answer, RecvFlags::empty())?;
        let code = answer[NLMSG_HDRLEN..length.max(NLMSG_HDRLEN + 4)][..4].try_into().unwrap();
        match i32::from_ne_bytes(code) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    /// Sends an event with these fields.
    pub(crate) fn event(&self, action: &str, devpath: &str, fields: &[&str]) {
        self.send(&uevent(action, devpath, fields)).unwrap();
    }

    /// Sends many, never more than fit into the queue of the listener with
    /// this inode.
    pub(crate) fn paced(&self, payloads: impl IntoIterator<Item = Vec<u8>>, listener: u64) {
        let limit = unprivileged_room() / 2;
        for (i, payload) in payloads.into_iter().enumerate() {
            if i % BATCH == 0 {
                eventually("the listener has room", || {
                    (NetlinkSocket::find(listener)?.queued < limit).then_some(())
                });
            }
            self.send(&payload).unwrap();
        }
    }
}

/// Makes a real device, a network bridge, which the kernel tells of: add for
/// itself and for its queues.
pub(crate) fn real_device(name: &str) {
    let made = Command::new("ip").args(["link", "add", name, "type", "bridge"]).status().unwrap();
    assert!(made.success(), "ip link add: {made}");
}

/// The size of the largest receive buffer without privileges, in bytes as the
/// kernel counts them.
pub(crate) fn unprivileged_room() -> usize {
    let socket = socket(0);
    let socket = SockRef::from(&socket);
    socket.set_recv_buffer_size(128 << 20).unwrap();
    socket.recv_buffer_size().unwrap()
}

/// Multicasts to the kernel's group from a process's socket, whose port id it returns.
pub(crate) fn spoof(payload: &[u8]) -> u32 {
    let socket = socket(0);
    let group = SocketAddrNetlink::new(0, 1 << (KERNEL_GROUP - 1));
    match rustix::net::sendto(&socket, payload, SendFlags::empty(), &group) {
        // A listener had no room.
        Ok(_) | Err(Errno::NOBUFS) => port(&socket),
        Err(error) => panic!("cannot multicast: {error}"),
    }
}

/// A line of /proc/net/netlink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NetlinkSocket {
    /// The groups that it listens to, as a mask.
    pub(crate) groups: u32,
    /// Bytes that wait to be received, as the kernel counts them.
    pub(crate) queued: usize,
    /// Datagrams lost.
    pub(crate) drops: u64,
}

impl NetlinkSocket {
    /// The socket with this inode, in this network namespace.
    pub(crate) fn find(inode: u64) -> Option<Self> {
        let table = fs::read_to_string("/proc/net/netlink").unwrap();
        table.lines().skip(1).find_map(|line| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            let [_, _, _, groups, rmem, _, _, _, drops, own_inode] = columns[..] else {
                panic!("/proc/net/netlink has changed: {line}");
            };
            (own_inode.parse() == Ok(inode)).then(|| Self {
                groups: u32::from_str_radix(groups, 16).unwrap(),
                queued: rmem.parse().unwrap(),
                drops: drops.parse().unwrap(),
            })
        })
    }
}

/// The port ids of those who listen to the kernel's uevents in this network namespace.
pub(crate) fn listeners() -> Vec<u32> {
    let table = fs::read_to_string("/proc/net/netlink").unwrap();
    let port = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        (columns[1] == "15" && columns[3] == "00000001").then(|| columns[2].parse().unwrap())
    };
    table.lines().skip(1).filter_map(port).collect()
}

/// The inode of a socket of this process.
pub(crate) fn inode(socket: &OwnedFd) -> u64 {
    rustix::fs::fstat(socket).unwrap().st_ino
}

/// Ends a thread that makes events, however the test ends.
pub(crate) struct SetWhenDropped<'a>(pub(crate) &'a std::sync::atomic::AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}
