//! With nothing to do it does nothing.

use super::*;
use crate::harness::inject::real_device;

#[test]
fn an_idle_daemon_makes_no_system_calls() {
    let host = Host::start(&[], "true");
    host.event(1);
    assert_eq!(host.say(&["settle"]).code, Some(0));
    makes_no_system_calls(&host.daemon, "an_idle_daemon_makes_no_system_calls");
}

/// With all that there can be: the kernel's socket, rules, a state file, devices that
/// were found, and one that came.
#[test]
fn an_idle_device_manager_makes_no_system_calls() {
    ns::inside_with_sysfs(|| {
        let dir = tempfile::tempdir().unwrap();
        let (conf, dev, state) =
            (dir.path().join("mdev.conf"), dir.path().join("dev"), dir.path().join("state"));
        std::fs::write(&conf, "-SUBSYSTEM=net;.* 0:0 600 *echo $ACTION >>$TMP/out\n").unwrap();
        std::fs::create_dir(&dev).unwrap();
        let plugd = Plugd::new().args(["run", "--coldplug", "--state"]).args([&state]);
        let daemon = plugd.args(["--conf"]).args([&conf]).args(["--dev"]).args([&dev]).start();
        eventually("it listens", || connect("@plugd"));
        real_device("br0");
        assert_eq!(say("@plugd", &["wait", "/sys/class/net/br0"]).code, Some(0));
        assert_eq!(say("@plugd", &["settle"]).code, Some(0));
        assert!(daemon.lines("out").iter().any(|line| line == "add"), "{:?}", daemon.log());
        assert!(std::fs::metadata(&state).unwrap().len() > 0);
        makes_no_system_calls(&daemon, "an_idle_device_manager_makes_no_system_calls");
        assert_eq!(status("@plugd")["state"], "idle");
    });
}

/// For 10 seconds, once it has looked up what it had put off.
fn makes_no_system_calls(daemon: &Daemon, test: &str) {
    if Command::new("strace").arg("-V").output().is_err() {
        return skip("tools", test, "there is no strace");
    }
    let file = format!("/proc/{}/syscall", daemon.pid());
    if let Err(error) = std::fs::read_to_string(&file) {
        return skip("tools", test, &format!("{file}: {error}"));
    }
    eventually("it waits without a deadline", || {
        // The number of the system call, and what it was called with (proc(5)).
        let call = std::fs::read_to_string(&file).unwrap();
        let timeout = call.split_whitespace().nth(4)?;
        ["0xffffffff", "0xffffffffffffffff"].contains(&timeout).then_some(())
    });
    let trace = daemon.path("trace");
    let mut strace = Command::new("strace")
        .args(["-q", "-p", &daemon.pid().to_string(), "-o"])
        .arg(&trace)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let attached = eventually("strace is attached, or cannot be", || {
        if strace.try_wait().unwrap().is_some() {
            return Some(false);
        }
        (daemon.status("TracerPid") != "0").then_some(true)
    });
    if !attached {
        return skip("tools", test, "strace cannot attach");
    }
    // What must not happen cannot be awaited.
    std::thread::sleep(Duration::from_secs(10));
    rustix::process::kill_process(rustix::process::Pid::from_child(&strace), Signal::INT).unwrap();
    ns::wait(&mut strace, PATIENCE).unwrap();
    let trace = std::fs::read_to_string(trace).unwrap();
    let calls: Vec<&str> = trace.lines().filter(|line| !line.starts_with("epoll_wait(")).collect();
    assert!(calls.is_empty(), "{calls:?}");
    assert!(trace.lines().count() <= 1, "{trace}");
}
