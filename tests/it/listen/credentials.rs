//! Credentials: who has sent what comes from the socket.

use std::os::fd::{AsFd, OwnedFd};

use plugd::sys::{Credentials, SocketOption};
use rustix::io::Errno;

use super::*;

/// What the next datagram's sender shows.
fn sender(socket: &OwnedFd) -> (Option<u32>, Option<Credentials>) {
    let mut buffer = vec![0; 65536];
    let message = sys::receive(socket.as_fd(), &mut buffer, true).unwrap();
    (message.port, message.credentials)
}

fn with_credentials() -> OwnedFd {
    let socket = inject::socket(1);
    sys::set_socket_option(socket.as_fd(), SocketOption::PassCredentials, 1).unwrap();
    socket
}

fn drain(socket: &OwnedFd) {
    while sys::receive(socket.as_fd(), &mut [0; 8192], false).is_ok() {}
}

/// Fact 4, fact 10: the kernel's own events have credentials with process 0
/// and user 0; those that it broadcasts for a process have that process's.
#[test]
fn credentials_tell_the_kernels_events_from_those_of_a_process() {
    ns::inside(|| {
        let socket = with_credentials();
        inject::real_device("br9");
        assert_eq!(sender(&socket), (Some(0), Some(Credentials { pid: 0, uid: 0 })));
        drain(&socket);

        Injector::new().event("add", "/devices/x", &[]);
        let pid = std::process::id().try_into().unwrap();
        assert_eq!(sender(&socket), (Some(0), Some(Credentials { pid, uid: 0 })));

        // The other things that come along do not hide them.
        for option in
            [SocketOption::PacketInfo, SocketOption::ListenAllNsid, SocketOption::PassSecurity]
        {
            sys::set_socket_option(socket.as_fd(), option, 1).unwrap();
        }
        Injector::new().event("add", "/devices/x", &[]);
        assert_eq!(sender(&socket), (Some(0), Some(Credentials { pid, uid: 0 })));

        let plain = inject::socket(1);
        Injector::new().event("add", "/devices/x", &[]);
        assert_eq!(sender(&plain), (Some(0), None));
        let error = sys::receive(plain.as_fd(), &mut [0; 8192], true).unwrap_err();
        assert_eq!(error, Errno::AGAIN);
    });
}

/// In a user namespace without root, the kernel is some other user: the
/// overflow user, or who the machine's root is there.
#[test]
fn without_root_the_kernels_user_is_another() {
    ns::inside_without_root(|| {
        let socket = with_credentials();
        inject::real_device("br9");
        let (port, credentials) = sender(&socket);
        let Credentials { pid, uid } = credentials.unwrap();
        assert_eq!((port, pid), (Some(0), 0));
        assert_ne!(uid, 0);
        drain(&socket);
        Injector::new().event("add", "/devices/x", &[]);
        let pid = std::process::id().try_into().unwrap();
        assert_eq!(sender(&socket), (Some(0), Some(Credentials { pid, uid: 1000 })));
    });
}

#[test]
fn credentials_are_checked_where_they_are_passed() {
    ns::inside(|| {
        let names = Names::new();
        let pass = "--pass-credentials --packet-info --pass-security kobject-uevent 1";
        for (bridge, plugd) in [
            names.listen(&format!("{pass} {HANDLER}")),
            names.listen(&format!("{pass} plugd run --fd 3")),
            names.listen(&format!("{pass} plugd run --fd 3 --require-credentials")),
            names.listen("kobject-uevent 1 plugd run --fd 3 --require-credentials"),
            names.program("plugd").args(["run", "--require-credentials"]),
        ]
        .into_iter()
        .enumerate()
        {
            let daemon = plugd.sh(TELL).start();
            Injector::new().event("add", "/devices/x", &[]);
            let line = daemon.wait_for_log("foreign");
            let pid = std::process::id();
            let why = format!("dropped a foreign datagram: sent by port id 0, pid {pid}, user 0 (");
            assert!(line.contains(&why), "{line}");
            let bridge = format!("br{bridge}");
            inject::real_device(&bridge);
            daemon.wait_for_log(&format!("told of add /devices/virtual/net/{bridge}"));
            assert_eq!(daemon.logged("told of add /devices/x").len(), 0);
            assert!(daemon.counters().contains(", foreign 1,"));
        }
    });
}

#[test]
fn without_root_the_port_id_has_to_do() {
    ns::inside_without_root(|| {
        let names = Names::new();
        let daemon = names
            .listen(&format!("--pass-credentials kobject-uevent 1 {HANDLER}"))
            .sh(TELL)
            .start();
        assert_tells(&daemon);
        inject::spoof(&uevent("add", "/devices/evil", &[]));
        daemon.wait_for_log("foreign");
        drop(daemon);

        // Who insists gets nothing at all.
        let daemon = Plugd::run(&["--require-credentials"]).sh(TELL).start();
        inject::real_device("br8");
        daemon.wait_for_log("dropped a foreign datagram: sent by port id 0, pid 0, user ");
        assert_eq!(daemon.logged("told of").len(), 0);
    });
}

/// The network namespace's root may be nobody in the handler's user namespace,
/// though that has a root of its own.
#[test]
fn the_socket_may_belong_to_another_user_namespace() {
    ns::inside_as_root(|| {
        if !have("another user namespace", "setpriv") {
            return;
        }
        let names = Names::new();
        let change = "setpriv --reuid 1 --regid 1 --clear-groups unshare -Ur";
        let chain = format!("--pass-credentials kobject-uevent 1 {change} {HANDLER}");
        let daemon = names.listen(&chain).sh(TELL).start();
        Injector::new().event("add", "/devices/x", &[]);
        daemon.wait_for_log("foreign");
        inject::real_device("br9");
        daemon.wait_for_log("told of add /devices/virtual/net/br9");
        assert_eq!(daemon.logged("told of add /devices/x").len(), 0);
    });
}

/// Where there are no credentials to be had, as on other sockets, none are required.
#[test]
fn other_sockets_need_no_credentials() {
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let plugd = Plugd::run(&["--fd", "3", "--require-credentials"]).fd(receiver, 3);
    let daemon = plugd.sh(TELL).start();
    unix::send(&sender, &uevent("add", "/devices/x", &[]));
    daemon.wait_for_log("told of add /devices/x");
}
