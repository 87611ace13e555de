//! The log: its lines, its levels, and what happens if nobody takes it.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SocketType, recv};
use rustix::process::Signal;

use crate::harness::daemon::Plugd;
use crate::harness::inject::uevent;
use crate::harness::{eventually, unix};

/// A socket keeps writes apart: each becomes a datagram.
#[test]
fn each_line_is_one_write() {
    let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
    let (log, stderr) = unix::pair(SocketType::SEQPACKET);
    let mut daemon = Plugd::reading(receiver).args(["-vv"]).sh("exit 3").stderr(stderr).start();
    unix::send(&sender, b"add@/x\0ACTION=add\0DEVPATH=/a\x1b[1m\n\xc3\xa9\xff\0SEQNUM=1\0A B=\0");
    unix::send(&sender, b"rubbish");
    drop(sender);
    assert_eq!(daemon.wait_exit().code(), Some(0));
    let mut lines = Vec::new();
    loop {
        let mut buffer = [0; 65536];
        let (length, _) = recv(&log, &mut buffer, RecvFlags::empty()).unwrap();
        if length == 0 {
            break;
        }
        let line = std::str::from_utf8(&buffer[..length]).unwrap();
        let text = line.strip_suffix('\n').unwrap();
        assert!(!text.contains(char::is_control), "{text:?}");
        let rest = text.strip_prefix("plugd: ").unwrap();
        let (level, _) = rest.split_once(": ").unwrap();
        assert!(["error", "warning", "info", "debug", "trace"].contains(&level), "{text}");
        lines.push(text.to_owned());
    }
    let event = r"add /a\x1b[1m\n\xc3\xa9\xff (SEQNUM 1)";
    assert!(lines.contains(&format!("plugd: warning: sh exited with 3; {event}")), "{lines:#?}");
    let withheld = format!("plugd: warning: {event}: not passed on to its program: A B (1 so far)");
    assert!(lines.contains(&withheld), "{lines:#?}");
}

#[test]
fn levels_are_chosen_by_options_and_by_the_environment() {
    // How many of these are told; no error happens here.
    let levels = ["error", "warning", "info", "debug"];
    for (options, rust_log, expected) in [
        (&[][..], None, 3),
        (&["-v"], None, 4),
        (&["--verbose"], None, 4),
        (&["-q"], None, 2),
        (&["--quiet"], None, 2),
        (&["-qq"], None, 1),
        (&["-qv"], None, 3),
        (&["-v"], Some("error"), 1),
        (&["-qq"], Some("debug"), 4),
        (&[], Some("warn"), 2),
        (&[], Some("off"), 0),
    ] {
        let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
        let mut plugd = Plugd::reading(receiver).args(options);
        if let Some(value) = rust_log {
            plugd = plugd.env("RUST_LOG", value);
        }
        let mut daemon = plugd.sh("exit 3").start();
        unix::send(&sender, &uevent("add", "/x", &[]));
        drop(sender);
        assert_eq!(daemon.wait_exit().code(), Some(0));
        for (level, name) in levels.into_iter().enumerate().skip(1) {
            let lines = daemon.logged(&format!("plugd: {name}: ")).len();
            assert_eq!(lines > 0, level < expected, "{options:?} {rust_log:?}: {:?}", daemon.log());
        }
    }
}

#[test]
fn closed_standard_streams_do_no_harm() {
    for prelude in ["exec 2>&-", "exec <&- >&- 2>&-"] {
        let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
        let script = "echo $N >>$TMP/out; [ $N = 1 ]";
        let mut daemon = Plugd::reading(receiver).sh(script).prelude(prelude).start();
        for n in 1..=3 {
            unix::send(&sender, &uevent("add", "/x", &[&format!("N={n}")]));
        }
        assert_eq!(daemon.wait_for_lines("out", 3), ["1", "2", "3"]);
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait_exit().code(), Some(0));
    }
}

#[test]
fn a_log_that_nobody_reads_any_more_does_no_harm() {
    let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
    let (pipe, stderr) = std::io::pipe().unwrap();
    let mut daemon =
        Plugd::reading(receiver).sh("echo $N >>$TMP/out; exit 3").stderr(stderr).start();
    drop(pipe);
    for n in 1..=3 {
        unix::send(&sender, &uevent("add", "/x", &[&format!("N={n}")]));
    }
    daemon.wait_for_lines("out", 3);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

/// The signal of a file that has become too large ends nobody but a handler.
#[test]
fn a_log_that_may_not_grow_does_no_harm() {
    let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
    let mut stderr = tempfile::tempfile().unwrap();
    stderr.write_all(&[b'x'; 1 << 20]).unwrap();
    let mut daemon = Plugd::reading(receiver)
        .sh("echo $N >>$TMP/out; grep SigIgn /proc/self/status >>$TMP/ignored; exit 3")
        .prelude("ulimit -f 8")
        .stderr(stderr)
        .start();
    for n in 1..=3 {
        unix::send(&sender, &uevent("add", "/x", &[&format!("N={n}")]));
    }
    assert_eq!(daemon.wait_for_lines("out", 3), ["1", "2", "3"]);
    let ignored = daemon.wait_for_lines("ignored", 3);
    assert_eq!(ignored[2], "SigIgn:\t0000000000000000");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

/// Nor where the first line is about RUST_LOG, before anything else is done: an update,
/// too, begins with that.
#[test]
fn a_log_that_may_not_grow_does_no_harm_at_the_start_either() {
    let mut log = tempfile::tempfile().unwrap();
    log.write_all(&[b'x'; 1 << 20]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let commands: [(&str, &[&str]); 4] = [
        ("plugd", &["run", "--control", "none", "--fd", "3", "true"]),
        ("plug-and-play-event-handler", &["true"]),
        ("mdevd", &["-n", "-f", "/dev/null"]),
        ("mdevd-netlink", &[]),
    ];
    for (name, arguments) in commands {
        // Each ends by itself: the other end of its socket is closed, its input is empty,
        // or nobody reads what it writes.
        let (_, receiver) = unix::pair(SocketType::SEQPACKET);
        let (_, output) = std::io::pipe().unwrap();
        let link = directory.path().join(name);
        symlink(env!("CARGO_BIN_EXE_plugd"), &link).unwrap();
        let plugd = Plugd::new().program(link).args(arguments).env("RUST_LOG", "a=b=c");
        let plugd = plugd.prelude("ulimit -f 8").stderr(log.try_clone().unwrap());
        let plugd = plugd.fd(receiver, 3).stdin(tempfile::tempfile().unwrap()).stdout(output);
        assert_eq!(plugd.finish().code, Some(0), "{name}");
    }
}

/// plugd waits for its logger, as it waits for its handler: nothing is lost,
/// neither events nor lines.
#[test]
fn a_full_log_holds_it_up_until_it_is_read() {
    const EVENTS: usize = 100;
    let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
    let (mut pipe, stderr) = std::io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&pipe, 4096).unwrap();
    let full = OwnedFd::from(stderr.try_clone().unwrap());
    let mut daemon = Plugd::reading(receiver).sh("exit 3").stderr(stderr).start();
    for n in 0..EVENTS {
        unix::send(&sender, &uevent("add", "/x", &[&format!("SEQNUM={n}")]));
    }
    drop(sender);
    eventually("the pipe is full", || {
        let mut watched = [PollFd::new(&full, PollFlags::OUT)];
        (poll(&mut watched, Some(&Timespec::default())).unwrap() == 0).then_some(())
    });
    assert!(daemon.runs());
    drop(full);
    let mut text = String::new();
    pipe.read_to_string(&mut text).unwrap();
    assert_eq!(daemon.wait_exit().code(), Some(0));
    for n in 0..EVENTS {
        let line = format!("plugd: warning: sh exited with 3; add /x (SEQNUM {n})");
        assert!(text.lines().any(|l| l == line), "no {line} in {text}");
    }
}
