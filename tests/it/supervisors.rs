//! contrib/, as it is: supervisors start what is in there, on something like a
//! machine that has just booted.

mod busybox;
mod dinit;
mod examples;
mod openrc;
mod quick_start;
mod runit;
mod s6;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::harness::background::finish;
use crate::harness::daemon::{Finished, Plugd};
use crate::harness::{eventually, inject, ns, programs, skip};

const CONTRIB: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib");
/// What services are told to do; each event of the network is a line of /run/events.
const OPTIONS: &str = "--dev /run/dev --conf /run/mdev.conf";
/// [`SLOW`] takes its time.
const RULES: &str = "SUBSYSTEM=net;.* 0:0 660 ! \
    *[ $INTERFACE != slow ] || sleep 1; echo $ACTION $DEVPATH >>/run/events\n.* 0:0 660 !\n";
const HANDLER: &str = "#!/bin/sh\necho $ACTION $DEVPATH >>/run/events\n";
/// A device that is there before plugd.
const SLOW: &str = "slow";
/// Another place for the control socket.
const ELSEWHERE: &str = "/run/plugd.socket";

#[test]
fn scripts_are_clean() {
    if !have("contrib: scripts", "tools", &["shellcheck"]) {
        return;
    }
    let others = ["alpine/APKBUILD", "busybox/rcS.plugd"].map(|file| format!("{CONTRIB}/{file}"));
    let find = ["-rlE", "^#!(/bin/sh|/sbin/openrc-run)$", CONTRIB];
    let found = Command::new("grep").args(find).output().unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    let scripts: Vec<&str> = found.lines().chain(others.iter().map(|file| &**file)).collect();
    assert!(scripts.len() > 20, "{scripts:?}");
    // Not of what others define and use, nor of `a= b=`. dash is the nearest to what is
    // used of shells: local, and -ot.
    let options = ["-s", "dash", "-S", "warning", "-e", "SC1007,SC2034,SC2154"];
    let said = Command::new("shellcheck").args(options).args(scripts).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
}

/// Whether all of these programs are there; if not, says that the test is skipped.
fn have(test: &str, need: &str, programs: &[&str]) -> bool {
    let path = std::env::var("PATH").unwrap();
    let directories = || std::env::split_paths(&path).chain(["/sbin".into(), "/usr/sbin".into()]);
    let missing = programs.iter().find(|name| !directories().any(|dir| dir.join(name).exists()));
    if let Some(name) = missing {
        skip(need, test, &format!("there is no {name} here"));
    }
    missing.is_none()
}

/// Acts on a machine of its own, if all of these programs are there; if not, says that
/// the test is skipped.
fn on_machine(test: &str, need: &str, programs: &[&str], act: impl FnOnce()) {
    if have(test, need, programs) {
        ns::inside_a_machine(act);
    }
}

/// The machine: programs to be found by PATH, and in /run what they work with.
/// For use inside of [`on_machine`].
struct Machine {
    programs: TempDir,
}

impl Machine {
    fn new() -> Self {
        fs::create_dir("/run/dev").unwrap();
        fs::write("/run/mdev.conf", RULES).unwrap();
        write_program("/run/hotplug", HANDLER);
        Self { programs: programs() }
    }

    fn path(&self) -> String {
        let path = std::env::var("PATH").unwrap();
        format!("{}:{path}:/usr/sbin:/sbin:/usr/bin:/bin", self.programs.path().display())
    }

    /// A program of this machine.
    fn command(&self, name: &str, args: &[&str]) -> Command {
        let path = self.path();
        // The name is looked for in the PATH of the caller.
        let mut command = Command::new("env");
        command.env("PATH", path).arg(name).args(args).stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    fn run(&self, name: &str, args: &[&str]) -> Finished {
        finish(&mut self.command(name, args))
    }

    /// The same, if it must not fail.
    fn must(&self, name: &str, args: &[&str]) -> String {
        let finished = self.run(name, args);
        assert_eq!(finished.code, Some(0), "{name} {args:?}: {finished:?}; log: {}", log());
        finished.stdout
    }

    /// Starts a supervisor, whose output goes to /run/supervisor.log.
    /// It ends with the machine.
    fn supervisor(&self, name: &str, args: &[&str]) {
        let log = fs::File::create("/run/supervisor.log").unwrap();
        let mut command = self.command(name, args);
        let mut child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        std::thread::spawn(move || child.wait());
    }
}

fn write_program(path: impl AsRef<Path>, text: &str) {
    fs::write(&path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Copies a directory of contrib/, as a user does.
fn copy(from: &str, to: &str) {
    let copied = Command::new("cp").arg("-rp").arg(format!("{CONTRIB}/{from}")).arg(to).status();
    assert!(copied.unwrap().success(), "{from}, {to}");
}

/// An /etc of its own, with links to what is in the machine's, but for these names,
/// which are empty directories.
fn own_etc(machine: &Machine, directories: &[&str]) {
    const THEIRS: &str = "/run/machine-etc";
    for directory in [THEIRS, "/run/etc"] {
        fs::create_dir(directory).unwrap();
    }
    machine.must("mount", &["--bind", "/etc", THEIRS]);
    for entry in fs::read_dir(THEIRS).unwrap() {
        let entry = entry.unwrap();
        if !directories.iter().any(|name| entry.file_name() == *name) {
            symlink(entry.path(), Path::new("/run/etc").join(entry.file_name())).unwrap();
        }
    }
    for name in directories {
        fs::create_dir(format!("/run/etc/{name}")).unwrap();
    }
    machine.must("mount", &["--bind", "/run/etc", "/etc"]);
}

/// Adds text to a file of settings.
fn set(file: &str, text: &str) {
    fs::create_dir_all(Path::new(file).parent().unwrap()).unwrap();
    let mut file = fs::File::options().append(true).create(true).open(file).unwrap();
    writeln!(file, "{text}").unwrap();
}

/// All that was written to a log.
fn log() -> String {
    let logs = [
        "/run/log/plugd/current",
        "/run/log/plugd-handler/current",
        "/run/plugd.log",
        "/run/supervisor.log",
    ];
    logs.iter().map(|file| fs::read_to_string(file).unwrap_or_default()).collect()
}

fn wait_for_log(text: &str) {
    eventually(&format!("the log has {text}"), || log().contains(text).then_some(()));
}

/// What plugd tells of itself, if it is there.
fn status() -> Option<serde_json::Value> {
    let told = Plugd::new().args(["status", "--json"]).finish();
    (told.code == Some(0)).then(|| serde_json::from_str(&told.stdout).unwrap())
}

/// Its process id.
fn pid() -> Option<i32> {
    status()?["pid"].as_i64().and_then(|pid| pid.try_into().ok())
}

/// How often this was done for that device.
fn count(action: &str, device: &str) -> usize {
    let line = format!("{action} /devices/virtual/net/{device}");
    let events = fs::read_to_string("/run/events").unwrap_or_default();
    events.lines().filter(|event| **event == line).count()
}

/// The devices that were there have been acted on, and plugd answers at [`ELSEWHERE`].
fn is_set_up() {
    assert_eq!(count("add", SLOW), 1, "it was not waited for; log: {}", log());
    let told = Plugd::new().args(["status", "--quiet", "--control", ELSEWHERE]).finish();
    assert_eq!(told.code, Some(0), "{told:?}; log: {}", log());
}

/// Makes a device and waits until it was acted on.
fn acts_on(device: &str) {
    inject::real_device(device);
    eventually(&format!("{device} is acted on; log: {}", log()), || {
        (count("add", device) > 0).then_some(())
    });
}

/// It works, is started anew when it is killed, and works again.
fn works_and_is_respawned() {
    let first = pid().expect("it is said to be ready");
    acts_on("br1");
    kill_process(Pid::from_raw(first).unwrap(), Signal::KILL).unwrap();
    eventually("it is started anew", || pid().filter(|&pid| pid != first));
    acts_on("br2");
    // It knows what was there; what it was killed at may be done once more.
    let settled = Plugd::new().args(["settle"]).finish();
    assert_eq!(settled.code, Some(0), "{settled:?}; {}", log());
    assert!(count("add", "br1") <= 2 && count("add", "lo") <= 1, "{}", log());
}

/// It was stopped as it should be, and is not there any more.
fn is_stopped() {
    wait_for_log("SIGTERM");
    wait_for_log("stopped: ");
    eventually("it is gone", || pid().is_none().then_some(()));
}
