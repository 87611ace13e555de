//! Who waits: never for ever, and for nothing that is there already.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use super::*;
use crate::harness::background::{Place, finish};
use crate::harness::inject::unprivileged_room;

fn mount(args: &[&str]) {
    let status = Command::new("mount").args(args).stdin(Stdio::piped()).status().unwrap();
    assert!(status.success(), "{args:?}");
}

/// Commands and daemons are started with it.
fn make_null() {
    let (kind, mode) = (rustix::fs::FileType::RegularFile, 0o600.into());
    rustix::fs::mknodat(rustix::fs::CWD, "/dev/null", kind, mode, 0).unwrap();
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
        mount(&["-t", "sysfs", "sysfs", sys.path().to_str().unwrap()]);
        assert_eq!(is_there("/class/net/lo"), Some(true));

        assert_eq!(is_there("/dev/late"), Some(false));
        mount(&["-t", "tmpfs", "tmpfs", "/dev"]);
        make_null();
        std::fs::write("/dev/late", "").unwrap();
        assert_eq!(is_there("/dev/late"), Some(true));

        std::fs::create_dir_all("/dev/disk/by id").unwrap();
        for directory in ["/dev/disk", "/dev/disk/by id"] {
            std::fs::create_dir_all(directory).unwrap();
            mount(&["-t", "tmpfs", "tmpfs", directory]);
            std::fs::write(Path::new(directory).join("x"), "").unwrap();
            assert_eq!(is_there(&format!("{directory}/x")), Some(true));
            assert_eq!(is_there(&format!("{directory}/y")), Some(false));
        }
        // A single node, as in containers.
        std::fs::write("/dev/bound", "").unwrap();
        mount(&["--bind", "/dev/late", "/dev/bound"]);
        assert_eq!(is_there("/dev/bound"), Some(true));
        // What might not answer is not asked.
        std::fs::create_dir("/dev/other").unwrap();
        mount(&["--bind", "/proc", "/dev/other"]);
        assert_eq!(is_there("/dev/other"), Some(true));
        assert_eq!(is_there("/dev/other/self"), None);
    });
}

/// It would be the process that has started it, which is gone.
#[test]
fn who_has_the_address_is_told_of_a_daemon_in_the_background_too() {
    ns::inside_as_root(|| {
        for options in [&[][..], &["--user", "#65534", "--group", "#65533"]] {
            let place = Place::new();
            let words = place.daemon(&[&["--control", "@plugd"], options].concat());
            let started = finish(Command::new(PLUGD).args(&words[1..]));
            assert_eq!(started.code, Some(0), "{started:?}");
            let said = Plugd::new().args(["run", "true"]).finish();
            assert_eq!(said.code, Some(111), "{said:?}");
            let holder = format!("in use by pid {} of user 0\n", place.pid());
            assert!(said.stderr.ends_with(&holder), "not {holder}: {said:?}");
            // It is still root's, who has started it.
            let said = Plugd::new().args(["stop"]).finish();
            assert_eq!(said.code, Some(0), "{said:?}");
            eventually("it has ended", || connect("@plugd").is_none().then_some(()));
        }
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
        let address = format!("@plugd-test-{}-{}", std::process::id(), unique());
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

/// Neither early nor late: the effect of the event before it is there, whatever comes all
/// the time.
#[test]
fn settle_is_never_early_under_ten_thousand_events_a_second() {
    const ROUNDS: u32 = 1000;
    ns::inside_with_sysfs(|| {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("mdev.conf");
        std::fs::write(&conf, "marker 0:0 600 @echo $N >>$TMP/out\n").unwrap();
        let plugd = Plugd::new().args(["run", "--conf"]).args([&conf]).args(["--dev"]);
        let daemon = plugd.args([dir.path()]).start();
        eventually("it listens", || connect("@plugd"));
        let inode = daemon.netlink().1;
        let (done, sent) = (AtomicBool::new(false), AtomicU32::new(0));
        let began = Instant::now();
        let slowest = std::thread::scope(|scope| {
            scope.spawn(|| {
                let injector = Injector::new();
                while !done.load(Relaxed) {
                    let due = began + Duration::from_micros(100) * sent.load(Relaxed);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    // What is lost has no effect.
                    if sent.load(Relaxed) % 16 > 0
                        || NetlinkSocket::find(inode).unwrap().queued < unprivileged_room() / 2
                    {
                        injector.event("change", "/devices/x", &["SUBSYSTEM=x"]);
                        sent.fetch_add(1, Relaxed);
                    }
                }
            });
            let _end = SetWhenDropped(&done);
            let (injector, mut stream) = (Injector::new(), connect("@plugd").unwrap());
            let mut reply = [0; "plugd/1 ok 0\n".len()];
            let mut slowest = Duration::ZERO;
            for n in 1..=ROUNDS {
                injector.event("add", "/devices/marker", &[&format!("N={n}")]);
                let asked = Instant::now();
                stream.write_all(b"plugd/1 settle\n").unwrap();
                stream.read_exact(&mut reply).unwrap();
                slowest = slowest.max(asked.elapsed());
                assert_eq!(&reply, b"plugd/1 ok 0\n");
                let lines = daemon.lines("out");
                assert_eq!(lines.last(), Some(&n.to_string()), "round {n}");
            }
            slowest
        });
        let rate = f64::from(sent.load(Relaxed)) / began.elapsed().as_secs_f64();
        assert!(slowest < Duration::from_secs(10), "{slowest:?}");
        // As many as could be sent.
        assert!(rate > 2000.0, "{rate:.0} events a second");
    });
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

/// What the one under way has seen may be of before.
#[test]
fn a_rescan_waits_for_one_that_began_after_it() {
    ns::inside_with_sysfs(|| {
        // Each comparison is held at the interface.
        let script = "test $DEVPATH != /devices/virtual/net/lo || \
                      { echo $ACTION >>$TMP/out; read x <$TMP/gate; }";
        let daemon = Plugd::new().args(["run", "--"]).sh(script).start();
        daemon.fifo("gate");
        eventually("it listens", || connect("@plugd"));
        let first = begin("@plugd", &["rescan"]);
        daemon.wait_for_lines("out", 1);
        let mut second = begin("@plugd", &["rescan"]);
        eventually("it waits", || (clients(&daemon) == 2).then_some(()));
        assert_eq!(status("@plugd")["recovery"]["scans"], 1);
        daemon.release("gate");
        assert_eq!(end(first), Some(0));
        daemon.wait_for_lines("out", 2);
        std::thread::sleep(Duration::from_millis(200));
        assert!(second.try_wait().unwrap().is_none(), "early");
        daemon.release("gate");
        assert_eq!(end(second), Some(0));
        assert_eq!(daemon.lines("out"), ["add", "change"]);
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
