//! Worlds for tests: a test runs itself again, inside of another world.
//!
//! ```ignore
//! #[test]
//! fn a_thing() {
//!     ns::inside(|| {
//!         // Here this process has a network namespace of its own, and is root in it.
//!     });
//! }
//! ```

use std::any::type_name;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::io::{Read, Seek, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::process::{Pid, PidfdFlags, pidfd_open, umask};

use super::skip;

/// Tells the test that it is inside.
const MARKER: &str = "PLUGD_TEST_INSIDE";

/// A test that takes longer hangs: PLUGD_TEST_LIMIT, or 180 seconds.
fn limit() -> Duration {
    let limit = std::env::var("PLUGD_TEST_LIMIT");
    let seconds = limit.map_or(180, |text| text.parse().expect("PLUGD_TEST_LIMIT is a number"));
    Duration::from_secs(seconds)
}

/// Runs the test in a new user and network namespace, as root of it.
pub(crate) fn inside<F: FnOnce()>(test: F) {
    again(&["unshare", "-Urn"], test);
}

/// The same, with a mount namespace and a sysfs that shows this network namespace.
pub(crate) fn inside_with_sysfs<F: FnOnce()>(test: F) {
    let mount = "mount -t sysfs sysfs /sys && exec \"$0\" \"$@\"";
    again(&["unshare", "-Ur", "unshare", "-nm", "sh", "-c", mount], test);
}

/// Runs the test in a new user and network namespace that has no root: as user
/// 1000 with all capabilities.
pub(crate) fn inside_without_root<F: FnOnce()>(test: F) {
    again(&["unshare", "-Un", "--map-user=1000", "--keep-caps"], test);
}

/// Runs the test in a new network namespace as the machine's root, if it is
/// that; says so if not.
pub(crate) fn inside_as_root<F: FnOnce()>(test: F) {
    if !rustix::process::geteuid().is_root() {
        return skip("root", test_name::<F>(), "this is not root");
    }
    again(&["unshare", "-n"], test);
}

/// The same, with mounts of its own.
pub(crate) fn inside_as_root_with_mounts<F: FnOnce()>(test: F) {
    if !rustix::process::geteuid().is_root() {
        return skip("root", test_name::<F>(), "this is not root");
    }
    again(&["unshare", "-nm"], test);
}

/// Runs the test as the machine's root, with mounts of its own, and in a network
/// namespace that hears nothing of the machine's devices: the kernel tells of
/// these only in such that belong to its first user namespace
/// (lib/kobject_uevent.c, uevent_net_broadcast_untagged).
pub(crate) fn inside_as_root_apart<F: FnOnce()>(test: F) {
    if !rustix::process::geteuid().is_root() {
        return skip("root", test_name::<F>(), "this is not root");
    }
    let enter = "mount -t tmpfs tmpfs /mnt && touch /mnt/net && \
                 unshare -Um --net=/mnt/net true && exec nsenter --net=/mnt/net \"$0\" \"$@\"";
    again(&["unshare", "-m", "sh", "-c", enter], test);
}

/// Runs the test in new user, network and process id namespaces, with at most
/// this many process ids, so that they are soon given out again. Linux has
/// such a limit for each namespace from 6.14 on.
pub(crate) fn inside_with_few_pids<F: FnOnce()>(limit: u32, test: F) {
    let limit = format!("PIDS={limit}");
    // The shell is process 1 there and reaps what loses its parent.
    let init = "echo $PIDS >/proc/sys/kernel/pid_max && { \"$0\" \"$@\" & wait $!; }";
    again(&["env", &limit, "unshare", "-Urnpf", "--mount-proc", "sh", "-c", init], test);
}

/// Runs the test in something like a machine that has just booted: new user,
/// network, process id and mount namespaces, with an empty /run and a sysfs that
/// shows this network namespace. What the test leaves behind ends with it.
pub(crate) fn inside_a_machine<F: FnOnce()>(test: F) {
    // The shell is process 1 there and reaps what loses its parent.
    let init = "mount -t tmpfs none /run && mount -t sysfs sysfs /sys && \
                { \"$0\" \"$@\" & wait $!; }";
    again(&["unshare", "-Ur", "unshare", "-nmpf", "--mount-proc", "sh", "-c", init], test);
}

/// Runs the test in a process of its own, where no other test forks: a child
/// forked just then would keep a program file open for writing (ETXTBSY).
pub(crate) fn alone<F: FnOnce()>(test: F) {
    again(&["env"], test);
}

/// Runs mount(8), in a world that has mounts of its own.
pub(crate) fn mount<A: AsRef<OsStr> + Debug>(arguments: &[A]) {
    let status = Command::new("mount").args(arguments).status().unwrap();
    assert!(status.success(), "mount {arguments:?}: {status}");
}

/// The name that libtest knows the test by, found from its closure.
fn test_name<F>() -> &'static str {
    let path = type_name::<F>().trim_end_matches("::{{closure}}");
    path.split_once("::").map_or(path, |(_crate, name)| name)
}

fn again<F: FnOnce()>(world: &[&str], test: F) {
    if std::env::var_os(MARKER).is_some() {
        // Which modes the files of tests have is not up to whoever runs them.
        umask(Mode::from_raw_mode(0o022));
        return test();
    }
    let name = test_name::<F>();
    if let Err(why) = probe(world) {
        return skip("ns", name, &why);
    }
    // Not a pipe, which a process left behind would keep open.
    let mut output = tempfile::tempfile().unwrap();
    let mut child = Command::new(world[0])
        .args(&world[1..])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--include-ignored", "--test-threads=1"])
        .env(MARKER, "1")
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output.try_clone().unwrap())
        .spawn()
        .unwrap();
    let status = wait(&mut child, limit());
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let mut text = String::new();
    output.rewind().unwrap();
    output.read_to_string(&mut text).unwrap();
    // It may stand behind the name of the test.
    for skipped in text.lines().filter_map(|line| line.find("SKIPPED ").map(|at| &line[at..])) {
        let _ = writeln!(std::io::stderr(), "{skipped}");
    }
    let passed = status.is_some_and(|status| status.success()) && text.contains("1 passed");
    assert!(passed, "inside of {world:?}: {status:?}\n{text}");
}

/// Whether such a world can be had.
fn probe(world: &[&str]) -> Result<(), String> {
    match Command::new(world[0]).args(&world[1..]).arg("true").output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(format!("{}: {error}", world[0])),
    }
}

/// Waits for the child's end; `None` if it does not end in time.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).unwrap();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        let left = deadline.checked_duration_since(Instant::now())?;
        let timeout = Timespec::try_from(left).unwrap();
        let _ = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout));
    }
}
