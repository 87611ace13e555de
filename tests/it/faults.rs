//! What no honest kernel or parent does often: system calls that fail (strace
//! makes them), a process group that is signalled, dispositions left ignored.

use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};

use rustix::net::SocketType;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::harness::daemon::{Daemon, Plugd};
use crate::harness::inject::{Injector, uevent};
use crate::harness::stranger::Stranger;
use crate::harness::{PLUGD, eventually, ns, unix};
use crate::listen::have;

/// Handles three events while strace makes system calls fail; ends by itself.
fn three_events(inject: &str) -> Option<Daemon> {
    if !have("system calls that fail", "strace") {
        return None;
    }
    let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
    let call = inject.split(':').next().unwrap();
    let daemon = Plugd::new()
        .program("strace")
        .args(["-qq", "-o", "/dev/null", "-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={inject}"), env!("CARGO_BIN_EXE_plugd"), "run", "--fd", "3"])
        .args(["--control", "none"])
        .sh("echo $SEQNUM >>$TMP/handled")
        .fd(receiver, 3)
        .launch();
    for number in 1..=3 {
        let seqnum = format!("SEQNUM={number}");
        unix::send(&sender, &uevent("add", "/devices/x", &[&seqnum]));
        daemon.wait_for_lines("handled", number);
    }
    drop(sender);
    let mut daemon = daemon;
    assert_eq!(daemon.wait_exit().code(), Some(0));
    assert_eq!(daemon.lines("handled"), ["1", "2", "3"]);
    Some(daemon)
}

#[test]
fn what_cannot_be_watched_is_looked_at() {
    // The first is for the self-pipe, which is fatal.
    if let Some(daemon) = three_events("epoll_ctl:error=ENOMEM:when=2+") {
        daemon.wait_for_log("plugd: error: cannot watch a file descriptor: Cannot allocate");
    }
}

#[test]
fn receiving_that_fails_twice_strands_nothing() {
    if let Some(daemon) = three_events("recvmsg:error=ENOMEM:when=2..3") {
        daemon.wait_for_log("plugd: warning: cannot receive: Cannot allocate memory");
    }
}

#[test]
fn a_child_whose_end_is_not_told_has_failed() {
    if let Some(daemon) = three_events("waitid:error=ECHILD:when=2") {
        daemon.wait_for_log("plugd: error: cannot learn how pid ");
        daemon.wait_for_log("stopped: received 3, handled 2, failed 1");
    }
}

#[test]
fn an_ignored_sigchld_hides_no_failure() {
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let daemon = Plugd::reading(receiver).prelude("trap '' CHLD").sh("exit 3").start();
    unix::send(&sender, &uevent("add", "/devices/x", &[]));
    daemon.wait_for_log("plugd: warning: sh exited with 3; add /devices/x");
    daemon.wait_for_counters("handled 0, failed 1");
}

/// A child has our handlers and our pipe until it has executed its program.
#[test]
fn a_signal_to_the_group_is_counted_once() {
    const SIGNALS: usize = 400;
    if !have("a signal to the group", "setsid") {
        return;
    }
    let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
    let daemon = Plugd::new()
        .program("setsid")
        .args([env!("CARGO_BIN_EXE_plugd"), "run", "--fd", "3", "--control", "none", "true"])
        .fd(receiver, 3)
        .start();
    let group = Pid::from_raw(daemon.pid().try_into().unwrap()).unwrap();
    for _ in 0..SIGNALS {
        unix::send(&sender, &uevent("add", "/devices/x", &[]));
        kill_process_group(group, Signal::USR1).unwrap();
    }
    let mut daemon = daemon;
    drop(sender);
    assert_eq!(daemon.wait_exit().code(), Some(0));
    let told = daemon.logged("SIGUSR1 from pid").len();
    // The kernel merges those that are pending.
    assert!((1..=SIGNALS).contains(&told), "{told}");
    daemon.wait_for_log(&format!("stopped: received {SIGNALS}, handled {SIGNALS}, failed 0"));
}

/// It stays in the session, but its parent's group is not its own.
#[test]
fn a_child_that_leaves_its_group_is_ended_all_the_same() {
    if !have("a child that leaves its group", "python3") {
        return;
    }
    let script = "import os, time
if os.fork():
    os.setpgid(0, os.getpgid(os.getppid()))
time.sleep(1000)";
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let daemon = Plugd::reading(receiver)
        .args(["--timeout", "1", "--kill-after", "1", "python3", "-c", script])
        .start();
    unix::send(&sender, &uevent("add", "/devices/x", &["SEQNUM=7"]));
    daemon.wait_for_log("plugd: warning: python3 was killed by SIG");
    daemon.wait_for_counters("received 1, handled 0, failed 1 (timed out 1)");
}

/// Its log is not read, and more signals come than fit into its pipe for them.
#[test]
fn a_stop_is_not_lost_among_too_many_signals() {
    let (_sender, receiver) = unix::pair(SocketType::DGRAM);
    let (log, stderr) = rustix::pipe::pipe().unwrap();
    let mut daemon = Plugd::reading(receiver).args(["true"]).stderr(File::from(stderr)).launch();
    daemon.wait_until_ready();
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        daemon.signal(Signal::USR1);
    }
    daemon.signal(Signal::TERM);
    std::thread::spawn(move || File::from(log).read_to_end(&mut Vec::new()));
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

/// Rules are to fill an empty /dev.
#[test]
fn without_dev_null_it_starts() {
    ns::inside(|| {
        let daemon = Plugd::new()
            .program("unshare")
            .args(["-m", "sh", "-c", "mount -t tmpfs tmpfs /dev && exec \"$0\" \"$@\"", PLUGD])
            .args(["run", "--control", "none", "--"])
            .sh("read x; echo $? $x $N >>$TMP/out")
            .launch();
        daemon.wait_for_log("listening to the kernel's uevents");
        daemon.wait_until_ready();
        Injector::new().event("add", "/devices/x", &["N=1"]);
        assert_eq!(daemon.wait_for_lines("out", 1), ["1 1"], "nothing to read");
    });
}

/// Anybody can be the first to use the address.
#[test]
fn a_stranger_at_the_control_address_keeps_nobody_from_starting() {
    ns::inside_as_root(|| {
        let test = "a_stranger_at_the_control_address_keeps_nobody_from_starting";
        let Some(stranger) = Stranger::new(test) else { return };
        let daemon = Plugd::new().args(["run", "--"]).sh("echo $N >>$TMP/out").start();
        daemon.wait_for_log("of user 65534; plugd goes on without a control socket");
        Injector::new().event("add", "/devices/x", &["N=1"]);
        eventually("it is handled", || daemon.lines("out").contains(&"1".into()).then_some(()));
        // One that was chosen has to be had.
        drop(stranger);
        let _first = Plugd::new().args(["run", "--control", "@x", "--", "true"]).start();
        let second = Plugd::new().args(["run", "--control", "@x", "--", "true"]).finish();
        assert_eq!(second.code, Some(111), "{second:?}");
    });
}
