//! dinit, which not every distribution has.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::eventually;

use super::{
    Machine, OPTIONS, RULES, acts_on, copy, is_stopped, log, on_machine, pid,
    works_and_is_respawned,
};

const CTL: [&str; 2] = ["-p", "/run/dinitctl"];

/// Has dinit start the service, and boot wait for it.
fn start() -> Machine {
    let machine = Machine::new();
    copy("dinit", "/run/dinit.d");
    fs::write("/run/environment", format!("PLUGD_OPTIONS={OPTIONS}\n")).unwrap();
    let boot = "type = internal\ndepends-on = plugd-coldplug\n";
    fs::write("/run/dinit.d/boot", boot).unwrap();
    let directories = ["-d", "/run/dinit.d", "-p", "/run/dinitctl", "-e", "/run/environment"];
    machine.supervisor("dinit", &[&["--user"], &directories[..]].concat());
    eventually("boot is done", || is(&machine, "is-started", "boot").then_some(()));
    machine
}

fn is(machine: &Machine, what: &str, name: &str) -> bool {
    machine.run("dinitctl", &[&CTL[..], &[what, name]].concat()).code == Some(0)
}

#[test]
fn a_service() {
    on_machine("dinit: a service", "dinit", &["dinit", "dinitctl", "ip"], || {
        let machine = start();
        works_and_is_respawned();
        assert!(is(&machine, "is-started", "boot"), "what depends on it was stopped");
        machine.must("dinitctl", &[&CTL[..], &["stop", "plugd"]].concat());
        is_stopped();
    });
}

/// Rules that are mistaken when plugd dies are not tried for ever.
#[test]
fn it_gives_up() {
    on_machine("dinit: giving up", "dinit", &["dinit", "dinitctl", "ip"], || {
        let machine = start();
        fs::write("/run/mdev.conf", "nonsense\n").unwrap();
        kill_process(Pid::from_raw(pid().unwrap()).unwrap(), Signal::KILL).unwrap();
        eventually("dinit gives up", || (!is(&machine, "is-started", "plugd")).then_some(()));
        let tries = log().matches("/run/mdev.conf:1:").count();
        assert!((1..=10).contains(&tries), "{}", log());
        fs::write("/run/mdev.conf", RULES).unwrap();
        machine.must("dinitctl", &[&CTL[..], &["start", "plugd"]].concat());
        acts_on("br1");

        // What has not come up is not tried again.
        machine.must("dinitctl", &[&CTL[..], &["stop", "plugd"]].concat());
        fs::write("/run/mdev.conf", "nonsense\n").unwrap();
        let before = log().matches("/run/mdev.conf:1:").count();
        let started = machine.run("dinitctl", &[&CTL[..], &["start", "plugd"]].concat());
        assert_eq!(started.code, Some(1), "{started:?}");
        assert_eq!(log().matches("/run/mdev.conf:1:").count(), before + 1, "{}", log());
    });
}
