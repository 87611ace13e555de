//! Telling whoever started it that the daemon is ready.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use rustix::net::SocketType;
use rustix::process::Signal;

use crate::harness::daemon::Plugd;
use crate::harness::inject::uevent;
use crate::harness::{PATIENCE, PLUGD, eventually, ns, skip, unix};

fn reading() -> (Plugd, OwnedFd) {
    let (events, receiver) = unix::pair(SocketType::SEQPACKET);
    (Plugd::reading(receiver), events)
}

#[test]
fn the_descriptor_gets_a_newline_and_is_closed() {
    let (mut ready, descriptor) = std::io::pipe().unwrap();
    let (plugd, _events) = reading();
    let name = format!("@plugd-test-ready-{}", std::process::id());
    let daemon = plugd.args(["--control", &name, "--notify-fd", "7"]).fd(descriptor, 7).sh("true");
    let daemon = daemon.start();
    let mut text = Vec::new();
    // Up to its end: it is closed, though the daemon runs.
    ready.read_to_end(&mut text).unwrap();
    assert_eq!(text, b"\n");
    // Then everything is set up.
    let said = Plugd::new().args(["status", "--quiet", "--control", &name]).finish();
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(!fs::exists(format!("/proc/{}/fd/7", daemon.pid())).unwrap());
}

/// OpenRC and s6 would wait for ever for one that neither notifies nor ends.
#[test]
fn it_notifies_or_it_ends() {
    for (options, error) in [
        (&["--notify-fd", "7"][..], "cannot notify file descriptor 7: Bad file descriptor"),
        (&["--control", "/nonexistent/socket"], "cannot listen on control socket"),
    ] {
        let (plugd, _events) = reading();
        let said = plugd.args(options).sh("true").finish();
        assert_eq!(said.code, Some(111), "{said:?}");
        assert!(said.stderr.contains(error), "{said:?}");
    }
    let (plugd, _events) = reading();
    let (read, descriptor) = std::io::pipe().unwrap();
    drop(read);
    let said = plugd.args(["--notify-fd", "7"]).fd(descriptor, 7).sh("true").finish();
    assert_eq!(said.code, Some(111), "{said:?}");
    assert!(said.stderr.contains("cannot tell that plugd is ready: Broken pipe"), "{said:?}");
    let (plugd, _events) = reading();
    let said = plugd.env("NOTIFY_SOCKET", "/nowhere/notify").sh("true").finish();
    assert_eq!(said.code, Some(111), "{said:?}");
    assert!(said.stderr.contains("cannot tell that plugd is ready: No such file"), "{said:?}");
    let (plugd, _events) = reading();
    let said = plugd.env("NOTIFY_SOCKET", "nonsense").sh("true").finish();
    assert_eq!(said.code, Some(111), "{said:?}");
    assert!(said.stderr.contains("cannot notify NOTIFY_SOCKET nonsense"), "{said:?}");
}

#[test]
fn a_manager_hears_of_everything() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let heard = || {
        let mut buffer = [0; 1000];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let (plugd, events) = reading();
    let name = format!("@plugd-test-manager-{}", std::process::id());
    let mut daemon = plugd
        .args(["--control", &name])
        .env("NOTIFY_SOCKET", &path)
        .sh("echo ${NOTIFY_SOCKET-unset} >>$TMP/out")
        .start();
    assert_eq!(heard(), "READY=1\nSTATUS=reading events\n");

    daemon.signal(Signal::HUP);
    let reloading = heard();
    let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().trim_end();
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec;
    assert!(
        (now - 60..=now).contains(&(time.parse::<i64>().unwrap() / 1_000_000)),
        "{time}, {now}"
    );
    assert!(heard().starts_with("READY=1\n"));

    for (command, status) in [("pause", "paused"), ("resume", "reading events")] {
        let said = Plugd::new().args([command, "--control", &name]).finish();
        assert_eq!(said.code, Some(0), "{said:?}");
        assert_eq!(heard(), format!("STATUS={status}\n"));
    }
    daemon.signal(Signal::USR2);
    let pid = daemon.pid();
    assert_eq!(heard(), format!("READY=1\nMAINPID={pid}\nSTATUS=reading events\n"));
    let say = |command| Plugd::new().args([command, "--control", &name]).finish().code;
    assert_eq!(say("pause"), Some(0));
    assert_eq!(heard(), "STATUS=paused\n");
    daemon.signal(Signal::USR2);
    assert_eq!(heard(), format!("READY=1\nMAINPID={pid}\nSTATUS=paused\n"));
    assert_eq!(say("resume"), Some(0));
    assert_eq!(heard(), "STATUS=reading events\n");

    unix::send(&events, &uevent("add", "/x", &[]));
    assert_eq!(daemon.wait_for_lines("out", 1), ["unset"]);
    daemon.signal(Signal::TERM);
    assert_eq!(heard(), "STOPPING=1\nSTATUS=stopping\n");
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

/// One that does not read its socket must not hold the daemon up.
#[test]
fn a_manager_that_does_not_read_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let _manager = UnixDatagram::bind(&path).unwrap();
    let (plugd, _events) = reading();
    let mut daemon = plugd.env("NOTIFY_SOCKET", &path).sh("true").start();
    let full = "cannot notify NOTIFY_SOCKET: Resource temporarily unavailable";
    eventually("its socket is full", || {
        daemon.signal(Signal::HUP);
        (!daemon.logged(full).is_empty()).then_some(())
    });
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait_exit().code(), Some(0));
}

/// The stop comes while a program runs: the manager is told then, not after it.
#[test]
fn stopping_is_told_when_it_begins() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let (plugd, events) = reading();
    let mut daemon =
        plugd.env("NOTIFY_SOCKET", &path).sh("echo begun >>$TMP/out; read x <$TMP/gate").start();
    daemon.fifo("gate");
    unix::send(&events, &uevent("add", "/x", &[]));
    daemon.wait_for_lines("out", 1);
    daemon.signal(Signal::TERM);
    let mut buffer = [0; 1000];
    let length = eventually("it says STOPPING", || {
        let length = manager.recv(&mut buffer).unwrap();
        buffer[..length].starts_with(b"STOPPING=1").then_some(length)
    });
    assert_eq!(&buffer[..length], b"STOPPING=1\nSTATUS=stopping\n");
    assert!(daemon.runs());
    daemon.release("gate");
    assert_eq!(daemon.wait_exit().code(), Some(0));
    manager.set_nonblocking(true).unwrap();
    assert!(manager.recv(&mut buffer).is_err(), "told twice");
}

#[test]
fn s6_supervise_sees_it_ready() {
    let test = "s6_supervise_sees_it_ready";
    if Command::new("s6-svwait").arg("-h").output().is_err() {
        return skip("tools", test, "there is no s6");
    }
    ns::inside(|| {
        let dir = tempfile::tempdir().unwrap();
        let service = dir.path().join("plugd");
        fs::create_dir(&service).unwrap();
        let run = format!("#!/bin/sh\nexec {PLUGD} run --notify-fd 3 -- true\n");
        fs::write(service.join("run"), run).unwrap();
        fs::set_permissions(service.join("run"), PermissionsExt::from_mode(0o755)).unwrap();
        fs::write(service.join("notification-fd"), "3\n").unwrap();
        let mut supervisor = Command::new("s6-supervise")
            .arg(&service)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("s6-supervise is up", || {
            let up = Command::new("s6-svok").arg(&service).status().unwrap();
            up.success().then_some(())
        });
        let wait = |what| {
            Command::new("s6-svwait").args([what, "-t", "30000"]).arg(&service).status().unwrap()
        };
        assert!(wait("-U").success(), "it is not seen ready");
        let said = Plugd::new().args(["status", "--quiet"]).finish();
        assert_eq!(said.code, Some(0), "{said:?}");
        // Down, and the supervisor too: TERM, then CONT, which does nothing.
        assert!(Command::new("s6-svc").arg("-xd").arg(&service).status().unwrap().success());
        assert!(ns::wait(&mut supervisor, PATIENCE).is_some(), "s6-supervise does not end");
    });
}
