//! Events from netlink, and where they go then.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{RecvFlags, SendFlags, recv, sendto};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::process::Signal;

use super::{TELL, World, event, mdevd};
use crate::harness::daemon::{Daemon, Plugd};
use crate::harness::inject::{self, Injector, NetlinkSocket, uevent};
use crate::harness::{eventually, ns, skip, unix};
use crate::listen::have;

/// The next datagram there, when it has come.
fn receive(socket: &OwnedFd) -> Vec<u8> {
    let mut buffer = vec![0; 8192];
    let length = eventually("an event was passed on", || {
        match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((length, _)) => Some(length),
            Err(Errno::AGAIN) => None,
            Err(error) => panic!("{error}"),
        }
    });
    buffer.truncate(length);
    buffer
}

/// Sends an event to a group, as a device manager does.
fn pass_on(group: u32, event: &[u8]) {
    let to = SocketAddrNetlink::new(0, group);
    sendto(inject::socket(0), event, SendFlags::empty(), &to).unwrap();
}

#[test]
fn readiness_is_told_when_events_are_not_lost_any_more() {
    ns::inside(|| {
        let world = World::new(TELL);
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut daemon = world.mdevd().args(["-D", "9"]).fd(writer, 9).launch();
        let mut text = String::new();
        // To its end: it is closed, also in the commands.
        File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "\n");
        Injector::new().send(&event(1)).unwrap();
        assert_eq!(world.wait_for_lines("out", 1), ["1"]);
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait_exit().code(), Some(0));
    });
}

#[test]
fn the_buffer_is_as_large_as_wanted() {
    ns::inside(|| {
        let daemon = World::new("").mdevd().args(["-v2", "-b", "32768"]).start();
        daemon.wait_for_log("receive buffer: 65536 bytes (asked for 32768");
    });
}

#[test]
fn events_are_passed_on_when_they_were_acted_on() {
    ns::inside(|| {
        let world = World::new("-.* 0:0 660 *read x <$TMP/gate; echo $N >>$W/out\n");
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let listener = inject::socket(0x4);
        let other = inject::socket(0x8);
        let mdevd = world.mdevd().args(["-o", "9", "-O", "12"]).fd(writer, 9);
        let daemon = mdevd.start();
        daemon.fifo("gate");
        Injector::new().send(&event(1)).unwrap();
        daemon.wait_for_child("sh");
        let early = recv(&listener, &mut [0; 9][..], RecvFlags::empty());
        assert_eq!(early.unwrap_err(), Errno::AGAIN);
        daemon.release("gate");
        let datagram = receive(&listener);
        assert_eq!(world.lines("out"), ["1"], "it was passed on too early");
        let start = [&event(1)[..], b"SEQNUM="].concat();
        assert!(datagram.starts_with(&start), "{}", datagram.escape_ascii());
        assert_eq!(receive(&other), datagram);
        let mut written = vec![0; datagram.len() + 1];
        File::from(reader).read_exact(&mut written).unwrap();
        assert_eq!(written, [&datagram[..], b"\0"].concat());
    });
}

/// As those whose command fails, or that no rule is for, and that have no
/// ACTION; but not one that it was not done with.
#[test]
fn whatever_becomes_of_events_they_are_passed_on() {
    ns::inside(|| {
        let world = World::new(
            "N=^1$;.* 0:0 660 *exit 1\n-N=^4$;.* 0:0 660 *echo >$W/out; sleep 100\n\
             N=^4$;.* 0:0 660 *echo never >$W/out\n",
        );
        let listener = inject::socket(0x4);
        let mut daemon = world.mdevd().args(["-v2", "-O", "4"]).start();
        let injector = Injector::new();
        for n in 1..=2 {
            injector.send(&event(n)).unwrap();
        }
        injector.send(b"add@/devices/x\0N=3\0").unwrap();
        injector.send(&event(4)).unwrap();
        for n in 1..=3 {
            let (datagram, field) = (receive(&listener), format!("\0N={n}\0"));
            assert!(datagram.windows(5).any(|bytes| bytes == field.as_bytes()), "{n}");
        }
        world.wait_for_lines("out", 1);
        daemon.signal(Signal::TERM);
        daemon.wait_for_log("stopping when pid ");
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait_exit().code(), Some(0));
        assert_eq!(daemon.logged("not completed, from here on: run ").len(), 1);
        let late = recv(&listener, &mut [0; 9][..], RecvFlags::empty());
        assert_eq!(late.unwrap_err(), Errno::AGAIN);
    });
}

/// The real one: LIBUDEV_ZERO is the directory that its `make` was run in.
#[test]
fn a_client_of_libudev_zero_sees_devices_come_and_go() {
    let Some(library) = std::env::var_os("LIBUDEV_ZERO") else {
        let why = "LIBUDEV_ZERO does not tell where it was built";
        return skip("libudev-zero", "a client of libudev-zero", why);
    };
    ns::inside_with_sysfs(|| {
        let world = World::new("SUBSYSTEM=net;.* 0:0 660 *echo $ACTION >>$W/out\n");
        let (client, library) = (world.path("client"), Path::new(&library));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/mdevd/libudev.c");
        let mut compiler = Command::new("cc");
        compiler.arg("-I").arg(library).arg("-o").arg(&client).arg(source);
        let compiled = compiler.arg(library.join("libudev.a")).arg("-lpthread").status();
        assert!(compiled.unwrap().success());
        let _daemon = world.mdevd().args(["-s", "/sys", "-O", "4"]).start();
        let mut client =
            Plugd::new().program(client).stdout(File::create(world.path("seen")).unwrap()).launch();
        assert_eq!(world.wait_for_lines("seen", 1), ["listening"]);
        inject::real_device("br0");
        assert_eq!(world.wait_for_lines("seen", 2)[1], "add br0");
        let removed = Command::new("ip").args(["link", "del", "br0"]).status();
        assert!(removed.unwrap().success());
        assert_eq!(world.wait_for_lines("seen", 3)[2], "remove br0");
        assert!(client.runs());
    });
}

#[test]
fn what_would_come_back_is_not_rebroadcast() {
    ns::inside(|| {
        let world = World::new(TELL);
        let listener = inject::socket(0x4);
        let daemon = world.mdevd().args(["-O", "7", "-I", "3"]).start();
        daemon.wait_for_log("not rebroadcast to the netlink groups of the mask 3");
        Injector::new().send(&event(1)).unwrap();
        receive(&listener);
        assert_eq!(world.wait_for_lines("out", 1), ["1"]);
        assert_eq!(daemon.logged("dropped"), []);
    });
}

#[test]
fn other_groups_can_be_read() {
    ns::inside(|| {
        let world = World::new(TELL);
        let daemon = world.mdevd().args(["-v3", "-I", "4"]).start();
        assert_eq!(NetlinkSocket::find(daemon.netlink().1).unwrap().groups, 4);
        Injector::new().send(&event(1)).unwrap();
        pass_on(4, &event(2));
        assert_eq!(world.wait_for_lines("out", 1), ["2"]);

        // The kernel's own group is the kernel's, even beside another.
        let world = World::new(TELL);
        let daemon = world.mdevd().args(["-v3", "-I", "5"]).start();
        pass_on(1, &event(3));
        pass_on(4, &event(4));
        Injector::new().send(&event(5)).unwrap();
        assert_eq!(world.wait_for_lines("out", 2), ["4", "5"]);
        daemon.wait_for_log("dropped a foreign datagram");
    });
}

/// A chain of two managers.
#[test]
fn a_manager_can_follow_another() {
    ns::inside(|| {
        let (first, second) = (World::new(TELL), World::new(TELL));
        let _first = first.mdevd().args(["-O", "8"]).start();
        let _second = second.mdevd().args(["-I", "8"]).start();
        Injector::new().send(&event(1)).unwrap();
        assert_eq!(second.wait_for_lines("out", 1), ["1"]);
        assert_eq!(first.lines("out"), ["1"]);
    });
}

/// A daemon that writes to a small pipe and can be asked how it is, and how to ask it.
fn behind(world: &World, options: &[&str]) -> (Daemon, File, String) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    fcntl_setpipe_size(&writer, 4096).unwrap();
    let address = world.path("control").to_str().unwrap().to_owned();
    let plugd = world.plugd().args(["--output-fd", "9", "--control", &address]).args(options);
    (plugd.fd(writer, 9).start(), reader.into(), address)
}

fn ask(what: &str, address: &str) -> String {
    let finished = Plugd::new().args([what, "--control", address]).finish();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    finished.stdout
}

/// The numbers of the events that are written there, to its end, which is that of an
/// event.
fn written(mut reader: impl Read) -> Vec<usize> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let text = text.strip_suffix("\0\0").unwrap();
    let number = |event: &str| {
        assert!(event.starts_with("add@/devices/x"), "{event:?}");
        event.split('\0').find_map(|field| field.strip_prefix("N=")).unwrap().parse().unwrap()
    };
    text.split("\0\0").map(number).collect()
}

#[test]
fn a_reader_that_is_slow_misses_nothing() {
    const EVENTS: usize = 2000;
    ns::inside(|| {
        let world = World::new("");
        let (mut daemon, reader, address) = behind(&world, &[]);
        let inode = daemon.netlink().1;
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| Injector::new().paced((1..=EVENTS).map(event), inode));
            eventually("it has to wait for its reader", || {
                ask("status", &address).contains("state    writing").then_some(())
            });
            // It does whatever else it is asked to.
            daemon.signal(Signal::HUP);
            daemon.wait_for_log("the rules were read anew");
            ask("pause", &address);
            ask("resume", &address);
            // Also as another program.
            ask("update", &address);
            assert!(ask("status", &address).contains("state    writing"));
            let reader = scope.spawn(|| written(reader));
            sender.join().unwrap();
            ask("settle", &address);
            daemon.signal(Signal::TERM);
            assert_eq!(reader.join().unwrap(), (1..=EVENTS).collect::<Vec<_>>());
        });
        assert!(daemon.wait_exit().success());
        assert_eq!(daemon.logged("cannot write"), []);
    });
}

#[test]
fn the_last_event_is_written_to_its_end() {
    ns::inside(|| {
        for signals in 1..=2 {
            let world = World::new("");
            let (mut daemon, reader, address) = behind(&world, &[]);
            (1..=200).for_each(|n| Injector::new().send(&event(n)).unwrap());
            eventually("it has to wait for its reader", || {
                ask("status", &address).contains("state    writing").then_some(())
            });
            let handled = daemon.counters();
            let handled = handled.split_once("handled ").unwrap().1.split(',').next().unwrap();
            let handled: usize = handled.parse().unwrap();
            daemon.signal(Signal::TERM);
            eventually("it is asked to stop", || {
                ask("status", &address).contains("state    stopping").then_some(())
            });
            if signals == 1 {
                assert_eq!(written(reader), (1..=handled).collect::<Vec<_>>());
                assert!(daemon.wait_exit().success());
                assert_eq!(daemon.logged("cannot write"), []);
            } else {
                daemon.signal(Signal::TERM);
                assert!(daemon.wait_exit().success());
                daemon.wait_for_log("cannot write an event: plugd shall end at once");
                drop(reader);
            }
        }
    });
}

#[test]
fn a_reader_that_never_reads_is_left() {
    ns::inside(|| {
        let world = World::new("N=^9999$;.* 0:0 660 *echo $N >>$W/out\n");
        let (daemon, reader, _) = behind(&world, &["--timeout", "0.3"]);
        let inode = daemon.netlink().1;
        Injector::new().paced((1..=200).map(event), inode);
        daemon.wait_for_log("cannot write an event: its reader has made no room for 0.300 s");
        // What it has got, and then the end.
        let written = written(reader);
        assert_eq!(written, (1..=written.len()).collect::<Vec<_>>());
        Injector::new().send(&event(9999)).unwrap();
        assert_eq!(world.wait_for_lines("out", 1), ["9999"], "it goes on");
        assert_eq!(daemon.logged("cannot write").len(), 1);

        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(reader);
        let daemon = World::new("").mdevd().args(["-o", "9"]).fd(writer, 9).start();
        Injector::new().send(&event(1)).unwrap();
        daemon.wait_for_log("cannot write an event: it has no reader");
    });
}

/// Nobody who listens is told of anything.
#[test]
fn a_dry_run_sends_no_events() {
    ns::inside_with_sysfs(|| {
        let world = World::new("-.* 0:0 660 *true\n");
        let plan = || File::create(world.path("plan")).unwrap();
        let listeners = [inject::socket(1), inject::socket(4)];
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mdevd = mdevd().args(["-n", "-C", "-O", "4", "-o", "9"]).fd(writer, 9);
        let plugd = Plugd::run(&["-n", "--coldplug=kernel", "--rebroadcast", "4"]);
        let conf = world.path("mdev.conf");
        for (daemon, option) in [(mdevd, "-f"), (plugd, "--conf")] {
            let daemon = daemon.args([option.as_ref(), conf.as_os_str()]).stdout(plan());
            let mut daemon = daemon.start();
            eventually("lo is told of", || {
                let lines = world.lines("plan");
                lines.iter().any(|l| l.starts_with("add /devices/virtual/net/lo ")).then_some(())
            });
            daemon.signal(Signal::TERM);
            assert!(daemon.wait_exit().success());
        }
        for listener in &listeners {
            let event = recv(listener, &mut [0; 9][..], RecvFlags::empty());
            assert_eq!(event.unwrap_err(), Errno::AGAIN);
        }
        let mut bytes = Vec::new();
        File::from(reader).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"");
    });
}

/// plugd run can do it with a program too, for any socket.
#[test]
fn plugd_run_passes_events_on() {
    ns::inside(|| {
        let (events, receiver) = unix::pair(rustix::net::SocketType::SEQPACKET);
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let listener = inject::socket(0x4);
        let plugd = Plugd::reading(receiver).args(["--output-fd", "9", "--rebroadcast", "4"]);
        let mut daemon = plugd.fd(writer, 9).sh("echo $N >>$TMP/out").start();
        unix::send(&events, &event(1));
        assert_eq!(receive(&listener), event(1));
        assert_eq!(daemon.lines("out"), ["1"]);
        drop(events);
        daemon.wait_exit();
        let mut bytes = Vec::new();
        File::from(reader).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, [&event(1)[..], b"\0"].concat());
    });
}

#[test]
fn an_unprivileged_manager_says_that_it_cannot_rebroadcast() {
    if !have("a daemon without privileges", "setpriv") {
        return;
    }
    ns::inside(|| {
        let (events, receiver) = unix::pair(rustix::net::SocketType::SEQPACKET);
        let program = Plugd::new().program("setpriv").args(["--bounding-set=-all"]);
        let plugd = program.args([env!("CARGO_BIN_EXE_plugd"), "run", "--control=none", "--fd=3"]);
        let plugd = plugd.args(["--rebroadcast", "4"]).sh("echo $N >>$TMP/out");
        let daemon = plugd.fd(receiver, 3).start();
        for n in 1..=20 {
            unix::send(&events, &event(n));
        }
        daemon.wait_for_log("cannot rebroadcast an event: Operation not permitted");
        assert_eq!(daemon.wait_for_lines("out", 20).len(), 20);
        assert!(daemon.logged("cannot rebroadcast").len() <= 10, "it repeats itself");
    });
}

#[test]
fn the_environment_has_the_event() {
    ns::inside(|| {
        let world = World::new("-.* 0:0 660 *env | sort >$W/new; mv $W/new $W/out\n");
        let _daemon = world.mdevd().env("OWN", "kept").start();
        Injector::new().send(&uevent("add", "/devices/x", &["DEVNAME=d/x", "A=1"])).unwrap();
        let lines = world.wait_for_lines("out", 5);
        for line in ["OWN=kept", "MDEV=d/x", "ACTION=add", "DEVNAME=d/x", "A=1"] {
            assert!(lines.iter().any(|l| l == line), "{line}: {lines:?}");
        }
        // They run in the directory of nodes.
        let pwd = format!("PWD={}", fs::canonicalize(world.path("dev")).unwrap().display());
        assert!(lines.contains(&pwd), "{lines:?}");
    });
}
