//! netlink-datagram-socket-listen: the socket that it opens, the program that
//! it becomes, and chains of real programs with plugd at their end.

use std::ffi::{CStr, CString};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use plugd::sys::{self, Credentials, SocketOption, Spawner};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{WaitOptions, waitpid};
use tempfile::TempDir;

use crate::harness::daemon::{Daemon, Finished, Plugd, field};
use crate::harness::inject::{self, Injector, uevent};
use crate::harness::{eventually, ns, skip, unix};

const LISTEN: &str = "netlink-datagram-socket-listen";
const HANDLER: &str = "plug-and-play-event-handler";
/// A handler that tells of the event, wherever it may not write a file.
const TELL: &str = "echo told of $ACTION $DEVPATH >&2";

/// plugd under all its names, in a directory that every user can get at.
pub(crate) struct Names(TempDir);

impl Names {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_plugd"), dir.path().join("plugd")).unwrap();
        for name in [LISTEN, HANDLER] {
            symlink("plugd", dir.path().join(name)).unwrap();
        }
        Self(dir)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.0.path()
    }

    /// A program that finds them, and execline's.
    pub(crate) fn program(&self, name: &str) -> Plugd {
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}:/usr/lib/execline/bin", self.0.path().display());
        Plugd::new().program(name).env("PATH", path)
    }

    /// [`LISTEN`] with these arguments, as a shell would split them.
    fn listen(&self, args: &str) -> Plugd {
        self.program(LISTEN).args(args.split_whitespace())
    }
}

fn listen(args: &str) -> Plugd {
    Plugd::new().args(["listen"]).args(args.split_whitespace())
}

/// Whether the program can be started; if not, says that the test is skipped.
pub(crate) fn have(test: &str, program: &str) -> bool {
    let path = std::env::var("PATH").unwrap() + ":/usr/lib/execline/bin";
    let found = std::env::split_paths(&path).any(|directory| directory.join(program).exists());
    if !found {
        skip("tools", test, &format!("there is no {program} here"));
    }
    found
}

/// What the program has told on its standard output: lines of `key value`.
fn told<'a>(finished: &'a Finished, key: &str) -> &'a str {
    let value = |line: &'a str| {
        let value = line.strip_prefix(key)?;
        if value.is_empty() { Some(value) } else { value.strip_prefix(' ') }
    };
    let found = finished.stdout.lines().find_map(value);
    found.unwrap_or_else(|| panic!("no {key} in {finished:?}"))
}

fn assert_fails(plugd: Plugd, code: i32, error: &str) {
    let Finished { code: real, stderr, .. } = plugd.finish();
    assert_eq!((real, stderr), (Some(code), format!("{LISTEN}: fatal: {error}\n")));
}

// The socket.

/// Tells all about descriptor 3, and about this process.
const INSPECT: &str = r#"
import os, socket
s = socket.socket(fileno=3)
print("kind", s.family.name, s.type.name)
print("protocol", s.proto)
print("own pid", s.getsockname()[0] == os.getpid())
print("mask", s.getsockname()[1])
print("buffer", s.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
print("blocking", os.get_blocking(3))
print("inheritable", os.get_inheritable(3))
print("SO_PASSCRED", s.getsockopt(socket.SOL_SOCKET, 16))
print("SO_PASSSEC", s.getsockopt(socket.SOL_SOCKET, 34))
print("NETLINK_PKTINFO", s.getsockopt(270, 3))
print("NETLINK_LISTEN_ALL_NSID", s.getsockopt(270, 8))
groups = int.from_bytes(s.getsockopt(270, 9, 16), "little")
print("groups", [n + 1 for n in range(128) if groups >> n & 1])
"#;

fn inspect(options: &str) -> Finished {
    let finished = listen(options).args(["python3", "-c", INSPECT]).finish();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    finished
}

fn assert_inspected(options: &str, expected: &[(&str, &str)]) {
    let finished = inspect(options);
    for &(key, value) in expected {
        assert_eq!(told(&finished, key), value, "{key} of {options}");
    }
}

#[test]
fn the_socket_is_what_was_asked_for() {
    ns::inside(|| {
        if !have("what a socket is", "python3") {
            return;
        }
        assert_inspected(
            "kobject-uevent 1",
            &[
                ("kind", "AF_NETLINK SOCK_DGRAM"),
                ("protocol", "15"),
                ("own pid", "True"),
                ("mask", "1"),
                ("groups", "[1]"),
                ("blocking", "True"),
                ("inheritable", "True"),
                ("SO_PASSCRED", "0"),
                ("SO_PASSSEC", "0"),
                ("NETLINK_PKTINFO", "0"),
                ("NETLINK_LISTEN_ALL_NSID", "0"),
            ],
        );
        assert_inspected(
            "--raw --pass-credentials --pass-security --packet-info --listen-all-nsid -- 15 0x3",
            &[
                ("kind", "AF_NETLINK SOCK_RAW"),
                ("protocol", "15"),
                ("groups", "[1, 2]"),
                ("SO_PASSCRED", "1"),
                ("SO_PASSSEC", "1"),
                ("NETLINK_PKTINFO", "1"),
                ("NETLINK_LISTEN_ALL_NSID", "1"),
            ],
        );
        for (groups, joined) in [
            ("0", "[]"),
            ("010", "[4]"),
            ("0x80000000", "[32]"),
            ("group:1", "[1]"),
            ("group:33", "[33]"),
            ("group:36,5,33", "[5, 33, 36]"),
        ] {
            assert_inspected(&format!("route {groups}"), &[("groups", joined)]);
        }
    });
}

/// The buffer as the kernel counts it is twice what was asked for.
#[test]
fn the_buffer_is_as_large_as_may_be() {
    ns::inside(|| {
        if !have("buffer sizes", "python3") {
            return;
        }
        let room = inject::unprivileged_room().to_string();
        let default = inspect("kobject-uevent 1");
        for (options, buffer) in [
            ("--receive-buffer-size 64K", "131072"),
            ("--receive-buffer-size=65536", "131072"),
            ("--receive-buffer-size 1G", &room),
            ("", told(&default, "buffer")),
        ] {
            let finished = inspect(&format!("{options} kobject-uevent 1"));
            assert_eq!(told(&finished, "buffer"), buffer, "{options}");
            let warned = finished.stderr.contains(": warning: receive buffer: ");
            assert_eq!(warned, options.ends_with("1G"), "{finished:?}");
        }
    });
}

#[test]
fn with_privilege_the_buffer_is_as_large_as_wanted() {
    ns::inside_as_root(|| {
        if have("buffer sizes", "python3") {
            let wanted = inject::unprivileged_room().max(32 << 20);
            let finished = inspect(&format!("--receive-buffer-size {wanted} kobject-uevent 1"));
            assert_eq!(told(&finished, "buffer"), (2 * wanted).to_string());
            assert_eq!(finished.stderr, "");
        }
    });
}

/// As linux/netlink.h has them.
const PROTOCOLS: [(&str, u32); 22] = [
    ("route", 0),
    ("usersock", 2),
    ("firewall", 3),
    ("inet-diag", 4),
    ("sock-diag", 4),
    ("nflog", 5),
    ("xfrm", 6),
    ("selinux", 7),
    ("iscsi", 8),
    ("audit", 9),
    ("fib-lookup", 10),
    ("connector", 11),
    ("netfilter", 12),
    ("ip6-fw", 13),
    ("dnrtmsg", 14),
    ("kobject-uevent", 15),
    ("generic", 16),
    ("scsitransport", 18),
    ("ecryptfs", 19),
    ("rdma", 20),
    ("crypto", 21),
    ("smc", 22),
];

/// By the kernel's own table, and where it has not that protocol, by its error.
#[test]
fn every_protocol_is_the_kernels() {
    ns::inside(|| {
        let mut opened = 0;
        for (name, number) in PROTOCOLS {
            let protocol = std::num::NonZero::new(number).map(rustix::net::Protocol::from_raw);
            let own = rustix::net::socket_with(
                AddressFamily::NETLINK,
                SocketType::DGRAM,
                SocketFlags::CLOEXEC,
                protocol,
            );
            let script = "stat -Lc %i /proc/$$/fd/3; cat /proc/net/netlink";
            let plugd = listen(&format!("{name} 0")).args(["sh", "-c", script]);
            if let Err(error) = own {
                let error = std::io::Error::from(error).to_string();
                let (error, _) = error.split_once(" (os error").unwrap();
                assert_fails(plugd, 111, &format!("cannot open a {name} socket: {error}"));
                continue;
            }
            opened += 1;
            let finished = plugd.finish();
            let (inode, table) = finished.stdout.split_once('\n').unwrap();
            let of_inode = |line: &&str| line.split_whitespace().last() == Some(inode);
            let line = table.lines().find(of_inode).unwrap_or_else(|| panic!("{finished:?}"));
            assert_eq!(line.split_whitespace().nth(1), Some(&*number.to_string()), "{name}");
        }
        assert!(opened >= 3, "{opened}");
    });
}

#[test]
fn what_is_refused_is_named() {
    ns::inside(|| {
        for (args, error) in [
            // In this namespace we have no power over these.
            ("audit 1 true", "cannot bind audit group 0x1: Operation not permitted"),
            ("audit group:1 true", "cannot join audit group:1: Operation not permitted"),
            ("route group:1,99999 true", "cannot join route group:99999: Invalid argument"),
            ("31 0 true", "cannot open a 31 socket: Protocol not supported"),
            ("99 0 true", "cannot open a 99 socket: Protocol not supported"),
        ] {
            assert_fails(listen(args), 111, error);
        }
        if have("a capability that is missing", "setpriv") {
            let plugd = Plugd::new().program("setpriv").args(["--bounding-set=-net_broadcast"]);
            let own = [env!("CARGO_BIN_EXE_plugd"), "listen"];
            let plugd = plugd.args(own).args(["--listen-all-nsid", "route", "0", "true"]);
            let error = "cannot set NETLINK_LISTEN_ALL_NSID on the route socket";
            assert_fails(plugd, 111, &format!("{error}: Operation not permitted"));
        }
    });
}

#[test]
fn wrong_usage_is_told() {
    let usage = format!("{LISTEN} [OPTIONS] [--] PROTOCOL GROUP NEXT-PROG [ARGS...]");
    for (args, error) in [
        ("", "PROTOCOL is missing: the netlink protocol"),
        ("route", "GROUP is missing: the multicast group"),
        ("route 1", "NEXT-PROG is missing: the program that gets the socket"),
        ("--cooked route 1 true", "there is no option --cooked"),
        ("--name x route 1 true", "--name needs --systemd-compatibility"),
        (
            "--systemd-compatibility --name a:b route 1 true",
            "--name 'a:b': expected 1 to 255 printable ASCII characters without ':'",
        ),
        ("route -1 true", "group '-1': expected a bit mask of up to 32 bits, or group:N[,N...]"),
        (
            "route 0x100000000 true",
            "group '0x100000000': expected a bit mask of up to 32 bits, or group:N[,N...]",
        ),
        (
            "route group:0 true",
            "group 'group:0': expected a bit mask of up to 32 bits, or group:N[,N...]",
        ),
    ] {
        assert_fails(listen(args), 100, &format!("{error}\nusage: {usage}"));
    }
    let finished = listen("uevent 1 true").finish();
    assert_eq!(finished.code, Some(100));
    let known = "there is no protocol 'uevent'; there are: route usersock ";
    assert!(finished.stderr.contains(known), "{finished:?}");
    assert!(finished.stderr.contains(" kobject-uevent "), "{finished:?}");
}

// Its place.

/// Tells what descriptors 0 and 3 are.
const PLACES: &str = "echo 0 $(readlink /proc/$$/fd/0); echo 3 $(readlink /proc/$$/fd/3)";

#[test]
fn it_replaces_what_was_at_its_place() {
    ns::inside(|| {
        let (left, right) = unix::pair(SocketType::STREAM);
        let inode = inject::inode(&right);
        let plugd = listen("kobject-uevent 1").args(["sh", "-c", PLACES]).fd(right, 3);
        let finished = plugd.finish();
        let socket = told(&finished, "3");
        assert!(socket.starts_with("socket:[") && socket != format!("socket:[{inode}]"));
        // Nobody has the other end any more.
        let mut nothing = [0];
        assert_eq!(
            rustix::net::recv(&left, &mut nothing, rustix::net::RecvFlags::DONTWAIT),
            Ok((0, 0))
        );
    });
}

#[test]
fn its_place_does_not_depend_on_what_is_open() {
    ns::inside(|| {
        // Descriptors that are open make the socket come up somewhere else first.
        for prelude in ["exec 3<&-", "exec 3</dev/null 4</dev/null", "exec 0<&-", "exec 0<&- 4</"] {
            let plugd = listen("kobject-uevent 1").args(["sh", "-c", PLACES]).prelude(prelude);
            let finished = plugd.finish();
            assert!(told(&finished, "3").starts_with("socket:["), "{prelude}: {finished:?}");
            assert_eq!(told(&finished, "0"), "/dev/null", "{prelude}");
        }
    });
}

#[test]
fn without_descriptors_it_says_so() {
    ns::inside(|| {
        let beyond = "ulimit -n 8; export LISTEN_PID=$$ LISTEN_FDS=10";
        assert_fails(
            listen("--systemd-compatibility kobject-uevent 1 true").prelude(beyond),
            111,
            "cannot make the socket file descriptor 13: Bad file descriptor",
        );
        // No limit leaves a descriptor to the dynamic linker and none to us.
        if have("no descriptor for the socket", "strace") {
            let plugd = Plugd::new()
                .program("strace")
                .args("-qq -o /dev/null -e trace=socket -e inject=socket:error=EMFILE".split(' '));
            let plugd = plugd.args([env!("CARGO_BIN_EXE_plugd"), "listen", "kobject-uevent", "1"]);
            let error = "cannot open a kobject-uevent socket: Too many open files";
            assert_fails(plugd.args(["true"]), 111, error);
        }
    });
}

/// It may be the last descriptor that there is. (For a test with a limit, the program
/// and the next one would have to be static.)
#[test]
fn what_it_replaces_is_closed_before_the_socket_is_opened() {
    ns::inside(|| {
        if !have("what_it_replaces_is_closed_before_the_socket_is_opened", "strace") {
            return;
        }
        let trace = "-qq -o /dev/stderr -e trace=close,socket";
        let plugd = Plugd::new().program("strace").args(trace.split(' '));
        let plugd = plugd.args([env!("CARGO_BIN_EXE_plugd"), "listen", "kobject-uevent", "1"]);
        let finished = plugd.args(["true"]).prelude("exec 3</dev/null").finish();
        assert_eq!(finished.code, Some(0), "{finished:?}");
        let (closed, opened) = (finished.stderr.find("close(3)"), finished.stderr.find("socket("));
        assert!(closed.is_some() && closed < opened, "{finished:?}");
    });
}

// The next program.

#[test]
fn the_next_program_gets_its_arguments_and_our_environment() {
    ns::inside(|| {
        let script = "printf 'args'; printf ' <%s>' \"$@\"; echo; \
                      echo env $KEPT $LISTEN_FDS $LISTEN_PID; echo umask $(umask)";
        let plugd = listen("-v kobject-uevent 1")
            .args(["sh", "-c", script, "sh", "-v", "--raw", "--", "x  y", "--help"])
            .env("KEPT", "kept")
            .env("LISTEN_FDS", "7")
            .env("LISTEN_PID", "1")
            .prelude("umask 027");
        let finished = plugd.finish();
        assert_eq!(finished.code, Some(0));
        assert_eq!(told(&finished, "args"), "<-v> <--raw> <--> <x  y> <--help>");
        assert_eq!(told(&finished, "env"), "kept 7 1");
        assert_eq!(told(&finished, "umask"), "0027");
        let line = format!("{LISTEN}: debug: kobject-uevent group 0x1 is file descriptor 3;");
        assert!(finished.stderr.starts_with(&line), "{finished:?}");
    });
}

/// Also what is no `KEY=VALUE`, and what is there twice; but not what is set anew.
#[test]
fn the_next_program_gets_all_strings_of_the_environment() {
    ns::inside(|| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("environment");
        let script = c"cat /proc/$$/environ >$FILE";
        let variable = CString::new(format!("FILE={}", file.display())).unwrap();
        let path = CString::new(format!("PATH={}", std::env::var("PATH").unwrap())).unwrap();
        let kept = [&*variable, &path, c"no variable", c"A=1", c"A=2", c"=x", c"", c"UPSTART_FDS"];
        let given = kept.into_iter().chain([c"UPSTART_FDS=7", c"UPSTART_FDS=8"]);
        let arguments = [c"plugd", c"listen", c"--upstart-compatibility", c"kobject-uevent", c"1"];
        let next = [c"sh", c"-c", script];
        let program = CString::new(env!("CARGO_BIN_EXE_plugd")).unwrap();
        let arguments = arguments.into_iter().chain(next);
        let (_, pid) = Spawner::new().spawn(&program, arguments, given).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        assert_eq!(status.exit_status(), Some(0));
        let set = [c"UPSTART_EVENTS=socket", c"UPSTART_FDS=3"];
        let expected: Vec<&[u8]> =
            kept.into_iter().chain(set).map(CStr::to_bytes_with_nul).collect();
        let real = fs::read(&file).unwrap();
        let shown = real.escape_ascii().to_string();
        assert_eq!(shown, expected.concat().escape_ascii().to_string());
    });
}

/// Rust's runtime ignores SIGPIPE; the next program must not notice.
#[test]
fn the_next_program_gets_the_signals_as_they_were() {
    ns::inside(|| {
        let status = || listen("kobject-uevent 1 cat /proc/self/status");
        let (pipe, user) = (1 << (libc::SIGPIPE - 1), 1 << (libc::SIGUSR2 - 1));
        for (plugd, ignored, blocked) in [
            (status(), 0, 0),
            (status().blocked(&[libc::SIGUSR2]), 0, user),
            (status().prelude("trap '' PIPE"), pipe, 0),
            (status().prelude("trap '' PIPE USR2"), pipe | user, 0),
        ] {
            let finished = plugd.finish();
            // Who started the tests may have others ignored.
            let of_both = |name| {
                let mask = field(&finished.stdout, name).unwrap();
                u64::from_str_radix(mask, 16).unwrap() & (pipe | user)
            };
            assert_eq!((of_both("SigIgn"), of_both("SigBlk")), (ignored, blocked));
        }
    });
}

#[test]
fn its_exit_status_is_the_next_programs() {
    ns::inside(|| {
        let finished = listen("kobject-uevent 1 sh -c").args(["exit 37"]).finish();
        assert_eq!((finished.code, &*finished.stderr), (Some(37), ""));
    });
}

#[test]
fn a_next_program_that_cannot_be_executed_is_named() {
    ns::inside(|| {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, mode, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let data = file("data", 0o644, "");
        let orphan = file("orphan", 0o755, "#!/nonexistent/interpreter\n");
        let script = file("script", 0o755, "echo \"told $0 $*\"\n");
        let directory = dir.path().to_str().unwrap();
        for (program, code, why) in [
            ("/nonexistent/program", 127, "No such file or directory"),
            ("no-program-of-that-name", 127, "No such file or directory"),
            ("", 127, "No such file or directory"),
            (&orphan, 127, "No such file or directory"),
            (&data, 126, "Permission denied"),
            (directory, 126, "Permission denied"),
        ] {
            let plugd = listen("kobject-uevent 1").args([program, "arg"]);
            assert_fails(plugd, code, &format!("cannot run '{program}': {why}"));
        }
        // As execvp does.
        let finished = listen("kobject-uevent 1").args([&script, "a", "-b"]).finish();
        assert_eq!(told(&finished, "told"), format!("{script} a -b"));
        let path = format!("{directory}:{}", std::env::var("PATH").unwrap());
        let plugd = listen("kobject-uevent 1").args(["script", "a"]).env("PATH", path);
        assert_eq!(told(&plugd.finish(), "told"), format!("{script} a"));
    });
}

// Conventions.

/// Tells what the conventions tell.
const HANDED: &str = "echo fds $LISTEN_FDS $LISTEN_FDNAMES; \
    [ \"$LISTEN_PID\" = $$ ] && echo pid own; echo pidfd $LISTEN_PIDFDID; echo upstart $UPSTART_EVENTS $UPSTART_FDS; \
    for fd in 3 4 5; do echo $fd $(readlink /proc/$$/fd/$fd); done";

#[test]
fn sockets_add_up_by_chaining() {
    ns::inside(|| {
        let names = Names::new();
        let second = format!("{LISTEN} --systemd-compatibility --upstart-compatibility");
        let plugd = names
            .listen(&format!("--systemd-compatibility route 1 {second} --name mine 15 1"))
            .args(["sh", "-c", HANDED]);
        let finished = plugd.finish();
        assert_eq!(told(&finished, "fds"), "2 route:mine");
        assert_eq!(told(&finished, "pid"), "own");
        assert_eq!(told(&finished, "upstart"), "socket 4");
        let (third, fourth) = (told(&finished, "3"), told(&finished, "4"));
        assert!(third.starts_with("socket:") && fourth.starts_with("socket:") && third != fourth);

        // Without the option the second replaces the first.
        let plugd = names.listen(&format!("route 1 {LISTEN} --upstart-compatibility 15 1"));
        let finished = plugd.args(["sh", "-c", HANDED]).finish();
        assert_eq!(told(&finished, "upstart"), "socket 3");
        assert_eq!(told(&finished, "fds"), "");
        assert!(!finished.stdout.contains("4 socket:"), "{finished:?}");
    });
}

#[test]
fn what_was_handed_to_somebody_else_does_not_count() {
    ns::inside(|| {
        // Some other process; nobody says who; the shell that started this one.
        for prelude in [
            "export LISTEN_PID=1 LISTEN_FDS=2 LISTEN_FDNAMES=a:b",
            "export LISTEN_FDS=2 LISTEN_FDNAMES=a:b",
            "export LISTEN_PID=$$ LISTEN_FDS=2; (exec \"$0\" \"$@\"); exit",
        ] {
            let plugd = listen("--systemd-compatibility kobject-uevent 1").prelude(prelude);
            let finished = plugd.args(["sh", "-c", HANDED]).finish();
            assert_eq!(told(&finished, "fds"), "1 kobject-uevent", "{prelude}");
            assert_eq!(told(&finished, "pid"), "own");
            assert!(told(&finished, "3").starts_with("socket:"), "{finished:?}");
        }
        let plugd = listen("--systemd-compatibility kobject-uevent 1 sh -c").args([HANDED]);
        let ours = "exec 3</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1";
        let finished = plugd.prelude(ours).finish();
        assert_eq!(told(&finished, "fds"), "2 unknown:kobject-uevent");
        assert_eq!(told(&finished, "3"), "/dev/null");
        assert!(told(&finished, "4").starts_with("socket:"), "{finished:?}");

        let nonsense = listen("--systemd-compatibility kobject-uevent 1 true")
            .prelude("export LISTEN_PID=$$ LISTEN_FDS=x")
            .finish();
        assert_eq!(nonsense.code, Some(100));
        let why = "LISTEN_FDS is not a number of file descriptors: x";
        assert!(nonsense.stderr.contains(why), "{nonsense:?}");
    });
}

/// The number that a process has for itself, as newer systemd hands it over:
/// one process id may come round, this does not.
#[test]
fn the_inode_of_a_pidfd_tells_whose_the_sockets_are() {
    const OWN: &str = "import os,sys; print(os.fstat(os.pidfd_open(int(sys.argv[1]))).st_ino)";
    ns::inside(|| {
        let test = "the_inode_of_a_pidfd_tells_whose_the_sockets_are";
        if !have(test, "python3") {
            return;
        }
        let ours = "exec 3</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_PIDFDID";
        let own = format!("$(python3 -c '{OWN}' $$)");
        let handed = |prelude: &str| {
            let plugd = listen("--systemd-compatibility kobject-uevent 1 sh -c").args([HANDED]);
            plugd.prelude(prelude).finish()
        };
        // Before Linux 6.9 all have the same one, and it means nothing.
        if handed(&format!("{ours}=4294967295")).stdout.contains("fds 2 ") {
            return skip("tools", test, "the kernel gives pidfds no inodes of their own");
        }
        let finished = handed(&format!("{ours}={own}"));
        assert_eq!(told(&finished, "fds"), "2 unknown:kobject-uevent");
        assert_ne!(told(&finished, "pidfd"), "");
        for other in ["$((own + 1))", "x", ""] {
            let finished = handed(&format!("own={own}; {ours}={other}"));
            assert_eq!(told(&finished, "fds"), "1 kobject-uevent", "{other}");
            // systemd's library would take none of the sockets if it were there.
            assert_eq!(told(&finished, "pidfd"), "", "{other}");
        }
    });
}

/// A program of systemd's kind, with systemd's own library.
#[test]
fn systemds_library_takes_the_sockets() {
    const CONSUMER: &str = r#"
import ctypes, os, socket, sys
try:
    lib = ctypes.CDLL("libsystemd.so.0")
except OSError:
    sys.exit(42)
names = ctypes.POINTER(ctypes.c_char_p)()
count = lib.sd_listen_fds_with_names(1, ctypes.byref(names))
print("count", count)
for i in range(count):
    is_netlink = lib.sd_is_socket(3 + i, socket.AF_NETLINK, socket.SOCK_DGRAM, -1)
    print(names[i].decode(), is_netlink, os.get_inheritable(3 + i), flush=True)
"#;
    ns::inside(|| {
        if !have("sd_listen_fds", "python3") {
            return;
        }
        let names = Names::new();
        let second = format!("{LISTEN} --systemd-compatibility --name links route 1");
        let plugd = names.listen(&format!("--systemd-compatibility kobject-uevent 1 {second}"));
        let finished = plugd.args(["python3", "-c", CONSUMER]).finish();
        if finished.code == Some(42) {
            return skip("tools", "sd_listen_fds", "there is no libsystemd here");
        }
        assert_eq!(told(&finished, "count"), "2");
        for name in ["kobject-uevent", "links"] {
            assert_eq!(told(&finished, name), "1 False");
        }
    });
}

/// A program of inetd's kind reads its standard input.
#[test]
fn the_socket_can_be_moved_to_the_standard_input() {
    ns::inside(|| {
        if !have("fdmove", "fdmove") {
            return;
        }
        let names = Names::new();
        let script = "exec dd bs=4096 count=1 2>/dev/null | tr '\\0' '\\n' >&2";
        let plugd = names.listen("kobject-uevent 1 fdmove 0 3 sh -c").args([script]);
        let daemon = plugd.launch();
        eventually("somebody listens", || {
            inject::listeners().contains(&daemon.pid()).then_some(())
        });
        Injector::new().event("add", "/devices/x", &["N=1"]);
        daemon.wait_for_log("add@/devices/x");
        daemon.wait_for_log("N=1");
    });
}

// plugd at the other end.

fn assert_tells(daemon: &Daemon) {
    Injector::new().event("add", "/devices/x", &[]);
    daemon.wait_for_log("told of add /devices/x");
    inject::real_device("br9");
    daemon.wait_for_log("told of add /devices/virtual/net/br9");
}

#[test]
fn the_handler_works_from_it() {
    ns::inside(|| {
        let names = Names::new();
        for (bridge, chain) in [
            format!("kobject-uevent 1 {HANDLER}"),
            format!("--receive-buffer-size 1M --raw 15 group:1 {HANDLER} -v"),
            "kobject-uevent 1 plugd run --fd 3 --".to_owned(),
            format!("--systemd-compatibility kobject-uevent 1 {HANDLER}"),
            "--systemd-compatibility kobject-uevent 1 plugd run".to_owned(),
        ]
        .iter()
        .enumerate()
        {
            let script = "env | grep -cE '^(LISTEN|UPSTART)' >&2; ls -l /proc/self/fd >&2; \
                          echo told of $ACTION $DEVPATH >&2";
            let mut daemon = names.listen(chain).sh(script).start();
            Injector::new().event("add", "/devices/x", &[]);
            daemon.wait_for_log("told of add /devices/x");
            assert_eq!(daemon.logged("socket:[").len(), 0, "{:?}", daemon.log());
            assert!(daemon.log().contains(&"0".to_owned()), "{:?}", daemon.log());
            let bridge = format!("br{bridge}");
            inject::real_device(&bridge);
            daemon.wait_for_log(&format!("told of add /devices/virtual/net/{bridge}"));
            daemon.signal(rustix::process::Signal::TERM);
            assert_eq!(daemon.wait_exit().code(), Some(0), "{chain}");
        }
    });
}

#[test]
fn the_handler_serves_all_sockets_of_a_chain() {
    ns::inside(|| {
        let names = Names::new();
        let one = "--systemd-compatibility kobject-uevent 1";
        let plugd = names.listen(&format!("{one} {LISTEN} {one} {HANDLER}"));
        // A second at once would see the directory of the first.
        let alone = "mkdir $TMP/busy || echo two at once >&2; echo $N >>$TMP/out; rmdir $TMP/busy";
        let daemon = plugd.sh(alone).start();
        let injector = Injector::new();
        (1..=20).for_each(|n| injector.event("add", "/devices/x", &[&format!("N={n}")]));
        // Each socket has each event; they are served in turn.
        let lines = daemon.wait_for_lines("out", 40);
        let expected: Vec<String> = (2..=41).map(|n| (n / 2).to_string()).collect();
        assert_eq!(lines, expected);
        assert_eq!(daemon.logged("two at once").len(), 0);
    });
}

/// Opened by root, used by somebody without privileges.
#[test]
fn a_chain_can_give_up_its_privileges() {
    ns::inside_as_root(|| {
        let names = Names::new();
        let user = "daemon";
        let chains = [
            ("s6-setuidgid", format!("s6-setuidgid {user}")),
            ("setpriv", format!("setpriv --reuid {user} --regid {user} --clear-groups")),
            ("chpst", format!("chpst -u {user}")),
        ];
        for (i, (tool, change)) in chains.into_iter().enumerate() {
            if !have("a chain that changes user", tool) {
                continue;
            }
            let size = 2 * inject::unprivileged_room();
            let options = format!("-v --receive-buffer-size {size} kobject-uevent 1");
            let script = format!("{TELL}; id -un >&2; grep CapEff /proc/self/status >&2");
            let daemon = names.listen(&format!("{options} {change} {HANDLER}")).sh(&script).start();
            let got = format!("receive buffer: {} bytes", 2 * size);
            daemon.wait_for_log(&got);
            assert_ne!(daemon.status("Uid").split_whitespace().next(), Some("0"));
            assert_eq!(daemon.status("CapEff"), "0000000000000000");
            Injector::new().event("add", "/devices/x", &[]);
            daemon.wait_for_log("told of add /devices/x");
            daemon.wait_for_log("CapEff:\t0000000000000000");
            daemon.wait_for_log(user);
            let bridge = format!("br{i}");
            inject::real_device(&bridge);
            daemon.wait_for_log(&format!("told of add /devices/virtual/net/{bridge}"));
        }
    });
}

// Credentials.

/// What the next datagram's sender shows.
fn sender(socket: &OwnedFd) -> (Option<u32>, Option<Credentials>) {
    let mut buffer = vec![0; 65536];
    let message = sys::receive(socket.as_fd(), &mut buffer, true).unwrap();
    (message.port, message.credentials)
}

fn with_credentials() -> OwnedFd {
    let socket = inject::socket(1);
    sys::set_socket_option(socket.as_fd(), SocketOption::PassCredentials, 1).unwrap();
    socket
}

fn drain(socket: &OwnedFd) {
    while sys::receive(socket.as_fd(), &mut [0; 8192], false).is_ok() {}
}

/// Fact 4, fact 10: the kernel's own events have credentials with process 0
/// and user 0; those that it broadcasts for a process have that process's.
#[test]
fn credentials_tell_the_kernels_events_from_those_of_a_process() {
    ns::inside(|| {
        let socket = with_credentials();
        inject::real_device("br9");
        assert_eq!(sender(&socket), (Some(0), Some(Credentials { pid: 0, uid: 0 })));
        drain(&socket);

        Injector::new().event("add", "/devices/x", &[]);
        let pid = std::process::id().try_into().unwrap();
        assert_eq!(sender(&socket), (Some(0), Some(Credentials { pid, uid: 0 })));

        // The other things that come along do not hide them.
        for option in
            [SocketOption::PacketInfo, SocketOption::ListenAllNsid, SocketOption::PassSecurity]
        {
            sys::set_socket_option(socket.as_fd(), option, 1).unwrap();
        }
        Injector::new().event("add", "/devices/x", &[]);
        assert_eq!(sender(&socket), (Some(0), Some(Credentials { pid, uid: 0 })));

        let plain = inject::socket(1);
        Injector::new().event("add", "/devices/x", &[]);
        assert_eq!(sender(&plain), (Some(0), None));
        let error = sys::receive(plain.as_fd(), &mut [0; 8192], true).unwrap_err();
        assert_eq!(error, Errno::AGAIN);
    });
}

/// In a user namespace without root, the kernel is some other user: the
/// overflow user, or who the machine's root is there.
#[test]
fn without_root_the_kernels_user_is_another() {
    ns::inside_without_root(|| {
        let socket = with_credentials();
        inject::real_device("br9");
        let (port, credentials) = sender(&socket);
        let Credentials { pid, uid } = credentials.unwrap();
        assert_eq!((port, pid), (Some(0), 0));
        assert_ne!(uid, 0);
        drain(&socket);
        Injector::new().event("add", "/devices/x", &[]);
        let pid = std::process::id().try_into().unwrap();
        assert_eq!(sender(&socket), (Some(0), Some(Credentials { pid, uid: 1000 })));
    });
}

#[test]
fn credentials_are_checked_where_they_are_passed() {
    ns::inside(|| {
        let names = Names::new();
        let pass = "--pass-credentials --packet-info --pass-security kobject-uevent 1";
        for (bridge, plugd) in [
            names.listen(&format!("{pass} {HANDLER}")),
            names.listen(&format!("{pass} plugd run --fd 3")),
            names.listen(&format!("{pass} plugd run --fd 3 --require-credentials")),
            names.listen("kobject-uevent 1 plugd run --fd 3 --require-credentials"),
            names.program("plugd").args(["run", "--require-credentials"]),
        ]
        .into_iter()
        .enumerate()
        {
            let daemon = plugd.sh(TELL).start();
            Injector::new().event("add", "/devices/x", &[]);
            let line = daemon.wait_for_log("foreign");
            let pid = std::process::id();
            let why = format!("dropped a foreign datagram: sent by port id 0, pid {pid}, user 0 (");
            assert!(line.contains(&why), "{line}");
            let bridge = format!("br{bridge}");
            inject::real_device(&bridge);
            daemon.wait_for_log(&format!("told of add /devices/virtual/net/{bridge}"));
            assert_eq!(daemon.logged("told of add /devices/x").len(), 0);
            assert!(daemon.counters().contains(", foreign 1,"));
        }
    });
}

#[test]
fn without_root_the_port_id_has_to_do() {
    ns::inside_without_root(|| {
        let names = Names::new();
        let daemon = names
            .listen(&format!("--pass-credentials kobject-uevent 1 {HANDLER}"))
            .sh(TELL)
            .start();
        assert_tells(&daemon);
        inject::spoof(&uevent("add", "/devices/evil", &[]));
        daemon.wait_for_log("foreign");
        drop(daemon);

        // Who insists gets nothing at all.
        let daemon = Plugd::run(&["--require-credentials"]).sh(TELL).start();
        inject::real_device("br8");
        daemon.wait_for_log("dropped a foreign datagram: sent by port id 0, pid 0, user ");
        assert_eq!(daemon.logged("told of").len(), 0);
    });
}

/// The network namespace's root may be nobody in the handler's user namespace,
/// though that has a root of its own.
#[test]
fn the_socket_may_belong_to_another_user_namespace() {
    ns::inside_as_root(|| {
        if !have("another user namespace", "setpriv") {
            return;
        }
        let names = Names::new();
        let change = "setpriv --reuid 1 --regid 1 --clear-groups unshare -Ur";
        let chain = format!("--pass-credentials kobject-uevent 1 {change} {HANDLER}");
        let daemon = names.listen(&chain).sh(TELL).start();
        Injector::new().event("add", "/devices/x", &[]);
        daemon.wait_for_log("foreign");
        inject::real_device("br9");
        daemon.wait_for_log("told of add /devices/virtual/net/br9");
        assert_eq!(daemon.logged("told of add /devices/x").len(), 0);
    });
}

/// Where there are no credentials to be had, as on other sockets, none are required.
#[test]
fn other_sockets_need_no_credentials() {
    let (sender, receiver) = unix::pair(SocketType::DGRAM);
    let plugd = Plugd::run(&["--fd", "3", "--require-credentials"]).fd(receiver, 3);
    let daemon = plugd.sh(TELL).start();
    unix::send(&sender, &uevent("add", "/devices/x", &[]));
    daemon.wait_for_log("told of add /devices/x");
}
