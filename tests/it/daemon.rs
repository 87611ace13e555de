//! `plugd run` as a daemon: the background, the PID file, user and groups, the log.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{CWD, Mode, OFlags, mkfifoat, open};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pipe::pipe;

use crate::harness::background::{
    Place, finish, ignoring_children, keeping_capabilities, kill, strace_is_missing, traced,
};
use crate::harness::daemon::field;
use crate::harness::inject::Injector;
use crate::harness::{PATIENCE, PLUGD, eventually, ns, program, skip, static_binary};

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

/// The limit of file sizes comes with a signal that ends who does not expect it.
#[test]
fn a_pid_file_that_must_not_grow_is_told() {
    let place = Place::new();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 0; exec \"$@\"", "sh"]).args(place.daemon(&[]));
    // To a pipe, as files have the limit.
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(111), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    let file = place.pid_file();
    let told = format!("plugd: fatal: cannot write PID file {}: File too large\n", file.display());
    assert!(stderr.ends_with(&told), "{stderr}");
    assert_eq!(place.act("--check", &[]), 101);
}

#[test]
fn there_is_only_one() {
    let place = Place::new();
    assert_eq!(launch(&place.daemon(&[])).0, Some(0));
    let text = place.text("x.pid");
    let (code, stderr) = launch(&place.daemon(&[]));
    assert_eq!(code, Some(111));
    let told = format!("already running with process id {}", text.trim());
    assert!(stderr.contains(&told), "{stderr}");
    assert_eq!(place.text("x.pid"), text);
    assert_eq!(place.act("--check", &[]), 0);
}

#[test]
fn pid_files_that_are_traps() {
    let place = Place::new();
    let target = place.path("target");
    fs::write(&target, "precious").unwrap();
    symlink(&target, place.pid_file()).unwrap();
    assert_eq!(launch(&place.daemon(&[])).0, Some(111));
    fs::remove_file(place.pid_file()).unwrap();
    fs::hard_link(&target, place.pid_file()).unwrap();
    assert_eq!(launch(&place.daemon(&[])).0, Some(111));
    fs::remove_file(place.pid_file()).unwrap();
    fs::create_dir(place.pid_file()).unwrap();
    assert_eq!(launch(&place.daemon(&[])).0, Some(111));
    fs::remove_dir(place.pid_file()).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    // What a daemon that died has left is none, whatever is in it.
    for text in [&b"rubbish\n"[..], b"1\n", &[b'1'; 1 << 20]] {
        place.write(text);
        assert_eq!(launch(&place.daemon(&[])).0, Some(0));
        assert_eq!(place.text("x.pid"), format!("{}\n", place.pid()));
        assert_eq!(place.act("--stop", &[]), 0);
    }
}

/// Without --daemonize the rest holds as well, for example under a supervisor.
#[test]
fn a_pid_file_in_the_foreground() {
    let place = Place::new();
    let mut words = place.daemon(&[]);
    words.retain(|word| word != "--daemonize");
    let mut daemon =
        Command::new(&words[0]).args(&words[1..]).stderr(Stdio::null()).spawn().unwrap();
    let text = format!("{}\n", daemon.id());
    eventually("its id is in the file", || (place.text("x.pid") == text).then_some(()));
    eventually("it handles SIGTERM", || {
        let caught = u64::from_str_radix(&status(place.pid(), "SigCgt"), 16).unwrap();
        (caught & (1 << (libc::SIGTERM - 1)) != 0).then_some(())
    });
    let stopping = place.control("--stop").spawn().unwrap();
    assert!(daemon.wait().unwrap().success());
    assert_eq!(stopping.wait_with_output().unwrap().status.code(), Some(0));
    assert_eq!(place.text("x.pid"), "");
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

/// A handler's name may be relative to where the daemon was started.
#[test]
fn the_handler_is_found_from_elsewhere() {
    let place = Place::new();
    let log = place.path("log");
    let (sender, receiver) = UnixDatagram::pair().unwrap();
    fs::write(place.path("handler"), "#!/bin/sh\necho did $ACTION >&2\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(place.path("handler"), mode).unwrap();
    let mut daemon = place.daemon(&["--fd", "3", "--log-file", log.to_str().unwrap()]);
    *daemon.last_mut().unwrap() = "./handler".into();
    let mut command = Command::new("sh");
    command.arg("-c").arg("exec \"$@\" 3<&0").arg("sh").args(&daemon);
    let stdin = receiver.as_fd().try_clone_to_owned().unwrap();
    let mut launcher =
        command.current_dir(place.path(".")).stdin(Stdio::from(stdin)).spawn().unwrap();
    assert!(launcher.wait().unwrap().success());
    sender.send(b"add@/x\0ACTION=add\0DEVPATH=/x\0").unwrap();
    eventually("it was run", || place.text("log").contains("did add\n").then_some(()));
}

/// So may the file of rules, which is read again on SIGHUP.
#[test]
fn rules_are_found_from_elsewhere() {
    let place = Place::new();
    fs::write(place.path("mdev.conf"), "null 0:0 0666\n").unwrap();
    fs::create_dir(place.path("dev")).unwrap();
    let log = place.path("log");
    let options = ["--conf", "mdev.conf", "--dev", "dev", "--log-file", log.to_str().unwrap()];
    let mut daemon = place.daemon(&options);
    daemon.pop();
    let mut command = Command::new(&daemon[0]);
    let finished = finish(command.args(&daemon[1..]).current_dir(place.path(".")));
    assert_eq!(finished.code, Some(0), "{finished:?}");
    fs::write(place.path("mdev.conf"), "null 0:0 wrong\n").unwrap();
    assert_eq!(place.act("--reload", &[]), 0);
    let told = format!("{}:1:", place.path("mdev.conf").display());
    eventually("the mistake is told", || place.text("log").contains(&told).then_some(()));
}

/// So may the control socket, and where the devices are that plugd is asked about.
#[test]
fn it_is_asked_from_elsewhere() {
    let place = Place::new();
    fs::write(place.path("mdev.conf"), "").unwrap();
    fs::create_dir(place.path("dev")).unwrap();
    fs::write(place.path("dev/node"), "").unwrap();
    // Is not the socket, though it is called like it and in the working directory.
    fs::write(place.path("dev/socket"), "precious").unwrap();
    let mut daemon = place.daemon(&["--control", "socket", "--conf", "mdev.conf", "--dev", "dev"]);
    daemon.pop();
    let mut command = Command::new(&daemon[0]);
    let finished = finish(command.args(&daemon[1..]).current_dir(place.path(".")));
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let socket = place.path("socket");
    let ask =
        |words: &[&str]| finish(Command::new(PLUGD).args(words).arg("--control").arg(&socket)).code;
    assert_eq!(ask(&["wait", "--timeout", "0", "/dev/node"]), Some(0));
    assert_eq!(ask(&["wait", "--timeout", "0", "/dev/socket/x"]), Some(1));
    assert_eq!(place.act("--stop", &[]), 0);
    assert!(!socket.exists(), "it was left behind");
    assert_eq!(place.text("dev/socket"), "precious");
}

/// The control socket is removed at the end, but nothing that is there instead.
#[test]
fn what_has_replaced_the_control_socket_stays() {
    let place = Place::new();
    let socket = place.path("socket");
    let daemon = place.daemon(&["--control", socket.to_str().unwrap()]);
    assert_eq!(launch(&daemon).0, Some(0));
    fs::rename(&socket, place.path("elsewhere")).unwrap();
    fs::write(&socket, "precious").unwrap();
    assert_eq!(place.act("--stop", &[]), 0);
    assert_eq!(place.text("socket"), "precious");
}

/// User and group, with files of our own instead of the machine's.
#[test]
fn users_and_groups() {
    ns::inside_as_root_with_mounts(|| {
        let place = Place::new();
        let members: String = (0..40).map(|n| format!("g{n}:x:{}:bob,ann\n", 2000 + n)).collect();
        fs::write(place.path("passwd"), "root:x:0:0::/:\nann:x:1001:1002::/:\n").unwrap();
        fs::write(place.path("group"), format!("root:x:0:\nann:x:1002:\n{members}")).unwrap();
        for file in ["passwd", "group"] {
            mount(&["--bind", place.path(file).to_str().unwrap(), &format!("/etc/{file}")]);
        }
        let forty: String = (2000..2040).map(|gid| format!(" {gid}")).collect();
        for (options, uid, gid, groups) in [
            (&["--user", "ann"][..], 1001, 1002, &*format!("1002{forty}")),
            (&["--user", "ann", "--group", "g7"], 1001, 2007, ""),
            (&["--user", "#1001"], 1001, 1002, ""),
            // Unknown: there is no group to be had from /etc/passwd.
            (&["--user", "#4242"], 4242, 0, ""),
            (&["--user", "#4242", "--group", "#4243"], 4242, 4243, ""),
            (&["--group", "g7"], 0, 2007, ""),
        ] {
            assert_eq!(place.start(options), 0, "{options:?}");
            let pid = place.pid();
            assert_eq!(status(pid, "Uid"), [uid.to_string().as_str(); 4].join(" "), "{options:?}");
            assert_eq!(status(pid, "Gid"), [gid.to_string().as_str(); 4].join(" "), "{options:?}");
            assert_eq!(status(pid, "Groups"), groups, "{options:?}");
            // It can empty its file, which is not its own.
            assert_eq!(place.act("--stop", &[]), 0);
            assert_eq!(place.text("x.pid"), "");
        }
    });
}

/// The kernel does not take them from who is root no more, if it was told not to.
#[test]
fn capabilities_go_with_the_user() {
    ns::inside_as_root(|| {
        let Some(prefix) = keeping_capabilities() else {
            let why = "no setpriv that can set securebits";
            return skip("tools", "capabilities_go_with_the_user", why);
        };
        for (user, keeps) in [("#4242", false), ("#0", true)] {
            let place = Place::new();
            let mut command = Command::new(prefix[0]);
            let daemon = place.daemon(&["--user", user]);
            let started = finish(command.args(&prefix[1..]).args(&daemon));
            assert_eq!(started.code, Some(0), "{started:?}");
            for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
                let any = u64::from_str_radix(&status(place.pid(), set), 16).unwrap() != 0;
                assert_eq!(any, keeps && set != "CapAmb", "{user} {set}");
            }
            assert_eq!(place.act("--stop", &[]), 0);
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
        mount(&["-t", "tmpfs", "tmpfs", "/dev"]);
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

/// It would have to wait until somebody reads there.
#[test]
fn a_log_that_nobody_reads_is_refused() {
    let place = Place::new();
    let log = place.path("log");
    mkfifoat(CWD, &log, Mode::RUSR | Mode::WUSR).unwrap();
    let daemon = place.daemon(&["--log-file", log.to_str().unwrap()]);
    let (code, stderr) = launch(&daemon);
    assert_eq!(code, Some(111), "{stderr}");
    let told = format!("plugd: fatal: cannot open {}: nobody reads from it\n", log.display());
    assert!(stderr.ends_with(&told), "{stderr}");
    assert_eq!(place.act("--check", &[]), 101);

    let reader = open(&log, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
    assert_eq!(launch(&daemon).0, Some(0));
    // It may be slow.
    let flags = fs::read_to_string(format!("/proc/{}/fdinfo/2", place.pid())).unwrap();
    let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
    let flags = OFlags::from_bits_retain(u32::from_str_radix(flags, 8).unwrap());
    assert!(!flags.contains(OFlags::NONBLOCK) && flags.contains(OFlags::APPEND), "{flags:?}");
    assert_eq!(place.act("--stop", &[]), 0);
    drop(reader);
}

fn mount(arguments: &[&str]) {
    let mounted = Command::new("mount").args(arguments).status().unwrap();
    assert!(mounted.success(), "mount {arguments:?}: {mounted}");
}

/// A static program resolves names where there is neither NSS nor a C library:
/// in a directory with nothing else.
#[test]
fn names_are_found_without_nss() {
    ns::inside_as_root_with_mounts(|| {
        let file = match static_binary() {
            Ok(file) => file,
            Err(why) => return skip("static", "names_are_found_without_nss", why),
        };
        let place = Place::new();
        let root = place.path("root");
        for directory in ["etc", "dev", "run"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::copy(&file, root.join("plugd")).unwrap();
        fs::write(root.join("dev/null"), "").unwrap();
        mount(&["--bind", "/dev/null", root.join("dev/null").to_str().unwrap()]);
        fs::write(root.join("etc/passwd"), "ann:x:1001:1002::/:\n").unwrap();
        fs::write(root.join("etc/group"), "video:x:44:ann\n").unwrap();
        let inside = |words: &[&str]| {
            let mut command = Command::new("chroot");
            let finished = finish(command.arg(&root).arg("/plugd").args(words));
            assert_eq!(finished.code, Some(0), "{finished:?}");
        };
        let daemon = [
            "run",
            "--control",
            "none",
            "--daemonize",
            "--pid-file",
            "/run/x.pid",
            "--user",
            "ann",
            "/plugd",
        ];
        inside(&daemon);
        let pid = place.text("root/run/x.pid").trim().parse().unwrap();
        assert_eq!(status(pid, "Uid"), "1001 1001 1001 1001");
        assert_eq!(status(pid, "Groups"), "44 1002");
        inside(&["daemon-control", "--stop", "--pid-file", "/run/x.pid"]);
        assert_eq!(place.text("root/run/x.pid"), "");
    });
}

/// A /dev with nothing but null in it.
fn own_dev(place: &Place) {
    let null = place.path("null");
    fs::write(&null, "").unwrap();
    mount(&["--bind", "/dev/null", null.to_str().unwrap()]);
    mount(&["-t", "tmpfs", "tmpfs", "/dev"]);
    fs::write("/dev/null", "").unwrap();
    mount(&["--bind", null.to_str().unwrap(), "/dev/null"]);
}

fn receive(log: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    log.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = log.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Then stderr is given up already.
#[test]
fn syslog_is_told_that_nobody_learns_that_it_is_ready() {
    ns::inside_as_root_with_mounts(|| {
        let place = Place::new();
        own_dev(&place);
        if strace_is_missing("syslog_is_told_that_nobody_learns_that_it_is_ready") {
            return;
        }
        let log = UnixDatagram::bind("/dev/log").unwrap();
        // By the first one the daemon watches its parent, by the last it lets it go.
        let mut words = traced(&place, "prctl:error=EPERM:when=2+", true);
        words.extend(place.daemon(&["--syslog"]));
        assert_eq!(launch(&words).0, Some(111));
        let told = receive(&log);
        assert!(told.contains("plugd: fatal: cannot forget the parent: "), "{told}");
        assert_eq!(place.act("--check", &[]), 101);
    });
}

#[test]
fn syslog_takes_over() {
    ns::inside_as_root_with_mounts(|| {
        let place = Place::new();
        own_dev(&place);
        let (code, stderr) = launch(&place.daemon(&["--syslog"]));
        assert_eq!(code, Some(111));
        assert!(stderr.contains("cannot connect to /dev/log"), "{stderr}");

        let log = UnixDatagram::bind("/dev/log").unwrap();
        let (code, stderr) = launch(&place.daemon(&["--syslog"]));
        assert_eq!(code, Some(0), "{stderr}");
        assert!(!stderr.contains("is up"), "{stderr}");
        let pid = place.pid();
        assert_eq!(link(pid, "fd/2"), Path::new("/dev/null"));
        let receive = || receive(&log);
        assert_eq!(receive(), format!("<30>plugd[{pid}]: info: process {pid} is up"));
        assert_eq!(place.act("--stop", &[]), 0);
        assert!(receive().contains("info: SIGTERM from pid"));
        assert!(receive().contains("info: stopped: "));
    });
}

/// A start-stop-daemon that is OpenRC's or, if not, dpkg's, in PATH or one of these
/// places.
fn start_stop_daemon(of_openrc: bool, places: &[PathBuf]) -> Option<PathBuf> {
    let name = "start-stop-daemon";
    let found = places.iter().filter(|path| path.exists()).cloned().chain(program(name));
    found.into_iter().find(|tool| {
        let version = finish(Command::new(tool).arg("--version")).stdout;
        version.contains("OpenRC") == of_openrc
    })
}

/// Others that manage daemons by PID files.
fn is_managed_by(start_stop_daemon: &Path) {
    let place = Place::new();
    let pid_file = place.pid_file();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(start_stop_daemon);
        command.env("RC_SVCNAME", "plugd").args(arguments).arg("--pidfile").arg(&pid_file);
        finish(&mut command)
    };
    let start = || {
        let mut command = Command::new(start_stop_daemon);
        let daemon = place.daemon(&[]);
        command.env("RC_SVCNAME", "plugd").args(["--start", "--exec", PLUGD, "--pidfile"]);
        finish(command.arg(&pid_file).arg("--").args(&daemon[1..]))
    };
    let started = start();
    assert_eq!(started.code, Some(0), "{started:?}");
    let pid = place.pid();
    assert_eq!(place.act("--check", &[]), 0);
    // Started again, either says that it runs already, in its own way.
    assert_ne!(start().code, None);
    assert_eq!(place.pid(), pid);
    let stopped = run(&["--stop", "--retry", "20"]);
    assert_eq!(stopped.code, Some(0), "{stopped:?}");
    assert_eq!(place.act("--check", &[]), 101);
    assert_eq!(place.holders(), [0_i32; 0]);
}

#[test]
fn start_stop_daemon_of_dpkg_manages_it() {
    match start_stop_daemon(false, &[]) {
        Some(tool) => is_managed_by(&tool),
        None => skip("tools", "start_stop_daemon_of_dpkg_manages_it", "it is not there"),
    }
}

/// Debian's openrc has none, as dpkg has it already.
#[test]
fn start_stop_daemon_of_openrc_manages_it() {
    let named = std::env::var_os("OPENRC_START_STOP_DAEMON").map(PathBuf::from);
    let usual = ["/sbin/start-stop-daemon", "/usr/sbin/start-stop-daemon"].map(PathBuf::from);
    let places: Vec<PathBuf> = named.into_iter().chain(usual).collect();
    match start_stop_daemon(true, &places) {
        Some(tool) => is_managed_by(&tool),
        None => skip(
            "openrc-start-stop-daemon",
            "start_stop_daemon_of_openrc_manages_it",
            "it is not there: name it in OPENRC_START_STOP_DAEMON",
        ),
    }
}

fn example(name: &str, test: &str) -> Option<PathBuf> {
    let example = Path::new(PLUGD).with_file_name("examples").join(name);
    if !example.exists() {
        skip("examples", test, "it was not built");
        return None;
    }
    Some(example)
}

/// It has no logger. What it aborts at comes between the fork and the moment when
/// it is ready.
#[test]
fn a_daemon_of_the_library_that_aborts_is_told_of() {
    const TEST: &str = "a_daemon_of_the_library_that_aborts_is_told_of";
    ns::alone(|| {
        let Some(example) = example("daemon", TEST) else { return };
        if strace_is_missing(TEST) {
            return;
        }
        let place = Place::new();
        let mut words = traced(&place, "prctl:signal=ABRT", true);
        words.extend([&example, &place.pid_file()].map(|path| path.to_str().unwrap().to_owned()));
        let (code, stderr) = launch(&words);
        assert_eq!(code, Some(111), "{stderr}");
        assert_eq!(stderr, "daemon: error: the daemon was killed by SIGABRT before it was ready\n");
        assert_eq!(place.act("--check", &[]), 101);
    });
}

#[test]
fn the_example_is_a_daemon() {
    let Some(example) = example("daemon", "the_example_is_a_daemon") else { return };
    let place = Place::new();
    let pid_file = place.pid_file();
    let daemon = [example.to_str().unwrap(), pid_file.to_str().unwrap()];
    assert_eq!(place.start_program(&[], &daemon), 0);
    assert_eq!(place.start_program(&[], &daemon), 100);
    assert_eq!(place.act("--stop", &[]), 0);
    assert_eq!(place.start_program(&[], &daemon), 0);
    kill(place.pid());
    assert_eq!(place.act("--check", &[]), 103);
    let finished = finish(Command::new(daemon[0]).arg("/nonexistent/x.pid"));
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("cannot lock PID file /nonexistent/x.pid"), "{finished:?}");
}

#[test]
fn the_example_of_control_needs_no_other_crate() {
    const TEST: &str = "the_example_of_control_needs_no_other_crate";
    let source = include_str!("../../examples/control.rs");
    for line in source.lines().filter(|line| line.starts_with("use ")) {
        assert!(line.starts_with("use std::") || line.starts_with("use plugd::"), "{line}");
    }
    let (Some(control), Some(daemon)) = (example("control", TEST), example("daemon", TEST)) else {
        return;
    };
    let place = Place::new();
    let act = |words: &[&str]| {
        finish(Command::new(&control).arg(place.pid_file()).args(words)).code.unwrap()
    };
    let start = [daemon.as_path(), &place.pid_file()].map(|path| path.to_str().unwrap().to_owned());
    let start = ["start", &start[0], &start[1]];
    assert_eq!(act(&["check"]), 101);
    assert_eq!(act(&start), 0);
    assert_eq!(act(&start), 100);
    assert_eq!(act(&["check"]), 0);
    assert_eq!(act(&["stop"]), 0);
    assert_eq!(act(&["stop"]), 100);
    assert_eq!(act(&["start", "true"]), 102);
    assert_eq!(act(&[]), 102);
}
