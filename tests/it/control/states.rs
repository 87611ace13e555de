//! States that take more to bring about.

use std::fs::File;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use super::*;

/// Nobody reads what was acted on: plugd reads no further events, but commands.
#[test]
fn every_command_while_it_writes() {
    let (events, receiver) = unix::pair(SocketType::SEQPACKET);
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let size = fcntl_setpipe_size(&writer, 4096).unwrap();
    let address = format!("@plugd-test-{}-{}", std::process::id(), unique());
    let plugd = Plugd::new().args(["run", "--fd", "3", "--output-fd", "4", "--control", &address]);
    let daemon = plugd.fd(receiver, 3).fd(writer, 4).sh("echo $N >>$TMP/out").start();
    let mut host = Host { daemon, events, address };
    host.wait_until_it_listens();
    let long = "x".repeat(1000);
    let event =
        |n: usize| uevent("add", "/devices/x", &[&format!("N={n}"), &format!("LONG={long}")]);
    let fill = size / long.len() + 1;
    for n in 0..fill + 2 {
        unix::send(&host.events, &event(n));
    }
    eventually("nobody reads", || (host.status()["state"] == "writing").then_some(()));
    let out = host.daemon.lines("out").len();
    let commands = |host: &Host| {
        every_command(host, "writing");
        for args in [&["settle", "--timeout", "0"][..], &["wait", "--timeout", "0", "/dev/null"]] {
            assert_eq!(host.say(args).code, Some(1), "{args:?}");
        }
    };
    commands(&host);
    assert_eq!(host.say(&["update"]).code, Some(0));
    commands(&host);
    assert_eq!(host.daemon.lines("out").len(), out);
    let mut waiting = begin(&host.address, &["settle"]);
    assert!(waiting.try_wait().unwrap().is_none());

    let all: Vec<u8> = (0..fill + 2).flat_map(event).collect();
    let mut written = Vec::new();
    let mut reader = File::from(reader);
    // As a stream, an event ends with one more NUL.
    let length = all.len() + fill + 2;
    while written.len() < length {
        let mut buffer = [0; 4096];
        let count = reader.read(&mut buffer).unwrap();
        assert!(count > 0, "it has ended: {:?}", host.daemon.log());
        written.extend_from_slice(&buffer[..count]);
    }
    assert_eq!(written.len(), length);
    assert_eq!(end(waiting), Some(0));

    // The end waits for the reader too.
    for n in 0..fill {
        unix::send(&host.events, &event(n));
    }
    eventually("nobody reads", || (host.status()["state"] == "writing").then_some(()));
    assert_eq!(host.say(&["stop"]).stdout, "stopping\n");
    assert_eq!(host.status()["state"], "stopping");
    assert_eq!(host.say(&["update"]).code, Some(1));
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert!(rest.ends_with(b"\0\0"));
    assert_eq!(host.daemon.wait_exit().code(), Some(0));
}

/// All devices are acted on that are there, in the middle of which it is held.
#[test]
fn every_command_while_it_recovers() {
    ns::inside_with_sysfs(|| {
        let options = ["run", "--coldplug", "--state", "none", "--"];
        let plugd = Plugd::new().args(options).sh(HOLD);
        let daemon = plugd.start();
        daemon.fifo("gate");
        let (events, _) = unix::pair(SocketType::SEQPACKET);
        let mut host = Host { daemon, events, address: "@plugd".into() };
        host.wait_until_it_listens();
        let recovers = |host: &Host| {
            assert_eq!(host.status()["recovery"]["active"], true);
            for args in [
                &["settle", "--timeout", "0"][..],
                &["wait", "--timeout", "0", "/dev/null"],
                &["wait", "--timeout", "0", "INTERFACE=lo"],
            ] {
                assert_eq!(host.say(args).code, Some(1), "{args:?}");
            }
        };
        host.daemon.wait_for_lines("out", 1);
        for _ in 0..2 {
            every_command(&host, "running");
            recovers(&host);
            assert_eq!(host.say(&["update"]).code, Some(0));
        }
        assert_eq!(host.say(&["pause"]).code, Some(0));
        host.daemon.release("gate");
        eventually("it is paused", || (host.status()["state"] == "paused").then_some(()));
        for _ in 0..2 {
            recovers(&host);
            assert!(host.say(&["status"]).stdout.contains("replayed under way"));
            assert!(host.say(&["status", "--openmetrics"]).stdout.ends_with("# EOF\n"));
            assert_eq!(host.say(&["reload"]).code, Some(0));
            assert_eq!(host.say(&["rescan", "--timeout", "0.1"]).code, Some(1));
            assert_eq!(host.say(&["log-level"]).code, Some(0));
            assert_eq!(host.say(&["update"]).code, Some(0));
        }
        assert_eq!(host.daemon.lines("out").len(), 2);
        assert_eq!(host.say(&["resume"]).code, Some(0));
        host.daemon.wait_for_lines("out", 3);
        recovers(&host);
        assert_eq!(host.say(&["stop"]).code, Some(0));
        assert_eq!(host.status()["state"], "stopping");
        host.daemon.release("gate");
        assert_eq!(host.daemon.wait_exit().code(), Some(0));
    });
}
