//! Handlers that cannot be started: at once, for a while, for good.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::net::SocketType;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};
use tempfile::TempDir;

use crate::harness::daemon::{Daemon, Plugd};
use crate::harness::inject::uevent;
use crate::harness::{ns, skip, unix};

/// A handler that says its event's number, in a file that tests do things to.
struct Handler {
    dir: TempDir,
    file: PathBuf,
}

impl Handler {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("handler");
        fs::write(&file, "#!/bin/sh\necho $N >>$TMP/out\n").unwrap();
        set_mode(&file, 0o755);
        Self { dir, file }
    }

    fn start(&self) -> (Daemon, OwnedFd) {
        let (sender, receiver) = unix::pair(SocketType::DGRAM);
        (Plugd::reading(receiver).args([&self.file]).start(), sender)
    }

    fn elsewhere(&self) -> PathBuf {
        self.dir.path().join("elsewhere")
    }
}

fn set_mode(file: &Path, mode: u32) {
    fs::set_permissions(file, PermissionsExt::from_mode(mode)).unwrap();
}

fn send(sender: &OwnedFd, n: u32) {
    unix::send(sender, &uevent("add", "/x", &[&format!("N={n}"), &format!("SEQNUM={n}")]));
}

/// The pauses between attempts grow; signals are answered meanwhile.
fn assert_retries(daemon: &Daemon, error: &str) {
    let lines = daemon.wait_for_logs("waits for another attempt", 4);
    let told = format!(": {error}; add /x (SEQNUM 1) waits for another attempt");
    assert!(lines[0].starts_with("plugd: warning: cannot run "), "{lines:?}");
    assert!(lines.iter().all(|line| line.ends_with(&told)), "{lines:?}");
    let times = daemon.logged("waits for another attempt");
    // What comes late may make a pause look shorter, but not all of them.
    let all = times[3].0.duration_since(times[0].0);
    assert!(all >= Duration::from_millis(600), "{all:?}");
    assert!(daemon.counters().contains("received 1, handled 0, failed 0"));
}

/// Whether this prefix of a command works.
fn works(prefix: &[&str]) -> bool {
    Command::new(prefix[0]).args(&prefix[1..]).arg("true").status().is_ok_and(|s| s.success())
}

#[test]
fn a_process_limit_is_waited_out() {
    ns::alone(|| {
        // No limit binds root: another user, who needs a copy that can be reached.
        let root = rustix::process::geteuid().is_root();
        let user: &[&str] = if root {
            &["setpriv", "--reuid=61234", "--regid=61234", "--clear-groups"]
        } else {
            &["env"]
        };
        if !works(user) {
            return skip("tools", "a process limit", "no setpriv, or not allowed");
        }
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("plugd");
        set_mode(dir.path(), 0o755);
        fs::copy(env!("CARGO_BIN_EXE_plugd"), &program).unwrap();
        let (sender, receiver) = unix::pair(SocketType::DGRAM);
        let daemon = Plugd::reading(receiver)
            .program(program)
            .prelude(&format!("exec {} \"$0\" \"$@\"", user.join(" ")))
            .sh("echo witness $N >&2")
            .start();
        // Its own user may change its limit, even where root may not.
        let limit = |limit: &str| {
            let mut command = Command::new(user[0]);
            command.args(&user[1..]).arg("prlimit");
            command.args(["--pid", &daemon.pid().to_string(), &format!("--nproc={limit}")]);
            assert!(command.status().unwrap().success());
        };
        let old = getrlimit(Resource::Nproc).current;
        limit("1:");
        send(&sender, 1);
        send(&sender, 2);
        assert_retries(&daemon, "Resource temporarily unavailable");
        limit(&format!("{}:", old.map_or("unlimited".into(), |old| old.to_string())));
        daemon.wait_for_counters("received 2, handled 2, failed 0");
        assert_eq!(daemon.wait_for_logs("witness", 2), ["witness 1", "witness 2"]);
    });
}

#[test]
fn a_limit_of_descriptors_is_waited_out() {
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let daemon = Plugd::reading(receiver).sh("echo $N >>$TMP/out").start();
    let pid = Pid::from_raw(daemon.pid().try_into().unwrap());
    let old = getrlimit(Resource::Nofile);
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), ..old }).unwrap();
    send(&sender, 1);
    send(&sender, 2);
    assert_retries(&daemon, "Too many open files");
    prlimit(pid, Resource::Nofile, old).unwrap();
    assert_eq!(daemon.wait_for_lines("out", 2), ["1", "2"]);
    daemon.wait_for_counters("received 2, handled 2, failed 0");
}

#[test]
fn a_program_that_is_being_written_is_waited_for() {
    ns::alone(|| {
        let handler = Handler::new();
        let (daemon, sender) = handler.start();
        let writer = File::options().append(true).open(&handler.file).unwrap();
        match Command::new(&handler.file).env("TMP", "/nonexistent").status() {
            Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => {}
            // Linux 6.11 and 6.12 let it be.
            other => return skip("etxtbsy", "a busy program", &format!("it runs: {other:?}")),
        }
        send(&sender, 1);
        assert_retries(&daemon, "Text file busy");
        drop(writer);
        assert_eq!(daemon.wait_for_lines("out", 1), ["1"]);
        daemon.wait_for_counters("handled 1, failed 0");
    });
}

#[test]
fn a_program_that_is_replaced_is_waited_for() {
    ns::alone(|| {
        let handler = Handler::new();
        let (daemon, sender) = handler.start();
        fs::rename(&handler.file, handler.elsewhere()).unwrap();
        send(&sender, 1);
        send(&sender, 2);
        assert_retries(&daemon, "No such file or directory");
        fs::rename(handler.elsewhere(), &handler.file).unwrap();
        assert_eq!(daemon.wait_for_lines("out", 2), ["1", "2"]);

        let attempts = daemon.logged("waits for another attempt").len();
        set_mode(&handler.file, 0o644);
        send(&sender, 3);
        let lines = daemon.wait_for_logs("waits for another attempt", attempts + 1);
        assert!(lines[attempts].contains(": Permission denied; "), "{lines:?}");
        set_mode(&handler.file, 0o755);
        daemon.wait_for_lines("out", 3);
        daemon.wait_for_counters("received 3, handled 3, failed 0");
    });
}

#[test]
fn a_program_that_is_gone_is_given_up_and_the_next_event_goes_on() {
    ns::alone(|| {
        let handler = Handler::new();
        let (daemon, sender) = handler.start();
        fs::rename(&handler.file, handler.elsewhere()).unwrap();
        send(&sender, 1);
        send(&sender, 2);
        let line = daemon.wait_for_log("is not handled");
        let told = "No such file or directory; add /x (SEQNUM 1) is not handled";
        assert_eq!(line, format!("plugd: error: cannot run {}: {told}", handler.file.display()));
        let first = daemon.logged("waits for another attempt")[0].0;
        let patience = daemon.logged("is not handled")[0].0.duration_since(first);
        assert!(patience.as_secs_f32() >= 4.5, "{patience:?}");
        fs::rename(handler.elsewhere(), &handler.file).unwrap();
        assert_eq!(daemon.wait_for_lines("out", 1), ["2"]);
        daemon.wait_for_counters("received 2, handled 1, failed 1 (timed out 0)");
    });
}

/// What would not get better is not tried again.
#[test]
fn a_program_of_a_wrong_kind_fails_at_once() {
    ns::alone(|| {
        let handler = Handler::new();
        let (daemon, sender) = handler.start();
        let looped = handler.elsewhere();
        std::os::unix::fs::symlink(&looped, &looped).unwrap();
        fs::write(&handler.file, format!("#!{}\n", looped.display())).unwrap();
        send(&sender, 1);
        daemon.wait_for_log("Too many levels of symbolic links; add /x (SEQNUM 1) is not handled");
        assert!(daemon.counters().contains("failed 1 (timed out 0), retried 0"));
    });
}

#[test]
fn a_stop_makes_one_last_attempt_in_vain() {
    ns::alone(|| {
        let handler = Handler::new();
        let (mut daemon, sender) = handler.start();
        fs::remove_file(&handler.file).unwrap();
        send(&sender, 1);
        send(&sender, 2);
        daemon.wait_for_log("waits for another attempt");
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait_exit().code(), Some(0));
        daemon.wait_for_log("add /x (SEQNUM 1) is not handled");
        daemon.wait_for_log("stopped: received 1, handled 0, failed 1");
    });
}

#[test]
fn a_stop_makes_one_last_attempt_with_success() {
    ns::alone(|| {
        let handler = Handler::new();
        let (mut daemon, sender) = handler.start();
        fs::rename(&handler.file, handler.elsewhere()).unwrap();
        send(&sender, 1);
        // Now the pause is 1.6 seconds.
        daemon.wait_for_logs("waits for another attempt", 5);
        fs::rename(handler.elsewhere(), &handler.file).unwrap();
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait_exit().code(), Some(0));
        assert_eq!(daemon.lines("out"), ["1"]);
        daemon.wait_for_log("stopped: received 1, handled 1, failed 0");
    });
}
