//! The examples of those manual pages that want a machine to themselves, word for word.

use std::fs;
use std::os::unix::net::UnixDatagram;

use crate::harness::{eventually, inject};
use crate::manual::examples;

use super::quick_start::machine;
use super::{HANDLER, Machine, SLOW, acts_on, count, log, on_machine, pid, status, write_program};

/// An example of a page, one of so many.
fn example<const N: usize>(page: &str) -> [String; N] {
    examples(page).try_into().unwrap()
}

/// Runs it to its end.
fn run(machine: &Machine, example: &str) -> String {
    machine.must("sh", &["-ec", example])
}

/// Starts it, with the log of a supervisor for its output.
fn start(machine: &Machine, example: &str) {
    machine.supervisor("sh", &["-c", example]);
}

#[test]
fn mdevd_once() {
    on_machine("mdevd(8), mdevd-coldplug(8)", "tools", &["ip"], || {
        let machine = machine();
        let [once, ..] = example::<3>(include_str!("../../../man/mdevd.8"));
        run(&machine, &once);
        assert_eq!(count("add", SLOW), 1, "{}", log());
        let [again, _] = example(include_str!("../../../man/mdevd-coldplug.8"));
        run(&machine, &again);
        assert_eq!(count("add", SLOW), 2, "{}", log());
    });
}

#[test]
fn mdevd_as_a_service() {
    on_machine("mdevd(8): a service", "tools", &["ip"], || {
        let machine = machine();
        let [_, service, _] = example(include_str!("../../../man/mdevd.8"));
        write_program("/run/service", &service);
        start(&machine, "exec /run/service 3>/run/ready");
        eventually("it is ready", || (fs::read("/run/ready").ok()? == b"\n").then_some(()));
        let [_, wait] = example(include_str!("../../../man/mdevd-coldplug.8"));
        run(&machine, &wait);
        assert_eq!(count("add", SLOW), 1, "it was not waited for; log: {}", log());
    });
}

#[test]
fn mdevd_tells_what_would_be_done() {
    on_machine("mdevd(8): a dry run", "tools", &["ip"], || {
        let machine = machine();
        let [.., dry] = example::<3>(include_str!("../../../man/mdevd.8"));
        start(&machine, &dry);
        eventually("it listens", || (!inject::listeners().is_empty()).then_some(()));
        inject::real_device("br1");
        eventually("it tells", || log().contains("add /devices/virtual/net/br1 ").then_some(()));
        assert_eq!(count("add", "br1"), 0);
    });
}

#[test]
fn mdevd_netlink() {
    on_machine("mdevd-netlink(8)", "tools", &["ip"], || {
        let machine = machine();
        let [manager] = example(include_str!("../../../man/mdevd-netlink.8"));
        start(&machine, &manager);
        eventually("it listens", || (!inject::listeners().is_empty()).then_some(()));
        acts_on("br1");
    });
}

#[test]
fn plugd_control() {
    on_machine("plugd-control(7)", "tools", &["ip", "socat"], || {
        let machine = machine();
        let [mount, metrics, socket, check] = example(include_str!("../../../man/plugd-control.7"));
        write_program("/run/check", &check);
        assert_ne!(machine.run("/run/check", &[]).code, Some(0));
        start(&machine, "exec plugd run");
        eventually("it is there", pid);
        machine.must("/run/check", &[]);
        // The disk is there; the machine mounts none.
        write_program(machine.programs.path().join("mount"), "#!/bin/sh\necho \"$@\"\n");
        fs::create_dir_all("/dev/disk/by-label").unwrap();
        fs::write("/dev/disk/by-label/data", "").unwrap();
        assert_eq!(run(&machine, &mount), "LABEL=data /data\n");
        machine.must("/bin/mount", &["-t", "tmpfs", "none", "/var/lib"]);
        fs::create_dir("/var/lib/node_exporter").unwrap();
        run(&machine, &metrics);
        let written = fs::read_to_string("/var/lib/node_exporter/plugd.prom").unwrap();
        assert!(written.contains("\nplugd_events_handled_total "), "{written}");
        let told = run(&machine, &socket);
        assert!(told.contains(&format!("pid {}, ", pid().unwrap())), "{told}");
    });
}

#[test]
fn daemon_control() {
    on_machine("daemon-control(8)", "tools", &["ip"], || {
        let machine = machine();
        let [script] = example(include_str!("../../../man/daemon-control.8"));
        write_program("/run/init", &format!("#!/bin/sh\n{script}"));
        write_program("/etc/hotplug", HANDLER);
        // The log daemon, which need not read.
        let _syslog = UnixDatagram::bind("/dev/log").unwrap();
        let act = |action| machine.run("/run/init", &[action]).code;
        assert_ne!(act("status"), Some(0));
        for _ in 0..2 {
            assert_eq!(act("start"), Some(0), "{}", log());
        }
        acts_on("br1");
        assert_eq!((act("reload"), act("status")), (Some(0), Some(0)));
        for _ in 0..2 {
            assert_eq!(act("stop"), Some(0));
        }
        assert!(status().is_none());
    });
}
