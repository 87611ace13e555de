//! What can go wrong between two system calls.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::background::{
    Place, at_once, duration, finish, keeping_capabilities, kill, strace_is_missing, traced,
};
use crate::harness::daemon::{Finished, field, suspend};
use crate::harness::{PATIENCE, PLUGD, eventually, ns, os, program, skip};

/// Waits until a program under strace has stopped. (It is also stopped, for a moment,
/// whenever strace has a look at it.)
fn wait_stopped(place: &Place) {
    eventually("it is stopped", || {
        place.text("trace").contains("--- stopped by SIGSTOP ---").then_some(())
    });
}

/// A process with this id, which is free and will be given out again soon.
fn decoy(pid: i32) -> Child {
    for _ in 0..10_000 {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        if i32::try_from(child.id()) == Ok(pid) {
            return child;
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    panic!("process id {pid} does not come round");
}

/// The process id that was given out last, in this namespace.
fn last_pid() -> u32 {
    let text = fs::read_to_string("/proc/sys/kernel/ns_last_pid").unwrap();
    text.trim().parse().unwrap()
}

/// The daemon dies, and its process id goes to somebody else, while
/// daemon-control is between two system calls.
#[test]
fn a_recycled_process_id_is_not_signalled() {
    ns::inside_with_few_pids(400, || {
        if strace_is_missing("a_recycled_process_id_is_not_signalled") {
            return;
        }
        // Those below are given out but once (RESERVED_PIDS in kernel/pid.c).
        while Command::new("true").status().is_ok() && last_pid() < 300 {}
        // Where it stops: after the lock was seen, with the process id not yet
        // read; after the pidfd was opened, of the daemon; after the second look.
        for (call, expected) in [
            ("flock:signal=STOP:when=2", [103, 101]),
            ("pidfd_open:signal=STOP", [103, 101]),
            ("flock:signal=STOP:when=3", [0, 101]),
        ] {
            for (action, expected) in ["--stop", "--reload"].into_iter().zip(expected) {
                let place = Place::new();
                assert_eq!(place.start(&[]), 0);
                let pid = place.pid();
                let words = traced(&place, call, false);
                let control = place.control(action);
                let mut child = Command::new(&words[0])
                    .args(&words[1..])
                    .arg(PLUGD)
                    .args(control.get_args())
                    .spawn()
                    .unwrap();
                wait_stopped(&place);
                kill(pid);
                let mut decoy = decoy(pid);
                kill_process(Pid::from_child(&child), Signal::CONT).unwrap();
                let status = ns::wait(&mut child, PATIENCE).expect("it does not end");
                assert_eq!(status.code(), Some(expected), "{action}, {call}");
                assert!(decoy.try_wait().unwrap().is_none(), "{action}, {call}: it was signalled");
                decoy.kill().unwrap();
                decoy.wait().unwrap();
            }
        }
    });
}

/// Many at once, while the few process ids there are go round and round.
/// Everybody who gets one may be hit by a signal that is not for him, and dies
/// of it.
#[test]
fn many_start_and_stop_it_at_once() {
    ns::inside_with_few_pids(700, || {
        let place = Place::new();
        let log = place.path("log");
        let options = ["--log-file", log.to_str().unwrap()];
        let end = Instant::now() + duration();
        at_once(60, |thread| {
            let mut random = thread.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            while Instant::now() < end {
                if thread >= 50 {
                    let decoy = Command::new("sleep").arg("0.02").status().unwrap();
                    assert!(decoy.success(), "a decoy was hit: {decoy}");
                    continue;
                }
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                match random % 8 {
                    0..4 => assert!(matches!(place.start(&options), 0 | 100)),
                    4..7 => assert!(matches!(place.act("--stop", &[]), 0 | 100)),
                    _ => assert!(matches!(place.act("--reload", &[]), 0 | 101)),
                }
            }
        });
        assert!(matches!(place.act("--stop", &[]), 0 | 100));
        // Each daemon writes when it is up, and when it has stopped, all with
        // the lock in hand: were there ever two, they would not take turns.
        let log = place.text("log");
        let mut up = false;
        let mut lives = 0;
        for line in log.lines() {
            let (begins, ends) = (line.ends_with(" is up"), line.contains(": stopped: "));
            if begins || ends {
                assert_eq!(up, ends, "two at once:\n{log}");
                up = begins;
                lives += u32::from(begins);
            }
        }
        assert!(!up && lives > 10, "{lives} lives:\n{log}");
    });
}

/// Killed at any system call, the daemon or the one who starts it leaves a
/// state from which all goes on.
#[test]
fn a_start_may_be_killed_anywhere() {
    ns::alone(|| {
        if strace_is_missing("a_start_may_be_killed_anywhere") {
            return;
        }
        let calls = [
            // Before the fork.
            "openat:when=1",
            "flock",
            "pwrite64:when=1",
            "ftruncate",
            "socket",
            "bind",
            "socketpair",
            "unshare",
            // The parent after it.
            "clone",
            "pwrite64:when=2",
            "ftruncate:when=2",
            "exit_group",
            // Both of them, whoever comes first.
            "sendto",
            "recvfrom",
            // The daemon.
            "setsid",
            "umask",
            "chdir",
            "prctl",
            "ppoll",
            "epoll_create1",
            "pipe2",
            "prctl:when=2",
            "epoll_wait",
        ];
        for call in calls {
            let place = Place::new();
            let (name, when) = call.split_once(':').unwrap_or((call, "when=1"));
            let mut words = traced(&place, &format!("{name}:signal=KILL:{when}"), true);
            words.extend(place.daemon(&[]));
            let started = place.start_program(&["--timeout", "20"], &words);
            let parent_only = call == "exit_group";
            assert!(matches!(started, 0 | 102), "{call}: {started}");
            // Only when all is done already, and the parent does not tell.
            assert!(started == 102 || call == "epoll_wait", "{call}: {started}");
            eventually("nobody is about to end", || {
                let code = place.act("--check", &[]);
                matches!((code, parent_only), (101 | 103, _) | (0, true)).then_some(())
            });
            let stopped = place.act("--stop", &["--timeout", "20"]);
            assert!(matches!(stopped, 0 | 100 | 103), "{call}: {stopped}");
            eventually("nobody is left", || place.holders().is_empty().then_some(()));
            let started = place.start(&[]);
            assert!(matches!(started, 0 | 103), "{call}: {started}");
            assert_eq!(place.act("--check", &[]), 0, "{call}");
            assert_eq!(place.act("--stop", &[]), 0, "{call}");
            assert_eq!(place.act("--check", &[]), 101, "{call}");
        }
    });
}

/// So does daemon-control.
#[test]
fn control_may_be_killed_anywhere() {
    ns::alone(|| {
        if strace_is_missing("control_may_be_killed_anywhere") {
            return;
        }
        // What the daemon is when it is to be acted on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        enum Daemon {
            None,
            Running,
            /// It does not end before the test lets it.
            Suspended,
        }
        const STOP: &[&str] = &["--stop"];
        const KILL: &[&str] = &["--stop", "--signal", "KILL"];
        // To start it, it locks the guard, and looks when the daemon is there; to
        // stop it, it locks the guard, looks, looks again when it has a pidfd, asks
        // that whether it has ended, and at last waits. It empties the file of a daemon
        // that was killed. Last comes what is left: how the next --check ends.
        let cases = [
            (&["--start"][..], Daemon::None, "flock:when=1", 101),
            (&["--start"], Daemon::None, "flock:when=2", 0),
            (&["--start"], Daemon::None, "/^(clone3?|vfork)$:when=1", 101),
            (&["--start"], Daemon::None, "/^wait(4|id)$:when=1", 0),
            (STOP, Daemon::Running, "flock:when=1", 0),
            (STOP, Daemon::Running, "flock:when=2", 0),
            (STOP, Daemon::Running, "pidfd_open:when=1", 0),
            (STOP, Daemon::Running, "flock:when=3", 0),
            (STOP, Daemon::Running, "pidfd_send_signal:when=1", 0),
            (STOP, Daemon::Running, "flock:when=4", 101),
            (STOP, Daemon::Suspended, "ppoll:when=1", 0),
            (STOP, Daemon::Suspended, "ppoll:when=2", 101),
            (KILL, Daemon::Running, "ftruncate:when=1", 103),
        ];
        for (action, daemon, call, left) in cases {
            let place = Place::new();
            let mut control = place.control(action[0]);
            control.args(&action[1..]);
            match daemon {
                Daemon::None => _ = control.arg("--").args(place.daemon(&[])),
                Daemon::Running | Daemon::Suspended => assert_eq!(place.start(&[]), 0),
            }
            let suspended = (daemon == Daemon::Suspended).then(|| {
                let pid = Pid::from_raw(place.pid()).unwrap();
                suspend(pid);
                pid
            });
            let (name, when) = call.rsplit_once(':').unwrap();
            let words = traced(&place, &format!("{name}:signal=KILL:{when}"), false);
            let mut command = Command::new(&words[0]);
            command.args(&words[1..]).arg(PLUGD).args(control.get_args());
            let mut killed = command.spawn().unwrap();
            let status = ns::wait(&mut killed, PATIENCE).expect("it does not end");
            assert_eq!(status.signal(), Some(9), "{action:?} {call}: {status}");
            if let Some(pid) = suspended {
                assert_eq!(place.act("--check", &[]), 0);
                kill_process(pid, Signal::CONT).unwrap();
            }
            // Whatever it has left undone, the next one does.
            eventually("the daemon is here or gone", || {
                (place.act("--check", &[]) == left).then_some(())
            });
            assert!(matches!(place.act("--stop", &[]), 0 | 100 | 103), "{action:?} {call}");
            assert!(matches!(place.start(&[]), 0 | 103), "{action:?} {call}");
            assert_eq!(place.act("--stop", &[]), 0, "{action:?} {call}");
            assert_eq!(place.holders(), [0_i32; 0], "{action:?} {call}");
        }
    });
}

/// Neither a start without descriptors to spare leaves its command alone, nor is looked at
/// what else a process has open, which might have us wait for a server.
#[test]
fn what_cannot_be_watched_is_waited_for() {
    ns::alone(|| {
        if strace_is_missing("what_cannot_be_watched_is_waited_for") {
            return;
        }
        let place = Place::new();
        let under = |inject: &str, control: &Command| {
            let words = traced(&place, inject, false);
            let mut command = Command::new(&words[0]);
            finish(command.args(&words[1..]).arg(PLUGD).args(control.get_args()))
        };
        let mut start = place.control("--start");
        start.args(["--timeout", "20", "--"]).args(place.daemon(&[]));
        let started = under("pidfd_open:error=EMFILE", &start);
        assert_eq!(started.code, Some(0), "{started:?}");
        let pid = place.pid();
        let looks = "/^(statx|newfstatat|stat)$";
        let reloaded = under(&format!("{looks}:delay_enter=0"), &place.control("--reload"));
        assert_eq!(reloaded.code, Some(0), "{reloaded:?}");
        let trace = place.text("trace");
        let looked = trace.matches(&format!("/proc/{pid}/fd/")).count();
        assert_eq!(looked, 1, "{trace}");
        assert_eq!(place.act("--stop", &[]), 0);
    });
}

/// A daemon that is started just when another one has ended must not find its
/// PID file locked by who has stopped that.
#[test]
fn a_pid_file_that_is_empty_already_is_left_alone() {
    ns::alone(|| {
        if strace_is_missing("a_pid_file_that_is_empty_already_is_left_alone") {
            return;
        }
        let place = Place::new();
        assert_eq!(place.start(&[]), 0);
        let control = place.control("--stop");
        let words = traced(&place, "flock:when=1000:error=EIO", false);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(PLUGD).args(control.get_args());
        assert_eq!(finish(&mut command).code, Some(0));
        let trace = place.text("trace");
        // The guard, and looks at the PID file.
        let exclusive = trace.matches("LOCK_EX").count();
        assert_eq!((exclusive, trace.contains("LOCK_SH")), (1, true), "{trace}");
    });
}

/// A system call that claims to have changed the user, but has not.
#[test]
fn privileges_that_were_not_dropped_are_noticed() {
    ns::inside_as_root(|| {
        if strace_is_missing("privileges_that_were_not_dropped_are_noticed") {
            return;
        }
        for (call, options, told) in [
            ("setresuid", ["--user", "#4242"], "cannot become another user or group: the ids are"),
            ("setresgid", ["--group", "#4242"], "cannot become another user or group: the ids are"),
            ("setgroups", ["--user", "daemon"], "cannot set the supplementary groups: they are"),
            ("capset", ["--user", "#4242"], "cannot become another user or group: capabilities"),
        ] {
            let place = Place::new();
            let mut words = traced(&place, &format!("{call}:retval=0"), true);
            if call == "capset" {
                let Some(prefix) = keeping_capabilities() else {
                    let test = "privileges_that_were_not_dropped_are_noticed";
                    return skip("tools", test, "no setpriv that can set securebits");
                };
                words.splice(0..0, prefix.map(str::to_owned));
            }
            words.extend(place.daemon(&options));
            let finished = finish(Command::new(&words[0]).args(&words[1..]));
            assert_eq!(finished.code, Some(111), "{call}: {finished:?}");
            assert!(finished.stderr.contains(told), "{call}: {finished:?}");
            assert_eq!(place.act("--check", &[]), 101, "{call}");
        }
    });
}

/// It may be signalled as soon as it has a process id: whatever it will handle waits
/// until it does.
#[test]
fn a_signal_before_it_is_ready_ends_nothing() {
    if program("strace").is_none() || strace_is_missing("a_signal_before_it_is_ready_ends_nothing")
    {
        return;
    }
    for detached in [true, false] {
        let place = Place::new();
        let mut words = traced(&place, "epoll_create1:signal=STOP", true);
        words.extend(place.daemon(&["--log-file", place.path("log").to_str().unwrap()]));
        words.retain(|word| detached || word != "--daemonize");
        let mut launched = Command::new(&words[0]).args(&words[1..]).spawn().unwrap();
        wait_stopped(&place);
        let pid = Pid::from_raw(place.pid()).unwrap();
        for signal in ["HUP", "USR1", "ALRM"] {
            assert_eq!(place.act("--reload", &["--signal", signal]), 0, "{signal}");
        }
        kill_process(pid, Signal::CONT).unwrap();
        if detached {
            let status = ns::wait(&mut launched, PATIENCE).expect("it does not end");
            assert!(status.success(), "{status}");
        }
        for signal in ["SIGHUP", "SIGUSR1", "SIGALRM"] {
            let told = format!("{signal} from ");
            eventually(&told, || place.text("log").contains(&told).then_some(()));
        }
        assert_eq!(place.act("--check", &[]), 0, "{detached}");
        let mut stop = place.control("--stop").spawn().unwrap();
        assert!(launched.wait().unwrap().success());
        assert_eq!(stop.wait().unwrap().code(), Some(0));
    }
}

/// Who waits for it has nothing to handle: it can be interrupted.
#[test]
fn a_start_may_be_interrupted() {
    if program("strace").is_none() || strace_is_missing("a_start_may_be_interrupted") {
        return;
    }
    let place = Place::new();
    let mut words = traced(&place, "epoll_create1:signal=STOP", true);
    words.extend(place.daemon(&[]));
    let mut command = Command::new(&words[0]);
    os::interruptible(command.args(&words[1..]));
    let mut parent = command.spawn().unwrap();
    wait_stopped(&place);
    let pid = Pid::from_raw(place.pid()).unwrap();
    kill_process(Pid::from_child(&parent), Signal::INT).unwrap();
    let status = ns::wait(&mut parent, PATIENCE).expect("it was not interrupted");
    assert_eq!(status.signal(), Some(libc::SIGINT));
    kill_process(pid, Signal::CONT).unwrap();
    eventually("the daemon ends", || place.holders().is_empty().then_some(()));
}

/// Whoever waits for the daemon dies: then the daemon, which is not ready yet,
/// does not stay behind without anybody knowing.
#[test]
fn a_daemon_without_its_parent_ends() {
    if program("strace").is_none() || strace_is_missing("a_daemon_without_its_parent_ends") {
        return;
    }
    let place = Place::new();
    // The daemon stops when it is about to install its signal handlers.
    let mut words = traced(&place, "epoll_create1:signal=STOP", true);
    words.extend(place.daemon(&[]));
    let mut parent = Command::new(&words[0]).args(&words[1..]).spawn().unwrap();
    let pid = eventually("it has a process id", || place.text("x.pid").trim().parse::<i32>().ok());
    wait_stopped(&place);
    parent.kill().unwrap();
    parent.wait().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::CONT).unwrap();
    eventually("it ends", || place.holders().is_empty().then_some(()));
    assert!(matches!(place.act("--check", &[]), 101 | 103));
}

/// The lock of a file that is not there any more would keep nobody from starting another.
#[test]
fn a_pid_file_that_is_removed_is_made_again() {
    if program("strace").is_none() || strace_is_missing("a_pid_file_that_is_removed_is_made_again")
    {
        return;
    }
    let place = Place::new();
    let mut words = traced(&place, "flock:signal=STOP:when=1", false);
    words.extend(place.daemon(&[]));
    let mut launched = Command::new(&words[0]).args(&words[1..]).spawn().unwrap();
    wait_stopped(&place);
    fs::remove_file(place.pid_file()).unwrap();
    kill_process(Pid::from_child(&launched), Signal::CONT).unwrap();
    let status = ns::wait(&mut launched, PATIENCE).expect("it does not end");
    assert!(status.success(), "{status}");
    assert_eq!(place.act("--check", &[]), 0);
    assert_eq!(place.act("--stop", &[]), 0);
}

/// One daemon follows another while that is being stopped, but not by this action.
#[test]
fn the_next_daemon_is_not_waited_for() {
    let place = Place::new();
    assert_eq!(place.start(&[]), 0);
    let pid = Pid::from_raw(place.pid()).unwrap();
    suspend(pid);
    let mut stop = place.control("--stop").stderr(Stdio::piped()).spawn().unwrap();
    eventually("it has its signal", || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let pending = u64::from_str_radix(field(&status, "ShdPnd").unwrap(), 16).unwrap();
        (pending & (1 << (libc::SIGTERM - 1)) != 0).then_some(())
    });
    place.write("1\n");
    ns::wait(&mut stop, PATIENCE).expect("it waits for the next one");
    let stop = stop.wait_with_output().unwrap();
    assert_eq!(stop.status.code(), Some(102));
    let told = "another one was started meanwhile, process 1\n";
    assert!(String::from_utf8_lossy(&stop.stderr).ends_with(told), "{stop:?}");
    kill_process(pid, Signal::CONT).unwrap();
    eventually("it ends", || place.holders().is_empty().then_some(()));
}

/// Whatever is read anew until it stays the same is not read for ever. What changes does
/// so while daemon-control is stopped, every time at the same system call.
#[test]
fn files_that_never_stay_the_same_are_given_up() {
    ns::alone(|| {
        if strace_is_missing("files_that_never_stay_the_same_are_given_up") {
            return;
        }
        // Beyond what the kernel gives out (PID_MAX_LIMIT in proc_sys_kernel(5)).
        let next_daemon = |place: &Place, nth: usize| place.write(format!("{}\n", 4_200_000 + nth));
        let next_guard = |place: &Place, _: usize| {
            fs::rename(place.path("x.lock"), place.path("former")).unwrap();
            fs::write(place.path("x.lock"), "").unwrap();
        };
        let lock = |place: &Place| {
            let lock = place.lock();
            next_daemon(place, 0);
            Some(lock)
        };
        type Case<'a> =
            (&'a str, &'a dyn Fn(&Place) -> Option<File>, &'a dyn Fn(&Place, usize), &'a str);
        let cases: [Case<'_>; 2] = [
            ("pidfd_open", &lock, &next_daemon, "cannot find the daemon: its PID file is changing"),
            ("flock", &|_| None, &next_guard, "cannot act: the guard file is being replaced"),
        ];
        for (call, begin, change, told) in cases {
            let place = Place::new();
            let _lock = begin(&place);
            let words = traced(&place, &format!("{call}:signal=STOP"), false);
            let mut control = place.control("--stop");
            control.args(["--timeout", "0.3"]);
            let mut child = Command::new(&words[0])
                .args(&words[1..])
                .arg(PLUGD)
                .args(control.get_args())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stops = 0;
            let status = eventually("it gives up", || {
                let trace = place.text("trace");
                if trace.matches("--- stopped by SIGSTOP ---").count() > stops {
                    stops += 1;
                    change(&place, stops);
                    kill_process(Pid::from_child(&child), Signal::CONT).unwrap();
                }
                child.try_wait().unwrap()
            });
            assert_eq!(status.code(), Some(102), "{call}");
            let stderr = child.wait_with_output().unwrap().stderr;
            let stderr = String::from_utf8(stderr).unwrap();
            assert!(stderr.contains(&format!("{told}: not within 300ms\n")), "{stderr}");
            assert!(stops > 1, "{call}: it was not looked at again");
        }
    });
}

/// Starts a daemon under strace(1): how that ends, and the trace.
fn trace(place: &Place, inject: &str, options: &[&str]) -> (Finished, String) {
    let mut words = traced(place, inject, true);
    words.extend(place.daemon(options));
    let finished = finish(Command::new(&words[0]).args(&words[1..]));
    (finished, place.text("trace"))
}

/// What the two processes do one after the other.
#[test]
fn the_steps_of_a_start_have_their_order() {
    ns::alone(|| {
        if strace_is_missing("the_steps_of_a_start_have_their_order") {
            return;
        }
        // The daemon goes on when its id is in the file, however long that takes.
        let place = Place::new();
        let inject = "/^(pwrite64|setsid)$:delay_enter=300000";
        let (started, seen) = trace(&place, inject, &[]);
        assert_eq!(started.code, Some(0), "{started:?}");
        let (written, alone) = (seen.rfind("pwrite64"), seen.find("setsid"));
        assert!(written.is_some() && written < alone, "{seen}");
        assert_eq!(place.act("--stop", &[]), 0);

        // The file is never empty meanwhile, as if nobody were there.
        let place = Place::new();
        let inject = "/^(pwrite64|ftruncate)$:delay_enter=0";
        let (started, seen) = trace(&place, inject, &[]);
        assert_eq!(started.code, Some(0), "{started:?}");
        let calls: Vec<bool> = seen.lines().map(|line| line.contains("pwrite64")).collect();
        assert_eq!(calls, [true, false, true, false], "{seen}");
        assert_eq!(place.act("--stop", &[]), 0);

        // stderr is given up before the parent goes, for whose end it is waited.
        let place = Place::new();
        let log = place.path("log");
        let inject = "/^(dup2|dup3|sendto|write)$:delay_enter=0";
        let (started, seen) = trace(&place, inject, &["--log-file", log.to_str().unwrap()]);
        assert_eq!(started.code, Some(0), "{started:?}");
        let given_up = seen.find(", 2)").or(seen.find(", 2, "));
        let told = seen.rfind("\"\\0\", 1");
        assert!(given_up.is_some() && given_up < told, "{seen}");
        assert_eq!(place.act("--stop", &[]), 0);
    });
}

/// It leaves an empty file, and says why.
#[test]
fn a_start_that_fails_after_the_fork_cleans_up() {
    ns::alone(|| {
        if strace_is_missing("a_start_that_fails_after_the_fork_cleans_up") {
            return;
        }
        for (inject, told) in [
            ("epoll_create1:signal=KILL", "the daemon was killed by SIGKILL before it was ready"),
            ("pwrite64:error=ENOSPC:when=2", "x.pid: No space left on device"),
        ] {
            let place = Place::new();
            let (started, _) = trace(&place, inject, &[]);
            assert_eq!(started.code, Some(111), "{inject}: {started:?}");
            assert!(started.stderr.contains(told), "{inject}: {started:?}");
            assert_eq!(place.text("x.pid"), "", "{inject}");
            assert_eq!(place.act("--check", &[]), 101, "{inject}");
        }
    });
}
