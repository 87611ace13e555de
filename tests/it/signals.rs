//! Signals, in every state.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::net::SocketType;
use rustix::process::Signal;

use crate::harness::daemon::{Daemon, Plugd};
use crate::harness::inject::uevent;
use crate::harness::unix;

const NOSH: &str = "plug-and-play-event-handler";
const HOLD: &str = "echo $N >>$TMP/out; read x <$TMP/gate; echo done >>$TMP/out";
const DEAF: &str = "trap '' TERM; echo $N >>$TMP/out; while :; do sleep 1000; done";

fn send(sender: &OwnedFd, n: u32) {
    unix::send(sender, &uevent("add", "/x", &[&format!("N={n}")]));
}

fn start(plugd: Plugd, script: &str) -> (Daemon, OwnedFd) {
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let daemon = plugd.fd(receiver, 3).sh(script).start();
    daemon.fifo("gate");
    (daemon, sender)
}

fn run(options: &[&str]) -> Plugd {
    Plugd::run(&["--fd", "3"]).args(options)
}

fn nosh() -> Plugd {
    Plugd::new().arg0(NOSH)
}

#[test]
fn idle_it_stops_at_once() {
    for (plugd, name, signal) in [
        (run(&[]), "plugd", Signal::TERM),
        (run(&[]), "plugd", Signal::INT),
        (nosh(), NOSH, Signal::TERM),
        (nosh(), NOSH, Signal::INT),
        (nosh(), NOSH, Signal::HUP),
    ] {
        let (mut daemon, _sender) = start(plugd, HOLD);
        daemon.signal(signal);
        assert_eq!(daemon.wait_exit().code(), Some(0));
        let sender = format!("from pid {}", std::process::id());
        let line = daemon.wait_for_log(": stopping");
        assert!(line.starts_with(&format!("{name}: info: SIG")), "{line}");
        assert!(line.contains(&sender), "{line}");
        daemon.wait_for_log("stopped: received 0,");
    }
}

#[test]
fn running_it_lets_the_child_finish_and_reads_no_more() {
    for (plugd, signal) in
        [(run(&[]), Signal::TERM), (run(&[]), Signal::INT), (nosh(), Signal::HUP)]
    {
        let (mut daemon, sender) = start(plugd, HOLD);
        send(&sender, 1);
        daemon.wait_for_lines("out", 1);
        send(&sender, 2);
        daemon.signal(signal);
        let line = daemon.wait_for_log("stopping when pid");
        assert!(line.contains(&daemon.children()[0].to_string()), "{line}");
        // It would have answered this by ending, had it not waited.
        daemon.counters();
        assert!(daemon.runs());
        daemon.release("gate");
        assert_eq!(daemon.wait_exit().code(), Some(0));
        assert_eq!(daemon.lines("out"), ["1", "done"]);
        daemon.wait_for_log("stopped: received 1, handled 1, failed 0");
    }
}

/// A supervisor that holds the socket can start another one, and nothing is lost.
#[test]
fn what_was_not_read_is_there_for_the_next_one() {
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let kept = receiver.try_clone().unwrap();
    let mut daemon = run(&[]).fd(receiver, 3).sh(HOLD).start();
    daemon.fifo("gate");
    send(&sender, 1);
    daemon.wait_for_lines("out", 1);
    send(&sender, 2);
    daemon.signal(Signal::TERM);
    // Else the program may have ended, and another begun, before it is looked at.
    daemon.wait_for_log("stopping when pid");
    daemon.release("gate");
    assert_eq!(daemon.wait_exit().code(), Some(0));
    let next = run(&[]).fd(kept, 3).sh("echo $N >>$TMP/out").start();
    assert_eq!(next.wait_for_lines("out", 1), ["2"]);
}

#[test]
fn a_second_stop_terminates_the_child() {
    let (mut daemon, sender) = start(run(&["--kill-after", "1000"]), HOLD);
    send(&sender, 1);
    daemon.wait_for_lines("out", 1);
    daemon.signal(Signal::INT);
    daemon.wait_for_log("stopping when pid");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_exit().code(), Some(0));
    assert_eq!(daemon.lines("out"), ["1"]);
    daemon.wait_for_log("shall end at once: SIGTERM to its process group; add /x");
    daemon.wait_for_log("sh was killed by SIGTERM; add /x");
    daemon.wait_for_log("stopped: received 1, handled 0, failed 1 (timed out 0)");
}

#[test]
fn a_second_stop_kills_a_child_that_does_not_end() {
    let (mut daemon, sender) = start(run(&["--kill-after", "0.3"]), DEAF);
    send(&sender, 1);
    daemon.wait_for_lines("out", 1);
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("stopping when pid");
    let asked = Instant::now();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_exit().code(), Some(0));
    assert!(asked.elapsed().as_millis() >= 300);
    daemon.wait_for_log("does not end: SIGKILL to its process group; add /x");
    daemon.wait_for_log("sh was killed by SIGKILL; add /x");
}

/// A stop is asked for once; the time limit does the rest.
#[test]
fn a_stop_does_not_lift_the_time_limit() {
    let (mut daemon, sender) = start(run(&["--timeout", "1"]), HOLD);
    send(&sender, 1);
    daemon.wait_for_lines("out", 1);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_exit().code(), Some(0));
    daemon.wait_for_log("takes too long");
    daemon.wait_for_log("stopped: received 1, handled 0, failed 1 (timed out 1)");
}

#[test]
fn while_a_child_is_being_terminated_a_stop_waits_for_that() {
    let (mut daemon, sender) = start(run(&["--timeout", "0.2", "--kill-after", "1"]), DEAF);
    send(&sender, 1);
    daemon.wait_for_log("SIGTERM to its process group");
    send(&sender, 2);
    daemon.signal(Signal::TERM);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_exit().code(), Some(0));
    daemon.wait_for_log("sh was killed by SIGKILL");
    daemon.wait_for_log("stopped: received 1,");
    assert_eq!(daemon.logged("SIGTERM to its").len(), 1);
}

#[test]
fn a_stopped_child_ends_at_a_second_stop() {
    let (mut daemon, sender) =
        start(run(&["--kill-after", "1000"]), "echo $N >>$TMP/out; kill -STOP $$; exit 0");
    send(&sender, 1);
    daemon.wait_for_lines("out", 1);
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("stopping when pid");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

#[test]
fn hup_reloads_and_the_rest_disturbs_nothing() {
    let (mut daemon, sender) = start(run(&[]), "echo $N >>$TMP/out");
    daemon.signal(Signal::CONT);
    daemon.signal(Signal::PIPE);
    daemon.signal(Signal::HUP);
    daemon.wait_for_log("nothing to reload for a handler program");
    send(&sender, 1);
    daemon.wait_for_lines("out", 1);
    daemon.signal(Signal::STOP);
    send(&sender, 2);
    daemon.signal(Signal::CONT);
    daemon.wait_for_lines("out", 2);
    daemon.wait_for_counters("received 2, handled 2, failed 0");
    assert!(daemon.runs());
}

#[test]
fn counters_are_told_while_a_child_runs() {
    let (daemon, sender) = start(run(&[]), HOLD);
    send(&sender, 1);
    daemon.wait_for_lines("out", 1);
    let line = daemon.counters();
    let start = format!("plugd: info: SIGUSR1 from pid {} of user ", std::process::id());
    assert!(line.starts_with(&start), "{line}");
    let counters = "received 1, handled 0, failed 0 (timed out 0), retried 0, overruns 0, \
                    scans 0 (the last one 0 ms), replayed 0 removals, 0 additions, 0 changes, stale 0, \
                    foreign 0, truncated 0, malformed 0";
    assert!(line.ends_with(counters), "{line}");
    // All that `plugd status` tells.
    let state = format!("plugd: info: state    running: pid {}, since ", daemon.children()[0]);
    assert!(daemon.wait_for_log("info: state ").starts_with(&state), "{:?}", daemon.log());
    for line in ["queue ", "events   1 received", "engine   handler ", "uptime ", "version "] {
        daemon.wait_for_log(&format!("info: {line}"));
    }
}
