//! The socket that it opens.

use rustix::net::{AddressFamily, SocketFlags};

use super::*;

/// Tells all about descriptor 3, and about this process.
const INSPECT: &str = r#"
import os, socket
s = socket.socket(fileno=3)
print("kind", s.family.name, s.type.name)
print("protocol", s.proto)
print("own pid", s.getsockname()[0] == os.getpid())
print("mask", s.getsockname()[1])
print("buffer", s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
print("blocking", os.get_blocking(3))
print("inheritable", os.get_inheritable(3))
print("SO_PASSCRED", s.getsockopt(socket.SOL_SOCKET, 16))
print("SO_PASSSEC", s.getsockopt(socket.SOL_SOCKET, 34))
print("NETLINK_PKTINFO", s.getsockopt(270, 3))
print("NETLINK_LISTEN_ALL_NSID", s.getsockopt(270, 8))
groups = int.from_bytes(s.getsockopt(270, 9, 16), "little")
print("groups", [n + 1 for n in range(128) if groups >> n & 1])
"#;

fn inspect(options: &str) -> Finished {
    let finished = listen(options).args(["python3", "-c", INSPECT]).finish();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    finished
}

fn assert_inspected(options: &str, expected: &[(&str, &str)]) {
    let finished = inspect(options);
    for &(key, value) in expected {
        assert_eq!(told(&finished, key), value, "{key} of {options}");
    }
}

#[test]
fn the_socket_is_what_was_asked_for() {
    ns::inside(|| {
        if !have("what a socket is", "python3") {
            return;
        }
        assert_inspected(
            "kobject-uevent 1",
            &[
                ("kind", "AF_NETLINK SOCK_DGRAM"),
                ("protocol", "15"),
                ("own pid", "True"),
                ("mask", "1"),
                ("groups", "[1]"),
                ("blocking", "True"),
                ("inheritable", "True"),
                ("SO_PASSCRED", "0"),
                ("SO_PASSSEC", "0"),
                ("NETLINK_PKTINFO", "0"),
                ("NETLINK_LISTEN_ALL_NSID", "0"),
            ],
        );
        assert_inspected(
            "--raw --pass-credentials --pass-security --packet-info --listen-all-nsid -- 15 0x3",
            &[
                ("kind", "AF_NETLINK SOCK_RAW"),
                ("protocol", "15"),
                ("groups", "[1, 2]"),
                ("SO_PASSCRED", "1"),
                ("SO_PASSSEC", "1"),
                ("NETLINK_PKTINFO", "1"),
                ("NETLINK_LISTEN_ALL_NSID", "1"),
            ],
        );
        for (groups, joined) in [
            ("0", "[]"),
            ("010", "[4]"),
            ("0x80000000", "[32]"),
            ("group:1", "[1]"),
            ("group:33", "[33]"),
            ("group:36,5,33", "[5, 33, 36]"),
        ] {
            assert_inspected(&format!("route {groups}"), &[("groups", joined)]);
        }
    });
}

/// The buffer as the kernel counts it is twice what was asked for.
#[test]
fn the_buffer_is_as_large_as_may_be() {
    ns::inside(|| {
        if !have("buffer sizes", "python3") {
            return;
        }
        let room = inject::unprivileged_room().to_string();
        let default = inspect("kobject-uevent 1");
        for (options, buffer) in [
            ("--receive-buffer-size 64K", "131072"),
            ("--receive-buffer-size=65536", "131072"),
            ("--receive-buffer-size 1G", &room),
            ("", told(&default, "buffer")),
        ] {
            let finished = inspect(&format!("{options} kobject-uevent 1"));
            assert_eq!(told(&finished, "buffer"), buffer, "{options}");
            let warned = finished.stderr.contains(": warning: receive buffer: ");
            assert_eq!(warned, options.ends_with("1G"), "{finished:?}");
        }
    });
}

#[test]
fn with_privilege_the_buffer_is_as_large_as_wanted() {
    ns::inside_as_root(|| {
        if have("buffer sizes", "python3") {
            let wanted = inject::unprivileged_room().max(32 << 20);
            let finished = inspect(&format!("--receive-buffer-size {wanted} kobject-uevent 1"));
            assert_eq!(told(&finished, "buffer"), (2 * wanted).to_string());
            assert_eq!(finished.stderr, "");
        }
    });
}

/// As linux/netlink.h has them.
const PROTOCOLS: [(&str, u32); 22] = [
    ("route", 0),
    ("usersock", 2),
    ("firewall", 3),
    ("inet-diag", 4),
    ("sock-diag", 4),
    ("nflog", 5),
    ("xfrm", 6),
    ("selinux", 7),
    ("iscsi", 8),
    ("audit", 9),
    ("fib-lookup", 10),
    ("connector", 11),
    ("netfilter", 12),
    ("ip6-fw", 13),
    ("dnrtmsg", 14),
    ("kobject-uevent", 15),
    ("generic", 16),
    ("scsitransport", 18),
    ("ecryptfs", 19),
    ("rdma", 20),
    ("crypto", 21),
    ("smc", 22),
];

/// By the kernel's own table, and where it has not that protocol, by its error.
#[test]
fn every_protocol_is_the_kernels() {
    ns::inside(|| {
        let mut opened = 0;
        for (name, number) in PROTOCOLS {
            let protocol = std::num::NonZero::new(number).map(rustix::net::Protocol::from_raw);
            let own = rustix::net::socket_with(
                AddressFamily::NETLINK,
                SocketType::DGRAM,
                SocketFlags::CLOEXEC,
                protocol,
            );
            let script = "stat -Lc %i /proc/$$/fd/3; cat /proc/net/netlink";
            let plugd = listen(&format!("{name} 0")).args(["sh", "-c", script]);
            if let Err(error) = own {
                let error = std::io::Error::from(error).to_string();
                let (error, _) = error.split_once(" (os error").unwrap();
                assert_fails(plugd, 111, &format!("cannot open a {name} socket: {error}"));
                continue;
            }
            opened += 1;
            let finished = plugd.finish();
            let (inode, table) = finished.stdout.split_once('\n').unwrap();
            let of_inode = |line: &&str| line.split_whitespace().last() == Some(inode);
            let line = table.lines().find(of_inode).unwrap_or_else(|| panic!("{finished:?}"));
            assert_eq!(line.split_whitespace().nth(1), Some(&*number.to_string()), "{name}");
        }
        assert!(opened >= 3, "{opened}");
    });
}

#[test]
fn what_is_refused_is_named() {
    ns::inside(|| {
        for (args, error) in [
            // In this namespace we have no power over these.
            ("audit 1 true", "cannot bind audit group 0x1: Operation not permitted"),
            ("audit group:1 true", "cannot join audit group:1: Operation not permitted"),
            ("route group:1,99999 true", "cannot join route group:99999: Invalid argument"),
            ("31 0 true", "cannot open a 31 socket: Protocol not supported"),
            ("99 0 true", "cannot open a 99 socket: Protocol not supported"),
        ] {
            assert_fails(listen(args), 111, error);
        }
        if have("a capability that is missing", "setpriv") {
            let plugd = Plugd::new().program("setpriv").args(["--bounding-set=-net_broadcast"]);
            let own = [env!("CARGO_BIN_EXE_plugd"), "listen"];
            let plugd = plugd.args(own).args(["--listen-all-nsid", "route", "0", "true"]);
            let error = "cannot set NETLINK_LISTEN_ALL_NSID on the route socket";
            assert_fails(plugd, 111, &format!("{error}: Operation not permitted"));
        }
    });
}
