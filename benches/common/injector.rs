//! A way to have the kernel send events.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, SendFlags, SocketType};

use crate::common::Outcome;

/// Sends to the kernel what it then broadcasts in this network namespace as
/// its own (lib/kobject_uevent.c, uevent_net_rcv_skb).
pub(crate) struct Injector {
    socket: OwnedFd,
}

impl Injector {
    pub(crate) fn new() -> io::Result<Self> {
        let protocol = Some(KOBJECT_UEVENT);
        Ok(Self { socket: rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, protocol)? })
    }

    /// Sends an event that has no SEQNUM: the kernel appends one.
    pub(crate) fn send(&self, event: &[u8]) -> Outcome<()> {
        // struct nlmsghdr: length, type, flags, sequence number, port id.
        let length = u32::try_from(16 + event.len())?.to_ne_bytes();
        let message = [&length[..], &[0x10, 0, 1, 0], &[0; 8], event].concat();
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.socket, &message, SendFlags::empty(), &kernel)?;
        Ok(())
    }
}
