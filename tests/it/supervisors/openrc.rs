//! OpenRC: supervise-daemon, and start-stop-daemon.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::background::finish;
use crate::harness::daemon::field;
use crate::harness::{eventually, inject};

use super::{
    CONTRIB, ELSEWHERE, Machine, OPTIONS, RULES, SLOW, acts_on, copy, is_set_up, is_stopped, log,
    on_machine, own_etc, pid, set, wait_for_log, works_and_is_respawned, write_program,
};

const SCRIPT: &str = "/etc/init.d/plugd";
/// What tests of the one want, and of the other.
const SUPERVISE: [&str; 4] = ["openrc-run", "supervise-daemon", "pgrep", "ip"];
const START_STOP: [&str; 3] = ["openrc-run", "start-stop-daemon", "ip"];

/// Has this script of contrib/openrc where it belongs, with these settings, on a
/// machine on which OpenRC has come up.
fn install(script: &str, settings: &str) -> Machine {
    let machine = Machine::new();
    let directories = "daemons exclusive failed options started starting stopping tmp";
    for directory in directories.split(' ') {
        fs::create_dir_all(format!("/run/openrc/{directory}")).unwrap();
    }
    fs::write("/run/openrc/softlevel", "sysinit").unwrap();
    own_etc(&machine, &["conf.d", "init.d"]);
    copy(&format!("openrc/{script}"), SCRIPT);
    copy("openrc/plugd.confd", "/etc/conf.d/plugd");
    let programs = machine.programs.path().display();
    set("/etc/conf.d/plugd", &format!("PATH={programs}:$PATH\n{settings}"));
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
    on_machine("openrc: supervise-daemon", "tools", &SUPERVISE, || {
        supervised(&format!("plugd_options='{OPTIONS}'"))
    });
}

/// Waits until plugd is stopped for OpenRC, and nothing of it is left. What has
/// been killed may take a moment to be reaped.
fn is_down(machine: &Machine) {
    eventually("it is stopped for OpenRC", || {
        (machine.run(SCRIPT, &["--nodeps", "status"]).code == Some(3)).then_some(())
    });
    eventually("the supervisor has gone", || {
        (machine.run("pgrep", &["-x", "supervise-daemo"]).code == Some(1)).then_some(())
    });
    assert_eq!(pid(), None);
}

/// It can be started and stopped, whatever was before.
fn starts_and_stops(machine: &Machine, device: &str) {
    act(machine, "start");
    acts_on(device);
    act(machine, "stop");
    is_down(machine);
}

/// supervise-daemon is not left behind, trying for ever, by a start that fails.
#[test]
fn a_mistake_is_told_and_can_be_mended() {
    on_machine("openrc: a mistake", "tools", &SUPERVISE, || {
        let machine = install("plugd.initd", &format!("plugd_options='{OPTIONS}'"));
        fs::write("/run/mdev.conf", "nonsense\n").unwrap();
        let told = machine.run(SCRIPT, &["--nodeps", "start"]);
        assert_eq!(told.code, Some(1), "{told:?}");
        assert!(told.stderr.contains("/run/mdev.conf:1:"), "{told:?}");
        is_down(&machine);
        fs::write("/run/mdev.conf", RULES).unwrap();
        starts_and_stops(&machine, "br1");

        set("/etc/conf.d/plugd", "plugd_options=\"$plugd_options --nonsense\"");
        let told = machine.run(SCRIPT, &["--nodeps", "start"]);
        assert_eq!(told.code, Some(1), "{told:?}");
        assert!(told.stderr.contains("there is no option --nonsense"), "{told:?}");
        is_down(&machine);
        set("/etc/conf.d/plugd", &format!("plugd_options='{OPTIONS}'"));
        starts_and_stops(&machine, "br2");
    });
}

/// plugd is a program that does not come up, or ends at once.
#[test]
fn a_start_that_fails_leaves_nothing() {
    on_machine("openrc: failing", "tools", &SUPERVISE, || {
        let settings = format!("plugd_options='{OPTIONS}'\nplugd_patience=1");
        let machine = install("plugd.initd", &settings);
        let program = machine.programs.path().join("plugd");
        for does in ["exec sleep 1000", "exit 111"] {
            fs::remove_file(&program).unwrap();
            let script = format!(
                "#!/bin/sh\ncase \"$*\" in run*--help | check*) exit 0 ;; run*) {does} ;; esac\n\
                 exec {} \"$@\"\n",
                env!("CARGO_BIN_EXE_plugd")
            );
            write_program(&program, &script);
            let told = machine.run(SCRIPT, &["--nodeps", "start"]);
            assert_eq!(told.code, Some(1), "{told:?}");
            is_down(&machine);
        }
        fs::remove_file(&program).unwrap();
        symlink(env!("CARGO_BIN_EXE_plugd"), &program).unwrap();
        starts_and_stops(&machine, "br1");
    });
}

/// supervise-daemon hears that plugd has ended and that it is to stop in one moment, and
/// would wait a minute for what has ended.
#[test]
fn a_stop_ends_when_plugd_ends_by_itself() {
    on_machine("openrc: ending", "tools", &SUPERVISE, || {
        let machine = install("plugd.initd", &format!("plugd_options='{OPTIONS}'"));
        act(&machine, "start");
        let id = fs::read_to_string("/run/supervise-plugd.pid").unwrap();
        let supervisor = Pid::from_raw(id.trim().parse().unwrap()).unwrap();
        let status = |name: &str| {
            let status = fs::read_to_string(format!("/proc/{}/status", id.trim())).unwrap();
            field(&status, name).unwrap().to_owned()
        };
        kill_process(supervisor, Signal::STOP).unwrap();
        eventually("it is stopped", || status("State").starts_with('T').then_some(()));
        kill_process(Pid::from_raw(pid().unwrap()).unwrap(), Signal::KILL).unwrap();
        let waits = |signal: Signal| {
            let waiting = u64::from_str_radix(&status("ShdPnd"), 16).unwrap();
            (waiting & 1 << (signal.as_raw() - 1) != 0).then_some(())
        };
        eventually("SIGCHLD waits", || waits(Signal::CHILD));
        std::thread::scope(|scope| {
            let stopping = scope.spawn(|| act(&machine, "stop"));
            eventually("SIGTERM waits", || waits(Signal::TERM));
            kill_process(supervisor, Signal::CONT).unwrap();
            stopping.join().unwrap();
        });
        is_down(&machine);
        starts_and_stops(&machine, "br1");
    });
}

/// From OpenRC 0.62 on, supervise-daemon waits for a plugd that hangs until that has
/// ended. Not every distribution has one so new: this is what it does.
#[test]
fn what_is_not_ready_in_time_is_ended() {
    let place = tempfile::tempdir().unwrap();
    write_program(place.path().join("supervise-daemon"), "#!/bin/sh\necho \"$@\" >>stopped\n");
    let script = format!(
        r#"RC_VERSION=0.62.10 RC_SVCNAME=plugd plugd_patience=1
        plugd() {{ false; }}
        eerror() {{ echo "$*"; }}
        default_start() {{ echo "$notify"; until [ -e stopped ]; do sleep 0.1; done; false; }}
        default_stop() {{ echo stop; }}
        . {CONTRIB}/openrc/plugd.initd
        start || echo failed"#
    );
    let path = format!("{}:{}", place.path().display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("sh");
    let told = finish(shell.args(["-c", &script]).env("PATH", path).current_dir(&place));
    let expected = "fd:9\nplugd does not answer: see /run/plugd.log\nstop\nfailed\n";
    assert_eq!(told.stdout, expected, "{told:?}");
    let stopped = fs::read_to_string(place.path().join("stopped")).unwrap();
    assert_eq!(stopped, "plugd --stop --pidfile /run/supervise-plugd.pid\n");
}

/// Rules that are mistaken when plugd dies are not tried for ever.
#[test]
fn it_gives_up() {
    on_machine("openrc: giving up", "tools", &SUPERVISE, || {
        let machine = install("plugd.initd", &format!("plugd_options='{OPTIONS}'"));
        act(&machine, "start");
        fs::write("/run/mdev.conf", "nonsense\n").unwrap();
        kill_process(Pid::from_raw(pid().unwrap()).unwrap(), Signal::KILL).unwrap();
        // A second lies between two of them.
        let tries = || log().matches("/run/mdev.conf:1:").count();
        eventually("it tries", || (tries() >= 5).then_some(()));
        let mut last = (tries(), Instant::now());
        eventually("it gives up", || {
            if tries() != last.0 {
                last = (tries(), Instant::now());
            }
            // supervise-daemon (0.45.2, supervisor) sleeps for ever if plugd ends between
            // its look at it and its open(2), which a signal is to interrupt.
            if last.1.elapsed() > Duration::from_secs(5) {
                machine.run("pkill", &["-CHLD", "-x", "supervise-daemo"]);
            }
            (machine.run(SCRIPT, &["--nodeps", "status"]).code == Some(3)).then_some(())
        });
        is_down(&machine);
        assert_eq!(tries(), 10, "{}", log());
        fs::write("/run/mdev.conf", RULES).unwrap();
        starts_and_stops(&machine, "br1");
    });
}

#[test]
fn supervise_daemon_with_a_handler() {
    on_machine("openrc: a handler", "tools", &SUPERVISE, || {
        supervised("plugd_handler=/run/hotplug");
        wait_for_log("reading from file descriptor 3");
    });
}

#[test]
fn rules_are_read_anew() {
    on_machine("openrc: reload", "tools", &SUPERVISE, || {
        let machine = install("plugd.initd", &format!("plugd_options='{OPTIONS}'"));
        act(&machine, "start");
        act(&machine, "reload");
        wait_for_log("the rules were read anew");
        act(&machine, "stop");
    });
}

/// The boot goes on when the devices are set up.
fn waits_for_devices(script: &str) {
    inject::real_device(SLOW);
    let settings = format!("plugd_options='--coldplug {OPTIONS}'\nplugd_control={ELSEWHERE}");
    let machine = install(script, &settings);
    for action in ["start", "reload"] {
        act(&machine, action);
        is_set_up();
    }
    act(&machine, "stop");
}

#[test]
fn supervise_daemon_waits_for_devices() {
    on_machine("openrc: waiting", "tools", &SUPERVISE, || waits_for_devices("plugd.initd"));
}

#[test]
fn start_stop_daemon_waits_for_devices() {
    on_machine("openrc: forking, waiting", "tools", &START_STOP, || {
        waits_for_devices("plugd-forking.initd")
    });
}

#[test]
fn start_stop_daemon() {
    on_machine("openrc: start-stop-daemon", "tools", &START_STOP, || {
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
    on_machine("openrc: a chain", "tools", &START_STOP, || {
        let settings = "plugd_handler=/run/hotplug";
        let machine = install("plugd-forking.initd", settings);
        act(&machine, "start");
        acts_on("br1");
        act(&machine, "stop");
        is_stopped();
    });
}
