//! Events for what is there already.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use rustix::pipe::{PipeFlags, pipe_with};

use super::World;
use crate::harness::daemon::Plugd;
use crate::harness::inject;
use crate::harness::{eventually, ns};

fn coldplug() -> Plugd {
    Plugd::new().arg0("mdevd-coldplug")
}

/// For the devices in there.
fn coldplug_in(world: &World) -> Plugd {
    coldplug().args(["-s".into(), world.path("sys")])
}

/// What it told besides that it may not ask for the machine's devices, which it has to tell
/// if these are not the user's who runs the tests.
fn told_besides_refusals(text: &str) -> &str {
    if fs::metadata("/sys/devices/virtual/mem/null/uevent").unwrap().uid() == 0 {
        return text;
    }
    let (refused, rest) = text.split_once('\n').unwrap();
    assert!(refused.starts_with("mdevd-coldplug: warning: "), "{text}");
    assert!(refused.contains(" devices are left out; the first one: "), "{text}");
    assert!(refused.ends_with("/uevent: Permission denied"), "{text}");
    rest
}

/// A machine with three devices.
fn machine(conf: &str) -> World {
    let world = World::new(conf);
    world.device("mem", "null", "MAJOR=1\nMINOR=3\nDEVNAME=null\nDEVMODE=0666\n");
    world.device("net", "eth0", "INTERFACE=eth0\nIFINDEX=2\n");
    world.device("misc", "fuse", "MAJOR=10\nMINOR=229\nDEVNAME=fuse\n");
    world
}

#[test]
fn events_are_written_for_all_devices() {
    let world = machine("");
    let expected = "add@/devices/eth0\0ACTION=add\0DEVPATH=/devices/eth0\0SUBSYSTEM=net\0\
                    INTERFACE=eth0\0IFINDEX=2\0\0\
                    add@/devices/fuse\0ACTION=add\0DEVPATH=/devices/fuse\0SUBSYSTEM=misc\0\
                    MAJOR=10\0MINOR=229\0DEVNAME=fuse\0\0\
                    add@/devices/null\0ACTION=add\0DEVPATH=/devices/null\0SUBSYSTEM=mem\0\
                    MAJOR=1\0MINOR=3\0DEVNAME=null\0DEVMODE=0666\0\0";
    let finished = coldplug_in(&world).finish();
    assert_eq!((finished.code, &*finished.stdout), (Some(0), expected));
    // A regular file is written to as well, and read as well.
    let output = world.path("events");
    let finished = coldplug_in(&world).stdout(File::create(&output).unwrap()).finish();
    assert_eq!((finished.code, &*finished.stderr), (Some(0), ""));
    assert_eq!(fs::read(output).unwrap(), expected.as_bytes());
}

#[test]
fn what_is_there_is_acted_on_without_a_daemon() {
    let world = machine("-.* 0:0 660 *echo $DEVPATH >>$W/out\nnull 0:0 666 >mem/\n.* 0:0 640\n");
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let mut source = coldplug_in(&world).stdout(writer).launch();
    let finished = world.mdevd().args(["-n"]).stdin(reader).finish();
    assert_eq!(source.wait_exit().code(), Some(0));
    assert_eq!((finished.code, &*finished.stderr), (Some(0), ""));
    let lines: Vec<&str> = finished.stdout.lines().collect();
    assert_eq!(lines.len(), 8, "{lines:?}");
    assert!(lines[0].starts_with("add /devices/eth0 (SEQNUM ?): run /bin/sh -c echo "));
    assert!(lines[1].ends_with("make node fuse, character 10:229, owner 0:0, mode 0660"));
    assert_eq!(lines[7], "add /devices/null (SEQNUM ?): make link null to mem/null",);
    assert_eq!(world.lines("out"), [""; 0], "nothing is done");
}

/// Of the machine itself, if it has a sysfs.
#[test]
fn real_devices_pass_through_a_pipe() {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let mut source = coldplug().stdout(writer).launch();
    let world = World::new("");
    let output = world.path("plan");
    let mdevd = world.mdevd().args(["-n", "-s", "/sys"]).stdin(reader);
    let finished = mdevd.stdout(File::create(&output).unwrap()).finish();
    assert_eq!(source.wait_exit().code(), Some(0), "{:?}", source.log());
    assert_eq!((finished.code, &*finished.stderr), (Some(0), ""));
    let plan = fs::read_to_string(output).unwrap();
    assert!(plan.lines().any(|line| line.contains("make node null, character 1:3, ")), "{plan}");
}

/// Without the standard output, or with an option of that generation.
#[test]
fn the_kernel_is_told_to_send_them() {
    ns::inside_with_sysfs(|| {
        let world = World::new("-.* 0:0 660 *echo $DEVPATH $SYNTH_UUID >>$W/out\n");
        let _daemon = world.mdevd().start();
        // As a supervisor has it.
        let (mut reader, log) = UnixStream::pair().map(|(a, b)| (a, OwnedFd::from(b))).unwrap();
        for (n, coldplug) in [
            coldplug().stdout(std::process::Stdio::null()),
            coldplug().args(["-v", "1"]),
            coldplug().args(["-b", "65536"]),
            coldplug().args(["--output", "kernel"]),
            coldplug().stdout(log.try_clone().unwrap()).stderr(log.try_clone().unwrap()),
        ]
        .into_iter()
        .enumerate()
        {
            let finished = coldplug.finish();
            assert_eq!((finished.code, &*finished.stdout), (Some(0), ""), "{finished:?}");
            // Those of other namespaces may not be told.
            eventually("lo is told of", || {
                let lines = world.lines("out");
                let lo = lines.iter().filter(|l| *l == "/devices/virtual/net/lo 0");
                (lo.count() == n + 1).then_some(())
            });
        }
        drop(log);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(told_besides_refusals(&text), "");
    });
}

#[test]
fn it_can_wait_until_all_is_done() {
    ns::inside_with_sysfs(|| {
        for name in ["br0", "br1", "br2"] {
            inject::real_device(name);
        }
        let world = World::new("-.* 0:0 660 *sleep 0.1; echo $DEVPATH >>$W/out\n");
        let _daemon = world.mdevd().args(["-O", "4"]).start();
        // The smallest buffer: what comes back is lost, and asked for again.
        for (n, size) in (1..).zip(["1", "1048576"]) {
            let finished = coldplug().args(["-O", "4", "-b", size]).finish();
            assert_eq!((finished.code, &*finished.stdout), (Some(0), ""));
            for name in ["lo", "br0", "br1", "br2"] {
                let path = format!("/devices/virtual/net/{name}");
                let count = world.lines("out").iter().filter(|line| **line == path).count();
                assert!(count >= n, "{name}: {:?}", world.lines("out"));
            }
        }
    });
}

/// The manager has a small buffer, and is slow: it misses the last events.
#[test]
fn what_the_manager_has_missed_is_not_awaited_for_ever() {
    ns::inside_with_sysfs(|| {
        for number in 0..20 {
            inject::real_device(&format!("br{number}"));
        }
        let world = World::new("-.* 0:0 660 @echo >>$W/out; read x <$TMP/gate\n");
        let daemon = world.mdevd().args(["-O", "4", "-b", "1"]).start();
        daemon.fifo("gate");
        let finished = std::thread::scope(|scope| {
            let coldplug = scope.spawn(|| coldplug().args(["-v2", "-O", "4"]).finish());
            // One event is in hand, and those that have no room are lost.
            world.wait_for_lines("out", 1);
            eventually("events are lost", || {
                (inject::NetlinkSocket::find(daemon.netlink().1)?.drops > 0).then_some(())
            });
            (0..500).for_each(|_| daemon.release("gate"));
            coldplug.join().unwrap()
        });
        assert_eq!(finished.code, Some(0), "{finished:?}");
    });
}

#[test]
fn a_manager_that_is_not_there_is_not_awaited_for_ever() {
    ns::inside_with_sysfs(|| {
        let finished = coldplug().args(["-O", "4", "--timeout", "0.5"]).finish();
        assert_eq!(finished.code, Some(111));
        let told =
            "mdevd-coldplug: fatal: the last event has not come back: nothing has, for 0.500 s";
        assert!(told_besides_refusals(&finished.stderr).starts_with(told), "{finished:?}");
    });
}

#[test]
fn mdevd_does_it_at_its_start_if_wanted() {
    ns::inside_with_sysfs(|| {
        for (options, count) in [(&["-C"][..], 1), (&[], 0)] {
            // What /sys does not have may be removed by then.
            let world = World::new("SUBSYSTEM=net;.* 0:0 660 @echo $INTERFACE >>$W/out\n");
            let daemon = world.mdevd().args(options).args(["-s", "/sys", "-v2"]).start();
            inject::Injector::new().event("add", "/devices/x", &["SUBSYSTEM=net", "INTERFACE=x"]);
            let lines = world.wait_for_lines("out", count + 1);
            assert_eq!(lines.iter().filter(|line| *line == "x").count(), 1);
            assert_eq!(lines.iter().filter(|line| *line == "lo").count(), count);
            daemon.wait_for_logs("had the kernel tell of", count);
        }
    });
}

#[test]
fn what_cannot_be_is_told() {
    ns::inside(|| {
        // A sysfs of another namespace's owner.
        let world = machine("");
        fs::remove_dir_all(world.path("sys/class")).unwrap();
        let finished = coldplug_in(&world).args(["--output", "kernel"]).finish();
        assert_eq!((finished.code, &*finished.stderr), (Some(0), ""));
        fs::remove_dir_all(world.path("sys/bus")).unwrap();
        let finished = coldplug_in(&world).finish();
        assert_eq!(finished.code, Some(111));
        assert!(
            finished.stderr.starts_with("mdevd-coldplug: fatal: cannot list devices in /class")
        );
        // Nobody reads.
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        drop(reader);
        let finished = coldplug_in(&machine("")).stdout(writer).finish();
        assert_eq!(finished.code, Some(111));
        assert_eq!(finished.stderr, "mdevd-coldplug: fatal: cannot write an event: Broken pipe\n");
    });
}
