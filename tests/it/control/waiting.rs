//! Who waits: never for ever, and for nothing that is there already.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::*;
use crate::harness::inject::{NetlinkSocket, SetWhenDropped, real_device};

/// But for the null that commands and daemons are started with.
fn have_empty_dev() {
    ns::mount(&["-t", "tmpfs", "tmpfs", "/dev"]);
    let (kind, mode) = (rustix::fs::FileType::RegularFile, 0o600.into());
    rustix::fs::mknodat(rustix::fs::CWD, "/dev/null", kind, mode, 0).unwrap();
}

#[test]
fn wait_for_what_is_there() {
    ns::inside_with_sysfs(|| {
        let _daemon = Plugd::new().args(["run", "--"]).sh("true").start();
        eventually("it listens", || connect("@plugd"));
        for device in [
            &["/dev/null"][..],
            &["/dev/pts/ptmx"],
            &["/devices/virtual/net/lo"],
            &["/sys/devices/virtual/net/lo"],
            &["/sys/class/net/lo"],
            &["SUBSYSTEM=net", "INTERFACE=lo"],
            &["--removed", "/dev/nothing"],
            &["--removed", "/devices/virtual/net/nothing"],
            &["--removed", "INTERFACE=nothing"],
        ] {
            let said = say("@plugd", &[&["wait"], device].concat());
            assert_eq!(said.code, Some(0), "{device:?}: {said:?}");
        }
        // While nothing is read, and nothing waits to be.
        assert_eq!(say("@plugd", &["pause"]).code, Some(0));
        for args in [&["settle"][..], &["wait", "/dev/null"], &["wait", "--removed", "/dev/none"]] {
            assert_eq!(say("@plugd", args).code, Some(0), "{args:?} while paused");
        }
    });
}

#[test]
fn wait_for_no_time_tells_what_is_there() {
    ns::inside_with_sysfs(|| {
        let daemon = Plugd::new().args(["run", "--"]).sh("read x <$TMP/gate").start();
        daemon.fifo("gate");
        eventually("it listens", || connect("@plugd"));
        let code =
            |device: &[&str]| say("@plugd", &[&["wait", "--timeout", "0"], device].concat()).code;
        for _ in 0..20 {
            assert_eq!(code(&["INTERFACE=lo"]), Some(0));
            assert_eq!(code(&["--removed", "INTERFACE=nothing"]), Some(0));
        }
        assert_eq!(code(&["INTERFACE=nothing"]), Some(1));
        assert_eq!(code(&["--removed", "INTERFACE=lo"]), Some(1));
        Injector::new().event("add", "/x", &[]);
        daemon.wait_for_child("sh");
        assert_eq!(code(&["INTERFACE=lo"]), Some(1), "not everything is settled");
        daemon.release("gate");
    });
}

/// What tells an event from others tells no device: only an event is waited for.
#[test]
fn wait_for_an_event_is_not_ended_by_a_device() {
    ns::inside_with_sysfs(|| {
        let _daemon = Plugd::new().args(["run", "--"]).sh("true").start();
        eventually("it listens", || connect("@plugd"));
        let injector = Injector::new();
        for (args, event) in [
            (&["--removed", "ACTION=remove"][..], Some(("remove", "A=1"))),
            (&["ACTION=add"], Some(("add", "A=1"))),
            (&["SYNTH_UUID=x"], Some(("change", "SYNTH_UUID=x"))),
            (&["--removed", "SEQNUM=0"], None),
            (&["--removed", "DEVPATH_OLD=/x"], None),
        ] {
            let wait = [&["wait", "INTERFACE=lo"], args].concat();
            let short = [&wait[..], &["--timeout", "0.2"]].concat();
            assert_eq!(say("@plugd", &short).code, Some(1), "{args:?}");
            let Some((action, field)) = event else { continue };
            let mut waiting = begin("@plugd", &wait);
            let status = eventually("it ends", || {
                injector.event(action, "/x", &["INTERFACE=lo", field]);
                waiting.try_wait().unwrap()
            });
            assert_eq!(status.code(), Some(0), "{args:?}");
        }
    });
}

/// The command needs two connections, one to wait on, and one to know when to look.
#[test]
fn wait_by_variables_gets_by_with_room_for_one_client() {
    ns::inside_with_sysfs(|| {
        let plugd = Plugd::new().args(["run", "--"]).prelude("ulimit -n 40");
        let daemon = plugd.sh("true").start();
        eventually("it listens", || connect("@plugd"));
        let mut others = Vec::new();
        let mut full = || {
            let mut other = connect("@plugd").unwrap();
            let _ = other.write_all(b"plugd/1 wait A=1\n");
            other.set_nonblocking(true).unwrap();
            others.push(other);
            eventually("it is accepted or refused", || {
                let refused = others.last_mut().unwrap().read(&mut [0; 100]).is_ok();
                (refused || clients(&daemon) == others.len()).then_some(refused)
            })
        };
        while !full() {}
        // The last one was refused.
        others.truncate(others.len() - 2);
        let only = |others: &[UnixStream]| {
            eventually("there is room for one", || {
                (clients(&daemon) == others.len()).then_some(())
            });
        };
        let wait = ["wait", "INTERFACE=lo", "--timeout"];
        for timeout in ["0", "2"] {
            only(&others);
            let said = say("@plugd", &[&wait[..], &[timeout]].concat());
            assert_eq!(said.code, Some(0), "{said:?}");
        }
        only(&others);
        let waiting = begin("@plugd", &[&wait[..], &["1000"]].concat());
        // It looks again for room.
        others.pop();
        assert_eq!(end(waiting), Some(0));
    });
}

#[test]
fn wait_for_what_comes_and_goes() {
    ns::inside_with_sysfs(|| {
        let daemon = Plugd::new()
            .args(["run", "--"])
            .sh("read x <$TMP/gate; echo $ACTION $DEVPATH >>$TMP/out")
            .start();
        daemon.fifo("gate");
        eventually("it listens", || connect("@plugd"));
        let path = "/devices/virtual/net/br0";
        for (want, act) in [
            (&["wait", path][..], "add"),
            (&["wait", "--removed", path], "delete"),
            (&["wait", "INTERFACE=br0", "SUBSYSTEM=net"], "add"),
            (&["wait", "--removed", "INTERFACE=br0"], "delete"),
        ] {
            let before = daemon.lines("out").len();
            if act == "add" {
                real_device("br0");
            } else {
                assert!(
                    Command::new("ip").args(["link", "delete", "br0"]).status().unwrap().success()
                );
            }
            // It is there, or gone, but was not acted on yet.
            let waiting = begin("@plugd", want);
            let said = say("@plugd", &[want, &["--timeout", "0"]].concat());
            assert_eq!(said.code, Some(1), "{want:?}: {said:?}");
            assert_eq!(daemon.lines("out").len(), before);
            // One for the device, two for its queues.
            for n in 1..=3 {
                daemon.release("gate");
                daemon.wait_for_lines("out", before + n);
            }
            assert_eq!(end(waiting), Some(0), "{want:?}");
            let action = if act == "add" { "add" } else { "remove" };
            assert!(daemon.lines("out").contains(&format!("{action} {path}")));
            assert_eq!(say("@plugd", &["settle"]).code, Some(0));
        }
    });
}

#[test]
fn wait_for_what_never_comes() {
    let host = Host::start(&[], "true");
    for device in ["/dev/nothing", "/devices/nothing", "NOTHING=1"] {
        let said = host.say(&["wait", "--timeout", "0.3", device]);
        assert_eq!((said.code, &*said.stderr), (Some(1), "plugd: wait: timed out\n"), "{device}");
    }
    // Nor with other events all the time.
    let waiting = begin(&host.address, &["wait", "--timeout", "1", "NOTHING=1"]);
    host.event(1);
    assert_eq!(end(waiting), Some(1));
}

/// A node that appears beside its own event is found when the queue is empty.
#[test]
fn wait_for_a_link_that_a_handler_makes() {
    ns::inside_with_sysfs(|| {
        have_empty_dev();
        let _daemon = Plugd::new().args(["run", "--"]).sh("ln -s x /dev/link").start();
        eventually("it listens", || connect("@plugd"));
        let waiting = begin("@plugd", &["wait", "/dev/link"]);
        Injector::new().event("add", "/x", &["DEVNAME=x"]);
        assert_eq!(end(waiting), Some(0));
    });
}

/// The same, but the queue is never empty again, as events come faster than they are
/// acted on.
#[test]
fn wait_for_a_link_that_a_rule_makes_under_a_constant_stream() {
    ns::inside_with_sysfs(|| {
        have_empty_dev();
        let rules = tempfile::tempdir().unwrap();
        let conf = rules.path().join("mdev.conf");
        let rule = "late 0:0 600 @ln -s x /dev/link\n.* 0:0 600 @echo $N >>$TMP/out\n";
        std::fs::write(&conf, rule).unwrap();
        let plugd = Plugd::new().args(["run", "--receive-buffer-size", "64K", "--conf"]);
        let daemon = plugd.args([&conf]).start();
        eventually("it listens", || connect("@plugd"));
        let inode = daemon.netlink().1;
        let queued = || NetlinkSocket::find(inode).unwrap().queued;
        let full = || queued() >= 32 * 1024;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let injector = Injector::new();
                while !done.load(Relaxed) {
                    if full() {
                        std::thread::sleep(Duration::from_micros(100));
                    } else {
                        injector.event("add", "/x", &["N=1", "DEVNAME=x"]);
                    }
                }
            });
            let _end = SetWhenDropped(&done);
            eventually("the queue is full", || full().then_some(()));
            let waiting = begin("@plugd", &["wait", "/dev/link"]);
            eventually("it waits", || (clients(&daemon) == 1).then_some(()));
            // It is looked for once more when all is settled.
            for _ in 0..2 {
                assert_eq!(say("@plugd", &["settle"]).code, Some(0));
            }
            Injector::new().event("add", "/late", &["DEVNAME=late"]);
            assert_eq!(end(waiting), Some(0));
            assert!(queued() > 0, "there was no stream");
        });
    });
}

/// Whenever it asks, and whatever is done at that time.
#[test]
fn a_pause_keeps_nobody_waiting_who_has_nothing_to_wait_for() {
    ns::inside_with_sysfs(|| {
        let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
        for options in [&[][..], &["--fd", "7"]] {
            let plugd = Plugd::new().args(["run"]).args(options).args(["--"]);
            let plugd = plugd.fd(receiver.try_clone().unwrap(), 7);
            let daemon = plugd.sh("echo $N >>$TMP/out; read x <$TMP/gate").start();
            daemon.fifo("gate");
            eventually("it listens", || connect("@plugd"));
            let event = |n: &str| match options {
                [] => Injector::new().event("add", "/x", &[n]),
                _ => unix::send(&sender, &uevent("add", "/x", &[n])),
            };
            event("N=1");
            daemon.wait_for_lines("out", 1);
            assert_eq!(say("@plugd", &["pause"]).code, Some(0));
            let waiting = [&["settle"][..], &["wait", "/devices/virtual/net/lo"]];
            let mut waiting = waiting.map(|args| begin("@plugd", args));
            // Both are waiting, and another one has asked since.
            eventually("they wait", || {
                assert_eq!(say("@plugd", &["settle", "--timeout", "0"]).code, Some(1));
                (clients(&daemon) == 2).then_some(())
            });
            assert!(waiting.iter_mut().all(|child| child.try_wait().unwrap().is_none()), "early");
            // The next plugd is asked by them anew.
            assert_eq!(say("@plugd", &["update"]).code, Some(0));
            daemon.release("gate");
            for child in waiting {
                assert_eq!(end(child), Some(0), "{options:?}");
            }
            // What is queued is waited for.
            event("N=2");
            assert_eq!(say("@plugd", &["settle", "--timeout", "0.1"]).code, Some(1));
            assert_eq!(say("@plugd", &["resume"]).code, Some(0));
            daemon.wait_for_lines("out", 2);
            daemon.release("gate");
            assert_eq!(say("@plugd", &["settle"]).code, Some(0));
            assert_eq!(say("@plugd", &["stop"]).code, Some(0));
        }
    });
}

#[test]
fn wait_sees_what_was_mounted_after_the_start() {
    ns::inside_with_sysfs(|| {
        let sys = tempfile::tempdir().unwrap();
        let plugd = Plugd::new().args(["run", "--sys"]).args([sys.path()]);
        let _daemon = plugd.args(["--"]).sh("true").start();
        eventually("it listens", || connect("@plugd"));
        let is_there = |device: &str| {
            let code = |words: &[&str]| say("@plugd", words).code;
            match (
                code(&["wait", "--timeout", "0", device]),
                code(&["wait", "--timeout", "0", "--removed", device]),
            ) {
                (Some(0), Some(1)) => Some(true),
                (Some(1), Some(0)) => Some(false),
                (Some(1), Some(1)) => None,
                other => panic!("{device}: {other:?}"),
            }
        };
        assert_eq!(is_there("/class/net/lo"), Some(false));
        ns::mount(&["-t", "sysfs", "sysfs", sys.path().to_str().unwrap()]);
        assert_eq!(is_there("/class/net/lo"), Some(true));

        assert_eq!(is_there("/dev/late"), Some(false));
        have_empty_dev();
        std::fs::write("/dev/late", "").unwrap();
        assert_eq!(is_there("/dev/late"), Some(true));

        std::fs::create_dir_all("/dev/disk/by id").unwrap();
        for directory in ["/dev/disk", "/dev/disk/by id"] {
            std::fs::create_dir_all(directory).unwrap();
            ns::mount(&["-t", "tmpfs", "tmpfs", directory]);
            std::fs::write(Path::new(directory).join("x"), "").unwrap();
            assert_eq!(is_there(&format!("{directory}/x")), Some(true));
            assert_eq!(is_there(&format!("{directory}/y")), Some(false));
        }
        // A single node, as in containers.
        std::fs::write("/dev/bound", "").unwrap();
        ns::mount(&["--bind", "/dev/late", "/dev/bound"]);
        assert_eq!(is_there("/dev/bound"), Some(true));
        // What might not answer is not asked.
        std::fs::create_dir("/dev/other").unwrap();
        ns::mount(&["--bind", "/proc", "/dev/other"]);
        assert_eq!(is_there("/dev/other"), Some(true));
        assert_eq!(is_there("/dev/other/self"), None);
    });
}

/// Each would wait until its time is over, for the end of the program that says it.
#[test]
fn a_program_is_refused_what_waits_for_itself() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("mdev.conf");
    let script = "for command in settle 'settle --timeout 0' 'wait A=1' 'wait /dev/null' rescan \
                  reload; do $PLUGD $command --control $ADDRESS 2>>$TMP/err; echo $? >>$TMP/out; \
                  done; $PLUGD status --control $ADDRESS >>$TMP/out; read x <$TMP/gate";
    std::fs::write(&conf, format!(".* 0:0 600 @{script}\n")).unwrap();
    let rules = ["--dev", dir.path().to_str().unwrap(), "--conf", conf.to_str().unwrap()];
    for work in [&["--", "sh", "-c", script][..], &rules] {
        let (events, receiver) = unix::pair(SocketType::SEQPACKET);
        let address = address();
        let plugd = Plugd::new().args(["run", "--fd", "3", "--control", &address]).args(work);
        let plugd = plugd.env("PLUGD", PLUGD).env("ADDRESS", &address).fd(receiver, 3);
        let host = Host { daemon: plugd.start(), events, address };
        host.daemon.fifo("gate");
        host.wait_until_it_listens();
        unix::send(&host.events, &uevent("add", "/devices/x", &["SUBSYSTEM=x", "DEVNAME=x"]));
        let out = host.daemon.wait_for_lines("out", 7);
        assert_eq!(out[..6], ["1"; 6], "{work:?}");
        assert!(out[6].starts_with("state    running"), "{out:?}");
        let errors = host.daemon.lines("err");
        let itself = |line: &&String| line.ends_with("it would wait for itself");
        assert_eq!(errors.iter().filter(itself).count(), 6, "{errors:?}");
        // Others may wait.
        let waiting = begin(&host.address, &["settle"]);
        host.daemon.release("gate");
        assert_eq!(end(waiting), Some(0));
    }
}

/// It is there before its event is acted on, which is behind others.
#[test]
fn wait_is_not_ended_by_a_device_whose_event_still_waits() {
    ns::inside_with_sysfs(|| {
        let daemon = Plugd::new().args(["run", "--"]).sh(HOLD).start();
        daemon.fifo("gate");
        eventually("it listens", || connect("@plugd"));
        let injector = Injector::new();
        let path = "/devices/virtual/net/br0";
        let wants = [&["wait", path][..], &["wait", "INTERFACE=br0", "SUBSYSTEM=net"]];
        let removals = [
            &["wait", "--removed", path][..],
            &["wait", "--removed", "INTERFACE=br0", "SUBSYSTEM=net"],
        ];
        for (wants, act) in [(wants, "add"), (removals, "delete")] {
            let mut waiting = wants.map(|args| begin("@plugd", args));
            eventually("they wait", || (clients(&daemon) == 2).then_some(()));
            // Nothing is queued any more of what was before.
            assert_eq!(say("@plugd", &["settle"]).code, Some(0));
            let before = daemon.lines("out").len();
            for _ in 0..3 {
                injector.event("change", "/x", &["N=x"]);
            }
            daemon.wait_for_lines("out", before + 1);
            let link = match act {
                "add" => &["link", "add", "br0", "type", "bridge"][..],
                _ => &["link", "delete", "br0"],
            };
            assert!(Command::new("ip").args(link).status().unwrap().success());
            for n in 1..=3 {
                // It is looked for after an event, but not more often than that.
                std::thread::sleep(Duration::from_millis(120));
                daemon.release("gate");
                daemon.wait_for_lines("out", before + 2 * n + 1);
            }
            // One of the three of the device, or of its queues, is in hand.
            assert_eq!(say("@plugd", &["settle", "--timeout", "0.2"]).code, Some(1));
            for child in &mut waiting {
                assert!(child.try_wait().unwrap().is_none(), "{act}: early");
            }
            for _ in 0..3 {
                daemon.release("gate");
            }
            for child in waiting {
                assert_eq!(end(child), Some(0), "{act}");
            }
            assert_eq!(say("@plugd", &["settle"]).code, Some(0));
        }
    });
}

/// As where many others ask too: the event is acted on before plugd has read the request.
#[test]
fn wait_sees_what_came_before_it_was_heard() {
    ns::inside_with_sysfs(|| {
        let address = SocketAddr::from_abstract_name("busy").unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        let waiting = begin("@busy", &["wait", "INTERFACE=br0", "SUBSYSTEM=net"]);
        let (mut stream, _) = listener.accept().unwrap();
        let mut answer = |expected: &str, reply: &str| {
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap();
            let request = String::from_utf8_lossy(&request[..length]);
            assert!(request.contains(expected), "{request}");
            stream.write_all(reply.as_bytes()).unwrap();
        };
        // It has looked in /sys, and found nothing there.
        std::thread::sleep(Duration::from_secs(1));
        let link = ["link", "add", "br0", "type", "bridge"];
        assert!(Command::new("ip").args(link).status().unwrap().success());
        answer("wait", "plugd/1 no 10\ntimed out\n");
        answer("settle --timeout 0", "plugd/1 ok 0\n");
        assert_eq!(end(waiting), Some(0));
    });
}
