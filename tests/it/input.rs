//! Datagrams that are no events: dropped, counted, told of now and then.

use std::time::Instant;

use rustix::net::SocketType;

use crate::harness::daemon::{Daemon, Plugd};
use crate::harness::inject::{self, Injector, uevent};
use crate::harness::{eventually, ns, unix};

const RECORD: &str = "echo \"$ACTION $DEVPATH\" >>$TMP/out";

/// Sends a good event, and checks that it is the only one that was handled.
fn assert_only_the_last_is_handled(daemon: &Daemon, send: impl FnOnce(&[u8])) {
    send(&uevent("add", "/devices/good", &[]));
    daemon.wait_for_counters("received 1, handled 1,");
    assert_eq!(daemon.lines("out"), ["add /devices/good"]);
}

#[test]
fn what_is_no_event_is_dropped_and_told_of() {
    let cases: [(&[u8], &str); 8] = [
        (b"", "it is empty"),
        (b"add@/x\0A=b", "its last byte is not NUL"),
        (b"\0", "its field 1 has no ="),
        (b"add\0A=b\0", "its field 1 has no ="),
        (b"@/x\0A=b\0", "it does not begin with action@devpath"),
        (b"add@\0A=b\0", "it does not begin with action@devpath"),
        (b"add@/x\0A=b\0c\0", "its field 2 has no ="),
        (b"add@/x\0A=b\0\0", "its field 2 has no ="),
    ];
    for (datagram, why) in cases {
        let (sender, receiver) = unix::pair(SocketType::DGRAM);
        let daemon = Plugd::reading(receiver).sh(RECORD).start();
        unix::send(&sender, datagram);
        let line = daemon.wait_for_log("malformed");
        assert_eq!(line, format!("plugd: warning: dropped a malformed datagram: {why} (1 so far)"));
        assert_only_the_last_is_handled(&daemon, |good| unix::send(&sender, good));
        assert!(daemon.counters().ends_with("foreign 0, truncated 0, malformed 1"));
    }
}

#[test]
fn what_the_kernel_broadcasts_needs_a_header_and_an_equals_sign() {
    ns::inside(|| {
        let (daemon, injector) = (Plugd::run(&["--"]).sh(RECORD).start(), Injector::new());
        for datagram in [&b"ACTION=add\0DEVPATH=/devices/x\0"[..], b"add@/x\0ACTION\0", b"\0"] {
            injector.send(datagram).unwrap();
        }
        daemon.wait_for_log("it does not begin with action@devpath");
        assert_only_the_last_is_handled(&daemon, |good| injector.send(good).unwrap());
        assert!(daemon.counters().ends_with("malformed 3"));
    });
}

#[test]
fn what_a_process_multicasts_is_dropped() {
    ns::inside(|| {
        let (daemon, injector) = (Plugd::run(&["--"]).sh(RECORD).start(), Injector::new());
        let port = inject::spoof(&uevent("add", "/devices/evil", &["SEQNUM=1"]));
        let line = daemon.wait_for_log("foreign");
        let told = format!("dropped a foreign datagram: sent by port id {port} (1 so far)");
        assert_eq!(line, format!("plugd: warning: {told}"));
        // Neither its size nor its form makes a difference.
        inject::spoof(&[b'x'; 100_000]);
        inject::spoof(b"x");
        assert_only_the_last_is_handled(&daemon, |good| injector.send(good).unwrap());
        assert!(daemon.counters().ends_with("foreign 3, truncated 0, malformed 0"));
    });
}

#[test]
fn a_datagram_may_have_64_kibibytes_and_no_more() {
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let daemon = Plugd::reading(receiver).sh("echo ${#LONG} >>$TMP/out").start();
    let start = b"add@/x\0LONG=";
    let of_size = |size: usize| [&start[..], &vec![b'x'; size - start.len() - 1], b"\0"].concat();
    unix::send(&sender, &of_size(65537));
    unix::send(&sender, &of_size(65536));
    assert_eq!(daemon.wait_for_lines("out", 1), [(65536 - start.len() - 1).to_string()]);
    let line = daemon.wait_for_log("truncated");
    assert!(
        line.ends_with("truncated datagram: it is larger than 65536 bytes (1 so far)"),
        "{line}"
    );
    daemon.wait_for_counters("received 1, handled 1,");
}

#[test]
fn fields_alone_will_do_from_other_producers() {
    for kind in [SocketType::DGRAM, SocketType::SEQPACKET] {
        let (sender, receiver) = unix::pair(kind);
        let daemon = Plugd::reading(receiver).sh(RECORD).start();
        unix::send(&sender, b"ACTION=add\0DEVPATH=/devices/a@b\0");
        assert_eq!(daemon.wait_for_lines("out", 1), ["add /devices/a@b"]);
    }
}

#[test]
fn the_log_tells_once_a_second_of_each_kind() {
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let daemon = Plugd::reading(receiver).sh(RECORD).start();
    let begun = Instant::now();
    (0..500).for_each(|_| unix::send(&sender, b"x"));
    daemon.wait_for_counters("malformed 500");
    let told = daemon.logged("dropped a malformed").len();
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap();
    assert!((1..=2 + seconds).contains(&told), "{told} lines in {seconds} s");
    // One kind does not silence another.
    unix::send(&sender, &[0; 70_000]);
    daemon.wait_for_log("dropped a truncated");

    eventually("another line", || {
        unix::send(&sender, b"x");
        (daemon.logged("dropped a malformed").len() > told).then_some(())
    });
    let (_, line) = daemon.logged("dropped a malformed").remove(told);
    let count = line.rsplit_once('(').unwrap().1.strip_suffix(" so far)").unwrap();
    assert!(count.parse::<u32>().unwrap() > 500, "{line}");
}

/// The stop is asked for before the first datagram is read.
#[test]
fn a_heap_of_rubbish_does_not_delay_a_stop() {
    const HEAP: usize = 200;
    let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
    (0..HEAP).for_each(|_| unix::send(&sender, b"x"));
    let finished = Plugd::reading(receiver)
        .args(["true"])
        .blocked(&[libc::SIGTERM])
        .prelude("kill -TERM $$")
        .finish();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let (_, dropped) = finished.stderr.trim_end().rsplit_once("malformed ").unwrap();
    assert!(dropped.parse::<usize>().unwrap() < HEAP / 2, "{finished:?}");
}
