//! s6-svscan, s6-supervise and s6-log.

use std::fs;

use crate::harness::{eventually, inject};

use super::{
    Machine, OPTIONS, acts_on, copy, count, is_stopped, log, on_machine, set, wait_for_log,
    works_and_is_respawned,
};

const SERVICE: &str = "/run/service/plugd";
const TOOLS: [&str; 6] = ["s6-svscan", "s6-svok", "s6-svwait", "s6-svc", "s6-log", "ip"];

/// Has s6-svscan start this service of contrib/s6, with these settings.
fn start(name: &str, settings: &str) -> Machine {
    let machine = Machine::new();
    fs::create_dir("/run/service").unwrap();
    copy(&format!("s6/{name}"), SERVICE);
    set(&format!("{SERVICE}/conf"), settings);
    machine.supervisor("s6-svscan", &["/run/service"]);
    eventually("s6-supervise is there", || {
        (machine.run("s6-svok", &[SERVICE]).code == Some(0)).then_some(())
    });
    machine
}

fn wait(machine: &Machine, what: &str) {
    machine.must("s6-svwait", &[what, "-t", "30000", SERVICE]);
}

#[test]
fn a_service_by_rules() {
    on_machine("s6: a service by rules", "tools", &TOOLS, || {
        let machine = start("plugd", &format!("PLUGD_OPTIONS='{OPTIONS}'"));
        wait(&machine, "-U");
        works_and_is_respawned();
        wait(&machine, "-U");
        machine.must("s6-svc", &["-d", SERVICE]);
        wait(&machine, "-D");
        is_stopped();
    });
}

#[test]
fn a_service_with_a_handler() {
    on_machine("s6: a service with a handler", "tools", &TOOLS, || {
        let settings = "PLUGD_HANDLER=/run/hotplug";
        let machine = start("plugd-handler", settings);
        wait(&machine, "-U");
        works_and_is_respawned();
        wait(&machine, "-U");
        wait_for_log("reading from file descriptor 3");
        machine.must("s6-svc", &["-d", SERVICE]);
        wait(&machine, "-D");
        is_stopped();
    });
}

/// Devices are found that are there at the start, and that come and go while plugd
/// is down; those that it knows are left alone.
#[test]
fn what_is_there_and_what_was_missed() {
    on_machine("s6: coldplug", "tools", &TOOLS, || {
        ["br1", "br2"].into_iter().for_each(inject::real_device);
        // The option is that of the service, if there is no conf.
        let machine = start("plugd", &format!("PLUGD_OPTIONS=\"$PLUGD_OPTIONS {OPTIONS}\""));
        wait(&machine, "-U");
        machine.must("plugd", &["settle"]);
        assert_eq!((count("add", "br1"), count("add", "br2")), (1, 1), "{}", log());
        machine.must("s6-svc", &["-d", SERVICE]);
        wait(&machine, "-D");
        inject::real_device("br3");
        machine.must("ip", &["link", "delete", "br1"]);
        machine.must("s6-svc", &["-u", SERVICE]);
        wait(&machine, "-U");
        machine.must("plugd", &["settle"]);
        assert_eq!((count("add", "br3"), count("remove", "br1")), (1, 1), "{}", log());
        assert_eq!((count("add", "br2"), count("change", "br2")), (1, 0), "{}", log());
    });
}

/// s6-supervise would try for ever, once a second.
#[test]
fn what_is_wrong_for_good_is_not_tried_again() {
    on_machine("s6: what is wrong for good", "tools", &TOOLS, || {
        let machine = start("plugd", &format!("PLUGD_OPTIONS='{OPTIONS}'"));
        wait(&machine, "-U");
        acts_on("br1");
        fs::write("/run/mdev.conf", "nonsense\n").unwrap();
        machine.must("s6-svc", &["-r", SERVICE]);
        eventually("s6-supervise gives up", || {
            let wanted = machine.must("s6-svstat", &["-o", "up,wantedup", SERVICE]);
            (wanted.trim() == "false false").then_some(())
        });
        wait_for_log("/run/mdev.conf:1:");
        // Put right, it is started when it is told to be, and not before.
        let tries = log().matches("/run/mdev.conf:1:").count();
        fs::write("/run/mdev.conf", super::RULES).unwrap();
        machine.must("s6-svc", &["-u", SERVICE]);
        wait(&machine, "-U");
        acts_on("br2");
        assert_eq!(log().matches("/run/mdev.conf:1:").count(), tries);
    });
}
