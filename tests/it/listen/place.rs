//! The number that the socket gets.

use super::*;

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
