//! Programs of others that start and stop daemons.

use super::*;

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
