//! What plugd relies on: facts about the kernel and about mio, as assertions.
//! Where one of these fails, the design has to be thought over.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvAncillaryBuffer, RecvFlags, SocketType, recvmsg, sockopt};

use crate::harness::inject::{self, Injector, NetlinkSocket, uevent};
use crate::harness::{ns, unix};

const SOCKET: Token = Token(0);

/// What is received, and from which port id and groups; `Err` as recvmsg(2) tells.
fn receive(socket: &OwnedFd) -> Result<(Vec<u8>, u32, u32), Errno> {
    let mut buffer = vec![0; 65536];
    let message = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut buffer)],
        &mut RecvAncillaryBuffer::default(),
        RecvFlags::DONTWAIT,
    )?;
    let sender = SocketAddrNetlink::try_from(message.address.unwrap()).unwrap();
    buffer.truncate(message.bytes);
    Ok((buffer, sender.pid(), sender.groups()))
}

/// Reads until nothing is left, and returns how many datagrams there were.
fn drain(socket: &OwnedFd) -> usize {
    let mut count = 0;
    loop {
        match receive(socket) {
            Ok(_) => count += 1,
            Err(Errno::AGAIN) => return count,
            Err(error) => panic!("{error}"),
        }
    }
}

struct Watch {
    poll: Poll,
    events: Events,
}

impl Watch {
    fn new() -> Self {
        Self { poll: Poll::new().unwrap(), events: Events::with_capacity(8) }
    }

    fn register(&self, socket: &OwnedFd, token: Token) {
        let mut source = SourceFd(&socket.as_raw_fd());
        self.poll.registry().register(&mut source, token, Interest::READABLE).unwrap();
    }

    fn deregister(&self, socket: &OwnedFd) {
        self.poll.registry().deregister(&mut SourceFd(&socket.as_raw_fd())).unwrap();
    }

    /// What is reported now.
    fn report(&mut self) -> Vec<Token> {
        self.poll.poll(&mut self.events, Some(Duration::ZERO)).unwrap();
        self.events.iter().map(mio::event::Event::token).collect()
    }
}

/// Fact 1: mio is edge-triggered. What is left unread is reported only when
/// something more arrives.
#[test]
fn a_backlog_is_not_reported_again() {
    ns::inside(|| {
        let (socket, injector, mut watch) = (inject::socket(1), Injector::new(), Watch::new());
        watch.register(&socket, SOCKET);
        (0..3).for_each(|_| injector.event("add", "/devices/x", &[]));
        assert_eq!(watch.report(), [SOCKET]);
        receive(&socket).unwrap();
        assert_eq!(watch.report(), []);
        injector.event("add", "/devices/x", &[]);
        assert_eq!(watch.report(), [SOCKET]);
        assert_eq!(drain(&socket), 3);
    });
}

/// Fact 2: deregister and register make a true pause.
#[test]
fn a_deregistered_socket_is_quiet_and_a_registered_one_tells_of_its_backlog() {
    ns::inside(|| {
        let (socket, injector, mut watch) = (inject::socket(1), Injector::new(), Watch::new());
        watch.register(&socket, SOCKET);
        watch.deregister(&socket);
        (0..3).for_each(|_| injector.event("add", "/devices/x", &[]));
        assert_eq!(watch.report(), []);
        watch.register(&socket, SOCKET);
        assert_eq!(watch.report(), [SOCKET]);
        assert_eq!(drain(&socket), 3);
    });
}

/// Fact 3: deregister does not take back what a batch already holds.
#[test]
fn a_batch_holds_events_of_what_was_deregistered_meanwhile() {
    let (ours, theirs): (Vec<_>, Vec<_>) = (0..2).map(|_| unix::pair(SocketType::DGRAM)).unzip();
    let mut watch = Watch::new();
    for (token, (our, their)) in ours.iter().zip(&theirs).enumerate() {
        watch.register(our, Token(token));
        unix::send(their, b"x");
    }
    watch.poll.poll(&mut watch.events, Some(Duration::ZERO)).unwrap();
    let mut seen = 0;
    for event in &watch.events {
        // The first one seen deregisters both.
        if seen == 0 {
            ours.iter().for_each(|socket| watch.deregister(socket));
        }
        assert!(event.is_readable());
        seen += 1;
    }
    assert_eq!(seen, 2);
    assert_eq!(watch.report(), []);
}

/// Fact 4, fact 10: what a process sends to the kernel comes back as the
/// kernel's own, numbered; what it multicasts itself bears its port id.
#[test]
fn the_sender_of_a_netlink_datagram_tells_the_kernel_from_a_process() {
    ns::inside(|| {
        let (socket, injector) = (inject::socket(1), Injector::new());
        let group_1 = 1;
        let mut numbers = Vec::new();
        for _ in 0..2 {
            let sent = uevent("add", "/devices/x", &["SUBSYSTEM=foo"]);
            injector.send(&sent).unwrap();
            let (bytes, port, groups) = receive(&socket).unwrap();
            assert_eq!((port, groups), (0, group_1));
            let number = bytes.strip_prefix(&sent[..]).unwrap().strip_prefix(b"SEQNUM=").unwrap();
            let number = std::str::from_utf8(number.strip_suffix(b"\0").unwrap()).unwrap();
            numbers.push(number.parse::<u64>().unwrap());
        }
        // Other namespaces take numbers too.
        assert!(numbers[0] < numbers[1], "{numbers:?}");

        let spoofed = uevent("add", "/devices/evil", &["SEQNUM=1"]);
        let spoofer = inject::spoof(&spoofed);
        assert_ne!(spoofer, 0);
        assert_eq!(receive(&socket), Ok((spoofed, spoofer, group_1)));

        let other_group = inject::socket(2);
        injector.event("add", "/devices/x", &[]);
        assert_eq!(receive(&other_group), Err(Errno::AGAIN));
    });
}

/// Fact 4, fact 11: a real event bears the same marks.
#[test]
fn a_real_event_has_the_kernel_for_its_sender() {
    ns::inside(|| {
        let socket = inject::socket(1);
        inject::real_device("br9");
        let (bytes, port, groups) = receive(&socket).unwrap();
        assert!(bytes.starts_with(b"add@/devices/virtual/net/br9\0"), "{}", bytes.escape_ascii());
        assert_eq!((port, groups), (0, 1));
    });
}

/// Fact 5: an overrun is told once, before what is still queued; that can be
/// read, and nothing says how much was lost.
#[test]
fn an_overrun_is_told_once_and_what_is_queued_stays() {
    ns::inside(|| {
        let (socket, injector) = (inject::socket(1), Injector::new());
        sockopt::set_socket_recv_buffer_size(&socket, 16 * 1024).unwrap();
        const SENT: usize = 300;
        for i in 0..SENT {
            injector.event("add", &format!("/devices/{i}"), &[]);
        }
        let drops = usize::try_from(NetlinkSocket::find(inject::inode(&socket)).unwrap().drops);
        let drops = drops.unwrap();
        assert!(drops > 0);
        assert_eq!(receive(&socket), Err(Errno::NOBUFS));
        let (first, _, _) = receive(&socket).unwrap();
        assert!(first.starts_with(b"add@/devices/0\0"), "{}", first.escape_ascii());
        let queued = 1 + drain(&socket);
        assert_eq!(queued, SENT - drops);

        // And so again.
        (0..SENT).for_each(|_| injector.event("add", "/devices/x", &[]));
        assert_eq!(receive(&socket), Err(Errno::NOBUFS));
        assert_eq!(drain(&socket), queued);
    });
}

/// Fact 10: the kernel checks nothing but the length, which shall not exceed
/// 2048 bytes with SEQNUM.
#[test]
fn the_kernel_broadcasts_what_is_no_event() {
    ns::inside(|| {
        let (socket, injector) = (inject::socket(1), Injector::new());
        for payload in [&b"no header\0"[..], b"add@/x\0no equals\0", b"\0", b"no final NUL"] {
            injector.send(payload).unwrap();
            let (bytes, port, _) = receive(&socket).unwrap();
            assert!(bytes.starts_with(payload) && port == 0, "{}", bytes.escape_ascii());
            assert!(bytes[payload.len()..].starts_with(b"SEQNUM="));
        }
        injector.send(&[b'x'; 2000]).unwrap();
        assert_eq!(drain(&socket), 1);
        let refused = injector.send(&[b'x'; 2048]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EINVAL));
        assert_eq!(drain(&socket), 0);
    });
}

/// Fact 11: with a sysfs of its own, a namespace's root can ask for events.
#[test]
fn a_synthetic_event_can_be_asked_for_in_a_namespace() {
    ns::inside_with_sysfs(|| {
        let socket = inject::socket(1);
        std::fs::write("/sys/class/net/lo/uevent", "change").unwrap();
        let (bytes, port, groups) = receive(&socket).unwrap();
        assert!(bytes.starts_with(b"change@/devices/virtual/net/lo\0"), "{}", bytes.escape_ascii());
        assert_eq!((port, groups), (0, 1));
    });
}
