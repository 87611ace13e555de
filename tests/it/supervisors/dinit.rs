//! dinit, which not every distribution has.

use std::fs;

use crate::harness::{eventually, ns};

use super::{Machine, OPTIONS, copy, have, is_stopped, works_and_is_respawned};

const CTL: [&str; 2] = ["-p", "/run/dinitctl"];

#[test]
fn a_service() {
    if !have("dinit: a service", "dinit", &["dinit", "dinitctl", "ip"]) {
        return;
    }
    ns::inside_a_machine(|| {
        let machine = Machine::new();
        copy("dinit", "/run/dinit.d");
        fs::write("/run/environment", format!("PLUGD_OPTIONS={OPTIONS}\n")).unwrap();
        let boot = "type = internal\ndepends-on = plugd-coldplug\n";
        fs::write("/run/dinit.d/boot", boot).unwrap();
        let directories = ["-d", "/run/dinit.d", "-p", "/run/dinitctl", "-e", "/run/environment"];
        machine.supervisor("dinit", &[&["--user"], &directories[..]].concat());
        let started = |name| machine.run("dinitctl", &[&CTL[..], &["is-started", name]].concat());
        eventually("boot is done", || (started("boot").code == Some(0)).then_some(()));
        works_and_is_respawned();
        assert_eq!(started("boot").code, Some(0), "what depends on it was stopped");
        machine.must("dinitctl", &[&CTL[..], &["stop", "plugd"]].concat());
        is_stopped();
    });
}
