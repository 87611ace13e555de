//! What it starts: a daemon, in time.

use super::*;
use crate::harness::background::ignoring_children;

#[test]
fn what_it_starts_must_become_a_daemon() {
    let place = Place::new();
    let start = |program: &[&str]| {
        let finished = finish(place.control("--start").arg("--").args(program));
        assert_eq!(finished.code, Some(102), "{program:?}: {finished:?}");
        finished.stderr
    };
    assert!(start(&["sh", "-c", "echo oops >&2; exit 3"]).contains("oops\n"));
    assert!(start(&["sh", "-c", "kill -9 $$"]).contains("signal: 9"));
    assert!(start(&["/nonexistent/daemon"]).contains("cannot execute /nonexistent/daemon"));
    // LibUCW's takes it for a daemon that was stopped again already.
    assert!(start(&["true"]).contains("has not locked the PID file"));
    assert_eq!(place.act("--check", &[]), 101);
    // plugd itself, when its setup fails.
    let daemon = place.daemon(&["--fd", "77"]);
    let daemon: Vec<&str> = daemon.iter().map(String::as_str).collect();
    let stderr = start(&daemon);
    assert!(stderr.contains("plugd: fatal: cannot receive from file descriptor 77"), "{stderr}");
    assert_eq!(place.act("--check", &[]), 101);
    assert_eq!(place.start(&[]), 0);
}

/// Whoever starts it may ignore SIGCHLD, and that is inherited: then the kernel
/// reaps children, and their exit status is lost.
#[test]
fn children_may_be_ignored_by_who_starts_it() {
    let Some(prefix) = ignoring_children() else {
        return skip("tools", "children_may_be_ignored_by_who_starts_it", "env is too old");
    };
    let place = Place::new();
    let start = |daemon: &[String]| {
        let control = place.control("--start");
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).arg(PLUGD).args(control.get_args());
        finish(command.arg("--").args(daemon))
    };
    let started = start(&place.daemon(&[]));
    assert_eq!(started.code, Some(0), "{started:?}");
    assert_eq!(place.act("--stop", &[]), 0);
    let failed = start(&["sh", "-c", "exit 3"].map(str::to_owned));
    assert_eq!(failed.code, Some(102));
    assert!(failed.stderr.contains("exit status: 3"), "{failed:?}");
}

#[test]
fn a_start_that_takes_too_long_is_ended() {
    // In the foreground: a daemon that never says that it is ready.
    let place = Place::new();
    let mut daemon = place.daemon(&[]);
    daemon.retain(|word| word != "--daemonize");
    let begun = Instant::now();
    assert_eq!(place.start_program(&["--timeout", "0.5"], &daemon), 102);
    assert!(begun.elapsed() >= Duration::from_millis(500));
    assert_eq!(place.holders(), [0_i32; 0]);
    assert_eq!(place.act("--check", &[]), 101);

    // One that has left a stubborn process in the background.
    let script = format!("sh -c '{}' $0 & sleep 100", STUBBORN.replace('\'', "'\\''"));
    let place = Place::new();
    let pid_file = place.pid_file();
    let daemon = ["sh", "-c", &script, pid_file.to_str().unwrap()];
    assert_eq!(place.start_program(&["--timeout", "1", "--kill-after", "0.2"], &daemon), 102);
    eventually("nothing is left", || place.holders().is_empty().then_some(()));
    assert_eq!(place.act("--check", &[]), 101);
    assert_eq!(place.start(&[]), 0);
}

/// As a shell with job control would do; it is in the one of who has started it, then.
#[test]
fn a_start_that_has_left_its_process_group_is_ended() {
    const TEST: &str = "a_start_that_has_left_its_process_group_is_ended";
    let Some(perl) = program("perl") else { return skip("tools", TEST, "no perl") };
    let place = Place::new();
    let script = "open(my $file, '>', $ARGV[0]); setpgrp(0, getpgrp(getppid())); \
                  print STDERR $$, ' ', getpgrp(0), qq(\\n); sleep 100";
    let file = place.pid_file();
    let daemon = [perl.to_str().unwrap(), "-e", script, file.to_str().unwrap()];
    let mut command = place.control("--start");
    let finished = finish(command.args(["--timeout", "3", "--"]).args(daemon));
    assert_eq!(finished.code, Some(102), "{finished:?}");
    let (ids, error) = finished.stderr.split_once('\n').unwrap();
    let (pid, group) = ids.split_once(' ').unwrap_or_else(|| panic!("too early: {finished:?}"));
    assert_ne!(pid, group);
    assert!(error.ends_with(": not within 3s\n"), "{finished:?}");
    assert!(!Path::new("/proc").join(pid).exists(), "it is still there");
    assert_eq!(place.act("--check", &[]), 101);
}

/// Before it goes into the background, itself or behind a shell.
#[test]
fn a_start_that_takes_too_long_in_the_setup_is_ended() {
    let wrapped = |daemon: &[String]| {
        let mut words = ["sh", "-c", "\"$@\"; true", "sh"].map(str::to_owned).to_vec();
        words.extend_from_slice(daemon);
        words
    };
    for wrap in [|daemon: &[String]| daemon.to_vec(), wrapped] {
        let place = Place::new();
        let _log = full_log(&place);
        let daemon = wrap(&without_rules(&place));
        let mut command = place.control("--start");
        let finished = finish(command.args(["--timeout", "1", "--"]).args(&daemon));
        assert_eq!(finished.code, Some(102), "{finished:?}");
        assert!(finished.stderr.contains(": not within 1s\n"), "{finished:?}");
        assert_eq!(place.holders(), [0_i32; 0], "{daemon:?}");
        assert_eq!(place.text("x.pid"), "", "{daemon:?}");
        assert_eq!(place.act("--check", &[]), 101, "{daemon:?}");
        assert_eq!(place.start(&[]), 0);
    }
}

/// What it has not written is none of its business.
#[test]
fn a_start_that_takes_too_long_leaves_alone_what_was_there() {
    let place = Place::new();
    let start = |script: &str| {
        let file = place.pid_file();
        let daemon = ["sh", "-c", script, file.to_str().unwrap()];
        place.start_program(&["--timeout", "0.5"], &daemon)
    };
    // Of a daemon that has died.
    place.write("(starting)\n");
    assert_eq!(start("sleep 100"), 102);
    assert_eq!(place.text("x.pid"), "(starting)\n");
    assert_eq!(place.act("--check", &[]), 103);
    assert_eq!(start("echo 1 >$0; sleep 100"), 102);
    assert_eq!(place.text("x.pid"), "");
    assert_eq!(place.act("--check", &[]), 101);
    // Someone has put a link to something there, which it is told to write to.
    fs::write(place.path("precious"), "precious\n").unwrap();
    assert_eq!(start("ln -f ${0%x.pid}precious $0; sleep 100"), 102);
    assert_eq!(place.text("precious"), "precious\n");
    if !rustix::process::geteuid().is_root() {
        let test = "a_start_that_takes_too_long_leaves_alone_what_was_there";
        return skip("root", test, "this is not root");
    }
    fs::remove_file(place.pid_file()).unwrap();
    assert_eq!(start("echo 1 >$0; chown 65534 $0; sleep 100"), 102);
    assert_eq!(place.text("x.pid"), "1\n");
}
