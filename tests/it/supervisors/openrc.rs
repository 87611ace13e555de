//! OpenRC: supervise-daemon, and start-stop-daemon.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{eventually, ns};

use super::{
    Machine, OPTIONS, acts_on, copy, have, is_stopped, log, pid, set, wait_for_log,
    works_and_is_respawned,
};

const SCRIPT: &str = "/run/etc/init.d/plugd";

/// Has this script of contrib/openrc where it belongs, with these settings, on a
/// machine on which OpenRC has come up.
fn install(script: &str, settings: &str) -> Machine {
    let machine = Machine::new();
    for directory in ["daemons", "exclusive", "options", "started", "starting", "stopping", "tmp"] {
        fs::create_dir_all(format!("/run/openrc/{directory}")).unwrap();
    }
    fs::write("/run/openrc/softlevel", "sysinit").unwrap();
    fs::create_dir_all("/run/etc/init.d").unwrap();
    fs::create_dir_all("/run/etc/conf.d").unwrap();
    copy(&format!("openrc/{script}"), SCRIPT);
    copy("openrc/plugd.confd", "/run/etc/conf.d/plugd");
    let programs = machine.programs.path().display();
    set("/run/etc/conf.d/plugd", &format!("PATH={programs}:$PATH\n{settings}"));
    machine
}

/// Without what it depends on, which has not come up here.
fn act(machine: &Machine, action: &str) {
    machine.must(SCRIPT, &["--nodeps", action]);
}

fn supervised(settings: &str) {
    let machine = install("plugd.initd", settings);
    act(&machine, "start");
    works_and_is_respawned();
    act(&machine, "status");
    act(&machine, "stop");
    is_stopped();
    assert_eq!(machine.run(SCRIPT, &["--nodeps", "status"]).code, Some(3));
}

#[test]
fn supervise_daemon() {
    if !have("openrc: supervise-daemon", "tools", &["openrc-run", "supervise-daemon", "ip"]) {
        return;
    }
    ns::inside_a_machine(|| supervised(&format!("plugd_options='{OPTIONS}'")));
}

#[test]
fn supervise_daemon_with_a_handler() {
    if !have("openrc: a handler", "tools", &["openrc-run", "supervise-daemon", "ip"]) {
        return;
    }
    ns::inside_a_machine(|| {
        supervised("plugd_options=\nplugd_handler=/run/hotplug");
        wait_for_log("reading from file descriptor 3");
    });
}

#[test]
fn rules_are_read_anew() {
    if !have("openrc: reload", "tools", &["openrc-run", "supervise-daemon", "ip"]) {
        return;
    }
    ns::inside_a_machine(|| {
        let machine = install("plugd.initd", &format!("plugd_options='{OPTIONS}'"));
        act(&machine, "start");
        act(&machine, "reload");
        wait_for_log("the rules were read anew");
        act(&machine, "stop");
    });
}

#[test]
fn start_stop_daemon() {
    if !have("openrc: start-stop-daemon", "tools", &["openrc-run", "start-stop-daemon", "ip"]) {
        return;
    }
    ns::inside_a_machine(|| {
        let machine = install("plugd-forking.initd", &format!("plugd_options='{OPTIONS}'"));
        act(&machine, "start");
        let daemon = pid().unwrap_or_else(|| panic!("it is not there: {}", log()));
        assert_eq!(fs::read_to_string("/run/plugd.pid").unwrap().trim(), daemon.to_string());
        acts_on("br1");
        act(&machine, "stop");
        is_stopped();
        // Killed, it is started once more by hand.
        act(&machine, "start");
        let daemon = pid().unwrap();
        kill_process(Pid::from_raw(daemon).unwrap(), Signal::KILL).unwrap();
        eventually("it is gone", || pid().is_none().then_some(()));
        act(&machine, "zap");
        act(&machine, "start");
        acts_on("br2");
        act(&machine, "stop");
    });
}

#[test]
fn start_stop_daemon_with_a_handler() {
    if !have("openrc: a chain", "tools", &["openrc-run", "start-stop-daemon", "ip"]) {
        return;
    }
    ns::inside_a_machine(|| {
        let settings = "plugd_options=\nplugd_handler=/run/hotplug";
        let machine = install("plugd-forking.initd", settings);
        act(&machine, "start");
        acts_on("br1");
        act(&machine, "stop");
        is_stopped();
    });
}
