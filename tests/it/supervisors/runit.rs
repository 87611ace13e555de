//! runsvdir, runsv and svlogd.

use std::fs;

use crate::harness::eventually;

use super::{
    ELSEWHERE, Machine, OPTIONS, copy, is_stopped, on_machine, pid, set, wait_for_log,
    works_and_is_respawned,
};

const SERVICE: &str = "/run/sv/plugd";
const TOOLS: [&str; 5] = ["runsvdir", "runsv", "sv", "svlogd", "ip"];

/// Has runsvdir start this service of contrib/runit, with these settings.
fn start(name: &str, settings: &str) -> Machine {
    let machine = Machine::new();
    fs::create_dir("/run/sv").unwrap();
    copy(&format!("runit/{name}"), SERVICE);
    set(&format!("{SERVICE}/conf"), settings);
    machine.supervisor("runsvdir", &["/run/sv"]);
    eventually("runsv is there", || {
        (machine.run("sv", &["status", SERVICE]).code == Some(0)).then_some(())
    });
    machine
}

fn a_service(name: &str, settings: &str) {
    let machine = start(name, settings);
    // It waits for ./check.
    machine.must("sv", &["-w", "30", "start", SERVICE]);
    works_and_is_respawned();
    let status = machine.must("sv", &["status", SERVICE]);
    assert!(status.contains(&format!("(pid {})", pid().unwrap())), "{status}");
    machine.must("sv", &["-w", "30", "stop", SERVICE]);
    is_stopped();
}

#[test]
fn a_service_by_rules() {
    on_machine("runit: a service by rules", "tools", &TOOLS, || {
        a_service("plugd", &format!("PLUGD_OPTIONS='{OPTIONS}'"))
    });
}

#[test]
fn a_service_with_a_handler() {
    on_machine("runit: a service with a handler", "tools", &TOOLS, || {
        a_service("plugd-handler", "PLUGD_HANDLER=/run/hotplug");
        wait_for_log("reading from file descriptor 3");
    });
}

/// `./check` asks where plugd is.
fn is_found_elsewhere(name: &str, settings: &str) {
    let machine = start(name, &format!("{settings} PLUGD_CONTROL={ELSEWHERE}"));
    machine.must("sv", &["-w", "30", "start", SERVICE]);
    machine.must("plugd", &["status", "--quiet", "--control", ELSEWHERE]);
}

#[test]
fn a_control_socket_elsewhere() {
    on_machine("runit: a control socket elsewhere", "tools", &TOOLS, || {
        is_found_elsewhere("plugd", &format!("PLUGD_OPTIONS='{OPTIONS}'"))
    });
}

#[test]
fn a_control_socket_elsewhere_with_a_handler() {
    on_machine("runit: a handler's control socket", "tools", &TOOLS, || {
        is_found_elsewhere("plugd-handler", "PLUGD_HANDLER=/run/hotplug")
    });
}

/// `sv start` must not say that all is well.
#[test]
fn a_start_that_fails_is_told() {
    on_machine("runit: a start that fails", "tools", &TOOLS, || {
        let machine = start("plugd", "PLUGD_OPTIONS=--nonsense");
        assert_ne!(machine.run("sv", &["-w", "2", "start", SERVICE]).code, Some(0));
        wait_for_log("there is no option --nonsense");
        eventually("runsv does not try again", || {
            machine.must("sv", &["status", SERVICE]).starts_with("down: ").then_some(())
        });
    });
}
