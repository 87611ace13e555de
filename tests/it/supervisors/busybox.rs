//! busybox: init, a piece for rcS, and an init script.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::background::finish;
use crate::harness::{eventually, inject, ns};

use super::{
    CONTRIB, ELSEWHERE, Machine, OPTIONS, RULES, SLOW, acts_on, copy, have, is_set_up, is_stopped,
    log, on_machine, pid, set, wait_for_log, works_and_is_respawned,
};

/// A /etc/default of its own, with these settings.
fn settings(machine: &Machine, text: &str) {
    fs::create_dir_all("/run/default").unwrap();
    set("/run/default/plugd", text);
    machine.must("mount", &["--bind", "/run/default", "/etc/default"]);
}

fn a_piece_of_rcs(options: &str) {
    let machine = Machine::new();
    settings(&machine, options);
    let script = format!(". {CONTRIB}/busybox/rcS.plugd\necho rcS goes on");
    let said = finish(&mut machine.command("busybox", &["sh", "-c", &script]));
    assert!(said.stdout.contains("rcS goes on"), "{said:?}; log: {}", log());
    works_and_is_respawned();
    // And not again when it was stopped.
    machine.must("plugd", &["stop"]);
    wait_for_log("stopped: ");
    eventually("its loop has ended", || {
        let processes = machine.run("pgrep", &["-f", "rcS.plugd"]);
        (pid().is_none() && processes.code == Some(1)).then_some(())
    });
}

#[test]
fn a_piece_for_rcs() {
    on_machine("busybox: rcS", "tools", &["busybox", "pgrep", "ip"], || {
        a_piece_of_rcs(&format!("PLUGD_OPTIONS='{OPTIONS}'"))
    });
}

#[test]
fn a_piece_for_rcs_with_a_handler() {
    on_machine("busybox: rcS with a handler", "tools", &["busybox", "pgrep", "ip"], || {
        a_piece_of_rcs("PLUGD_HANDLER=/run/hotplug");
        assert!(log().contains("reading from file descriptor 3"), "{}", log());
    });
}

/// On a /dev with nothing in it, plugd is started all the same: shells open /dev/null
/// for what they run in the background.
#[test]
fn a_piece_for_rcs_on_an_empty_dev() {
    if !have("busybox: rcS on an empty /dev", "tools", &["busybox", "dash", "bash"]) {
        return;
    }
    // Only the machine's root makes nodes.
    ns::inside_as_root_apart(|| {
        ns::mount(&["-t", "tmpfs", "tmpfs", "/run"]);
        let machine = Machine::new();
        settings(&machine, &format!("PLUGD_OPTIONS='{OPTIONS}'"));
        for shell in [&["busybox", "sh"][..], &["dash"], &["bash", "--posix"]] {
            // What is left when the shell ends ends with it.
            let script = format!(
                "mount -t tmpfs tmpfs /dev; . {CONTRIB}/busybox/rcS.plugd
                plugd status --quiet && echo it runs; stat -c %F:%a:%t:%T /dev/*"
            );
            let args = [&["-mpf", "--mount-proc"], shell, &["-c", &script]].concat();
            let said = machine.run("unshare", &args);
            let expected = "it runs\ncharacter special file:666:1:3\n";
            assert_eq!(said.stdout, expected, "{shell:?}: {said:?}; log: {}", log());
        }
    });
}

/// The boot goes on when the devices are set up.
#[test]
fn a_start_waits_for_devices() {
    on_machine("busybox: waiting", "tools", &["busybox", "ip"], || {
        let machine = Machine::new();
        inject::real_device(SLOW);
        let options = format!("PLUGD_OPTIONS='--coldplug {OPTIONS}' PLUGD_CONTROL={ELSEWHERE}");
        settings(&machine, &options);
        copy("busybox", "/run/busybox");
        machine.must("busybox", &["sh", "-c", ". /run/busybox/rcS.plugd"]);
        is_set_up();
        machine.must("plugd", &["stop", "--control", ELSEWHERE]);
        wait_for_log("stopped: ");

        fs::remove_dir_all("/run/plugd").unwrap();
        fs::remove_file("/run/events").unwrap();
        for action in ["start", "reload", "status"] {
            machine.must("busybox", &["sh", "/run/busybox/S10plugd", action]);
            is_set_up();
        }
        machine.must("busybox", &["sh", "/run/busybox/S10plugd", "stop"]);
    });
}

#[test]
fn an_init_script() {
    on_machine("busybox: S10plugd", "tools", &["busybox", "ip"], || {
        let machine = Machine::new();
        settings(&machine, &format!("PLUGD_OPTIONS='{OPTIONS}'"));
        copy("busybox/S10plugd", "/run/S10plugd");
        let act = |action| machine.must("busybox", &["sh", "/run/S10plugd", action]);
        act("start");
        let daemon = pid().unwrap();
        acts_on("br1");
        assert!(act("status").starts_with("state"), "{}", act("status"));
        act("reload");
        // There is nothing to do.
        act("start");
        assert_eq!(pid(), Some(daemon));
        act("restart");
        assert_ne!(pid(), Some(daemon));
        kill_process(Pid::from_raw(pid().unwrap()).unwrap(), Signal::KILL).unwrap();
        eventually("it is gone", || pid().is_none().then_some(()));
        act("start");
        acts_on("br2");
        act("stop");
        is_stopped();
        act("stop");
        assert_eq!(machine.run("sh", &["/run/S10plugd", "nonsense"]).code, Some(1));
    });
}

/// busybox init, as process 1 of a machine in this machine. It has a PATH of its
/// own, so the program goes to where that leads.
#[test]
fn inittab() {
    on_machine("busybox: inittab", "tools", &["busybox", "pgrep", "ip"], || {
        let machine = Machine::new();
        let lines = fs::read_to_string(format!("{CONTRIB}/busybox/inittab")).unwrap();
        assert!(lines.contains("--coldplug"), "{lines}");
        let lines = lines.replace("--coldplug", OPTIONS);
        fs::create_dir("/run/etc").unwrap();
        fs::write("/run/etc/inittab", format!("::sysinit:/bin/true\n{lines}")).unwrap();
        for name in ["passwd", "group"] {
            fs::copy(format!("/etc/{name}"), format!("/run/etc/{name}")).unwrap();
        }
        let programs = machine.programs.path().display();
        let init = format!(
            "mount -t overlay overlay -o lowerdir={programs}:/usr/sbin /usr/sbin &&
             mount --bind /run/etc /etc && exec busybox init"
        );
        machine.supervisor("unshare", &["-mpf", "--mount-proc", "sh", "-c", &init]);
        eventually("init has started it", pid);
        acts_on("br1");
        machine.must("plugd", &["stop"]);
        wait_for_log("stopped: ");
        eventually("it is started anew", pid);
        acts_on("br2");

        // What is wrong for good is tried again in a minute, and not before.
        fs::write("/run/mdev.conf", "nonsense\n").unwrap();
        machine.must("plugd", &["stop"]);
        eventually("init waits", || {
            (machine.run("pgrep", &["-f", "^sleep 60"]).code == Some(0)).then_some(())
        });
        assert_eq!(log().matches("/run/mdev.conf:1:").count(), 1, "{}", log());
        fs::write("/run/mdev.conf", RULES).unwrap();
        machine.must("pkill", &["-f", "^sleep 60"]);
        eventually("it is started anew", pid);
        acts_on("br3");
    });
}
