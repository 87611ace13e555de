//! The lines of README.md's quick starts, as they are written there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::harness::{eventually, inject, ns};

use super::{
    CONTRIB, ELSEWHERE, Machine, RULES, SLOW, count, have, is_set_up, log, own_etc, set,
    works_and_is_respawned,
};

const S6: [&str; 5] = ["s6-svscan", "s6-svscanctl", "s6-svok", "s6-log", "ip"];

/// A machine with plugd installed, without devices but those of the network.
fn machine() -> Machine {
    let machine = Machine::new();
    own_etc(&machine, &["mdev.conf", "s6-rc", "service", "sv"]);
    fs::remove_dir("/etc/mdev.conf").unwrap();
    fs::write("/etc/mdev.conf", RULES).unwrap();
    fs::write("/run/dev/null", "").unwrap();
    machine.must("mount", &["--bind", "/dev/null", "/run/dev/null"]);
    machine.must("mount", &["--rbind", "/run/dev", "/dev"]);
    machine.must("mount", &["-t", "tmpfs", "none", "/usr/local/share"]);
    symlink(CONTRIB, "/usr/local/share/plugd").unwrap();
    inject::real_device(SLOW);
    machine
}

/// Types the lines for this supervisor. plugd is there then, and has acted on what
/// was there.
fn follow(machine: &Machine, supervisor: &str) {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, section) = readme.split_once(&format!("\n**{supervisor}**")).unwrap();
    let lines: Vec<&str> =
        section.lines().skip(2).map_while(|line| line.strip_prefix("    ")).collect();
    assert!((3..=5).contains(&lines.len()), "{lines:?}");
    machine.must("env", &["SVDIR=/etc/service", "sh", "-ec", &lines.join("\n")]);
    assert_eq!(count("add", SLOW), 1, "it was not waited for; log: {}", log());
}

#[test]
fn s6() {
    if !have("README: s6", "tools", &S6) {
        return;
    }
    ns::inside_a_machine(|| {
        let machine = machine();
        fs::create_dir("/run/service").unwrap();
        machine.supervisor("s6-svscan", &["/run/service"]);
        has_come_up(&machine);
        follow(&machine, "s6");
        works_and_is_respawned();
    });
}

/// s6-svscan listens.
fn has_come_up(machine: &Machine) {
    eventually("s6-svscan is there", || {
        (machine.run("s6-svscanctl", &["-a", "/run/service"]).code == Some(0)).then_some(())
    });
}

/// s6-rc, on a machine that has just booted.
fn boot(machine: &Machine) {
    fs::create_dir("/run/service").unwrap();
    machine.supervisor("s6-svscan", &["/run/service"]);
    has_come_up(machine);
    machine.must("s6-rc-init", &["-c", "/etc/s6-rc/compiled", "/run/service"]);
    machine.must("s6-rc", &["-u", "change", "default"]);
}

/// It is there after a reboot, too, and the control socket may be elsewhere then.
#[test]
fn s6_rc() {
    if !have("README: s6-rc", "s6-rc", &[&S6[..], &["s6-rc", "s6-rc-compile"]].concat()) {
        return;
    }
    ns::inside_a_machine(|| {
        let machine = machine();
        let source = "/etc/s6-rc/source/default";
        fs::create_dir_all(source).unwrap();
        fs::write(format!("{source}/type"), "bundle\n").unwrap();
        fs::write(format!("{source}/contents"), "").unwrap();
        machine.must("s6-rc-compile", &["/etc/s6-rc/compiled-first", "/etc/s6-rc/source"]);
        symlink("compiled-first", "/etc/s6-rc/compiled").unwrap();
        boot(&machine);
        follow(&machine, "s6-rc");
        works_and_is_respawned();

        machine.must("s6-svscanctl", &["-t", "/run/service"]);
        eventually("all of s6 is gone", || {
            (machine.run("pgrep", &["^s6-|plugd"]).code == Some(1)).then_some(())
        });
        machine.must("sh", &["-c", "rm -r /run/service /run/s6-rc* /run/plugd /run/events"]);
        let compiled = fs::canonicalize("/etc/s6-rc/compiled").unwrap();
        assert_ne!(compiled, Path::new("/etc/s6-rc/compiled-first"));
        set("/etc/s6-rc/source/plugd/data/conf", &format!("PLUGD_CONTROL={ELSEWHERE}"));
        fs::remove_dir_all(&compiled).unwrap();
        machine.must("s6-rc-compile", &[compiled.to_str().unwrap(), "/etc/s6-rc/source"]);
        boot(&machine);
        is_set_up();
    });
}

#[test]
fn runit() {
    if !have("README: runit", "tools", &["runsvdir", "runsv", "sv", "svlogd", "ip"]) {
        return;
    }
    ns::inside_a_machine(|| {
        let machine = machine();
        machine.supervisor("runsvdir", &["/etc/service"]);
        follow(&machine, "runit");
        works_and_is_respawned();
    });
}
