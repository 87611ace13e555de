//! `plugd run` as a daemon: the background, the PID file, user and groups, the log.

mod elsewhere;
mod library;
mod log;
mod managers;
mod pid_file;
mod users;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::pipe;

use crate::harness::background::{
    Place, finish, ignoring_children, kill, strace_is_missing, traced,
};
use crate::harness::daemon::field;
use crate::harness::inject::Injector;
use crate::harness::{PLUGD, eventually, ns, program, skip};

/// Runs such a command of [`Place::daemon`] without daemon-control.
fn launch(daemon: &[String]) -> (Option<i32>, String) {
    let finished = finish(Command::new(&daemon[0]).args(&daemon[1..]));
    (finished.code, finished.stderr)
}

fn status(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    field(&status, name).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn link(pid: i32, name: &str) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/{name}")).unwrap()
}

#[test]
fn it_leaves_everything_behind() {
    let place = Place::new();
    // What a shell script may have open for other purposes.
    let (mut reader, writer) = pipe().map(|(r, w)| (File::from(r), w)).unwrap();
    fcntl_setfd(&writer, FdFlags::empty()).unwrap();
    let log = place.path("log");
    let daemon = place.daemon(&["--log-file", log.to_str().unwrap()]);
    let mut command = Command::new("sh");
    command.arg("-c").arg("umask 077; exec \"$@\"").arg("sh").args(&daemon);
    let finished = finish(command.current_dir(place.path(".")));
    assert_eq!(finished.code, Some(0), "{finished:?}");
    drop(writer);

    let pid = place.pid();
    assert_eq!(place.text("x.pid"), format!("{pid}\n"));
    assert_eq!(link(pid, "cwd"), Path::new("/"));
    assert_eq!(status(pid, "Umask"), "0022");
    for fd in ["fd/0", "fd/1"] {
        assert_eq!(link(pid, fd), Path::new("/dev/null"));
    }
    assert_eq!(link(pid, "fd/2"), log);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let [_state, _parent, group, session, terminal, ..] = after_name[..] else { panic!("{stat}") };
    assert_eq!((group, session, terminal), (&*pid.to_string(), &*pid.to_string(), "0"));
    // It does not hold the pipe, which would keep a shell's $(...) waiting.
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);

    // stderr served until it was up, then the file.
    assert!(finished.stderr.contains("listening to the kernel's uevents"), "{finished:?}");
    assert!(!finished.stderr.contains("is up"), "{finished:?}");
    assert_eq!(place.act("--stop", &[]), 0);
    let log = place.text("log");
    assert!(log.starts_with(&format!("plugd: info: process {pid} is up\n")), "{log}");
    assert!(log.contains("\nplugd: info: stopped: "), "{log}");
    assert_eq!(place.text("x.pid"), "");
}

/// Whose exit tells that it is up: all signals are handled then.
#[test]
fn it_is_ready_when_the_command_exits() {
    for _ in 0..20 {
        let place = Place::new();
        assert_eq!(launch(&place.daemon(&[])).0, Some(0));
        let caught = u64::from_str_radix(&status(place.pid(), "SigCgt"), 16).unwrap();
        assert_ne!(caught & (1 << (libc::SIGTERM - 1)), 0);
        assert_eq!(place.act("--stop", &[]), 0);
        assert_eq!(place.act("--check", &[]), 101);
    }
}

#[test]
fn a_failed_setup_is_told_and_leaves_nothing() {
    let place = Place::new();
    let missing = place.path("none/log");
    for (options, code, text) in [
        (&["--fd", "77"][..], 111, "cannot receive from file descriptor 77"),
        (&["--log-file", missing.to_str().unwrap()], 111, "none/log"),
        (&["--user", "no such user"], 100, "there is no user 'no such user'"),
        (&["--group", "#x"], 100, "there is no group '#x'"),
        (&["--syslog", "--log-file", "x"], 100, "exclude each other"),
    ] {
        let (done, stderr) = launch(&place.daemon(options));
        assert_eq!(done, Some(code), "{stderr}");
        assert!(stderr.contains(text), "{stderr}");
        assert_eq!(place.holders(), [0_i32; 0]);
        assert_eq!(place.act("--check", &[]), 101);
    }
    // What another one has left that died is none of its business.
    place.write("1\n");
    assert_eq!(launch(&place.daemon(&["--log-file", missing.to_str().unwrap()])).0, Some(111));
    assert_eq!(place.text("x.pid"), "1\n");
    place.write("");
    let mut daemon = place.daemon(&[]);
    *daemon.last_mut().unwrap() = "no such program".into();
    let (done, stderr) = launch(&daemon);
    assert_eq!(done, Some(111), "{stderr}");
    assert!(stderr.contains("cannot run 'no such program'"), "{stderr}");
    assert_eq!(place.act("--check", &[]), 101);
}

/// What fails in the new process has the old one's exit code and stderr, too,
/// even if whoever started it ignores children, which is inherited.
#[test]
fn a_failure_after_the_fork_is_told_as_well() {
    if rustix::process::geteuid().is_root() && program("setpriv").is_none() {
        return skip("tools", "a_failure_after_the_fork_is_told_as_well", "no setpriv");
    }
    let place = Place::new();
    let daemon = place.daemon(&["--user", "#4242"]);
    let Some(ignoring) = ignoring_children() else {
        return skip("tools", "a_failure_after_the_fork_is_told_as_well", "env is too old");
    };
    for prefix in [&["env"][..], &ignoring] {
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]);
        if rustix::process::geteuid().is_root() {
            // Only CAP_SETUID and CAP_SETGID are missing.
            command.args(["setpriv", "--bounding-set=-setuid,-setgid", "--"]);
        }
        let finished = finish(command.args(&daemon));
        assert_eq!(finished.code, Some(111), "{finished:?}");
        assert!(finished.stderr.contains("cannot set the supplementary groups"), "{finished:?}");
        assert!(!finished.stderr.contains("cannot wait"), "{finished:?}");
        assert_eq!(place.act("--check", &[]), 101);
        assert_eq!(place.holders(), [0_i32; 0]);
    }
}

/// A limit of processes, say.
#[test]
fn a_fork_that_fails_is_told() {
    ns::alone(|| {
        if strace_is_missing("a_fork_that_fails_is_told") {
            return;
        }
        let place = Place::new();
        let mut words = traced(&place, "/^(clone3?|fork)$:error=EAGAIN", false);
        words.extend(place.daemon(&[]));
        let (code, stderr) = launch(&words);
        assert_eq!(code, Some(111), "{stderr}");
        let told = "plugd: fatal: cannot fork: Resource temporarily unavailable\n";
        assert!(stderr.ends_with(told), "{stderr}");
        assert_eq!(place.text("x.pid"), "");
        assert_eq!(place.act("--check", &[]), 101);
    });
}

/// What else is a daemon here takes the same options.
#[test]
fn under_other_names_too() {
    ns::inside(|| {
        let place = Place::new();
        let path = |name: &str| place.path(name).to_str().unwrap().to_owned();
        fs::create_dir(place.path("dev")).unwrap();
        fs::write(place.path("mdev.conf"), "-.* 0:0 660 *echo did $DEVPATH >&2\n").unwrap();
        let (dev, conf, log) = (path("dev"), path("mdev.conf"), path("log"));
        // The handler has its socket at 3, and mdevd-netlink writes to a file.
        let script = "exec netlink-datagram-socket-listen kobject-uevent 1 \"$@\" >out";
        let script = format!("PATH=.:$PATH; {script}");
        for name in [
            "netlink-datagram-socket-listen",
            "plug-and-play-event-handler",
            "mdevd",
            "mdevd-netlink",
        ] {
            symlink(PLUGD, place.path(name)).unwrap();
        }
        for (name, words, is_ready) in [
            ("plug-and-play-event-handler", &["sh", "-c", "echo did $DEVPATH >&2"][..], "did /x\n"),
            ("mdevd", &["--input=netlink", "-d", &dev, "-f", &conf], "did /x\n"),
            ("mdevd-netlink", &["-v4"], "/x"),
        ] {
            let mut command = Command::new("sh");
            command.args(["-c", &script, "sh", name, "--daemonize", "--pid-file"]);
            command.arg(place.pid_file()).args(["--log-file", &log]).args(words);
            let launched = finish(command.current_dir(place.path(".")));
            assert_eq!(launched.code, Some(0), "{name}: {launched:?}");
            assert_eq!(place.text("x.pid"), format!("{}\n", place.pid()));
            assert_eq!(link(place.pid(), "cwd").ends_with("dev"), name == "mdevd");
            Injector::new().event("add", "/x", &[]);
            eventually(name, || place.text("log").contains(is_ready).then_some(()));
            if name == "mdevd-netlink" {
                eventually(name, || place.text("out").contains("DEVPATH=/x\0").then_some(()));
            }
            assert_eq!(place.act("--stop", &[]), 0, "{name}");
            assert_eq!(place.text("x.pid"), "", "{name}");
            fs::remove_file(&log).unwrap();
        }
    });
}

/// In a new PID namespace its parent has no process id for it.
#[test]
fn it_may_begin_a_pid_namespace() {
    ns::inside_as_root(|| {
        let place = Place::new();
        let mut command = Command::new("unshare");
        let started = finish(command.arg("-p").args(place.daemon(&[])));
        assert_eq!(started.code, Some(0), "{started:?}");
        assert_eq!(place.act("--check", &[]), 0);
        assert_eq!(place.act("--stop", &[]), 0);
    });
}

/// Where that is still to be made.
#[test]
fn it_needs_no_dev_null() {
    ns::inside_as_root_with_mounts(|| {
        let place = Place::new();
        let (log, done) = (place.path("log"), place.path("done"));
        ns::mount(&["-t", "tmpfs", "tmpfs", "/dev"]);
        let mut daemon = place.daemon(&["--log-file", log.to_str().unwrap()]);
        daemon.pop();
        let script = "read x; echo $? >$0; echo text";
        daemon.extend(["sh", "-c", script, done.to_str().unwrap()].map(str::to_owned));
        // Without harness::finish, which opens it.
        let stdin = std::io::pipe().unwrap().0;
        let launched = Command::new(&daemon[0]).args(&daemon[1..]).stdin(stdin).status().unwrap();
        assert_eq!(launched.code(), Some(0));
        let pid = place.pid();
        for fd in ["fd/0", "fd/1"] {
            assert!(link(pid, fd).to_str().unwrap().starts_with("pipe:"), "{fd}");
        }
        Injector::new().event("add", "/x", &[]);
        eventually("it is at its end", || (place.text("done") == "1\n").then_some(()));
        kill(pid);
    });
}
