//! daemon-control: what it does in each state of the PID file.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, mkfifoat, open};

use crate::harness::background::{Place, finish, ignoring_children, kill};
use crate::harness::{PATIENCE, PLUGD, eventually, ns, program, skip};

/// A process id that nobody has: of a child that has been reaped.
fn nobody() -> u32 {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

/// A daemon that is no plugd: takes no notice of SIGTERM, and goes on until it
/// is killed.
const STUBBORN: &str =
    "exec 9>>$0; flock -x 9 || exit 1; trap '' TERM; echo $$ >$0; while :; do sleep 1; done";

fn start_stubborn(place: &Place) {
    let mut command = Command::new("sh");
    command.arg("-c").arg(STUBBORN).arg(place.pid_file());
    let child = command.spawn().unwrap();
    eventually("it runs", || place.text("x.pid").ends_with('\n').then_some(()));
    std::thread::spawn(move || child.wait_with_output());
}

/// The exit codes of --start, --stop, --reload and --check are those of
/// LibUCW's ucw-daemon-control (6.5.9), which was run in the same states. It
/// differs where it says so.
#[test]
fn exit_codes_in_each_state() {
    const ACTIONS: [&str; 4] = ["--start", "--stop", "--reload", "--check"];
    type Make = Box<dyn Fn(&Place) -> Option<File>>;
    let unlocked = |text: &'static [u8]| {
        move |place: &Place| {
            place.write(text);
            None
        }
    };
    fn locked(place: &Place, text: &[u8]) -> Option<File> {
        let mut file = place.lock();
        file.write_all(text).unwrap();
        Some(file)
    }
    let states: [(&str, Make, [i32; 4]); 18] = [
        ("no file", Box::new(|_| None), [0, 100, 101, 101]),
        ("empty", Box::new(unlocked(b"")), [0, 100, 101, 101]),
        (
            "stale",
            Box::new(|place| {
                place.write(format!("{}\n", nobody()));
                None
            }),
            [103, 103, 101, 103],
        ),
        ("stale garbage", Box::new(unlocked(b"rubbish\n")), [103, 103, 101, 103]),
        ("stale, before the fork", Box::new(unlocked(b"(starting)\n")), [103, 103, 101, 103]),
        // LibUCW's refuses these; then they would have to be removed by hand, also after
        // a loss of power.
        ("16 bytes", Box::new(unlocked(b"0123456789012345")), [103, 103, 101, 103]),
        ("NULs", Box::new(unlocked(&[0; 16])), [103, 103, 101, 103]),
        ("1 MiB", Box::new(unlocked(&[b'1'; 1 << 20])), [103, 103, 101, 103]),
        (
            "a directory",
            Box::new(|place| {
                fs::create_dir(place.pid_file()).unwrap();
                None
            }),
            [102; 4],
        ),
        (
            "running",
            Box::new(|place| {
                assert_eq!(place.start(&[]), 0);
                None
            }),
            [100, 0, 0, 0],
        ),
        // Before the fork, which nobody sees who has locked the guard.
        ("starting", Box::new(|place| locked(place, b"(starting)\n")), [102; 4]),
        ("locked garbage", Box::new(|place| locked(place, b"rubbish\n")), [102; 4]),
        ("locked, 16 bytes", Box::new(|place| locked(place, &[0; 16])), [102; 4]),
        ("locked, a line too many", Box::new(|place| locked(place, b"1\n1\n")), [102; 4]),
        // LibUCW's takes these for 1: nobody writes them but by mistake, and it is
        // not sure what is meant then.
        ("locked, with a sign", Box::new(|place| locked(place, b"+1\n")), [102; 4]),
        ("locked, more after a NUL", Box::new(|place| locked(place, b"1\n\x002\n")), [102; 4]),
        // LibUCW's sends the signal to a whole process group.
        ("locked, negative", Box::new(|place| locked(place, b"-1\n")), [102; 4]),
        // LibUCW's takes it for a daemon that is just ending.
        ("locked, 0", Box::new(|place| locked(place, b"0\n")), [102; 4]),
    ];
    for (state, make, codes) in states {
        for (action, code) in ACTIONS.into_iter().zip(codes) {
            let place = Place::new();
            let _lock = make(&place);
            let done = match action {
                "--start" => place.start(&[]),
                // They wait, until it is up or they are tired of that.
                _ if state == "starting" => place.act(action, &["--timeout", "0.1"]),
                _ => place.act(action, &[]),
            };
            assert_eq!(done, code, "{action} when: {state}");
            if code == 102 {
                assert_eq!(place.holders(), [0_i32; 0], "{action} when: {state}");
            }
        }
    }
}

/// A log that is full: a daemon waits there, with its PID file locked, until somebody
/// reads from it.
fn full_log(place: &Place) -> File {
    let path = place.path("log");
    mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
    // With both ends, so that opening it never waits.
    let log = open(path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).unwrap();
    while rustix::io::write(&log, &[b'x'; 4096]).is_ok() {}
    log.into()
}

/// A daemon that writes there that it has no rules.
fn without_rules(place: &Place) -> Vec<String> {
    let dev = place.path("dev");
    fs::create_dir_all(&dev).unwrap();
    let [dev, conf, log] = ["dev", "none", "log"].map(|name| place.path(name));
    let [dev, conf, log] = [&dev, &conf, &log].map(|path| path.to_str().unwrap());
    let mut daemon = ["sh", "-c", "exec \"$@\" 2<>\"$0\"", log].map(str::to_owned).to_vec();
    daemon.extend(place.daemon(&["--dev", dev, "--conf", conf]));
    daemon.pop();
    daemon
}

/// By somebody who does not use daemon-control, and so has not locked the guard.
#[test]
fn a_daemon_that_is_being_started_is_waited_for() {
    let place = Place::new();
    let mut log = full_log(&place);
    let daemon = without_rules(&place);
    let mut launcher = Command::new(&daemon[0]).args(&daemon[1..]).spawn().unwrap();
    eventually("it is being started", || (place.text("x.pid") == "(starting)\n").then_some(()));
    let check = finish(&mut place.control("--check"));
    assert_eq!(check.code, Some(102));
    assert!(check.stderr.contains("x.pid: the daemon is just being started\n"), "{check:?}");
    let mut stop = place.control("--stop").spawn().unwrap();
    eventually("it waits", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", stop.id())).unwrap();
        let guard = File::open(place.path("x.lock")).unwrap();
        let locked = flock(&guard, FlockOperation::NonBlockingLockShared).is_err();
        (locked && stat.contains(") S ")).then_some(())
    });
    assert!(stop.try_wait().unwrap().is_none());
    while log.read(&mut [0; 4096]).is_ok() {}
    // It may be signalled as soon as it has a process id, and ends when it is ready.
    assert_eq!(launcher.wait().unwrap().code(), Some(0));
    assert_eq!(stop.wait().unwrap().code(), Some(0));
    assert_eq!(place.act("--check", &[]), 101);
}

#[test]
fn a_daemon_that_is_about_to_end_is_waited_for() {
    let place = Place::new();
    let lock = place.lock();
    assert_eq!(place.start(&[]), 100);
    assert_eq!(place.act("--reload", &[]), 101);
    assert_eq!(place.act("--check", &[]), 0);
    assert_eq!(place.act("--stop", &["--timeout", "0.1"]), 102);
    let mut stop = place.control("--stop").spawn().unwrap();
    // When it has the guard, it sleeps only between two looks at the lock.
    eventually("it waits for the lock", || {
        let guard = File::open(place.path("x.lock")).unwrap();
        flock(&guard, FlockOperation::NonBlockingLockShared).is_err().then_some(())?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", stop.id())).unwrap();
        stat.contains(") S ").then_some(())
    });
    assert!(stop.try_wait().unwrap().is_none());
    drop(lock);
    assert_eq!(stop.wait().unwrap().code(), Some(0));
}

/// The process in the PID file is gone, or another one; somebody else has the lock.
#[test]
fn who_does_not_hold_the_lock_is_not_signalled() {
    let place = Place::new();
    let mut lock = place.lock();
    let mut bystander = Command::new("sleep").arg("100").spawn().unwrap();
    lock.write_all(format!("{}\n", bystander.id()).as_bytes()).unwrap();
    for action in ["--stop", "--reload"] {
        let finished = finish(&mut place.control(action));
        assert_eq!(finished.code, Some(102));
        assert!(finished.stderr.contains("does not hold the lock"), "{finished:?}");
    }
    assert!(bystander.try_wait().unwrap().is_none());
    // One that has ended needs no signal, nor does it have files, even if nobody
    // has waited for it.
    bystander.kill().unwrap();
    eventually("it is a zombie", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", bystander.id())).unwrap();
        stat.contains(") Z ").then_some(())
    });
    let finished = finish(place.control("--stop").args(["--timeout", "0.1"]));
    assert!(finished.stderr.contains("not within 100ms"), "{finished:?}");
    assert_eq!(place.act("--reload", &[]), 101);
    bystander.wait().unwrap();
    // LibUCW's waits as well, and for ever.
    assert_eq!(place.act("--stop", &["--timeout", "0.1"]), 102);
    assert_eq!(place.act("--reload", &[]), 101);
}

/// A process, of another user perhaps, with this as stdin.
fn bystander(place: &Place, stdin: File, user: Option<u32>) -> Child {
    let mut command = Command::new("sleep");
    command.arg("100").stdin(stdin);
    if let Some(user) = user {
        command.uid(user).gid(user);
    }
    let child = command.spawn().unwrap();
    place.write(format!("{}\n", child.id()));
    child
}

/// Somebody looks into the file, or has it open otherwise, and somebody else holds the lock.
#[test]
fn to_have_the_pid_file_open_is_not_to_hold_its_lock() {
    let place = Place::new();
    place.write("");
    let open = || File::open(place.pid_file()).unwrap();
    let lock_shared = || {
        let file = open();
        flock(&file, FlockOperation::LockShared).unwrap();
        file
    };
    // Everybody who can read it can lock it.
    let lock_unwritable = || {
        let file = open();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        file
    };
    let write = || File::options().append(true).open(place.pid_file()).unwrap();
    type Make<'a> = &'a dyn Fn() -> File;
    let cases: [(Make<'_>, Make<'_>); 4] = [
        (&open, &lock_unwritable),
        (&write, &lock_unwritable),
        (&open, &lock_shared),
        (&lock_unwritable, &open),
    ];
    for (case, (theirs, ours)) in cases.into_iter().enumerate() {
        let theirs = theirs();
        let ours = ours();
        let mut bystander = bystander(&place, theirs, None);
        for action in ["--stop", "--reload"] {
            let finished = finish(place.control(action).args(["--timeout", "5"]));
            // A shared lock is nobody's who runs.
            let expected = match (case, action) {
                (2, "--stop") => 103,
                (2, _) => 101,
                _ => 102,
            };
            assert_eq!(finished.code, Some(expected), "{case} {action}: {finished:?}");
            let told = finished.stderr.contains("does not hold the lock of the PID file");
            assert_eq!(told, expected == 102, "{case} {action}: {finished:?}");
        }
        assert!(bystander.try_wait().unwrap().is_none(), "{case}: it was signalled");
        bystander.kill().unwrap();
        bystander.wait().unwrap();
        drop(ours);
    }
    let mut daemon = bystander(&place, place.lock(), None);
    assert_eq!(place.act("--reload", &["--signal", "CONT"]), 0);
    let mut stop = place.control("--stop").spawn().unwrap();
    daemon.wait().unwrap();
    assert_eq!(stop.wait().unwrap().code(), Some(0));
}

/// Another user may write any process id there, and even hand the lock to
/// somebody; but may signal his own processes only.
#[test]
fn the_pid_file_of_another_user_is_good_for_his_processes_only() {
    const OTHER: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        let test = "the_pid_file_of_another_user_is_good_for_his_processes_only";
        return skip("root", test, "this is not root");
    }
    let place = Place::new();
    place.write("");
    chown(place.pid_file(), Some(OTHER), Some(OTHER)).unwrap();
    let mut root = bystander(&place, place.lock(), None);
    assert_eq!(place.act("--check", &[]), 0);
    assert_eq!(place.start(&[]), 100);
    for action in ["--stop", "--reload"] {
        let finished = finish(place.control(action).args(["--timeout", "5"]));
        assert_eq!(finished.code, Some(102), "{action}: {finished:?}");
        assert!(finished.stderr.contains("the PID file belongs to another user"), "{finished:?}");
    }
    assert!(root.try_wait().unwrap().is_none(), "it was signalled");
    root.kill().unwrap();
    root.wait().unwrap();
    // The file of root is good for those of others.
    for owner in [0, OTHER] {
        chown(place.pid_file(), Some(owner), Some(owner)).unwrap();
        let mut daemon = bystander(&place, place.lock(), Some(OTHER));
        let mut stop = place.control("--stop").spawn().unwrap();
        let status = ns::wait(&mut daemon, PATIENCE).expect("it was not signalled");
        assert_eq!(status.signal(), Some(libc::SIGTERM));
        assert_eq!(stop.wait().unwrap().code(), Some(0));
    }
}

/// The file that others can write, too, and one that is also somewhere else.
#[test]
fn a_pid_file_that_others_have_is_refused() {
    let place = Place::new();
    assert_eq!(place.start(&[]), 0);
    let pid = place.pid();
    let refused = |why: &str| {
        for action in ["--stop", "--reload", "--check"] {
            let finished = finish(&mut place.control(action));
            assert_eq!(finished.code, Some(102), "{action}: {finished:?}");
            let told = format!("cannot use PID file {}: {why}\n", place.pid_file().display());
            assert!(finished.stderr.ends_with(&told), "{finished:?}");
        }
        assert_eq!(place.start(&[]), 102);
        assert_eq!(place.pid(), pid);
    };
    fs::hard_link(place.pid_file(), place.path("other")).unwrap();
    refused("it is a link, or has one");
    fs::remove_file(place.path("other")).unwrap();
    let mode = |mode| fs::set_permissions(place.pid_file(), fs::Permissions::from_mode(mode));
    mode(0o646).unwrap();
    refused("others can write it");
    mode(0o644).unwrap();
    assert_eq!(place.act("--stop", &[]), 0);
}

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

#[test]
fn a_stop_may_be_given_up_or_enforced() {
    if program("flock").is_none() {
        return skip("tools", "a_stop_may_be_given_up_or_enforced", "no flock");
    }
    let place = Place::new();
    start_stubborn(&place);
    let begun = Instant::now();
    assert_eq!(place.act("--stop", &["--timeout", "0.3"]), 102);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!(place.act("--check", &[]), 0);
    assert_eq!(place.act("--stop", &["--kill-after", "0.3", "--timeout", "30"]), 0);
    assert!(begun.elapsed() >= Duration::from_millis(600));
    // It could not empty its file, but it was stopped.
    assert_eq!(place.act("--check", &[]), 101);
}

/// A process that it has forked has inherited that: it cannot be ended for sure.
#[test]
fn a_lock_that_outlives_the_daemon_is_told() {
    if program("flock").is_none() {
        return skip("tools", "a_lock_that_outlives_the_daemon_is_told", "no flock");
    }
    let place = Place::new();
    let script = "exec 9>>$0; flock -x 9 || exit 1; sleep 100 & echo $$ >$0; wait";
    let mut command = Command::new("sh");
    let mut daemon = command.arg("-c").arg(script).arg(place.pid_file()).spawn().unwrap();
    eventually("it runs", || place.text("x.pid").ends_with('\n').then_some(()));
    let stop = finish(place.control("--stop").args(["--kill-after", "0.1"]));
    assert_eq!(stop.code, Some(102), "{stop:?}");
    let told = format!("process {} has ended, but others hold its lock\n", daemon.id());
    assert!(stop.stderr.ends_with(&told), "{stop:?}");
    daemon.wait().unwrap();
    // Nobody knows who it is.
    let place = Place::new();
    let _lock = place.lock();
    let stop = finish(place.control("--stop").args(["--kill-after", "0.1"]));
    assert_eq!(stop.code, Some(102), "{stop:?}");
    assert!(stop.stderr.ends_with("it has no process id any more, but holds its lock\n"));
}

#[test]
fn signals_have_names_and_numbers() {
    for signal in ["KILL", "SIGKILL", "9"] {
        let place = Place::new();
        assert_eq!(place.start(&[]), 0);
        assert_eq!(place.act("--stop", &["--signal", signal]), 0);
        assert_eq!(place.act("--check", &[]), 101);
    }
    let place = Place::new();
    let log = place.path("log");
    assert_eq!(place.start(&["--log-file", log.to_str().unwrap()]), 0);
    assert_eq!(place.act("--reload", &["--signal", "USR1"]), 0);
    eventually("USR1 came", || place.text("log").contains("SIGUSR1 from").then_some(()));
    assert_eq!(place.act("--reload", &[]), 0);
    eventually("HUP came", || place.text("log").contains("SIGHUP from").then_some(()));
}

/// They end who does not handle them.
#[test]
fn real_time_signals_have_names_and_numbers() {
    for (signal, number) in
        [("34", 34), ("64", 64), ("RTMIN", 34), ("RTMIN+1", 35), ("SIGRTMAX", 64), ("RTMAX-1", 63)]
    {
        let place = Place::new();
        let mut daemon = bystander(&place, place.lock(), None);
        let mut stop = place.control("--stop").args(["--signal", signal]).spawn().unwrap();
        let status = ns::wait(&mut daemon, PATIENCE).expect("it was not signalled");
        assert_eq!(status.signal(), Some(number), "{signal}");
        assert_eq!(stop.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn the_guard_lets_one_act_at_a_time() {
    let place = Place::new();
    assert_eq!(place.act("--check", &[]), 101);
    let guard = place.path("x.lock");
    assert_eq!(fs::metadata(&guard).unwrap().permissions().mode() & 0o7777, 0o600);
    let held = File::open(&guard).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    for action in ["--check", "--stop", "--reload"] {
        assert_eq!(place.act(action, &["--timeout", "0.1"]), 102);
    }
    assert_eq!(place.start_program(&["--timeout", "0.1"], &place.daemon(&[])), 102);
    // Another one is another matter.
    let other = place.path("other");
    assert_eq!(place.act("--check", &["--guard-file", other.to_str().unwrap()]), 101);
    let mut check = place.control("--check").spawn().unwrap();
    drop(held);
    assert_eq!(check.wait().unwrap().code(), Some(101));
}

#[test]
fn files_that_cannot_be_used() {
    ns::alone(|| {
        let place = Place::new();
        let target = place.path("target");
        fs::write(&target, "1\n").unwrap();
        symlink(&target, place.pid_file()).unwrap();
        assert_eq!(place.act("--check", &[]), 102);
        assert_eq!(place.start(&[]), 102);
        fs::remove_file(place.pid_file()).unwrap();
        fs::remove_file(place.path("x.lock")).unwrap();
        symlink(&target, place.path("x.lock")).unwrap();
        assert_eq!(place.act("--check", &[]), 102);
        fs::remove_file(place.path("x.lock")).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"1\n");

        // Without permission; root has it always.
        let root = rustix::process::geteuid().is_root();
        if root && program("setpriv").is_none() {
            return skip("tools", "files_that_cannot_be_used", "no setpriv");
        }
        // plugd itself may be where only root comes.
        let copy = place.path("plugd");
        fs::copy(PLUGD, &copy).unwrap();
        let unprivileged = |action: &str| {
            let control = place.control(action);
            let mut command = Command::new(if root { "setpriv" } else { "env" });
            if root {
                command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
            }
            finish(command.arg(&copy).args(control.get_args())).code.unwrap()
        };
        let mode = |file: &str, mode| {
            fs::set_permissions(place.path(file), fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(".", 0o755);
        assert_eq!(place.start(&[]), 0);
        assert_eq!(place.act("--check", &[]), 0);
        if root {
            // The guard is root's.
            assert_eq!(unprivileged("--check"), 102);
            chown(place.path("x.lock"), Some(0), Some(65534)).unwrap();
            mode("x.lock", 0o660);
            assert_eq!(unprivileged("--check"), 0);
            assert_eq!(unprivileged("--stop"), 102);
            assert_eq!(unprivileged("--reload"), 102);
        }
        mode("x.pid", 0o000);
        assert_eq!(unprivileged("--check"), 102);
        mode("x.pid", 0o644);
        assert_eq!(place.act("--stop", &[]), 0);
        fs::remove_file(place.path("x.lock")).unwrap();
        mode(".", 0o555);
        assert_eq!(unprivileged("--check"), 102);
        mode(".", 0o700);
    });
}

/// Who waits for it must not act beside the one who has locked its successor.
#[test]
fn a_guard_that_was_removed_guards_nothing() {
    for options in [&[][..], &["--timeout", "100"]] {
        let place = Place::new();
        let guard = place.path("x.lock");
        assert_eq!(place.act("--check", &[]), 101);
        let lock = || {
            let file =
                File::options().write(true).create(true).truncate(true).open(&guard).unwrap();
            flock(&file, FlockOperation::LockExclusive).unwrap();
            file
        };
        let first = lock();
        let mut check = place.control("--check").args(options).spawn().unwrap();
        let mut waits_for = |file: &File| {
            let inode = file.metadata().unwrap().ino();
            eventually("it waits for the guard", || {
                assert_eq!(check.try_wait().unwrap(), None, "it has not waited");
                let fds = fs::read_dir(format!("/proc/{}/fd", check.id())).unwrap();
                let mut open = fds.flatten().filter_map(|fd| fs::metadata(fd.path()).ok());
                open.any(|open| open.ino() == inode).then_some(())
            });
        };
        waits_for(&first);
        fs::remove_file(&guard).unwrap();
        let second = lock();
        drop(first);
        waits_for(&second);
        drop(second);
        assert_eq!(check.wait().unwrap().code(), Some(101));
    }
}

/// Its lock would be taken for the daemon's, and the action wait for itself.
#[test]
fn the_pid_file_is_no_guard() {
    let place = Place::new();
    symlink(".", place.path("here")).unwrap();
    let guard = place.path("here/x.pid");
    for action in ["--check", "--stop"] {
        let mut control = place.control(action);
        let finished = finish(control.arg("--guard-file").arg(&guard));
        assert_eq!(finished.code, Some(102), "{finished:?}");
        let told = format!("{}: it is the PID file\n", guard.display());
        assert!(finished.stderr.ends_with(&told), "{finished:?}");
    }
}

/// Whoever can write the guard can do so for others, and lock it for ever.
#[test]
fn a_guard_that_is_not_ours_is_refused() {
    let place = Place::new();
    let guard = place.path("x.lock");
    let refused = |why: &str| {
        let finished = finish(&mut place.control("--check"));
        assert_eq!(finished.code, Some(102), "{finished:?}");
        assert!(finished.stderr.ends_with(&format!("x.lock: {why}\n")), "{finished:?}");
    };
    fs::write(&guard, "").unwrap();
    fs::set_permissions(&guard, fs::Permissions::from_mode(0o622)).unwrap();
    refused("others can write it");
    fs::set_permissions(&guard, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(place.act("--check", &[]), 101);
    fs::hard_link(&guard, place.path("other")).unwrap();
    refused("it is a link, or has one");
    fs::remove_file(place.path("other")).unwrap();
    if !rustix::process::geteuid().is_root() {
        return skip("root", "a_guard_that_is_not_ours_is_refused", "this is not root");
    }
    chown(&guard, Some(65534), None).unwrap();
    refused("it belongs to another user");
}

/// Where others could replace its files, or lead us to what is not ours.
#[test]
fn a_directory_that_is_not_ours_is_refused() {
    const OTHER: Option<u32> = Some(65534);
    const ROOT: Option<u32> = Some(0);
    if !rustix::process::geteuid().is_root() {
        let test = "a_directory_that_is_not_ours_is_refused";
        return skip("root", test, "this is not root");
    }
    let outside = Place::new();
    let place = Place::new();
    let (link, guard) = (outside.path("link"), outside.path("guard"));
    let both = |pid_file: &Path, expected: Option<&str>| {
        let daemon = place.daemon(&[]);
        let mut command = Command::new(&daemon[0]);
        let words = daemon.iter().skip(1).map(|word| match Path::new(word) {
            path if path == place.pid_file() => pid_file,
            word => word,
        });
        let launched = finish(command.args(words));
        let check = |options: &[&Path]| {
            let mut command = Command::new(PLUGD);
            command.args(["daemon-control", "--check", "--pid-file"]).arg(pid_file);
            finish(command.args(options))
        };
        let Some(why) = expected else {
            assert_eq!(launched.code, Some(0), "{launched:?}");
            assert_eq!(check(&[]).code, Some(0));
            assert_eq!(place.act("--stop", &[]), 0);
            return;
        };
        assert_eq!(launched.code, Some(111), "{launched:?}");
        assert!(launched.stderr.ends_with(&format!("x.pid: {why}\n")), "{launched:?}");
        assert!(!place.pid_file().exists());
        let checked = check(&[]);
        assert_eq!(checked.code, Some(102), "{checked:?}");
        assert!(checked.stderr.ends_with(&format!("x.lock: {why}\n")), "{checked:?}");
        assert!(!place.path("x.lock").exists());
        // The PID file is somebody's who may have a daemon.
        assert_eq!(check(&[Path::new("--guard-file"), &guard]).code, Some(101));
    };
    let directory = |user, group, mode| {
        for file in ["x.pid", "x.lock"] {
            let _ = fs::remove_file(place.path(file));
        }
        chown(place.path("."), user, group).unwrap();
        fs::set_permissions(place.path("."), fs::Permissions::from_mode(mode)).unwrap();
    };
    let group = "another group can write its directory, which is not sticky";
    for (user, gid, mode, expected) in [
        (OTHER, OTHER, 0o755, Some("its directory belongs to another user")),
        (OTHER, ROOT, 0o1777, Some("its directory belongs to another user")),
        (ROOT, OTHER, 0o775, Some(group)),
        (ROOT, OTHER, 0o1775, None),
        (ROOT, ROOT, 0o775, None),
        (ROOT, ROOT, 0o1777, None),
    ] {
        directory(user, gid, mode);
        both(&place.pid_file(), expected);
    }
    directory(ROOT, ROOT, 0o755);
    symlink(place.path("."), &link).unwrap();
    lchown(&link, OTHER, OTHER).unwrap();
    let why = "a symbolic link on the way there belongs to another user";
    both(&link.join("x.pid"), Some(why));
    lchown(&link, ROOT, ROOT).unwrap();
    both(&link.join("x.pid"), None);

    // Nor a file that another group can write.
    chown(place.pid_file(), ROOT, OTHER).unwrap();
    fs::set_permissions(place.pid_file(), fs::Permissions::from_mode(0o664)).unwrap();
    let started = finish(place.control("--start").arg("--").args(place.daemon(&[])));
    assert_eq!(started.code, Some(102), "{started:?}");
    assert!(started.stderr.ends_with("x.pid: another group can write it\n"), "{started:?}");
    chown(place.pid_file(), ROOT, ROOT).unwrap();
    assert_eq!(place.start(&[]), 0);
}

#[test]
fn arguments() {
    let code = |arguments: &[&str]| {
        let mut command = Command::new(PLUGD);
        command.arg0("ucw-daemon-control").args(arguments);
        finish(&mut command)
    };
    let place = Place::new();
    let pid_file = place.pid_file();
    let pid_file = pid_file.to_str().unwrap();
    for wrong in [
        &[][..],
        &["--pid-file", pid_file],
        &["--check"],
        &["--start", "--pid-file", pid_file],
        &["--check", "--pid-file", pid_file, "x"],
        &["--check", "--stop", "--pid-file", pid_file],
        &["--check", "--pid-file", "x"],
        &["--check", "--pid-file", pid_file, "--guard-file", pid_file],
        &["--check", "--pid-file", pid_file, "--nope"],
        &["--stop", "--pid-file", pid_file, "--signal", "NOPE"],
        &["--stop", "--pid-file", pid_file, "--signal", "0"],
        &["--stop", "--pid-file", pid_file, "--signal", "32"],
        &["--stop", "--pid-file", pid_file, "--signal", "33"],
        &["--stop", "--pid-file", pid_file, "--signal", "65"],
        &["--stop", "--pid-file", pid_file, "--signal", "RTMIN+31"],
        &["--stop", "--pid-file", pid_file, "--timeout", "x"],
    ] {
        let finished = code(wrong);
        assert_eq!(finished.code, Some(1), "{wrong:?}");
        assert!(finished.stderr.contains("\nusage: daemon-control "), "{finished:?}");
    }
    for (odd, exit, told) in [
        (&["--\x1b"][..], 1, "there is no option --\\u{1b}\n"),
        (&["--check", "--pid-file", "/\x1b/x.pid"], 102, "lock guard file /\\u{1b}/x.lock: "),
    ] {
        let finished = code(odd);
        assert_eq!(finished.code, Some(exit), "{finished:?}");
        assert!(finished.stderr.contains(told), "{finished:?}");
    }
    assert_eq!(code(&["--check", "--pid-file", pid_file]).code, Some(101));
    assert_eq!(code(&["--check", &format!("--pid-file={pid_file}")]).code, Some(101));
    assert_eq!(code(&["--help"]).code, Some(0));
    assert!(code(&["--help"]).stdout.contains("--kill-after"));

    let mut command = Command::new(PLUGD);
    assert_eq!(finish(command.args(["ucw-daemon-control", "--check"])).code, Some(1));
    // A name without a slash in it, in the working directory.
    let mut command = Command::new(PLUGD);
    command.arg0("daemon-control").args(["--check", "--pid-file", "y.pid"]);
    assert_eq!(finish(command.current_dir(place.path("."))).code, Some(101));
    assert!(place.path("y.lock").exists());
}

#[test]
fn a_daemon_killed_is_stale_until_it_is_started() {
    let place = Place::new();
    assert_eq!(place.start(&[]), 0);
    kill(place.pid());
    assert_eq!(place.act("--check", &[]), 103);
    assert_eq!(place.act("--stop", &[]), 103);
    assert_eq!(place.act("--reload", &[]), 101);
    assert_eq!(place.start(&[]), 103);
    assert_eq!(place.act("--check", &[]), 0);
    assert_eq!(place.start(&[]), 100);
    assert_eq!(place.act("--stop", &[]), 0);
    assert_eq!(place.act("--check", &[]), 101);
}
