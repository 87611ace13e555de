//! daemon-control: what it does in each state of the PID file.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, mkfifoat, open};

use crate::harness::background::{Place, finish, ignoring_children, kill};
use crate::harness::{PLUGD, eventually, ns, program, skip};

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
/// LibUCW's ucw-daemon-control (6.5), which was run in the same states. It
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
    let states: [(&str, Make, [i32; 4]); 14] = [
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
        ("16 bytes", Box::new(unlocked(b"0123456789012345")), [102; 4]),
        ("1 MiB", Box::new(unlocked(&[b'1'; 1 << 20])), [102; 4]),
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
        ("locked, a line too many", Box::new(|place| locked(place, b"1\n1\n")), [102; 4]),
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
    assert!(launcher.wait().unwrap().success());
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
fn who_does_not_have_the_pid_file_open_is_not_signalled() {
    let place = Place::new();
    let mut lock = place.lock();
    let mut bystander = Command::new("sleep").arg("100").spawn().unwrap();
    lock.write_all(format!("{}\n", bystander.id()).as_bytes()).unwrap();
    for action in ["--stop", "--reload"] {
        let finished = finish(&mut place.control(action));
        assert_eq!(finished.code, Some(102));
        assert!(finished.stderr.contains("does not have the PID file open"), "{finished:?}");
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
