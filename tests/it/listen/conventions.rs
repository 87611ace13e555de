//! How sockets are handed on, and from one to the next.

use super::*;
use crate::harness::eventually;

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
