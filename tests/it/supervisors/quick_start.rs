//! The lines of README.md's quick starts, as they are written there.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::harness::{eventually, inject};

use super::{
    CONTRIB, ELSEWHERE, Machine, RULES, SLOW, acts_on, count, is_set_up, log, on_machine, own_etc,
    pid, set, works_and_is_respawned, write_program,
};

const S6: [&str; 5] = ["s6-svscan", "s6-svscanctl", "s6-svok", "s6-log", "ip"];

/// A machine with plugd installed, without devices but those of the network.
pub(super) fn machine() -> Machine {
    let machine = Machine::new();
    let files = ["inittab", "mdev.conf"];
    let directories =
        ["conf.d", "default", "dinit.d", "init.d", "runlevels", "s6-rc", "service", "sv"];
    own_etc(&machine, &[&files[..], &directories].concat());
    for file in files {
        fs::remove_dir(format!("/etc/{file}")).unwrap();
    }
    fs::write("/etc/mdev.conf", RULES).unwrap();
    fs::write("/run/dev/null", "").unwrap();
    machine.must("mount", &["--bind", "/dev/null", "/run/dev/null"]);
    machine.must("mount", &["--rbind", "/run/dev", "/dev"]);
    machine.must("mount", &["-t", "tmpfs", "none", "/usr/local/share"]);
    symlink(CONTRIB, "/usr/local/share/plugd").unwrap();
    inject::real_device(SLOW);
    machine
}

/// The lines for this supervisor, at most five.
fn lines(supervisor: &str) -> Vec<&'static str> {
    lines_after(&format!("**{supervisor}**"))
}

/// Those that come after a line that begins so.
fn lines_after(heading: &str) -> Vec<&'static str> {
    let readme = include_str!("../../../README.md");
    let (_, section) = readme.split_once(&format!("\n{heading}")).unwrap();
    let lines: Vec<&str> =
        section.lines().skip(2).map_while(|line| line.strip_prefix("    ")).collect();
    assert!((2..=5).contains(&lines.len()), "{lines:?}");
    lines
}

fn type_in(machine: &Machine, lines: &[&str]) {
    machine.must("env", &["SVDIR=/etc/service", "sh", "-ec", &lines.join("\n")]);
}

/// plugd has acted on what was there.
fn has_been_waited_for() {
    assert_eq!(count("add", SLOW), 1, "it was not waited for; log: {}", log());
}

/// Types the lines for this supervisor. plugd is there then.
fn follow(machine: &Machine, supervisor: &str) {
    type_in(machine, &lines(supervisor));
    has_been_waited_for();
}

/// What comes before all supervisors.
#[test]
fn rules() {
    on_machine("README: rules", "tools", &["ip"], || {
        let machine = machine();
        type_in(&machine, &lines_after("Rules first"));
        machine.must("cmp", &["/etc/mdev.conf", &format!("{CONTRIB}/mdev.conf")]);
        let file = fs::metadata("/etc/mdev/disk-links").unwrap();
        assert!(file.permissions().mode() & 0o111 == 0o111);
    });
}

#[test]
fn s6() {
    on_machine("README: s6", "tools", &S6, || {
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
    on_machine("README: s6-rc", "s6-rc", &[&S6[..], &["s6-rc", "s6-rc-compile"]].concat(), || {
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
    on_machine("README: runit", "tools", &["runsvdir", "runsv", "sv", "svlogd", "ip"], || {
        let machine = machine();
        machine.supervisor("runsvdir", &["/etc/service"]);
        follow(&machine, "runit");
        works_and_is_respawned();
    });
}

/// On a machine that has mdev, as Alpine's; plugd is there when it comes up.
#[test]
fn openrc() {
    let tools = ["openrc", "rc-update", "openrc-run", "supervise-daemon", "ip"];
    on_machine("README: OpenRC", "tools", &tools, || {
        let machine = machine();
        let programs = machine.programs.path().to_str().unwrap();
        machine.must("mount", &["--bind", programs, "/usr/local/sbin"]);
        fs::create_dir("/etc/runlevels/sysinit").unwrap();
        write_program("/etc/init.d/mdev", "#!/sbin/openrc-run\nstart() {\n\treturn 0\n}\n");
        machine.must("rc-update", &["add", "mdev", "sysinit"]);
        type_in(&machine, &lines("OpenRC"));
        let services: Vec<_> = fs::read_dir("/etc/runlevels/sysinit").unwrap().collect();
        assert!(services.len() == 1, "{services:?}");
        // As init starts it: what is in the PATH of this machine would be found, too.
        machine.must("env", &["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "openrc", "sysinit"]);
        has_been_waited_for();
        works_and_is_respawned();
    });
}

/// Types one of the commands, and has busybox init come up, as process 1 of a machine in
/// this machine. rcS is as a user or Buildroot has it.
fn follow_for_busybox(command: usize, rcs: &str) -> Machine {
    let machine = machine();
    fs::create_dir("/run/share").unwrap();
    symlink(CONTRIB, "/run/share/plugd").unwrap();
    let overlay = |lower: &str, over: &str| {
        let option = format!("lowerdir={lower}:{over}");
        machine.must("mount", &["-t", "overlay", "overlay", "-o", &option, over]);
    };
    overlay("/run/share", "/usr/share");
    fs::write("/etc/inittab", "::sysinit:/etc/init.d/rcS\n").unwrap();
    write_program("/etc/init.d/rcS", rcs);
    let commands: Vec<&str> =
        lines("busybox init").into_iter().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(commands.len(), 3, "{commands:?}");
    type_in(&machine, &commands[command..=command]);
    overlay(machine.programs.path().to_str().unwrap(), "/usr/sbin");
    machine.supervisor("unshare", &["-mpf", "--mount-proc", "busybox", "init"]);
    machine
}

/// It works, and is started anew when it is killed: by its name, as process ids are
/// others there.
fn works_and_is_respawned_there(machine: &Machine) {
    acts_on("br1");
    machine.must("pkill", &["-KILL", "-x", "plugd"]);
    acts_on("br2");
}

#[test]
fn busybox_inittab() {
    on_machine("README: busybox, inittab", "tools", &["busybox", "pkill", "ip"], || {
        let machine = follow_for_busybox(0, "#!/bin/sh\n");
        eventually("init has started it", pid);
        machine.must("plugd", &["settle"]);
        has_been_waited_for();
        works_and_is_respawned_there(&machine);
    });
}

#[test]
fn busybox_rcs() {
    on_machine("README: busybox, rcS", "tools", &["busybox", "pkill", "ip"], || {
        let machine = follow_for_busybox(1, "#!/bin/sh\n");
        eventually("rcS has started it", pid);
        eventually("rcS has waited", || (count("add", SLOW) == 1).then_some(()));
        works_and_is_respawned_there(&machine);
    });
}

#[test]
fn busybox_init_script() {
    on_machine("README: busybox, S10plugd", "tools", &["busybox", "pkill", "ip"], || {
        let start = "#!/bin/sh\nfor script in /etc/init.d/S*; do $script start; done\n: >/run/up\n";
        let _machine = follow_for_busybox(2, start);
        eventually("it has come up", || Path::new("/run/up").exists().then_some(()));
        has_been_waited_for();
        acts_on("br1");
    });
}

/// It is enabled for the next time, too.
#[test]
fn dinit() {
    on_machine("README: dinit", "dinit", &["dinit", "dinitctl", "ip"], || {
        let machine = machine();
        fs::create_dir("/etc/dinit.d/boot.d").unwrap();
        fs::write("/etc/dinit.d/boot", "type = internal\nwaits-for.d = boot.d\n").unwrap();
        machine.supervisor("dinit", &["--container"]);
        eventually("dinit is there", || {
            (machine.run("dinitctl", &["is-started", "boot"]).code == Some(0)).then_some(())
        });
        follow(&machine, "dinit");
        assert!(Path::new("/etc/dinit.d/boot.d/plugd-coldplug").exists());
        works_and_is_respawned();
    });
}
