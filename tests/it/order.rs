//! One event after the other: in order, never two children, and the queue in
//! the kernel meanwhile.

use rustix::net::SocketType;

use crate::harness::daemon::Plugd;
use crate::harness::inject::{self, Injector, uevent};
use crate::harness::{ns, unix};

/// Appends to `$TMP/out`: the number of the event, and all children that its
/// parent has at that moment, dead ones included.
const WITNESS: &str = "read -r children </proc/$PPID/task/$PPID/children
    echo \"$N $$ ${children% }\" >>$TMP/out";

/// Checks what the witnesses wrote: each was the only child.
fn assert_alone(lines: &[String]) {
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        assert!(words.len() == 3 && words[1] == words[2], "not alone: {line:?}");
    }
}

fn number(line: &str) -> usize {
    line.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn five_thousand_events_are_handled_in_order_and_one_at_a_time() {
    const EVENTS: usize = 5000;
    ns::inside(|| {
        let daemon = Plugd::run(&["--"]).sh(WITNESS).start();
        let events =
            (0..EVENTS).map(|n| uevent("add", &format!("/devices/{n}"), &[&format!("N={n}")]));
        Injector::new().paced(events, daemon.netlink().1);
        let lines = daemon.wait_for_lines("out", EVENTS);
        assert_alone(&lines);
        assert!(lines.iter().map(|line| number(line)).eq(0..EVENTS));
        daemon.wait_for_counters("received 5000, handled 5000, failed 0");
        assert_eq!(daemon.queued(), 0);
    });
}

#[test]
fn real_devices_are_told_of() {
    ns::inside(|| {
        let daemon = Plugd::run(&["--"]).sh("echo $ACTION $DEVPATH $SUBSYSTEM >>$TMP/out").start();
        inject::real_device("br9");
        let lines = daemon.wait_for_lines("out", 1);
        assert_eq!(lines[0], "add /devices/virtual/net/br9 net");
    });
}

/// Whoever is served, there is one child; and the sockets take turns.
#[test]
fn several_sockets_are_served_in_turn_with_one_child_at_a_time() {
    const EACH: usize = 50;
    let mut plugd = Plugd::run(&["--fd", "3", "--fd", "4", "--fd", "9"]);
    let mut senders = Vec::new();
    for (index, number) in [3, 4, 9].into_iter().enumerate() {
        let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
        for n in 0..EACH {
            unix::send(&sender, &[b"a@/x\0N=", format!("{}\0", 3 * n + index).as_bytes()].concat());
        }
        senders.push(sender);
        plugd = plugd.fd(receiver, number);
    }
    let daemon = plugd.sh(WITNESS).start();
    let lines = daemon.wait_for_lines("out", 3 * EACH);
    assert_alone(&lines);
    assert!(lines.iter().map(|line| number(line)).eq(0..3 * EACH), "{lines:?}");
}
