//! The world of a child: what it inherits, and what it is spared.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;

use rustix::net::SocketType;

use crate::harness::daemon::{Daemon, Plugd, field};
use crate::harness::inject::{Injector, uevent};
use crate::harness::{eventually, ns, unix};
use crate::listen::have;

/// The handler: a program that changes nothing of its world.
const SLEEP: [&str; 2] = ["sleep", "1000"];

/// The environment of a child that sleeps, each variable once.
fn environment(daemon: &Daemon) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let child = daemon.wait_for_child("sleep");
    // The kernel names the process before it has an environment (execve's way).
    let bytes = eventually("the child has an environment", || {
        Some(fs::read(format!("/proc/{child}/environ")).unwrap()).filter(|bytes| !bytes.is_empty())
    });
    let mut environment = BTreeMap::new();
    for variable in bytes.strip_suffix(b"\0").unwrap().split(|&b| b == 0) {
        let equals = variable.iter().position(|&b| b == b'=').unwrap();
        let (key, value) = (variable[..equals].to_vec(), variable[equals + 1..].to_vec());
        let twice = environment.insert(key, value);
        assert!(twice.is_none(), "twice: {}", variable.escape_ascii());
    }
    environment
}

fn text(environment: BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<String> {
    environment
        .iter()
        .map(|(key, value)| format!("{}={}", key.escape_ascii(), value.escape_ascii()))
        .collect()
}

/// Gives one event to `plugd`, and returns its child's environment.
fn after(plugd: Plugd, event: &[u8]) -> (Vec<String>, Daemon) {
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let daemon = plugd.fd(receiver, 3).args(SLEEP).start();
    unix::send(&sender, event);
    (text(environment(&daemon)), daemon)
}

#[test]
fn it_is_plugds_own_and_the_events() {
    let plugd = Plugd::run(&["--fd", "3"])
        .env("PATH", "/bin:/usr/bin")
        .env("TMP", "/tmp")
        .env("OWN", "kept")
        .env("ACTION", "mine")
        .env("PERL5LIB", "of the administrator");
    let event = uevent("add", "/devices/x", &["SUBSYSTEM=net", "EMPTY=", "A=b=c", "A=last"]);
    let (environment, _daemon) = after(plugd, &event);
    assert_eq!(
        environment,
        [
            "A=last",
            "ACTION=add",
            "DEVPATH=/devices/x",
            "EMPTY=",
            "HOME=/",
            "OWN=kept",
            "PATH=/bin:/usr/bin",
            "PERL5LIB=of the administrator",
            "SUBSYSTEM=net",
            "TMP=/tmp",
        ]
    );
}

#[test]
fn it_can_be_the_events_alone() {
    let plugd = Plugd::run(&["--fd", "3", "--clean-environment"]).env("OWN", "x").env("HOME", "/h");
    let (environment, _daemon) = after(plugd, b"add@/devices/x\0ACTION=add\0");
    assert_eq!(environment, ["ACTION=add", "HOME=/", "PATH=/sbin:/bin:/usr/sbin:/usr/bin"]);
}

#[test]
fn path_is_set_where_it_is_not() {
    let plugd = Plugd::run(&["--fd", "3"]).prelude("unset PATH TMP PWD OLDPWD");
    let (environment, _daemon) = after(plugd, b"add@/devices/x\0ACTION=add\0");
    assert_eq!(environment, ["ACTION=add", "HOME=/", "PATH=/sbin:/bin:/usr/sbin:/usr/bin"]);
}

#[test]
fn what_was_handed_to_plugd_itself_is_not_handed_on() {
    let dir = tempfile::tempdir().unwrap();
    let manager = dir.path().join("notify");
    let _manager = std::os::unix::net::UnixDatagram::bind(&manager).unwrap();
    let plugd = Plugd::run(&["--fd", "3", "--"])
        .env("PATH", "/bin:/usr/bin")
        .env("TMP", "/tmp")
        .env("LISTEN_FDS", "1")
        .env("LISTEN_PID", "1")
        .env("LISTEN_FDNAMES", "x")
        .env("NOTIFY_SOCKET", manager)
        .env("UPSTART_FDS", "3")
        .env("UPSTART_EVENTS", "socket");
    let (environment, _daemon) = after(plugd, b"add@/x\0LISTEN_FDS=9\0NOTIFY_SOCKET=/evil\0A=1\0");
    assert_eq!(environment, ["A=1", "HOME=/", "PATH=/bin:/usr/bin", "TMP=/tmp"]);
}

#[test]
fn what_could_subvert_a_handler_never_comes_from_an_event() {
    let plugd = Plugd::run(&["--fd", "3"]).env("PATH", "/bin:/usr/bin").env("TMP", "/tmp");
    let event = b"add@/x\0SEQNUM=3\0PATH=/evil\0LD_PRELOAD=x\0LD_AUDIT=x\0IFS=x\0ENV=x\0\
        BASH_ENV=x\0SHELLOPTS=x\0PS4=x\0GCONV_PATH=x\0HOME=x\0BASH_FUNC_ls%%=x\0\
        a b=x\0a-b=x\x001a=x\0=x\0\xff=x\0GOOD=y\0";
    let (environment, daemon) = after(plugd, event);
    assert_eq!(environment, ["GOOD=y", "HOME=/", "PATH=/bin:/usr/bin", "SEQNUM=3", "TMP=/tmp"]);
    // Odd names must not hide the others.
    let start = "plugd: warning: ? ? (SEQNUM 3): not passed on to its program: ";
    for keys in [
        r"a b a-b 1a  \xff",
        "PATH LD_PRELOAD LD_AUDIT IFS ENV BASH_ENV SHELLOPTS PS4 GCONV_PATH HOME BASH_FUNC_ls%%",
    ] {
        assert_eq!(daemon.wait_for_log(keys), format!("{start}{keys} (16 so far)"));
    }
}

#[test]
fn values_are_bytes() {
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let daemon = Plugd::reading(receiver).args(SLEEP).start();
    let every_byte: Vec<u8> = (1..=255).collect();
    unix::send(&sender, &[b"add@/\xff\0EVERY=", &every_byte[..], b"\0DEVPATH=/\xff\0"].concat());
    let environment = environment(&daemon);
    assert_eq!(environment[&b"EVERY"[..]], every_byte);
    assert_eq!(environment[&b"DEVPATH"[..]], b"/\xff");
}

#[test]
fn an_event_may_have_more_variables_than_the_kernel_gives() {
    ns::inside(|| {
        let daemon = Plugd::run(&["--"]).args(SLEEP).start();
        let variables: Vec<String> = (0..70).map(|n| format!("V{n}={}", n * n)).collect();
        let variables: Vec<&str> = variables.iter().map(String::as_str).collect();
        Injector::new().event("add", "/devices/x", &variables);
        let environment = text(environment(&daemon));
        for variable in variables {
            assert!(environment.iter().any(|v| v == variable), "{variable}: {environment:?}");
        }
        assert!(environment.iter().any(|v| v.starts_with("SEQNUM=")));
    });
}

#[test]
fn arguments_are_the_users_and_the_subsystem_if_wanted() {
    let net: &[u8] = b"a@/x\0SUBSYSTEM=net\0";
    let cases: [(&[&str], &[u8], &str); 4] = [
        (&[], net, "2 <a b> <> <>"),
        (&["--hotplug-argument"], net, "3 <a b> <> <net>"),
        (&["--hotplug-argument"], b"a@/x\0A=1\0", "3 <a b> <> <>"),
        (&["--hotplug-argument"], b"a@/x\0SUBSYSTEM=\xff ; x\0", "3 <a b> <> <\u{fffd} ; x>"),
    ];
    for (options, event, expected) in cases {
        let (sender, receiver) = unix::pair(SocketType::DGRAM);
        let script = "echo \"$# <$1> <$2> <$3>\" >>$TMP/out";
        let daemon = Plugd::reading(receiver).args(options).sh(script).args(["a b", ""]).start();
        unix::send(&sender, event);
        assert_eq!(daemon.wait_for_lines("out", 1), [expected]);
    }
}

#[test]
fn a_script_needs_no_first_line() {
    ns::alone(|| {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        fs::write(&script, "echo \"$0 $1 $2 $ACTION\" >>$TMP/out\n").unwrap();
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let (sender, receiver) = unix::pair(SocketType::DGRAM);
        let daemon = Plugd::reading(receiver)
            .args(["--hotplug-argument"])
            .args([script.as_os_str(), "one".as_ref()])
            .start();
        unix::send(&sender, &uevent("add", "/x", &["SUBSYSTEM=net"]));
        let expected = format!("{} one net add", script.display());
        assert_eq!(daemon.wait_for_lines("out", 1), [expected]);
    });
}

#[test]
fn it_has_three_descriptors_and_reads_nothing() {
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let (_, more) = unix::pair(SocketType::DGRAM);
    let (_pipe, stdin) = unix::pair(SocketType::STREAM);
    let daemon = Plugd::reading(receiver)
        .stdin(stdin)
        .fd(File::open("/").unwrap(), 7)
        .fd(more, 100)
        .args(SLEEP)
        .start();
    unix::send(&sender, &uevent("add", "/x", &[]));
    let child = daemon.wait_for_child("sleep");
    let link = |pid, fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
    let fds = || {
        let directory = fs::read_dir(format!("/proc/{child}/fd")).unwrap();
        let mut fds: Vec<_> = directory.map(|entry| entry.unwrap().file_name()).collect();
        fds.sort();
        fds
    };
    // The dynamic linker may still have a library open.
    eventually("no descriptor but three", || (fds() == ["0", "1", "2"]).then_some(()));
    assert_eq!(link(child, 0).to_str(), Some("/dev/null"));
    for fd in [1, 2] {
        assert_eq!(link(child, fd), link(daemon.pid(), fd));
    }
}

#[test]
fn its_signals_umask_and_group_are_in_order() {
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let daemon = Plugd::reading(receiver)
        .prelude("umask 027; trap '' HUP INT QUIT PIPE TERM USR1 USR2 TSTP XFSZ")
        .blocked(&[libc::SIGTERM, libc::SIGUSR1, libc::SIGCHLD, libc::SIGCONT, 40])
        .args(SLEEP)
        .start();
    unix::send(&sender, &uevent("add", "/x", &[]));
    let child = daemon.wait_for_child("sleep");
    let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap();
    for signals in ["SigBlk", "SigIgn", "SigCgt"] {
        assert_eq!(field(&status, signals), Some("0000000000000000"), "{signals}");
    }
    assert_eq!(field(&status, "Umask"), Some("0027"));
    // These two, which plugd must survive, no child has to reset.
    let ignored = u64::from_str_radix(&daemon.status("SigIgn"), 16).unwrap();
    assert_eq!(ignored & (1 << (libc::SIGPIPE - 1) | 1 << (libc::SIGXFSZ - 1)), 0, "{ignored:x}");

    let stat = |pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<u32> = stat
            .rsplit_once(") ")
            .unwrap()
            .1
            .split(' ')
            .skip(1)
            .take(3)
            .map(|n| n.parse().unwrap())
            .collect();
        (fields[0], fields[1], fields[2])
    };
    let (parent, group, session) = stat(child);
    assert_eq!((parent, group), (daemon.pid(), child));
    assert_eq!(session, stat(daemon.pid()).2);

    // plugd itself is not deaf either.
    assert!(daemon.counters().contains("received 1,"));
}

/// Those that the C library uses itself, and hides from its callers.
#[test]
fn its_libcs_signals_are_in_order() {
    const IGNORE: &str = r#"
import ctypes, os, platform, sys
call = {"x86_64": 13, "aarch64": 134}[platform.machine()]
ignore = (ctypes.c_ulong * 8)(1)
for signal in 32, 33, 34:
    assert ctypes.CDLL(None).syscall(call, signal, ignore, None, 8) == 0
os.execv(sys.argv[1], sys.argv[1:])
"#;
    if !have("signals of the C library", "python3") {
        return;
    }
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let daemon = Plugd::new()
        .program("python3")
        .args(["-c", IGNORE, env!("CARGO_BIN_EXE_plugd")])
        .args(["run", "--control", "none", "--fd", "3"])
        .fd(receiver, 3)
        .args(SLEEP)
        .launch();
    unix::send(&sender, &uevent("add", "/x", &[]));
    let child = daemon.wait_for_child("sleep");
    let own = u64::from_str_radix(&daemon.status("SigIgn"), 16).unwrap();
    assert_eq!(own >> 31 & 0b111, 0b111, "there is nothing to reset: {own:x}");
    let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap();
    assert_eq!(field(&status, "SigIgn"), Some("0000000000000000"));
}
