//! AF_UNIX sockets: a source that needs no namespace, and carries any bytes.

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};

/// Two connected sockets, close-on-exec, blocking. As a rule some ten
/// datagrams fit into one of SOCK_DGRAM (net.unix.max_dgram_qlen), hundreds
/// into one of SOCK_SEQPACKET.
pub(crate) fn pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
}

/// Sends one datagram, waiting for space if need be.
pub(crate) fn send(socket: &OwnedFd, datagram: &[u8]) {
    let sent = rustix::net::send(socket, datagram, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(sent, datagram.len());
}
