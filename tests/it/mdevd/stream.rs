//! Events on the standard input.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::ioctl_fionbio;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;

use super::{TELL, World, event, file, numbers, stream};
use crate::harness::daemon::{Daemon, Plugd};
use crate::harness::inject::{Injector, listeners, uevent};
use crate::harness::{eventually, ns};
use crate::listen::have;

fn pipe() -> (OwnedFd, File) {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    (reader, writer.into())
}

#[test]
fn events_are_acted_on_in_order_however_they_come() {
    let world = World::new(TELL);
    let (reader, mut writer) = pipe();
    let mut daemon = world.mdevd().stdin(reader).start();
    let bytes = stream((1..=50).map(event));
    let mut rest = &bytes[..];
    for size in (1..20).cycle() {
        let (piece, more) = rest.split_at(size.min(rest.len()));
        writer.write_all(piece).unwrap();
        rest = more;
        if rest.is_empty() {
            break;
        }
    }
    assert_eq!(world.wait_for_lines("out", 50), numbers(1..=50));
    drop(writer);
    assert_eq!(daemon.wait_exit().code(), Some(0));
    assert_eq!(world.lines("out").len(), 50);
}

/// What has no command passes, 10 000 events in a moment.
#[test]
fn a_long_file_is_read_to_its_end() {
    let world = World::new("N=.*00$;.* 0:0 660 *echo $N >>$W/out\n");
    let input = file(&stream((1..=10_000).map(event)));
    assert_eq!(world.mdevd().stdin(input).finish().code, Some(0));
    let hundreds: Vec<String> = (1..=100).map(|n| (n * 100).to_string()).collect();
    assert_eq!(world.lines("out"), hundreds);
}

#[test]
fn while_a_command_runs_the_writer_waits() {
    let world = World::new("N=^1$;.* 0:0 660 *read x <$TMP/gate\n-.* 0:0 660 *echo $N >>$W/out\n");
    let (reader, mut writer) = pipe();
    let daemon = world.mdevd().stdin(reader).start();
    daemon.fifo("gate");
    writer.write_all(&stream([event(1)])).unwrap();
    daemon.wait_for_child("sh");
    ioctl_fionbio(&writer, true).unwrap();
    let mut taken = 0;
    let event = stream([uevent("add", "/x", &[&format!("PADDING={}", "x".repeat(4000))])]);
    loop {
        match writer.write(&event) {
            Ok(written) => taken += written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
    // What a pipe holds; mdevd has taken nothing since the command began.
    assert!(taken <= 64 * 1024, "{taken}");
    assert_eq!(world.lines("out"), [""; 0]);
    daemon.release("gate");
    world.wait_for_lines("out", taken / event.len());
}

/// Each event is one write, as mdevd-netlink has it.
#[test]
fn another_one_goes_on_with_the_pipe_where_one_was_killed() {
    let world = World::new(".* 0:0 660 *echo $N >>$W/out\n");
    let (reader, mut writer) = pipe();
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            for n in 1..=10_000 {
                let padding = format!("PADDING={}", "x".repeat(n % 500));
                let event = uevent("add", "/x", &[&padding, &format!("N={n}")]);
                writer.write_all(&stream([event])).unwrap();
            }
        });
        for count in 1..=5 {
            let daemon = world.mdevd().stdin(reader.try_clone().unwrap()).start();
            world.wait_for_lines("out", count * 30);
            daemon.signal(Signal::KILL);
            assert_eq!(daemon.log(), [""; 0]);
        }
        let finished = world.mdevd().args(["-f", "/dev/null"]).stdin(reader).finish();
        assert_eq!((finished.code, &*finished.stderr), (Some(0), ""));
        sender.join().unwrap();
    });
    let mut told: Vec<usize> =
        world.lines("out").iter().map(|line| line.parse().unwrap()).collect();
    // The command that ran when its mdevd was killed goes on beside the next one's.
    let late = told.windows(2).filter(|pair| pair[0] > pair[1]).count();
    assert!(late <= 5, "{told:?}");
    told.sort_unstable();
    let count = told.len();
    told.dedup();
    assert_eq!(told.len(), count, "an event was acted on twice");
}

/// Others may have the same pipe or file open.
#[test]
fn the_input_is_left_as_it_is() {
    let world = World::new(TELL);
    let (reader, mut writer) = pipe();
    let daemon = world.mdevd().stdin(reader.try_clone().unwrap()).start();
    writer.write_all(&stream([event(1)])).unwrap();
    world.wait_for_lines("out", 1);
    assert!(!fcntl_getfl(&reader).unwrap().contains(OFlags::NONBLOCK));
    // The command has another one.
    drop(daemon);
    let world = World::new(".* 0:0 660 *cat >>$W/out; echo end >>$W/out\n");
    let input = file(&stream([event(1), event(2)]));
    assert_eq!(world.mdevd().stdin(input).finish().code, Some(0));
    assert_eq!(world.lines("out"), ["end", "end"]);
}

#[test]
fn sigterm_lets_the_command_finish() {
    let world = World::new("-.* 0:0 660 *read x <$TMP/gate; echo $N >>$W/out\n");
    let (reader, mut writer) = pipe();
    let mut daemon = world.mdevd().args(["-v2"]).stdin(reader).start();
    daemon.fifo("gate");
    writer.write_all(&stream([event(1), event(2)])).unwrap();
    daemon.wait_for_child("sh");
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("stopping when pid ");
    daemon.release("gate");
    assert_eq!(daemon.wait_exit().code(), Some(0));
    assert_eq!(world.lines("out"), ["1"]);
}

/// Rules are changed while events come; a file with a mistake changes nothing.
#[test]
fn sighup_takes_good_rules_and_refuses_bad_ones() {
    let rules = |name: &str| format!("-.* 0:0 660 *echo {name} $N >>$W/out\n");
    let world = World::new(&rules("a"));
    let (reader, mut writer) = pipe();
    let mut daemon = world.mdevd().args(["-v2"]).stdin(reader).start();
    let mut sent = 0;
    let mut send = |count: usize| {
        writer.write_all(&stream((sent + 1..=sent + count).map(event))).unwrap();
        sent += count;
    };
    for (round, (text, is_good)) in [
        (rules("b"), true),
        ("a 0:0 8\n".into(), false),
        (rules("c"), true),
        ("( 0:0 660\n".into(), false),
        (rules("d") + "x nobody-here:0 660\n", false),
        (rules("e"), true),
    ]
    .into_iter()
    .enumerate()
    {
        send(20);
        world.wait_for_lines("out", round * 40 + 5);
        std::fs::write(world.path("mdev.conf"), text).unwrap();
        daemon.signal(Signal::HUP);
        let told = if is_good { "rules were read anew" } else { "rules in force stay in force" };
        daemon.wait_for_logs(told, daemon.logged(told).len().max(1));
        eventually("each reload is told", || {
            let count = daemon.logged("rules were read anew").len()
                + daemon.logged("rules in force stay in force").len();
            (count == round + 1).then_some(())
        });
        send(20);
    }
    drop(writer);
    assert_eq!(daemon.wait_exit().code(), Some(0));
    let lines = world.lines("out");
    let (names, told): (Vec<_>, Vec<_>) = lines.iter().map(|l| l.split_once(' ').unwrap()).unzip();
    assert_eq!(told, numbers(1..=240), "none is lost and none is done twice");
    let mut order = names.clone();
    order.dedup();
    assert_eq!(order, ["a", "b", "c", "e"]);
    // The 20 events after a reload are done by the new rules.
    assert_eq!((names[39], names[79], names[119], names[239]), ("b", "b", "c", "e"));
    assert_eq!(daemon.logged("mdev.conf:1:").len(), 2, "{:?}", daemon.log());
    assert_eq!(daemon.logged("mdev.conf:2:3:").len(), 1, "{:?}", daemon.log());
}

/// mdevd-netlink, when it listens; and what it writes to.
fn netlink(output: impl Into<std::process::Stdio>) -> Daemon {
    let (mut ready, told) = pipe_with(PipeFlags::CLOEXEC).map(|(r, w)| (File::from(r), w)).unwrap();
    let netlink = Plugd::new().arg0("mdevd-netlink").args(["-v3", "-d", "7"]).fd(told, 7);
    let daemon = netlink.stdout(output).launch();
    let mut text = String::new();
    ready.read_to_string(&mut text).unwrap();
    assert_eq!(text, "\n", "{:?}", daemon.log());
    daemon
}

/// The inode of its netlink socket.
fn socket(daemon: &Daemon) -> u64 {
    assert_eq!(listeners(), [daemon.pid()]);
    daemon.netlink().1
}

#[test]
fn ten_thousand_events_through_mdevd_netlink() {
    ns::inside(|| {
        let world = World::new("N=.*00$;.* 0:0 660 *echo $N >>$W/some\n");
        let (reader, writer) = pipe();
        let (all, output) = (world.path("all"), File::create(world.path("all")).unwrap());
        let mut netlink = netlink(writer);
        let mdevd = world.mdevd().args(["--input", "stdin", "-o", "7"]).fd(output, 7);
        let mut mdevd = mdevd.stdin(reader).start();
        let inode = socket(&netlink);
        Injector::new().paced((1..=10_000).map(event), inode);
        let hundreds: Vec<String> = (1..=100).map(|n| (n * 100).to_string()).collect();
        assert_eq!(world.wait_for_lines("some", 100), hundreds);
        // It stops, which ends mdevd's input.
        netlink.signal(Signal::TERM);
        assert_eq!(netlink.wait_exit().code(), Some(0));
        assert_eq!(mdevd.wait_exit().code(), Some(0));
        assert_eq!(mdevd.log(), [""; 0]);
        let all = std::fs::read(all).unwrap();
        let fields = all.split(|&b| b == 0).filter_map(|field| field.strip_prefix(b"N="));
        let told: Vec<String> = fields.map(|n| String::from_utf8(n.to_vec()).unwrap()).collect();
        assert_eq!(told, numbers(1..=10_000));
    });
}

#[test]
fn mdevd_netlink_writes_what_the_kernel_sends() {
    ns::inside(|| {
        let (reader, writer) = pipe();
        let mut reader = File::from(reader);
        let mut daemon = netlink(writer);
        let injector = Injector::new();
        injector.send(&event(1)).unwrap();
        injector.send(b"junk\0").unwrap();
        super::super::harness::inject::spoof(&event(2));
        injector.send(&event(3)).unwrap();
        let mut text = vec![0; 4096];
        let mut length = 0;
        eventually("both are there", || {
            length += reader.read(&mut text[length..]).unwrap();
            (text[..length].windows(2).filter(|pair| *pair == [0, 0]).count() == 2).then_some(())
        });
        let events = text[..length].split(|&b| b == 0).collect::<Vec<_>>();
        assert_eq!(
            events[..4],
            [&b"add@/devices/x1"[..], b"ACTION=add", b"DEVPATH=/devices/x1", b"N=1"]
        );
        assert!(events[4].starts_with(b"SEQNUM=") && events[5].is_empty());
        assert_eq!(events[9], b"N=3");
        assert_eq!(events.len(), 13);
        daemon.wait_for_log("dropped a malformed datagram");
        daemon.wait_for_log("dropped a datagram sent by port id ");
        // Nobody reads any more, which it learns though nothing happens.
        drop(reader);
        assert_eq!(daemon.wait_exit().code(), Some(0));
    });
}

/// While the pipe is full events wait in the kernel; what it has read it
/// writes before it stops.
#[test]
fn mdevd_netlink_waits_for_its_reader() {
    ns::inside(|| {
        let (reader, writer) = pipe();
        let mut daemon = netlink(writer);
        let inode = socket(&daemon);
        let injector = Injector::new();
        let padding = format!("PADDING={}", "x".repeat(1500));
        // More than a pipe holds.
        let count = 60;
        for n in 1..=count {
            injector.send(&uevent("add", "/x", &[&padding, &format!("N={n}")])).unwrap();
        }
        eventually("some wait in the kernel", || {
            let queued = crate::harness::inject::NetlinkSocket::find(inode)?.queued;
            (queued > 0 && daemon.status("State").starts_with('S')).then_some(())
        });
        daemon.signal(Signal::TERM);
        let mut bytes = Vec::new();
        File::from(reader).read_to_end(&mut bytes).unwrap();
        assert_eq!(daemon.wait_exit().code(), Some(0));
        // Whole events, as many as it had taken from the kernel.
        let fields: Vec<&[u8]> = bytes.split(|&b| b == 0).collect();
        let told: Vec<_> = fields.iter().filter_map(|f| f.strip_prefix(b"N=")).collect();
        assert!(!told.is_empty() && bytes.ends_with(b"\0\0"));
        for (n, told) in (1..).zip(told) {
            assert_eq!(told, i32::to_string(&n).as_bytes());
        }
    });
}

/// Nobody may ever read again, and who stops it twice does not want to know.
#[test]
fn mdevd_netlink_ends_at_once_when_it_is_stopped_twice() {
    ns::inside(|| {
        for second in [Signal::TERM, Signal::INT] {
            let (_reader, writer) = pipe();
            let mut daemon = netlink(writer);
            let inode = socket(&daemon);
            let padding = format!("PADDING={}", "x".repeat(1500));
            let injector = Injector::new();
            (0..60).for_each(|_| injector.send(&uevent("add", "/x", &[&padding])).unwrap());
            eventually("some wait in the kernel", || {
                let queued = crate::harness::inject::NetlinkSocket::find(inode)?.queued;
                (queued > 0 && daemon.status("State").starts_with('S')).then_some(())
            });
            daemon.signal(Signal::TERM);
            eventually("the first one has come", || {
                let is_clear = |key: &str| daemon.status(key).bytes().all(|b| b == b'0');
                (is_clear("ShdPnd") && is_clear("SigPnd")).then_some(())
            });
            assert!(daemon.runs());
            daemon.signal(second);
            assert_eq!(daemon.wait_exit().code(), Some(0));
        }
    });
}

#[test]
fn commands_of_execline_run() {
    if !have("rules with +, - and &", "execlineb") {
        return;
    }
    let tell = "redirfd -a 1 ${W}/out echo";
    let env = "importas W W importas -D none MDEV MDEV";
    let world = World::new(&format!(
        "-x 0:0 660 +{env} {tell} added ${{MDEV}}\n-x 0:0 660 -{env} {tell} removed\n\
         -x 0:0 660 &{env} {tell} always\n"
    ));
    let events = ["add", "remove", "bind"].map(|action| uevent(action, "/devices/x", &[]));
    let path = std::env::var("PATH").unwrap() + ":/usr/lib/execline/bin";
    let mdevd = world.mdevd().env("PATH", path).stdin(file(&stream(events)));
    let finished = mdevd.finish();
    assert_eq!((finished.code, &*finished.stderr), (Some(0), ""));
    assert_eq!(world.lines("out"), ["added x", "always", "removed", "always", "always"]);
}
