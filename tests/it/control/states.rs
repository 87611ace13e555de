//! Every command in every state.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use super::*;

/// Every command's outcome, in this state; the last one is `stop`.
fn every_command(host: &Host, state: &str) {
    let ok = |args: &[&str], output: &str| {
        let said = host.say(args);
        assert_eq!(said.code, Some(0), "{args:?} while {state}: {said:?}");
        assert!(said.stdout.contains(output), "{args:?} while {state}: {said:?}");
    };
    ok(&["status"], &format!("state    {state}"));
    ok(&["status", "--openmetrics"], &format!("plugd_state{{plugd_state=\"{state}\"}} 1\n"));
    assert_eq!(host.status()["state"], state);
    let quiet = host.say(&["status", "--quiet"]);
    assert_eq!((quiet.code, &*quiet.stdout, &*quiet.stderr), (Some(0), "", ""));
    ok(&["log-level"], "info\n");
    ok(&["log-level", "debug"], "debug\n");
    ok(&["log-level", "info"], "info\n");
    match state {
        "running" => assert_eq!(host.say(&["reload", "--timeout", "0.1"]).code, Some(1)),
        _ => ok(&["reload"], "nothing to reload"),
    }
    // There is nothing to scan, or an event in hand.
    let said = host.say(&["rescan", "--timeout", "0.1"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    ok(&["pause"], "paused");
    assert_eq!(host.status()["paused"], true);
    ok(&["resume"], "reading events");
    assert_eq!(host.status()["paused"], false);
}

#[test]
fn every_command_while_idle() {
    let mut host = Host::start(&[], HOLD);
    every_command(&host, "idle");
    for args in [&["settle"][..], &["settle", "--timeout", "0"]] {
        assert_eq!(host.say(args).code, Some(0), "{args:?}");
    }
    assert_eq!(host.say(&["update"]).code, Some(0));
    every_command(&host, "idle");
    assert_eq!(host.say(&["stop"]).stdout, "stopping\n");
    assert_eq!(host.daemon.wait_exit().code(), Some(0));
    let said = host.say(&["status"]);
    assert_eq!(said.code, Some(111), "{said:?}");
    assert!(said.stderr.contains("Connection refused"), "{said:?}");
}

#[test]
fn every_command_while_a_program_runs() {
    let mut host = Host::start(&[], HOLD);
    host.event(1);
    host.daemon.wait_for_lines("out", 1);
    every_command(&host, "running");
    let status = host.status();
    assert_eq!(status["child_pid"], host.daemon.children()[0]);
    assert_eq!(status["event"]["devpath"], "/devices/x");
    let said = host.say(&["settle", "--timeout", "0"]);
    assert_eq!((said.code, &*said.stderr), (Some(1), "plugd: settle: timed out\n"));
    let child = host.daemon.children()[0];
    assert_eq!(host.say(&["update"]).code, Some(0));
    assert_eq!(host.daemon.children(), [child]);
    every_command(&host, "running");
    let said = host.say(&["stop"]);
    assert!(said.stdout.starts_with(&format!("stopping when pid {child} has ended")), "{said:?}");
    assert_eq!(host.status()["state"], "stopping");
    let said = host.say(&["update"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    host.daemon.release("gate");
    assert_eq!(host.daemon.wait_exit().code(), Some(0));
    assert_eq!(host.daemon.lines("out"), ["1", "done"]);
    host.daemon.wait_for_log("stopped: received 1, handled 1");
}

#[test]
fn a_second_stop_ends_the_program() {
    let mut host = Host::start(&[], "echo $N >>$TMP/out; exec sleep 1000");
    host.event(1);
    host.daemon.wait_for_lines("out", 1);
    assert_eq!(host.say(&["stop"]).code, Some(0));
    assert_eq!(host.say(&["stop"]).code, Some(0));
    assert_eq!(host.daemon.wait_exit().code(), Some(0));
    host.daemon.wait_for_log("SIGTERM to its process group");
}

#[test]
fn every_command_while_paused() {
    let mut host = Host::start(&[], HOLD);
    assert_eq!(host.say(&["pause"]).code, Some(0));
    host.event(1);
    let state = host.status();
    assert_eq!((&state["state"], &state["events"]["received"]), (&"paused".into(), &0.into()));
    let said = host.say(&["settle", "--timeout", "0"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    // It sleeps, although something is there to be read.
    host.daemon.sleeps();
    assert_eq!(host.say(&["update"]).code, Some(0));
    assert_eq!(host.status()["state"], "paused");
    assert_eq!(host.say(&["resume"]).code, Some(0));
    host.daemon.wait_for_lines("out", 1);
    // A pause comes after the event in hand.
    assert_eq!(host.say(&["pause"]).code, Some(0));
    host.event(2);
    host.daemon.release("gate");
    host.daemon.wait_for_lines("out", 2);
    eventually("it is paused", || (host.status()["state"] == "paused").then_some(()));
    assert_eq!(host.daemon.lines("out"), ["1", "done"]);
    assert_eq!(host.say(&["stop"]).code, Some(0));
    assert_eq!(host.daemon.wait_exit().code(), Some(0));
    assert_eq!(host.daemon.lines("out"), ["1", "done"]);
}

#[test]
fn every_command_while_it_retries() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("prog");
    std::fs::write(&program, "#!/bin/sh\necho ran >>$TMP/out\n").unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let mut host = Host::set_up(SocketType::SEQPACKET, |plugd| plugd.args([&program]));
    let away = dir.path().join("away");
    std::fs::rename(&program, &away).unwrap();
    host.event(1);
    host.daemon.wait_for_log("waits for another attempt");
    assert_eq!(host.status()["state"], "retrying");
    assert_eq!(host.say(&["settle", "--timeout", "0"]).code, Some(1));
    assert_eq!(host.status()["events"]["received"], 1);
    std::fs::rename(&away, &program).unwrap();
    assert_eq!(host.say(&["settle"]).code, Some(0));
    assert_eq!(host.daemon.lines("out"), ["ran"]);
    assert_eq!(host.say(&["stop"]).code, Some(0));
    assert_eq!(host.daemon.wait_exit().code(), Some(0));
}

/// Nobody reads what was acted on: plugd reads no further events, but commands.
#[test]
fn every_command_while_it_writes() {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let size = fcntl_setpipe_size(&writer, 4096).unwrap();
    let mut host = Host::set_up(SocketType::SEQPACKET, |plugd| {
        plugd.args(["--output-fd", "4"]).fd(writer, 4).sh("echo $N >>$TMP/out")
    });
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
