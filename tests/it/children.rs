//! How children end, by themselves or not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use rustix::net::SocketType;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::harness::daemon::{Daemon, Plugd};
use crate::harness::inject::uevent;
use crate::harness::{eventually, ns, unix};

/// Starts `plugd run` with a handler script, and gives it one event.
fn one_event(options: &[&str], script: &str) -> (Daemon, std::os::fd::OwnedFd) {
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let daemon = Plugd::reading(receiver).args(options).sh(script).start();
    unix::send(&sender, &uevent("add", "/devices/x", &["SEQNUM=7"]));
    (daemon, sender)
}

/// Whether it has ended; whoever inherits it may leave it unreaped.
fn is_gone(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn pid(text: &str) -> Pid {
    Pid::from_raw(text.parse().unwrap()).unwrap()
}

#[test]
fn a_child_that_fails_is_told_of() {
    let cases = [
        ("exit 1", "exited with 1"),
        ("exit 255", "exited with 255"),
        ("kill -TERM $$", "was killed by SIGTERM"),
        ("kill -KILL $$", "was killed by SIGKILL"),
        ("kill -HUP $$", "was killed by SIGHUP"),
        ("kill -40 $$", "was killed by signal 40"),
        ("ulimit -c 0; kill -SEGV $$", "was killed by SIGSEGV"),
    ];
    for (script, ended) in cases {
        let (daemon, sender) = one_event(&[], &format!("[ $SEQNUM = 8 ] || {{ {script}; }}"));
        let line = daemon.wait_for_log("add /devices/x (SEQNUM 7)");
        assert_eq!(line, format!("plugd: warning: sh {ended}; add /devices/x (SEQNUM 7)"));
        unix::send(&sender, &uevent("add", "/devices/x", &["SEQNUM=8"]));
        daemon.wait_for_counters("received 2, handled 1, failed 1 (timed out 0)");
    }
}

#[test]
fn a_child_that_succeeds_is_told_of_when_asked_for() {
    let (daemon, _sender) = one_event(&["-v"], "");
    daemon.wait_for_log("plugd: debug: add /devices/x (SEQNUM 7): sh exited with 0");
    daemon.wait_for_counters("handled 1, failed 0");
}

#[test]
fn a_hanging_child_is_terminated_with_what_it_started() {
    let script = "[ $SEQNUM = 8 ] && exit
        sleep 1000 & echo $! >>$TMP/pids; echo $$ >>$TMP/pids; wait";
    let begun = Instant::now();
    let (daemon, sender) = one_event(&["--timeout", "0.5", "--kill-after", "1000"], script);
    let pids = daemon.wait_for_lines("pids", 2);
    let line = daemon.wait_for_log("takes too long");
    assert!(begun.elapsed().as_millis() >= 500);
    let told = "takes too long: SIGTERM to its process group; add /devices/x (SEQNUM 7)";
    assert_eq!(line, format!("plugd: warning: pid {} {told}", pids[1]));
    daemon.wait_for_log("plugd: warning: sh was killed by SIGTERM; add /devices/x (SEQNUM 7)");
    pids.iter().for_each(|pid| eventually("it is gone", || is_gone(pid).then_some(())));
    unix::send(&sender, &uevent("add", "/devices/x", &["SEQNUM=8"]));
    daemon.wait_for_counters("received 2, handled 1, failed 1 (timed out 1)");
}

#[test]
fn no_time_limit_is_no_time_at_all() {
    let (daemon, _sender) = one_event(&["--timeout", "0"], "sleep 0.5");
    daemon.wait_for_counters("handled 1, failed 0 (timed out 0)");
}

#[test]
fn a_child_that_ignores_sigterm_is_killed() {
    let script = "[ $SEQNUM = 8 ] && exit
        trap '' TERM; sleep 1000 & echo $! >>$TMP/pids; echo $$ >>$TMP/pids
        while :; do wait; done";
    let (daemon, sender) = one_event(&["--timeout", "0.3", "--kill-after", "0.3"], script);
    let pids = daemon.wait_for_lines("pids", 2);
    daemon.wait_for_log("does not end: SIGKILL to its process group; add /devices/x (SEQNUM 7)");
    daemon.wait_for_log("sh was killed by SIGKILL; add /devices/x (SEQNUM 7)");
    let (asked, killed) =
        (daemon.logged("SIGTERM to its")[0].0, daemon.logged("SIGKILL to its")[0].0);
    // The time stamps are ours, not plugd's.
    assert!(killed.duration_since(asked).as_millis() >= 200);
    pids.iter().for_each(|pid| eventually("it is gone", || is_gone(pid).then_some(())));
    unix::send(&sender, &uevent("add", "/devices/x", &["SEQNUM=8"]));
    daemon.wait_for_counters("received 2, handled 1, failed 1 (timed out 1)");
}

/// Such as one that is stuck in the kernel, or has become another user's.
#[test]
fn a_child_that_cannot_be_killed_does_not_keep_it_from_stopping() {
    ns::inside_as_root_with_mounts(|| {
        // A place where everybody may run programs, and become root by one.
        ns::mount(&["-t", "tmpfs", "tmpfs", "/mnt"]);
        let (plugd, become_root) = ("/mnt/plugd", "/mnt/setpriv");
        fs::copy(env!("CARGO_BIN_EXE_plugd"), plugd).unwrap();
        fs::copy("/usr/bin/setpriv", become_root).unwrap();
        fs::set_permissions(become_root, fs::Permissions::from_mode(0o4755)).unwrap();
        let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
        let mut daemon = Plugd::reading(receiver)
            .program(plugd)
            .prelude("exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$0\" \"$@\"")
            .args(["--timeout", "0.5", "--kill-after", "0.2", "--"])
            .args([become_root, "--reuid=0", "--regid=0", "--clear-groups", "sleep", "1000"])
            .start();
        unix::send(&sender, &uevent("add", "/devices/x", &["SEQNUM=7"]));
        let line = daemon.wait_for_log("does not end: SIGKILL to its process group");
        let child = pid(line.split("pid ").nth(1).unwrap().split(':').next().unwrap());
        daemon.signal(Signal::TERM);
        daemon.wait_for_log("stopping when");
        daemon.signal(Signal::TERM);
        daemon.wait_for_log("could not be killed, and is left behind");
        daemon.wait_for_log("add /devices/x (SEQNUM 7): not completed, from here on: run");
        daemon.wait_for_log("stopped: received 1, handled 0, failed 1");
        // The log's end is awaited, too, and it has that.
        kill_process(child, Signal::KILL).unwrap();
        assert_eq!(daemon.wait_exit().code(), Some(0));
    });
}

/// The child heeds SIGTERM, its own child does not.
#[test]
fn what_is_left_of_a_terminated_group_is_killed_when_its_time_is_over() {
    let script = "(trap '' TERM; echo ready >>$TMP/ready; exec sleep 1000) &
        echo $! >>$TMP/pids; exec sleep 1000";
    let (daemon, _sender) = one_event(&["--timeout", "2", "--kill-after", "1"], script);
    daemon.wait_for_lines("ready", 1);
    let pids = daemon.wait_for_lines("pids", 1);
    daemon.wait_for_log("what it has left does not end: SIGKILL to its process group");
    daemon.wait_for_counters("failed 1 (timed out 1)");
    eventually("it is gone", || is_gone(&pids[0]).then_some(()));
}

/// The child ends at SIGTERM; what it has started cleans up before that.
#[test]
fn the_whole_group_is_asked_and_given_its_time() {
    let script = "(trap 'sleep 0.5; echo cleaned >>$TMP/out; exit' TERM; echo ready >>$TMP/ready
            while :; do sleep 0.1; done) &
        exec sleep 1000";
    let (daemon, sender) = one_event(&["--timeout", "2", "--kill-after", "1000"], script);
    daemon.wait_for_lines("ready", 1);
    // The next one is not begun before.
    unix::send(&sender, &uevent("add", "/devices/x", &["SEQNUM=8"]));
    assert_eq!(daemon.wait_for_lines("out", 1), ["cleaned"]);
    daemon.wait_for_lines("ready", 2);
    assert_eq!(daemon.logged("SIGKILL").len(), 0);
}

#[test]
fn a_stopped_child_is_terminated_too() {
    let (daemon, _sender) =
        one_event(&["--timeout", "0.5", "--kill-after", "1000"], "kill -STOP $$; exec sleep 1000");
    daemon.wait_for_log("sh was killed by SIGTERM");
    daemon.wait_for_counters("failed 1 (timed out 1)");
}

/// A hotplug script may start a daemon.
#[test]
fn what_a_child_leaves_behind_in_peace_lives_on() {
    let script = "[ $SEQNUM = 8 ] && exit
        sleep 1000 >/dev/null 2>&1 & echo \"$! $$\" >>$TMP/pids";
    let (daemon, sender) = one_event(&[], script);
    let pids = daemon.wait_for_lines("pids", 1).remove(0);
    unix::send(&sender, &uevent("add", "/devices/x", &["SEQNUM=8"]));
    daemon.wait_for_counters("received 2, handled 2, failed 0");
    let (left, group) = pids.split_once(' ').unwrap();
    let alive = kill_process(pid(left), Signal::URG);
    kill_process_group(pid(group), Signal::KILL).unwrap();
    assert_eq!(alive, Ok(()));
}

#[test]
fn no_child_is_left_unreaped() {
    let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
    let daemon = Plugd::reading(receiver).sh("exit $N").start();
    for n in 0..50 {
        unix::send(&sender, &uevent("add", "/devices/x", &[&format!("N={}", n % 2)]));
    }
    daemon.wait_for_counters("received 50, handled 25, failed 25");
    assert_eq!(daemon.children(), Vec::<u32>::new());
}

/// As the first process of a container, say.
#[test]
fn orphans_that_become_its_children_are_reaped() {
    // The first 300 are given out but once (RESERVED_PIDS in kernel/pid.c).
    ns::inside_with_few_pids(450, || {
        let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
        let daemon = Plugd::new()
            .program("unshare")
            .args(["-pf", "--mount-proc", "--kill-child", env!("CARGO_BIN_EXE_plugd"), "run"])
            .args(["--control", "none", "--fd", "3", "--"])
            .sh(": & echo $SEQNUM >>$TMP/out")
            .fd(receiver, 3)
            .launch();
        for n in 1..=500 {
            unix::send(&sender, &uevent("add", "/devices/x", &[&format!("SEQNUM={n}")]));
            if n % 50 == 0 {
                daemon.wait_for_lines("out", n);
            }
        }
    });
}
