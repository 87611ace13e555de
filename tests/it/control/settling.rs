//! When all is settled: neither early, nor never.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use super::*;
use crate::harness::inject::{NetlinkSocket, SetWhenDropped, unprivileged_room};

/// It settles only when the effect of the event before it is there.
#[test]
fn settle_is_never_early() {
    ns::inside(|| {
        let daemon = Plugd::new().args(["run", "--"]).sh("echo $N >>$TMP/out").start();
        eventually("it listens", || connect("@plugd"));
        let injector = Injector::new();
        let mut stream = connect("@plugd").unwrap();
        let mut reply = [0; "plugd/1 ok 0\n".len()];
        for n in 1..=1000 {
            injector.event("add", "/x", &[&format!("N={n}")]);
            stream.write_all(b"plugd/1 settle\n").unwrap();
            stream.read_exact(&mut reply).unwrap();
            assert_eq!(&reply, b"plugd/1 ok 0\n");
            let lines = daemon.lines("out");
            assert_eq!(lines.last(), Some(&n.to_string()), "round {n}");
        }
    });
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

/// Events come faster than they are acted on, so the queue is never empty.
#[test]
fn settle_is_bounded_under_a_constant_stream() {
    ns::inside(|| {
        let daemon = Plugd::new()
            .args(["run", "--receive-buffer-size", "64K", "--"])
            .sh("echo $N >>$TMP/out")
            .start();
        eventually("it listens", || connect("@plugd"));
        let inode = daemon.netlink().1;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let injector = Injector::new();
                let mut next = Instant::now();
                // 10 000 a second, which no handler keeps up with: the kernel
                // drops some, which is normal here.
                while !done.load(Relaxed) {
                    let _ = injector.send(&uevent("add", "/x", &["N=0"]));
                    next += Duration::from_micros(100);
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            });
            let _end = SetWhenDropped(&done);
            for _ in 0..5 {
                let drops = || NetlinkSocket::find(inode).unwrap().drops;
                let before = drops();
                eventually("the queue is full", || (drops() > before).then_some(()));
                let began = Instant::now();
                let said = say("@plugd", &["settle"]);
                assert_eq!(said.code, Some(0), "{said:?}");
                assert!(began.elapsed() < Duration::from_secs(20));
            }
        });
    });
}

/// The same where events have no SEQNUM, and the socket is always full.
#[test]
fn settle_is_bounded_under_a_constant_stream_without_numbers() {
    for (kind, many) in [(SocketType::SEQPACKET, 50), (SocketType::DGRAM, 5)] {
        settle_without_numbers(kind, many);
    }
}

fn settle_without_numbers(kind: SocketType, many: u32) {
    let host = Host::reading(kind, &[], "echo $N >>$TMP/out");
    let done = AtomicBool::new(false);
    let sent = AtomicU32::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1.. {
                if done.load(Relaxed) {
                    break;
                }
                host.event(n);
                sent.store(n, Relaxed);
            }
        });
        let _end = SetWhenDropped(&done);
        let sent = || sent.load(Relaxed);
        let acted_on = || u32::try_from(host.daemon.lines("out").len()).unwrap();
        eventually("the socket is full", || (sent() > acted_on() + many).then_some(()));
        for _ in 0..3 {
            let before = sent();
            assert_eq!(host.say(&["settle", "--timeout", "60"]).code, Some(0));
            assert!(acted_on() >= before, "early");
            assert!(sent() > acted_on(), "there was no stream");
        }
    });
    // While nothing is read.
    assert_eq!(host.say(&["settle"]).code, Some(0));
    assert_eq!(host.say(&["pause"]).code, Some(0));
    assert_eq!(host.say(&["settle", "--timeout", "0"]).code, Some(0));
    host.event(0);
    assert_eq!(host.say(&["settle", "--timeout", "0"]).code, Some(1));
}

/// What the one under way has seen may be of before.
#[test]
fn a_rescan_waits_for_one_that_began_after_it() {
    ns::inside_with_sysfs(|| {
        // Each comparison is held at the interface.
        let script = "test $DEVPATH != /devices/virtual/net/lo || \
                      { echo $ACTION $PLUGD_REPLAY >>$TMP/out; read x <$TMP/gate; }";
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
        // Nothing was lost.
        assert_eq!(daemon.lines("out"), ["add rescan", "change rescan"]);
    });
}
