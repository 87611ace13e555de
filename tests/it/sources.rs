//! Where events come from: plugd's own socket, or those handed over.

use std::fs::{self, File};
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use plugd::sys::{self, SocketOption};
use rustix::net::{
    AddressFamily, Protocol, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open};
use socket2::SockRef;

use crate::harness::daemon::{Daemon, Finished, Plugd};
use crate::harness::inject::{self, Injector, NetlinkSocket, uevent};
use crate::harness::{ns, unix};
use crate::listen::have;

const NOSH: &str = "plug-and-play-event-handler";
const RECORD: &str = "echo $N >>$TMP/out";

fn event(n: u32) -> Vec<u8> {
    uevent("add", "/x", &[&format!("N={n}")])
}

fn assert_handles(daemon: &Daemon, sender: &OwnedFd) {
    let n = daemon.lines("out").len();
    unix::send(sender, &event(5));
    assert_eq!(daemon.wait_for_lines("out", n + 1)[n], "5");
}

/// The real size of the receive buffer of its netlink socket.
fn buffer_size(daemon: &Daemon) -> usize {
    let pid = Pid::from_raw(daemon.pid().try_into().unwrap()).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let socket = pidfd_getfd(pidfd, daemon.netlink().0, PidfdGetfdFlags::empty()).unwrap();
    SockRef::from(&socket).recv_buffer_size().unwrap()
}

#[test]
fn its_own_socket_listens_to_the_kernel() {
    ns::inside(|| {
        let daemon = Plugd::run(&["--"]).sh(RECORD).start();
        let (fd, inode) = daemon.netlink();
        assert_eq!(NetlinkSocket::find(inode).unwrap().groups, 1);
        assert_is_non_blocking_and_private(&daemon, fd);
    });
}

fn assert_is_non_blocking_and_private(daemon: &Daemon, fd: RawFd) {
    let info = fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", daemon.pid())).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
    assert_ne!(flags & libc::O_NONBLOCK, 0);
    assert_ne!(flags & libc::O_CLOEXEC, 0);
}

#[test]
fn an_inherited_one_is_made_non_blocking_and_private() {
    let (_sender, receiver) = unix::pair(SocketType::DGRAM);
    rustix::io::ioctl_fionbio(&receiver, false).unwrap();
    let daemon = Plugd::reading(receiver).sh(RECORD).start();
    assert_is_non_blocking_and_private(&daemon, 3);
}

/// Else a datagram could come that is counted against the smaller buffer.
#[test]
fn the_buffer_is_set_before_the_socket_is_bound() {
    if !have("the order of system calls", "strace") {
        return;
    }
    let plugd = env!("CARGO_BIN_EXE_plugd");
    ns::inside(|| {
        for command in [
            vec![plugd, "listen", "--receive-buffer-size", "1M", "kobject-uevent", "1", "true"],
            vec![plugd, "run", "--control", "none", "--notify-fd", "99", "--", "true"],
        ] {
            let finished = Plugd::new()
                .program("strace")
                .args(["-e", "trace=setsockopt,bind"])
                .args(&command)
                .finish();
            let at = |call: &str| {
                let found = finished.stderr.lines().position(|line| line.contains(call));
                found.unwrap_or_else(|| panic!("no {call}: {}", finished.stderr))
            };
            assert!(at("SO_RCVBUF") < at("bind("), "{}", finished.stderr);
        }
    });
}

#[test]
fn without_privilege_its_buffer_is_as_large_as_may_be() {
    ns::inside(|| {
        let daemon = Plugd::run(&["--"]).sh(RECORD).start();
        let got = inject::unprivileged_room().min(256 << 20);
        assert_eq!(buffer_size(&daemon), got);
        let line = daemon.wait_for_log("receive buffer");
        let told = format!("receive buffer: {got} bytes (asked for 134217728, which");
        assert!(line.starts_with("plugd: info: ") && line.contains(&told), "{line}");
        assert!(line.contains("SO_RCVBUFFORCE says: Operation not permitted"), "{line}");

        let daemon = Plugd::run(&["--receive-buffer-size", "32K", "--"]).sh(RECORD).start();
        assert_eq!(buffer_size(&daemon), 65536);
    });
}

#[test]
fn with_privilege_its_buffer_is_as_large_as_wanted() {
    ns::inside_as_root(|| {
        for (options, size) in [(&[][..], 128 << 20), (&["--receive-buffer-size", "64M"], 64 << 20)]
        {
            let daemon = Plugd::run(options).sh(RECORD).start();
            assert_eq!(buffer_size(&daemon), 2 * size);
            let told = format!("{} bytes (asked for {size}, which the kernel doubles)", 2 * size);
            assert!(daemon.wait_for_log("receive buffer").ends_with(&told));
        }
    });
}

#[test]
fn a_netlink_socket_handed_over_serves_as_its_own() {
    ns::inside(|| {
        let daemon = Plugd::reading(inject::socket(1)).sh(RECORD).start();
        let injector = Injector::new();
        inject::spoof(&event(1));
        injector.send(b"N=2\0").unwrap();
        injector.send(&event(3)).unwrap();
        assert_eq!(daemon.wait_for_lines("out", 1), ["3"]);
        assert!(daemon.counters().ends_with("foreign 1, truncated 0, malformed 1"));
    });
}

#[test]
fn any_number_will_do_but_for_where_programs_write() {
    for number in [1, 2] {
        let (_sender, receiver) = unix::pair(SocketType::DGRAM);
        let plugd = Plugd::run(&["--fd", &number.to_string(), "true"]).fd(receiver, 10);
        let finished = plugd.finish();
        assert_eq!(finished.code, Some(100), "{finished:?}");
        assert!(finished.stderr.contains("that is where programs and the log write to"));
    }
    for number in [0, 10, 57] {
        let (sender, receiver) = unix::pair(SocketType::DGRAM);
        let plugd = Plugd::run(&["--fd", &number.to_string()]);
        // Descriptor 0 is then the child's /dev/null as ever.
        let daemon = plugd.fd(receiver, number).sh("read x || echo $N >>$TMP/out").start();
        assert_handles(&daemon, &sender);
    }
}

/// The kernel's events are told from others by the sender: no other would be taken.
#[test]
fn it_warns_of_a_socket_that_hears_nothing_of_the_kernel() {
    ns::inside(|| {
        let told = "file descriptor 3: not in the group that the kernel sends uevents to";
        for (groups, expected) in [(0, 1), (2, 1), (3, 0)] {
            let daemon = Plugd::reading(inject::socket(groups)).sh(RECORD).start();
            daemon.wait_for_log("reading from file descriptor 3");
            daemon.counters();
            assert_eq!(daemon.logged(told).len(), expected, "groups {groups}");
        }
    });
}

/// Some have it switched off that the kernel tells of an overrun.
#[test]
fn overruns_are_told_of_on_any_inherited_socket() {
    ns::inside(|| {
        let socket = inject::socket(1);
        sys::set_socket_option(socket.as_fd(), SocketOption::NoEnobufs, 1).unwrap();
        SockRef::from(&socket).set_recv_buffer_size(4096).unwrap();
        let daemon = Plugd::reading(socket).args(["--", "true"]).start();
        daemon.signal(Signal::STOP);
        let injector = Injector::new();
        (0..100).for_each(|n| injector.event("add", &format!("/devices/{n}"), &[]));
        daemon.signal(Signal::CONT);
        daemon.wait_for_counters("overruns 1");
    });
}

/// LISTEN_FDS counts for `plugd run` and under the other name, if it is meant for this process.
#[test]
fn listen_fds_are_taken_over() {
    for command in ["run", NOSH] {
        let (sender_3, receiver_3) = unix::pair(SocketType::DGRAM);
        let (sender_4, receiver_4) = unix::pair(SocketType::DGRAM);
        let daemon = Plugd::new()
            .args([command])
            .sh(RECORD)
            .fd(receiver_3, 3)
            .fd(receiver_4, 4)
            .prelude("export LISTEN_FDS=2 LISTEN_PID=$$ LISTEN_FDNAMES=a:b")
            .start();
        assert_handles(&daemon, &sender_3);
        assert_handles(&daemon, &sender_4);
    }
}

#[test]
fn listen_fds_of_another_process_do_not_count() {
    ns::inside(|| {
        for foreign in [
            "export LISTEN_FDS=1 LISTEN_PID=1",
            "export LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_PIDFDID=x",
        ] {
            let (_sender, receiver) = unix::pair(SocketType::DGRAM);
            let daemon = Plugd::run(&["--"]).sh(RECORD).fd(receiver, 3).prelude(foreign).start();
            Injector::new().send(&event(7)).unwrap();
            assert_eq!(daemon.wait_for_lines("out", 1), ["7"], "{foreign}");
        }

        // The other name has descriptor 3 to fall back on.
        let (sender, receiver) = unix::pair(SocketType::DGRAM);
        let foreign = "export LISTEN_FDS=2 LISTEN_PID=1";
        let daemon = Plugd::new().args([NOSH]).sh(RECORD).fd(receiver, 3).prelude(foreign).start();
        assert_handles(&daemon, &sender);
    });
}

#[test]
fn named_sockets_come_before_listen_fds() {
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let daemon = Plugd::run(&["--fd", "9"])
        .sh(RECORD)
        .fd(receiver, 9)
        .prelude("export LISTEN_FDS=1 LISTEN_PID=$$")
        .start();
    assert_handles(&daemon, &sender);
}

#[test]
fn the_other_name_reads_descriptor_3() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join(NOSH);
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_plugd"), &link).unwrap();
    for (plugd, program) in [
        (Plugd::new().arg0(NOSH), NOSH),
        (Plugd::new().arg0("/sbin/plug-and-play-event-handler"), NOSH),
        (Plugd::new().program(&link), NOSH),
        (Plugd::new().args([NOSH]), NOSH),
        (Plugd::new().args([NOSH, "--verbose"]), NOSH),
    ] {
        let (sender, receiver) = unix::pair(SocketType::DGRAM);
        let daemon = plugd.sh(RECORD).fd(receiver, 3).start();
        assert_handles(&daemon, &sender);
        daemon.wait_for_log(&format!("{program}: info: "));
    }
}

#[test]
fn what_cannot_be_read_is_a_fatal_error() {
    let unconnected = || {
        let flags = SocketFlags::CLOEXEC;
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    };
    let listening = || {
        let fd = unconnected();
        bind(&fd, &SocketAddrUnix::new_unnamed()).unwrap();
        listen(&fd, 1).unwrap();
        fd
    };
    let netlink = |protocol: u32| {
        let protocol = NonZero::new(protocol).map(Protocol::from_raw);
        socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
            .unwrap()
    };
    let cases: [(Option<OwnedFd>, &str); 8] = [
        (Some(netlink(0)), "a netlink socket of the protocol route: no uevents come there"),
        (Some(netlink(16)), "a netlink socket of the protocol generic: no uevents come there"),
        (None, "Bad file descriptor"),
        (Some(File::open("/dev/null").unwrap().into()), "Socket operation on non-socket"),
        (Some(File::open("/").unwrap().into()), "Socket operation on non-socket"),
        (Some(unix::pair(SocketType::STREAM).0), "not a datagram socket"),
        (Some(listening()), "a socket that listens for connections"),
        (Some(unconnected()), "Transport endpoint is not connected"),
    ];
    for (fd, why) in cases {
        for (program, plugd) in
            [("plugd", Plugd::run(&["--fd", "3"])), (NOSH, Plugd::new().arg0(NOSH))]
        {
            let fd = fd.as_ref().map(|fd| fd.as_fd().try_clone_to_owned().unwrap());
            let plugd = match fd {
                Some(fd) => plugd.fd(fd, 3),
                None => plugd,
            };
            let Finished { code, stderr, .. } = plugd.args(["true"]).finish();
            let told = format!("{program}: fatal: cannot receive from file descriptor 3: {why}\n");
            assert_eq!((code, stderr), (Some(111), told));
        }
    }
}

#[test]
fn listen_fds_that_make_no_sense_are_a_fatal_error() {
    for (value, code, why) in [
        ("2147483640", 100, "LISTEN_FDS is not a number of file descriptors: 2147483640"),
        ("1000000", 111, "cannot receive from file descriptor 4: Bad file descriptor"),
        ("x", 100, "LISTEN_FDS is not a number of file descriptors: x"),
        ("-1", 100, "LISTEN_FDS is not a number of file descriptors: -1"),
        ("2", 111, "cannot receive from file descriptor 4: Bad file descriptor"),
    ] {
        let (_sender, receiver) = unix::pair(SocketType::DGRAM);
        let finished = Plugd::run(&["true"])
            .fd(receiver, 3)
            .prelude(&format!("export LISTEN_FDS={value} LISTEN_PID=$$"))
            .finish();
        assert_eq!(finished.code, Some(code), "{finished:?}");
        assert!(finished.stderr.contains(why), "{finished:?}");
    }
}

#[test]
fn an_option_for_its_own_socket_is_refused_with_another() {
    let (_sender, receiver) = unix::pair(SocketType::DGRAM);
    let plugd = Plugd::reading(receiver).args(["--receive-buffer-size", "1M", "true"]);
    let finished = plugd.finish();
    assert_eq!(finished.code, Some(100), "{finished:?}");
    assert!(finished.stderr.contains("--receive-buffer-size is for a socket that"), "{finished:?}");
}

#[test]
fn the_end_of_a_seqpacket_is_the_end() {
    let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
    (1..=20).for_each(|n| unix::send(&sender, &event(n)));
    let mut daemon = Plugd::reading(receiver).sh(RECORD).start();
    drop(sender);
    assert_eq!(daemon.wait_exit().code(), Some(0));
    assert!(daemon.lines("out").into_iter().eq((1..=20).map(|n| n.to_string())));
    daemon.wait_for_log("end of input on file descriptor 3");
    daemon.wait_for_log("stopped: received 20, handled 20, failed 0");
}

#[test]
fn one_socket_may_end_before_the_other() {
    let (sender_3, receiver_3) = unix::pair(SocketType::SEQPACKET);
    let (sender_4, receiver_4) = unix::pair(SocketType::SEQPACKET);
    let mut daemon = Plugd::run(&["--fd", "3", "--fd", "4"])
        .fd(receiver_3, 3)
        .fd(receiver_4, 4)
        .sh(RECORD)
        .start();
    // The first end comes while it waits, not while it reads.
    assert_handles(&daemon, &sender_4);
    drop(sender_3);
    daemon.wait_for_log("end of input on file descriptor 3");
    assert_handles(&daemon, &sender_4);
    assert!(daemon.runs());
    drop(sender_4);
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

/// The other end of a SOCK_DGRAM pair may be gone: that says nothing, and
/// must not make it spin.
#[test]
fn a_lonely_datagram_socket_is_waited_on() {
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let daemon = Plugd::reading(receiver).sh(RECORD).start();
    assert_handles(&daemon, &sender);
    drop(sender);
    daemon.sleeps();
    daemon.counters();
    daemon.sleeps();
    assert_eq!(daemon.logged("cannot receive").len(), 0);
}
