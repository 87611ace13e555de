//! daemon-control: what it does in each state of the PID file.

mod guard;
mod holder;
mod starting;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, mkfifoat, open};

use crate::harness::background::{Place, finish, kill};
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
