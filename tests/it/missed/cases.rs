//! Single cases.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

use crate::harness::daemon::{Daemon, Plugd};
use crate::harness::{eventually, inject, ns};
use crate::listen::have;

use super::world::{Belief, World, real_number};

/// Holds plugd back until it is continued.
fn hold(daemon: &Daemon) {
    daemon.signal(Signal::STOP);
    eventually("it is held", || daemon.status("State").starts_with('T').then_some(()));
}

/// Does something that plugd does not hear of, as it is held back and the queue
/// overflows.
fn unheard(world: &mut World, daemon: &Daemon, act: impl FnOnce(&mut World)) {
    hold(daemon);
    // Of the device that is there for it, more than fit.
    (0..40).for_each(|_| world.change("/devices/busy"));
    act(world);
    daemon.signal(Signal::CONT);
    World::settle("plugd");
}

/// A world with a busy device, a hub with something on it, and a lone one.
fn world() -> World {
    let mut world = World::new(1);
    for (minor, path) in
        (1..).zip(["/devices/busy", "/devices/hub", "/devices/hub/a", "/devices/lone"])
    {
        world.add(path, minor);
    }
    world
}

const SMALL: [&str; 4] = ["--receive-buffer-size", "4K", "--state", "none"];

/// What was heard, action and path, of those replayed for this cause.
fn replayed(belief: &Belief, cause: &str) -> Vec<String> {
    let marked = belief.heard.iter().filter(|line| line.contains(&format!("Some(\"{cause}\")")));
    marked.map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect()
}

fn hear(world: &World) -> Belief {
    let mut belief = Belief::default();
    belief.hear(world);
    belief
}

#[test]
fn at_the_start_all_that_is_there_is_acted_on_parents_first() {
    ns::inside(|| {
        let world = world();
        let _daemon = world.plugd(&["--coldplug", "--state", "none"]).start();
        World::settle("plugd");
        let belief = hear(&world);
        assert_eq!(
            replayed(&belief, "coldplug"),
            ["add /devices/busy", "add /devices/hub", "add /devices/hub/a", "add /devices/lone"]
        );
        assert_eq!(belief.heard.len(), 4);
    });
}

/// As in a network namespace of another user namespace, but for interfaces.
#[test]
fn what_the_kernel_does_not_tell_of_when_asked_is_read() {
    ns::inside(|| {
        let world = world();
        let daemon = Plugd::new()
            .args(["run", "-v", "--coldplug=kernel", "--state", "none"])
            .args(["--sys".as_ref(), world.at("sys").as_os_str()])
            .args(["--", "sh", "-c", "echo $ACTION $DEVPATH $PLUGD_REPLAY >>$TMP/out"])
            .start();
        World::settle("plugd");
        daemon.wait_for_log("the kernel does not tell of 4 devices");
        let all = ["busy", "hub", "hub/a", "lone"];
        let all = all.map(|name| format!("add /devices/{name} coldplug"));
        assert_eq!(daemon.lines("out"), all);
    });
}

/// Where there is a limit of processes, a thread of plugd's would be one that the
/// programs do not get.
#[test]
fn a_program_finds_no_second_thread_of_plugd() {
    ns::inside(|| {
        const COUNT: &str = "\
            threads() { set -- /proc/$PPID/task/*; echo $#; }
            # One that has ended may take a moment to go.
            n=0
            until [ $(threads) = 1 ] || [ $n = 100 ]; do n=$((n + 1)); sleep 0.1; done
            threads >>$TMP/out";
        let mut world = world();
        for n in 0..100 {
            world.add(&format!("/devices/many{n:02}"), 100 + n);
        }
        let daemon = Plugd::new()
            .args(["run", "--coldplug", "--state", "none"])
            .args(["--sys".as_ref(), world.at("sys").as_os_str()])
            .args(["--", "sh", "-c", COUNT])
            .start();
        World::settle("plugd");
        assert_eq!(daemon.lines("out"), vec!["1"; 104]);
    });
}

#[test]
fn without_coldplug_nothing_is_acted_on_at_the_start() {
    ns::inside(|| {
        let world = world();
        let _daemon = world.plugd(&[]).start();
        World::settle("plugd");
        assert_eq!(hear(&world).heard.len(), 0);
        assert!(!fs::exists("/run/plugd/plugd.state").unwrap());
    });
}

#[test]
fn a_queued_event_that_tells_what_the_scan_has_found_is_passed_over() {
    ns::inside(|| {
        let mut world = world();
        let socket = inject::socket(plugd::netlink::KERNEL_GROUP);
        world.add("/devices/late", 10);
        world.remove("/devices/lone");
        let daemon = world.plugd(&["-v", "--coldplug", "--fd", "3"]).fd(socket, 3).start();
        World::settle("plugd");
        let mut belief = hear(&world);
        belief.check(&world, "in the end");
        assert_eq!(hear(&world).heard.len(), 4, "each once");
        assert!(daemon.counters().contains("stale 2"), "{}", daemon.counters());
        // One that somebody asks for is acted on.
        let fields =
            ["SUBSYSTEM=c", "MAJOR=7", "MINOR=10", "DEVNAME=d10", "SERIAL=1", "SYNTH_UUID=0"];
        inject::Injector::new().event("add", "/devices/late", &fields);
        World::settle("plugd");
        assert_eq!(hear(&world).heard.len(), 5);
    });
}

#[test]
fn after_an_overrun_the_difference_is_acted_on() {
    ns::inside(|| {
        let mut world = world();
        let daemon = world.plugd(&SMALL).args(["-v", "--coldplug"]).start();
        World::settle("plugd");
        let mut belief = Belief::default();
        belief.check(&world, "after coldplug");
        unheard(&mut world, &daemon, |world| {
            world.remove("/devices/hub");
            world.replace("/devices/lone", false);
            world.add("/devices/new", 50);
            world.add("/devices/new/below", 51);
        });
        belief.hear(&world);
        assert_eq!(
            replayed(&belief, "overrun"),
            [
                "remove /devices/lone",
                "remove /devices/hub/a",
                "remove /devices/hub",
                "add /devices/lone",
                "add /devices/new",
                "add /devices/new/below",
                "change /devices/busy"
            ]
        );
        // With what tells who it was.
        assert!(belief.heard.iter().any(|line| line.starts_with("remove /devices/hub/a 3 ")));
        belief.check(&world, "after the overrun");
        let counters = daemon.counters();
        assert!(counters.contains("replayed 3 removals, 7 additions, 1 changes"), "{counters}");
    });
}

#[test]
fn changes_are_replayed_as_wanted() {
    ns::inside(|| {
        let cases = [("no", 0), ("c", 3), ("block,net", 0), ("yes", 3), ("block,c", 3)];
        for (which, expected) in cases {
            let mut world = world();
            let daemon = world.plugd(&SMALL).args(["--coldplug", "--replay-change", which]).start();
            World::settle("plugd");
            unheard(&mut world, &daemon, |world| world.remove("/devices/lone"));
            let changes = replayed(&hear(&world), "overrun");
            let changes = changes.iter().filter(|line| line.starts_with("change")).count();
            assert_eq!(changes, expected, "{which}");
        }
    });
}

#[test]
fn a_device_made_anew_with_the_same_number_is_acted_on_again() {
    ns::inside(|| {
        let mut world = world();
        let daemon = world.plugd(&SMALL).args(["--coldplug", "--replay-change", "no"]).start();
        World::settle("plugd");
        unheard(&mut world, &daemon, |world| world.replace("/devices/hub", true));
        let belief = hear(&world);
        let hub = ["remove /devices/hub/a", "remove /devices/hub", "add /devices/hub"];
        assert_eq!(replayed(&belief, "overrun"), hub);
        // One that came by an event is known as well.
        world.add("/devices/new", 50);
        World::settle("plugd");
        eventually("it is looked up", || {
            let before = hear(&world).heard.len();
            unheard(&mut world, &daemon, |world| world.replace("/devices/new", true));
            let belief = hear(&world);
            belief.heard[before..].iter().any(|line| line.starts_with("add ")).then_some(())
        });
    });
}

#[test]
fn a_change_that_was_lost_is_made_up_for_after_a_restart() {
    ns::inside(|| {
        for signal in [Signal::TERM, Signal::KILL] {
            let mut world = World::numbered(1);
            world.add("/devices/busy", 1);
            world.add("/devices/lone", 2);
            let state = world.at("state");
            let options = ["--receive-buffer-size", "4K", "--state", state.to_str().unwrap()];
            let mut daemon = world.plugd(&options).start();
            World::settle("plugd");
            hold(&daemon);
            (0..40).for_each(|_| world.change("/devices/busy"));
            world.change("/devices/lone");
            daemon.signal(signal);
            daemon.signal(Signal::CONT);
            daemon.wait_exit();
            let daemon = world.plugd(&options).start();
            World::settle("plugd");
            hear(&world).check(&world, &format!("after {signal:?}"));
            drop(daemon);
        }
    });
}

/// The kernel has given it a number, by the time that devices are compared, but has not
/// yet sent it.
#[test]
fn a_change_that_was_on_its_way_is_made_up_for_after_a_kill() {
    ns::inside(|| {
        let mut world = World::numbered(1);
        world.add("/devices/lone", 1);
        let state = world.at("state");
        let options = ["--state", state.to_str().unwrap()];
        let mut daemon = world.plugd(&options).start();
        World::settle("plugd");
        daemon.signal(Signal::TERM);
        daemon.wait_exit();
        world.silent = true;
        world.change("/devices/lone");
        for restarted in [false, true] {
            let mut daemon = world.plugd(&options).start();
            World::settle("plugd");
            let changes = if restarted { &["change /devices/lone"][..] } else { &[] };
            assert_eq!(replayed(&hear(&world), "restart"), changes);
            daemon.signal(Signal::KILL);
            daemon.wait_exit();
        }
        hear(&world).check(&world, "in the end");
    });
}

#[test]
fn a_change_that_is_lost_before_the_first_scan_is_made_up_for() {
    ns::inside(|| {
        let mut world = world();
        fs::rename(world.at("sys/class"), world.at("hidden")).unwrap();
        let daemon = world.plugd(&SMALL).args(["--coldplug"]).start();
        daemon.wait_for_log("devices that were missed (coldplug) are looked for later");
        world.hidden(|world| world.add("/devices/new", 50));
        eventually("it is acted on", || (hear(&world).heard.len() == 1).then_some(()));
        hold(&daemon);
        (0..40).for_each(|_| world.change("/devices/busy"));
        world.change("/devices/new");
        daemon.signal(Signal::CONT);
        daemon.wait_for_log("overrun");
        fs::rename(world.at("hidden"), world.at("sys/class")).unwrap();
        World::settle("plugd");
        hear(&world).check(&world, "in the end");
    });
}

/// Known as one, replaced unheard, and what came after it goes while it is looked at.
#[test]
fn what_goes_while_it_is_looked_at_may_be_another_one_than_is_known() {
    ns::inside(|| {
        let mut world = world();
        let daemon = world.plugd(&SMALL).args(["-v", "--coldplug"]).start();
        World::settle("plugd");
        hold(&daemon);
        (0..40).for_each(|_| world.change("/devices/busy"));
        world.replace("/devices/lone", false);
        // It is listed still, but cannot be read.
        let uevent = world.at("sys/devices/lone/uevent");
        fs::remove_file(&uevent).unwrap();
        daemon.signal(Signal::CONT);
        daemon.wait_for_log("overrun: 4 devices");
        fs::write(&uevent, "").unwrap();
        world.remove("/devices/lone");
        World::settle("plugd");
        hear(&world).check(&world, "in the end");
    });
}

/// A device moves, and one that cannot be told from it comes to where it was, while
/// devices are being looked for: the move is heard after what was found.
#[test]
fn what_moved_from_where_another_one_was_found_is_not_taken_for_that_one() {
    ns::inside(|| {
        let mut world = world();
        world.mixed = true;
        // Of the kind that has no node, and goes to another path of that kind.
        world.add("/devices/d4", 1);
        let acted = world.at("acted");
        let handler = format!(
            "{{ env -0; printf '\\0'; }} >>{}; \
             [ $DEVPATH != /devices/slow ] || {{ echo >>$TMP/slow; read x <$TMP/go; }}",
            acted.to_str().unwrap()
        );
        let daemon = Plugd::new()
            .args(["run", "-v", "--coldplug", "--state", "none"])
            .args(["--sys".as_ref(), world.at("sys").as_os_str()])
            .args(["--", "sh", "-c", &handler])
            .start();
        daemon.fifo("go");
        World::settle("plugd");
        let slow = || inject::Injector::new().event("change", "/devices/slow", &["SUBSYSTEM=c"]);
        slow();
        daemon.wait_for_lines("slow", 1);
        daemon.signal(Signal::ALARM);
        daemon.wait_for_log("looking for all devices");
        // Before it looks, it acts on what is queued now: on this one, and one more.
        slow();
        daemon.release("go");
        daemon.wait_for_lines("slow", 2);
        world.change("/devices/busy");
        world.rename("/devices/d4");
        world.add("/devices/d4", 1);
        daemon.release("go");
        World::settle("plugd");
        hear(&world).check(&world, "in the end");
    });
}

/// The kernel makes a disk known in sysfs before it is ready, and tells of it then.
#[test]
fn a_device_that_was_found_too_early_is_acted_on_again() {
    ns::inside(|| {
        let mut world = World::numbered(1);
        world.silent = true;
        world.add("/devices/disk", 1);
        world.tell_number(real_number());
        let _daemon = world.plugd(&["--coldplug", "--state", "none"]).start();
        World::settle("plugd");
        assert_eq!(hear(&world).heard.len(), 1);
        world.silent = false;
        world.announce("/devices/disk");
        World::settle("plugd");
        let belief = hear(&world);
        assert_eq!(belief.heard.len(), 2, "{:?}", belief.heard);
    });
}

/// It goes between open and read (kernfs_fop_read_iter in fs/kernfs/file.c).
#[test]
fn a_device_that_goes_while_it_is_read_is_no_error() {
    ns::inside(|| {
        if !have("a_device_that_goes_while_it_is_read_is_no_error", "strace") {
            return;
        }
        let mut world = world();
        let uevent = world.at("sys/devices/lone/uevent");
        let (trace, rules) = (world.at("trace"), world.at("rules"));
        let acted = fs::File::options().append(true).open(world.at("acted")).unwrap();
        let daemon = Plugd::new()
            .program("strace")
            .args(["-D", "-qq", "-e", "inject=read:error=ENODEV", "-e", "trace=read"])
            .args(["-P", uevent.to_str().unwrap(), "-o", trace.to_str().unwrap()])
            .args([env!("CARGO_BIN_EXE_plugd"), "run", "--dry-run", "--output-fd", "9"])
            .args(["--coldplug", "--state", "none", "--sys", world.at("sys").to_str().unwrap()])
            .args(["--conf", rules.to_str().unwrap()])
            .fd(acted, 9)
            .start();
        World::settle("plugd");
        assert!(fs::read_to_string(&trace).unwrap().contains("ENODEV"));
        let added = ["add /devices/busy", "add /devices/hub", "add /devices/hub/a"];
        assert_eq!(replayed(&hear(&world), "coldplug"), added);
        world.remove("/devices/lone");
        World::settle("plugd");
        hear(&world).check(&world, "in the end");
        let log = daemon.log();
        assert!(!log.iter().any(|line| line.contains("cannot read")), "{log:#?}");
    });
}

#[test]
fn what_an_unreadable_device_leaves_unknown_is_nothing_but_itself() {
    ns::inside(|| {
        let mut world = world();
        fs::create_dir_all(world.at("sys/devices/bad/uevent")).unwrap();
        symlink("../../devices/bad", world.at("sys/class/c/bad")).unwrap();
        let daemon = world.plugd(&["--coldplug", "--state", "none"]).start();
        World::settle("plugd");
        daemon.wait_for_log("cannot read device /devices/bad");
        // Another medium is in the disk.
        let uevent = world.at("sys/devices/lone/uevent");
        let text = fs::read_to_string(&uevent).unwrap() + "PRODUCT=2\n";
        fs::write(&uevent, &text).unwrap();
        let fields = text.lines().chain(["SUBSYSTEM=c"]).collect::<Vec<_>>();
        inject::Injector::new().event("change", "/devices/lone", &fields);
        World::settle("plugd");
        let before = hear(&world).heard.len();
        assert_eq!(Plugd::new().args(["rescan"]).finish().code, Some(0));
        World::settle("plugd");
        let belief = hear(&world);
        let rescanned = &belief.heard[before..];
        assert!(rescanned.iter().all(|line| line.starts_with("change ")), "{rescanned:?}");
        assert_eq!(rescanned.len(), 4, "{rescanned:?}");
        world.remove("/devices/lone");
        World::settle("plugd");
        hear(&world).check(&world, "in the end");
    });
}

/// Ends plugd and starts it again; what `unheard` does goes unheard, and `act` happens
/// while devices cannot be looked at, until the last that was acted on is `last`.
fn act_before_the_scan_of_a_restart(
    unheard: impl FnOnce(&mut World),
    act: impl FnOnce(&mut World),
    last: &str,
) {
    let mut world = world();
    let state = world.at("state");
    let options = ["--state", state.to_str().unwrap()];
    let mut daemon = world.plugd(&options).start();
    World::settle("plugd");
    daemon.signal(Signal::TERM);
    daemon.wait_exit();
    unheard(&mut world);
    fs::rename(world.at("sys/class"), world.at("hidden")).unwrap();
    let daemon = world.plugd(&options).start();
    daemon.wait_for_log("devices that were missed (restart) are looked for later");
    world.hidden(act);
    eventually("it is acted on", || hear(&world).heard.last()?.starts_with(last).then_some(()));
    fs::rename(world.at("hidden"), world.at("sys/class")).unwrap();
    World::settle("plugd");
    hear(&world).check(&world, "in the end");
}

/// Known as one, replaced while nobody listened, and replaced once more before it could
/// be looked at: else a state that is not kept before an act would take the last one
/// down.
#[test]
fn what_is_known_from_before_goes_before_what_comes_is_added() {
    ns::inside(|| {
        act_before_the_scan_of_a_restart(
            |_| {},
            |world| world.replace("/devices/lone", false),
            "add /devices/lone",
        );
    });
}

/// With another number: disks of the newer kind have their names again, not those.
#[test]
fn what_goes_takes_nothing_along_of_another_one_of_its_name() {
    ns::inside(|| {
        act_before_the_scan_of_a_restart(
            |world| {
                world.remove("/devices/lone");
                world.renamed = true;
            },
            |world| world.add("/devices/other", 50),
            "add /devices/other",
        );
    });
}

#[test]
fn of_two_of_one_name_the_one_that_stays_is_acted_on_again() {
    ns::inside(|| {
        for changes in [false, true] {
            let mut world = world();
            let options = ["--coldplug", "--replay-change", "no", "--state", "none"];
            let daemon = world.plugd(&options).start();
            World::settle("plugd");
            let twin = ["SUBSYSTEM=c", "MAJOR=7", "MINOR=60", "DEVNAME=d4", "SERIAL=60"];
            let injector = inject::Injector::new();
            injector.event("add", "/devices/twin", &twin);
            World::settle("plugd");
            hold(&daemon);
            injector.event("remove", "/devices/twin", &twin);
            if changes {
                // That it is acted on for something else is not all.
                world.change("/devices/lone");
            }
            daemon.signal(Signal::CONT);
            World::settle("plugd");
            let mut belief = hear(&world);
            assert_eq!(replayed(&belief, "rescan"), ["add /devices/lone"], "{changes}");
            belief.check(&world, "in the end");
        }
    });
}

#[test]
fn before_the_first_scan_two_of_one_name_are_no_reason_for_one() {
    ns::inside(|| {
        let world = world();
        let daemon = world.plugd(&SMALL).args(["-v"]).start();
        let injector = inject::Injector::new();
        for (action, minor) in [("add", 60), ("add", 61), ("remove", 60)] {
            let fields = ["SUBSYSTEM=c", "MAJOR=7", &format!("MINOR={minor}"), "DEVNAME=twin"];
            injector.event(action, &format!("/devices/twin{minor}"), &fields);
        }
        World::settle("plugd");
        assert_eq!(hear(&world).heard.len(), 3);
        assert!(daemon.counters().contains("scans 0"), "{}", daemon.counters());
    });
}

/// What has acted, and on what, is a part of what the state tells.
#[test]
fn another_program_or_directory_means_all_over_again() {
    ns::inside(|| {
        let world = world();
        let state = world.at("state");
        let path = state.to_str().unwrap();
        let start = |script: &str| {
            let daemon = Plugd::new()
                .args(["run", "--state", path, "--sys", world.at("sys").to_str().unwrap()])
                .args(["--", "sh", "-c", script])
                .start();
            World::settle("plugd");
            daemon.signal(Signal::TERM);
            daemon
        };
        let known = |daemon: &mut Daemon| {
            daemon.wait_exit();
            daemon.log().iter().any(|line| line.contains("4 devices are known from before"))
        };
        assert!(!known(&mut start("true")));
        assert!(known(&mut start("true")));
        assert!(!known(&mut start("echo")), "another script");
    });
}

#[test]
fn a_dry_run_leaves_what_is_known_as_it_is() {
    ns::inside_as_root_apart(|| {
        let mut world = World::numbered(2);
        world.add("/devices/goes", 50);
        let state = world.at("state");
        let options = ["--coldplug", "--state", state.to_str().unwrap()];
        let run = |plugd: Plugd| {
            let mut daemon = plugd.start();
            World::settle("plugd");
            daemon.signal(Signal::TERM);
            assert_eq!(daemon.wait_exit().code(), Some(0));
        };
        run(world.plugd_with_nodes(&options));
        let before = fs::read(&state).unwrap();
        world.remove("/devices/goes");
        run(world.plugd_with_nodes(&options).args(["--dry-run"]));
        assert_eq!(fs::read(&state).unwrap(), before);
        run(world.plugd_with_nodes(&options));
        world.check_nodes("after the dry run");
    });
}

/// A tmpfs for every start of a container, say, and /run that is kept.
#[test]
fn another_directory_of_nodes_at_the_same_path_gets_them_all() {
    ns::inside_as_root_apart(|| {
        let world = World::numbered(1);
        let state = world.at("state");
        for round in 0..2 {
            let options = ["--coldplug", "--state", state.to_str().unwrap()];
            let mut daemon = world.plugd_with_nodes(&options).start();
            World::settle("plugd");
            world.check_nodes(&format!("round {round}"));
            daemon.signal(Signal::TERM);
            daemon.wait_exit();
            // Its inode number is not given out again at once.
            fs::rename(world.at("dev"), world.at("old")).unwrap();
        }
    });
}

#[test]
fn an_orderly_end_in_the_middle_of_an_event_is_one_as_well() {
    ns::inside(|| {
        let mut world = world();
        let state = world.at("state");
        let script = format!(
            "echo $ACTION $MINOR >>{0}/out; [ $MINOR != 50 ] || read x <{0}/go",
            world.at("").display()
        );
        let start = |world: &World| {
            Plugd::new()
                .args(["run", "-q", "--state", state.to_str().unwrap()])
                .args(["--sys".as_ref(), world.at("sys").as_os_str()])
                .args(["--", "sh", "-c", &script])
                .start()
        };
        let go = world.at("go");
        mkfifoat(CWD, &go, Mode::from_raw_mode(0o600)).unwrap();
        let out = world.at("out");
        let acted = || fs::read_to_string(&out).unwrap_or_default().lines().count();
        let mut daemon = start(&world);
        World::settle("plugd");
        assert_eq!(acted(), 4);
        world.add("/devices/new", 50);
        eventually("it is acted on", || (acted() == 5).then_some(()));
        daemon.signal(Signal::TERM);
        fs::write(&go, "\n").unwrap();
        assert_eq!(daemon.wait_exit().code(), Some(0));
        let _daemon = start(&world);
        World::settle("plugd");
        assert_eq!(acted(), 5, "nothing is done twice");
    });
}

/// What was found is looked at once more a second later; if that has to wait, it is
/// waited for.
#[test]
fn what_has_to_wait_costs_nothing() {
    ns::inside(|| {
        let mut world = world();
        let daemon = Plugd::new()
            .args(["run", "-q", "--coldplug", "--state", "none"])
            .args(["--sys".as_ref(), world.at("sys").as_os_str()])
            .args([
                "--",
                "sh",
                "-c",
                "[ $MINOR$PLUGD_REPLAY != 50 ] || { echo >$TMP/out; read x <$TMP/go; }",
            ])
            .start();
        let go = daemon.path("go");
        mkfifoat(CWD, &go, Mode::from_raw_mode(0o600)).unwrap();
        World::settle("plugd");
        assert_eq!(Plugd::new().args(["rescan"]).finish().code, Some(0));
        let doubted = Instant::now() + Duration::from_millis(1100);
        world.add("/devices/new", 50);
        daemon.wait_for_lines("out", 1);
        std::thread::sleep(doubted.saturating_duration_since(Instant::now()));
        daemon.sleeps();
        fs::write(go, "\n").unwrap();
        World::settle("plugd");
        assert_eq!(Plugd::new().args(["rescan"]).finish().code, Some(0));
        assert_eq!(Plugd::new().args(["pause"]).finish().code, Some(0));
        // Nobody waits for it meanwhile.
        let settled = Plugd::new().args(["settle", "--timeout", "10"]).finish();
        assert_eq!(settled.code, Some(0), "{settled:?}");
        std::thread::sleep(Duration::from_millis(1100));
        daemon.sleeps();
    });
}

/// Who a device is, is looked up when no event has come for a while; if they come one
/// after the other, not for each.
#[test]
fn a_stream_of_events_costs_few_looks_at_sys() {
    ns::inside(|| {
        if !have("a_stream_of_events_costs_few_looks_at_sys", "strace") {
            return;
        }
        let world = world();
        let trace = world.at("trace");
        let daemon = Plugd::new()
            .program("strace")
            .args(["-D", "-qq", "-e", "trace=openat2", "-o", trace.to_str().unwrap()])
            .args([env!("CARGO_BIN_EXE_plugd"), "run", "--state", "none", "--sys"])
            .args([world.at("sys").as_os_str(), "--".as_ref(), "true".as_ref()])
            .start();
        let injector = inject::Injector::new();
        let (begun, mut events) = (Instant::now(), 0);
        while begun.elapsed() < Duration::from_secs(3) {
            let path = format!("/devices/d{}", events % 8);
            injector.event("add", &path, &["SUBSYSTEM=c"]);
            events += 1;
            daemon.wait_for_counters(&format!("handled {events}, "));
        }
        let trace = fs::read_to_string(&trace).unwrap();
        let looks = trace.lines().filter(|line| line.starts_with("openat2(")).count();
        assert!(looks <= 100, "{looks} for {events} events");
    });
}

#[test]
fn an_event_that_waits_for_a_removal_is_waited_for() {
    ns::inside(|| {
        let world = world();
        let daemon = Plugd::new()
            .args(["run", "-q", "--coldplug", "--state", "none"])
            .args(["--sys".as_ref(), world.at("sys").as_os_str()])
            .args([
                "--",
                "sh",
                "-c",
                "echo $ACTION $MINOR >>$TMP/out; [ $ACTION = add ] || read x <$TMP/go",
            ])
            .start();
        let go = daemon.path("go");
        mkfifoat(CWD, &go, Mode::from_raw_mode(0o600)).unwrap();
        World::settle("plugd");
        let fields = |minor| ["SUBSYSTEM=c".into(), "MAJOR=7".into(), format!("MINOR={minor}")];
        for minor in [60, 61] {
            let fields = fields(minor);
            let fields: Vec<&str> = fields.iter().map(|field: &String| &**field).collect();
            inject::Injector::new().event("add", "/devices/x", &fields);
        }
        let lines = daemon.wait_for_lines("out", 6);
        assert_eq!(lines[5], "remove 60");
        std::thread::scope(|scope| {
            let settled = scope.spawn(|| World::settle("plugd"));
            fs::write(go, "\n").unwrap();
            settled.join().unwrap();
        });
        assert_eq!(daemon.lines("out")[6..], ["add 61"]);
    });
}

#[test]
fn other_streams_hold_nothing_up() {
    ns::inside(|| {
        let mut world = world();
        let (sender, receiver) = crate::harness::unix::pair(rustix::net::SocketType::DGRAM);
        let socket = inject::socket(plugd::netlink::KERNEL_GROUP);
        let options = ["-v", "--coldplug", "--state", "none", "--fd", "3", "--fd", "4"];
        let daemon = world.plugd(&options).fd(socket, 3).fd(receiver, 4).start();
        World::settle("plugd");
        let end = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // It is never empty.
                let datagram = inject::uevent("change", "/elsewhere", &["SUBSYSTEM=x", "MINOR=0"]);
                while !end.load(std::sync::atomic::Ordering::Relaxed) {
                    rustix::net::send(&sender, &datagram, rustix::net::SendFlags::empty()).unwrap();
                }
            });
            world.silent = true;
            world.remove("/devices/lone");
            daemon.signal(Signal::ALARM);
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                eventually("it is made up for", || {
                    daemon.counters().contains("replayed 1 removals").then_some(())
                });
            }));
            end.store(true, std::sync::atomic::Ordering::Relaxed);
            result.unwrap();
        });
    });
}

#[test]
fn a_restart_acts_on_what_changed_meanwhile_and_on_nothing_else() {
    ns::inside(|| {
        let mut world = world();
        let state = world.at("state");
        let start = |world: &World| {
            let mut daemon = world.plugd(&["--state", state.to_str().unwrap()]).start();
            World::settle("plugd");
            daemon.signal(Signal::TERM);
            assert_eq!(daemon.wait_exit().code(), Some(0));
            daemon
        };
        start(&world);
        let mut belief = Belief::default();
        belief.check(&world, "after coldplug");
        start(&world);
        belief.hear(&world);
        assert_eq!(belief.heard, [""; 0], "nothing has changed");

        world.remove("/devices/hub/a");
        world.replace("/devices/lone", true);
        world.add("/devices/new", 50);
        start(&world);
        belief.hear(&world);
        assert_eq!(
            replayed(&belief, "restart"),
            [
                "remove /devices/lone",
                "remove /devices/hub/a",
                "add /devices/lone",
                "add /devices/new"
            ]
        );
        belief.check(&world, "after the restart");
    });
}

#[test]
fn what_came_by_an_event_is_known_after_a_restart() {
    ns::inside(|| {
        let mut world = World::numbered(1);
        world.add("/devices/busy", 1);
        let state = world.at("state");
        let options = ["--state", state.to_str().unwrap()];
        let daemon = world.plugd(&options).start();
        World::settle("plugd");
        world.add("/devices/new", 50);
        World::settle("plugd");
        let status = || {
            let bytes = fs::read(&state).unwrap();
            // The inode number of its file is in its record.
            let path = world.at("sys/devices/new/uevent");
            let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
            bytes.windows(8).any(|word| word == inode.to_ne_bytes()).then_some(())
        };
        eventually("its incarnation is known", status);
        let mut belief = hear(&world);
        let restart = |daemon: Daemon, belief: &mut Belief| {
            daemon.signal(Signal::KILL);
            drop(daemon);
            let daemon = world.plugd(&options).start();
            World::settle("plugd");
            belief.heard.clear();
            belief.hear(&world);
            daemon
        };
        // The number of the last event that was acted on is in its head.
        let bytes = fs::read(&state).unwrap();
        let number = u64::from_ne_bytes(bytes[72..80].try_into().unwrap()) & ((1 << 48) - 1);
        world.tell_number(number);
        let daemon = restart(daemon, &mut belief);
        assert_eq!(belief.heard, [""; 0]);
        // Nobody knows what the event was that was missed.
        world.tell_number(number + 1);
        let _daemon = restart(daemon, &mut belief);
        assert_eq!(replayed(&belief, "restart"), ["change /devices/busy", "change /devices/new"]);
    });
}

/// More than are looked up at a time, and under names that they did not come by; and
/// what was to be looked up before an update.
#[test]
fn whatever_many_came_by_events_they_are_known_after_a_restart() {
    ns::inside(|| {
        let mut world = World::numbered(1);
        let state = world.at("state");
        let options = ["-v", "--coldplug", "--state", state.to_str().unwrap()];
        let daemon = world.plugd(&options).start();
        World::settle("plugd");
        (0..2200).for_each(|minor| world.add(&format!("/devices/many{minor}"), minor));
        world.rename("/devices/many50");
        World::settle("plugd");
        let words = || {
            let bytes = fs::read(&state).unwrap();
            let words = bytes.chunks_exact(8);
            words.map(|word| u64::from_ne_bytes(word.try_into().unwrap())).collect::<HashSet<_>>()
        };
        let inode = |path: &String| {
            let file = world.at("sys").join(&path[1..]).join("uevent");
            std::os::unix::fs::MetadataExt::ino(&fs::metadata(file).unwrap())
        };
        assert_eq!(Plugd::new().args(["update"]).finish().code, Some(0));
        daemon.wait_for_log("updated from version");
        let mut left: Vec<_> = world.paths().iter().map(inode).collect();
        eventually("all are looked up", || {
            let words = words();
            left.retain(|inode| !words.contains(inode));
            left.is_empty().then_some(())
        });
        let before = hear(&world).heard.len();
        daemon.signal(Signal::KILL);
        drop(daemon);
        let _daemon = world.plugd(&options).args(["--replay-change", "no"]).start();
        World::settle("plugd");
        assert_eq!(hear(&world).heard.len(), before, "nothing is done again");
    });
}

/// Starts with this state file. Returns what was told, and how many devices were
/// acted on.
fn with_state(world: &World, options: &[&str]) -> (Vec<String>, usize) {
    let before = hear(world).heard.len();
    let mut daemon = world.plugd(&["-v"]).args(options).start();
    World::settle("plugd");
    daemon.signal(Signal::TERM);
    daemon.wait_exit();
    (daemon.log(), hear(world).heard.len() - before)
}

#[test]
fn a_state_that_cannot_be_used_means_all_over_again() {
    ns::inside(|| {
        let world = world();
        let state = world.at("state");
        let path = state.to_str().unwrap().to_owned();
        let options = ["--state", &*path];
        let told = |(log, acted): (Vec<String>, usize), what: &str| {
            assert!(log.iter().any(|line| line.contains(what)), "{what}: {log:#?}");
            assert_eq!(acted, 4, "{what}");
        };
        assert_eq!(with_state(&world, &options).1, 4);
        assert_eq!(with_state(&world, &options).1, 0);
        let good = fs::read(&state).unwrap();

        for (at, what) in
            [(16, "it is damaged"), (8, "of another version"), (32, "of another boot")]
        {
            let mut bytes = good.clone();
            bytes[at] ^= 1;
            fs::write(&state, bytes).unwrap();
            told(with_state(&world, &options), what);
            assert_eq!(with_state(&world, &options).1, 0, "it was made anew");
        }
        for length in [1, 50, 100, good.len() - 1] {
            fs::write(&state, &good[..length.min(good.len())]).unwrap();
            let acted = with_state(&world, &options).1;
            assert!([0, 4].contains(&acted), "{length}: {acted}");
        }
        fs::write(world.at("rules2"), ".* 0:0 600\n").unwrap();
        let other = world.at("rules2");
        let other = ["--state", &*path, "--conf", other.to_str().unwrap()];
        told(with_state(&world, &other), "other rules acted on the devices");

        // What cannot be kept at all is told, and plugd does without.
        fs::remove_file(&state).unwrap();
        symlink(world.at("elsewhere"), &state).unwrap();
        told(with_state(&world, &options), "it is a symbolic link");
        assert!(!world.at("elsewhere").exists());
        fs::remove_file(&state).unwrap();
        fs::write(&state, "").unwrap();
        fs::set_permissions(&state, PermissionsExt::from_mode(0o666)).unwrap();
        told(with_state(&world, &options), "others may write it");
        told(with_state(&world, &["--state", "/nowhere/state"]), "No such file or directory");
    });
}

/// The file is mapped: the kernel ends whoever looks behind its end (mmap(2)).
#[test]
fn a_state_that_is_cut_under_plugd_means_all_over_again() {
    ns::inside(|| {
        for length in [0, 80, 3000] {
            let mut world = world();
            // More than a page of it.
            (100..200).for_each(|minor| world.add(&format!("/devices/many{minor}"), minor));
            let state = world.at("state");
            let options = ["--coldplug", "--state", state.to_str().unwrap()];
            let mut daemon = world.plugd(&options).start();
            World::settle("plugd");
            let file = fs::File::options().write(true).open(&state).unwrap();
            file.set_len(length).unwrap();
            world.remove("/devices/lone");
            let status = daemon.wait_exit();
            assert_eq!(status.signal(), Some(libc::SIGBUS), "{length}");
            let _daemon = world.plugd(&options).start();
            World::settle("plugd");
            // Nobody remembers what was there before.
            let mut belief = hear(&world);
            belief.devices.retain(|(path, _), _| path != "/devices/lone");
            assert_eq!(belief.devices, world.real(), "{length}");
        }
    });
}

#[test]
fn a_state_belongs_to_one_daemon() {
    ns::inside(|| {
        let world = world();
        let state = world.at("state");
        let options = ["--state", state.to_str().unwrap()];
        let _first = world.plugd(&options).args(["--control", "@first"]).start();
        World::settle("first");
        let (log, acted) = with_state(&world, &options);
        assert!(log.iter().any(|line| line.contains("another process has locked it")), "{log:?}");
        assert_eq!(acted, 4);
    });
}

#[test]
fn a_full_disk_is_told_once_and_no_state_is_left() {
    ns::inside_as_root_with_mounts(|| {
        let mut world = world();
        let disk = world.at("disk");
        fs::create_dir(&disk).unwrap();
        let mount = ["-t", "tmpfs", "-o", "size=4k", "tmpfs", disk.to_str().unwrap()];
        assert!(std::process::Command::new("mount").args(mount).status().unwrap().success());
        let state = disk.join("state");
        let daemon = world.plugd(&["--state", state.to_str().unwrap()]).start();
        World::settle("plugd");
        for minor in 100..300 {
            world.add(&format!("/devices/many{minor}"), minor);
        }
        World::settle("plugd");
        daemon.wait_for_log("the state file cannot be kept: No space left on device");
        hear(&world).check(&world, "without a state file");
        assert_eq!(daemon.logged("cannot be kept").len(), 1);
        assert_eq!(fs::metadata(&state).unwrap().len(), 0, "it would tell of the past");
    });
}

#[test]
fn a_rescan_is_done_when_asked_for() {
    ns::inside(|| {
        let mut world = world();
        let daemon = world.plugd(&["-v", "--state", "none"]).start();
        world.silent = true;
        world.add("/devices/new", 50);
        let said = Plugd::new().args(["rescan"]).finish();
        assert_eq!(said.code, Some(0));
        assert!(
            said.stdout.starts_with("rescan: 5 devices; 5 added, 0 removed, 0 changed"),
            "{said:?}"
        );
        world.remove("/devices/new");
        daemon.signal(Signal::ALARM);
        daemon.wait_for_log("rescan: 4 devices; 0 added, 1 removed, 4 changed");
        hear(&world).check(&world, "after the rescans");
        // Without the kernel's events there is nothing that could have been missed.
        let (_sender, receiver) = crate::harness::unix::pair(rustix::net::SocketType::DGRAM);
        let other = Plugd::new()
            .args(["run", "--control", "@other", "--fd", "3", "--", "true"])
            .fd(receiver, 3)
            .start();
        let said = Plugd::new().args(["rescan", "--control", "@other"]).finish();
        assert_eq!(said.code, Some(1), "{said:?}");
        drop(other);
    });
}

#[test]
fn a_sysfs_that_is_not_there_is_looked_for_again() {
    ns::inside(|| {
        let mut world = world();
        fs::rename(world.at("sys"), world.at("hidden")).unwrap();
        fs::create_dir(world.at("sys")).unwrap();
        let daemon = world.plugd(&["--coldplug", "--state", "none"]).start();
        daemon.wait_for_log("devices that were missed (coldplug) are looked for later");
        // Events are acted on meanwhile.
        let fields = ["SUBSYSTEM=c", "MAJOR=7", "MINOR=99", "SERIAL=1"];
        inject::Injector::new().event("add", "/devices/x", &fields);
        eventually("it is acted on", || (hear(&world).heard.len() == 1).then_some(()));
        fs::remove_dir(world.at("sys")).unwrap();
        fs::rename(world.at("hidden"), world.at("sys")).unwrap();
        World::settle("plugd");
        world.change("/devices/busy");
        World::settle("plugd");
        hear(&world).check(&world, "once it is there");
        assert_eq!(daemon.logged("looked for later").len(), 1);
    });
}

/// Without a descriptor nothing can be looked at; that is no reason to think that there is
/// nothing.
#[test]
fn what_cannot_be_looked_at_for_want_of_descriptors_is_looked_at_later() {
    ns::inside(|| {
        let mut world = world();
        let daemon = world.plugd(&["-v", "--coldplug", "--state", "none"]).start();
        World::settle("plugd");
        let unlimited = getrlimit(Resource::Nofile);
        let limit = |soft: Option<u64>| {
            let limits = Rlimit { current: soft, ..unlimited };
            prlimit(Pid::from_raw(daemon.pid().cast_signed()), Resource::Nofile, limits).unwrap();
        };
        let is_free =
            |number: &u64| !Path::new(&format!("/proc/{}/fd/{number}", daemon.pid())).exists();
        // None is left; one is, for /sys, and none for what is in it.
        for (count, left) in (1..).zip([0, 1]) {
            world.silent = true;
            world.add(&format!("/devices/x{left}"), 50 + count);
            world.silent = false;
            // Who asked before has left: that is seen in the same round, or before.
            (0..2).for_each(|_| drop(daemon.counters()));
            limit(Some((0..).find(is_free).unwrap() + left));
            daemon.signal(Signal::ALARM);
            daemon.wait_for_logs("Too many open files; devices that were missed", count as usize);
            limit(unlimited.current);
            World::settle("plugd");
        }
        hear(&world).check(&world, "in the end");
    });
}

/// What was heard of a device that came and went before the scan, and whose removal
/// alone was lost.
fn heard_of_x(daemon: &Daemon) -> Vec<String> {
    daemon.lines("out").into_iter().filter(|line| line.contains("/devices/x")).collect()
}

const SLOW: &str = "echo $ACTION $DEVPATH >>$TMP/out; \
                    [ $DEVPATH != /devices/slow ] || read x <$TMP/go";

#[test]
fn what_is_queued_at_the_start_may_have_a_gap_in_it() {
    ns::inside(|| {
        let mut world = world();
        let socket = inject::socket(plugd::netlink::KERNEL_GROUP);
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, 4096).unwrap();
        world.add("/devices/x", 50);
        (0..40).for_each(|_| world.change("/devices/busy"));
        world.remove("/devices/x");
        // Whoever had it before was told of the overrun, and was killed then.
        let told = rustix::net::sockopt::socket_error(&socket).unwrap();
        assert_eq!(told, Err(rustix::io::Errno::NOBUFS));
        let daemon = Plugd::new()
            .args(["run", "-v", "--fd", "3", "--coldplug", "--state", "none"])
            .args(["--sys".as_ref(), world.at("sys").as_os_str()])
            .args(["--", "sh", "-c", SLOW])
            .fd(socket, 3)
            .start();
        World::settle("plugd");
        assert_eq!(heard_of_x(&daemon), ["add /devices/x", "remove /devices/x"]);
    });
}

#[test]
fn a_gap_from_before_the_first_scan_that_can_be_done_is_none_after_it() {
    ns::inside(|| {
        let mut world = world();
        fs::rename(world.at("sys/class"), world.at("hidden")).unwrap();
        let daemon = Plugd::new()
            .args(["run", "-v", "--coldplug"])
            .args(SMALL)
            .args(["--sys".as_ref(), world.at("sys").as_os_str()])
            .args(["--", "sh", "-c", SLOW])
            .start();
        daemon.fifo("go");
        daemon.wait_for_log("devices that were missed (coldplug) are looked for later");
        hold(&daemon);
        inject::Injector::new().event("change", "/devices/slow", &["SUBSYSTEM=c"]);
        world.hidden(|world| {
            world.add("/devices/x", 50);
            (0..40).for_each(|_| world.change("/devices/busy"));
            world.remove("/devices/x");
        });
        daemon.signal(Signal::CONT);
        daemon.wait_for_lines("out", 1);
        fs::rename(world.at("hidden"), world.at("sys/class")).unwrap();
        // Not later, but next.
        daemon.signal(Signal::ALARM);
        daemon.wait_for_log("looking for all devices");
        daemon.release("go");
        World::settle("plugd");
        assert_eq!(heard_of_x(&daemon), ["add /devices/x", "remove /devices/x"]);
    });
}

#[test]
fn an_update_after_an_overrun_in_coldplug_knows_of_the_gap() {
    ns::inside(|| {
        let mut world = World::new(1);
        world.add("/devices/slow", 1);
        let daemon = Plugd::new()
            .args(["run", "-v", "--coldplug"])
            .args(SMALL)
            .args(["--sys".as_ref(), world.at("sys").as_os_str()])
            .args(["--", "sh", "-c", SLOW])
            .start();
        daemon.fifo("go");
        // The first device is being added.
        daemon.wait_for_lines("out", 1);
        world.change("/devices/slow");
        world.add("/devices/x", 50);
        (0..40).for_each(|_| world.change("/devices/slow"));
        world.remove("/devices/x");
        daemon.release("go");
        daemon.wait_for_lines("out", 2);
        daemon.wait_for_log("overrun");
        assert_eq!(Plugd::new().args(["update"]).finish().code, Some(0));
        daemon.wait_for_log("updated from version");
        (0..60).for_each(|_| daemon.release("go"));
        World::settle("plugd");
        assert_eq!(heard_of_x(&daemon), ["add /devices/x", "remove /devices/x"]);
    });
}

#[test]
fn strange_names_and_depths_are_survived() {
    ns::inside(|| {
        let mut world = World::new(1);
        let deep = format!("/devices{}", "/d".repeat(100));
        for (minor, end) in deep.match_indices("/d").skip(1).map(|(end, _)| end + 2).enumerate() {
            world.add(&deep[..end], u32::try_from(minor).unwrap());
        }
        world.add("/devices/new\nline", 1000);
        world.add(&format!("/devices/{}", "x".repeat(200)), 1001);
        symlink("loop", world.at("sys/class/c/loop")).unwrap();
        symlink("../../devices/gone", world.at("sys/class/c/gone")).unwrap();
        let _daemon = world.plugd(&["--coldplug", "--state", "none"]).start();
        World::settle("plugd");
        hear(&world).check(&world, "strange as it is");
    });
}

#[test]
fn a_program_for_every_event_serves_as_well() {
    ns::inside(|| {
        let mut world = world();
        let daemon = Plugd::new()
            .args(["run", "-q", "--coldplug", "--state", "none", "--receive-buffer-size", "4K"])
            .args(["--sys".as_ref(), world.at("sys").as_os_str()])
            .args(["--", "sh", "-c", "echo $ACTION $DEVPATH $PLUGD_REPLAY $MINOR >>$TMP/out"])
            .start();
        World::settle("plugd");
        assert_eq!(
            daemon.lines("out"),
            [
                "add /devices/busy coldplug 1",
                "add /devices/hub coldplug 2",
                "add /devices/hub/a coldplug 3",
                "add /devices/lone coldplug 4"
            ]
        );
        unheard(&mut world, &daemon, |world| world.remove("/devices/hub"));
        let lines = daemon.lines("out");
        let removed: Vec<_> = lines.iter().filter(|line| line.starts_with("remove")).collect();
        assert_eq!(removed, ["remove /devices/hub/a overrun 3", "remove /devices/hub overrun 2"]);
    });
}

#[test]
fn nobody_else_says_that_an_event_is_replayed() {
    ns::inside(|| {
        const SCRIPT: &str = "echo $DEVPATH ${PLUGD_REPLAY-none} >>$TMP/out; \
                              [ $DEVPATH != /devices/x ] || read x <$TMP/go";
        for rules in [false, true] {
            let world = world();
            let conf = world.at("rules");
            let forged = "$PLUGD_REPLAY=forged 0:0 660 ! *echo >>$TMP/out";
            fs::write(&conf, format!("{forged}\n.* 0:0 660 ! *{SCRIPT}\n")).unwrap();
            let acted = fs::File::options().append(true).open(world.at("acted")).unwrap();
            let plugd = Plugd::new()
                .args(["run", "--coldplug", "--state", "none", "--output-fd", "9"])
                .args(["--conf".as_ref(), conf.as_os_str()])
                .args(["--sys".as_ref(), world.at("sys").as_os_str()])
                // As that of a program for a replayed event is.
                .env("PLUGD_REPLAY", "forged")
                .fd(acted, 9);
            let daemon = if rules { plugd } else { plugd.sh(SCRIPT) }.start();
            daemon.fifo("go");
            World::settle("plugd");
            let injector = inject::Injector::new();
            for path in ["/devices/x", "/devices/y"] {
                let fields = ["PLUGD_REPLAY=forged", "SUBSYSTEM=c", "PLUGD_REPLAY=overrun"];
                injector.event("add", path, &fields);
            }
            let count = |lines: &[String]| lines.iter().filter(|it| it.ends_with("plug")).count();
            let lines = daemon.wait_for_lines("out", 5);
            assert_eq!((count(&lines), &*lines[4]), (4, "/devices/x none"), "{lines:?}");
            // One that is in hand and one that waits.
            assert_eq!(Plugd::new().args(["update"]).finish().code, Some(0));
            daemon.wait_for_log("updated from version");
            daemon.release("go");
            let lines = daemon.wait_for_lines("out", 6);
            assert_eq!(lines[5..], ["/devices/y none"], "{rules}");
            World::settle("plugd");
            let acted = fs::read(world.at("acted")).unwrap();
            let says =
                |text: &str| acted.windows(text.len()).filter(|it| *it == text.as_bytes()).count();
            assert_eq!(says("DEVPATH=/devices/"), 6);
            assert_eq!(says("PLUGD_REPLAY="), 4);
            assert_eq!(says("PLUGD_REPLAY=coldplug"), 4);
            daemon.wait_for_log("not passed on: PLUGD_REPLAY, which is plugd's to set (1 so far)");
        }
    });
}

#[test]
fn under_noshs_name_every_event_is_passed_on() {
    ns::inside(|| {
        let socket = inject::socket(plugd::netlink::KERNEL_GROUP);
        let daemon = Plugd::new()
            .arg0("plug-and-play-event-handler")
            .fd(socket, 3)
            .args(["sh", "-c", "echo $ACTION $DEVPATH $N >>$TMP/out"])
            .start();
        let injector = inject::Injector::new();
        for n in 0..3 {
            injector.event("add", "/devices/x", &["SUBSYSTEM=c", &format!("N={n}")]);
        }
        injector.event("remove", "/devices/y", &["SUBSYSTEM=c", "N=3"]);
        let lines = daemon.wait_for_lines("out", 4);
        assert_eq!(lines[3], "remove /devices/y 3");
    });
}

#[test]
fn an_update_carries_along_what_is_known() {
    ns::inside(|| {
        for state in [false, true] {
            let mut world = world();
            let file = world.at("state");
            let state = if state { file.to_str().unwrap() } else { "none" };
            let daemon = world.plugd(&["-v", "--coldplug", "--state", state]).start();
            World::settle("plugd");
            world.add("/devices/new", 50);
            World::settle("plugd");
            let before = hear(&world).heard.len();
            assert_eq!(Plugd::new().args(["update"]).finish().code, Some(0));
            daemon.wait_for_log("updated from version");
            World::settle("plugd");
            assert_eq!(hear(&world).heard.len(), before, "nothing is done again");
            world.silent = true;
            world.remove("/devices/new");
            assert_eq!(Plugd::new().args(["rescan"]).finish().code, Some(0));
            hear(&world).check(&world, "after the update");
        }
    });
}

#[test]
fn an_update_in_the_middle_of_making_up_goes_on_with_it() {
    ns::inside(|| {
        let mut world = world();
        let script = "echo $ACTION $DEVPATH >>$TMP/out; \
                      [ $ACTION$PLUGD_REPLAY != removeoverrun ] || read x <$TMP/go";
        let daemon = Plugd::new()
            .args(["run", "-v", "--coldplug"])
            .args(SMALL)
            .args(["--sys".as_ref(), world.at("sys").as_os_str()])
            .args(["--", "sh", "-c", script])
            .start();
        daemon.fifo("go");
        World::settle("plugd");
        let before = daemon.wait_for_lines("out", 4).len();
        hold(&daemon);
        (0..40).for_each(|_| world.change("/devices/busy"));
        world.remove("/devices/hub");
        world.add("/devices/new", 50);
        daemon.signal(Signal::CONT);
        // The first removal is in hand.
        eventually("it makes up for it", || {
            daemon.lines("out").contains(&"remove /devices/hub/a".to_owned()).then_some(())
        });
        assert_eq!(Plugd::new().args(["update"]).finish().code, Some(0));
        daemon.wait_for_log("updated from version");
        // Something else happens meanwhile.
        world.remove("/devices/lone");
        world.add("/devices/newer", 51);
        (0..3).for_each(|_| daemon.release("go"));
        World::settle("plugd");
        let lines = daemon.lines("out").split_off(before);
        let acted = |line: &str| lines.iter().filter(|it| *it == line).count();
        let at = |line: &str| lines.iter().position(|it| it == line);
        for removed in ["hub/a", "hub", "lone"] {
            assert_eq!(acted(&format!("remove /devices/{removed}")), 1, "{lines:#?}");
        }
        assert!(at("remove /devices/hub/a") < at("remove /devices/hub"), "{lines:#?}");
        for added in ["new", "newer"] {
            assert!(acted(&format!("add /devices/{added}")) > 0, "{lines:#?}");
        }
        assert_eq!(lines.last().unwrap(), "change /devices/busy", "{lines:#?}");
    });
}

/// What is below a device that moved while it was looked for may not have been found.
#[test]
fn an_update_soon_after_a_comparison_leaves_it_in_doubt() {
    ns::inside(|| {
        let mut world = world();
        let _daemon = world.plugd(&["--coldplug", "--state", "none"]).start();
        World::settle("plugd");
        let (mut path, mut minor) = ("/devices/lone".to_owned(), 60);
        // On a busy machine it may not be soon enough.
        eventually("it is compared once more", || {
            assert_eq!(Plugd::new().args(["update"]).finish().code, Some(0));
            minor += 1;
            world.silent = true;
            world.add(&format!("{path}/{minor}"), minor);
            world.silent = false;
            world.rename(&path);
            path = world.paths().into_iter().find(|path| path.contains("/m")).unwrap();
            World::settle("plugd");
            let belief = hear(&world);
            belief.devices.keys().any(|(_, known)| *known == minor).then_some(())
        });
    });
}

#[test]
fn an_update_that_cannot_use_what_is_known_begins_anew() {
    ns::inside(|| {
        let mut world = world();
        let file = world.at("state");
        let state = file.to_str().unwrap();
        let daemon = world.plugd(&["--coldplug", "--state", state]).start();
        World::settle("plugd");
        // What is mapped there is of another version.
        fs::File::options().write(true).open(&file).unwrap().write_all_at(&[77], 8).unwrap();
        assert_eq!(Plugd::new().args(["update"]).finish().code, Some(0));
        daemon.wait_for_log("what is known of devices is not used: it is of another version");
        World::settle("plugd");
        assert_eq!(replayed(&hear(&world), "coldplug").len(), 8, "all once more");
        world.remove("/devices/lone");
        World::settle("plugd");
        hear(&world).check(&world, "after the update");
    });
}

#[test]
fn what_is_no_state_file_is_left_as_it_is() {
    ns::inside(|| {
        let world = world();
        let path = world.at("fstab");
        let text = "/dev/sda1 / ext4 defaults 0 1\n";
        fs::write(&path, text).unwrap();
        for mode in [0o644, 0o600] {
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let (log, acted) = with_state(&world, &["--state", path.to_str().unwrap()]);
            assert!(log.iter().any(|line| line.contains("it is no state file")), "{log:#?}");
            assert_eq!(acted, 4);
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        // Such as a key, or what is swapped out.
        let key = [b'k'; 4096];
        fs::write(&path, key).unwrap();
        let (log, _) = with_state(&world, &["--state", path.to_str().unwrap()]);
        assert!(log.iter().any(|line| line.contains("it is no state file")), "{log:#?}");
        assert_eq!(fs::read(&path).unwrap(), key);
        let state = world.at("state");
        assert_eq!(with_state(&world, &["--state", state.to_str().unwrap()]).1, 4);
        fs::hard_link(&state, world.at("other")).unwrap();
        let (log, _) = with_state(&world, &["--state", state.to_str().unwrap()]);
        assert!(log.iter().any(|line| line.contains("it has another name")), "{log:#?}");
    });
}

/// /sys has an interface of the same name that is another one.
#[test]
fn an_interface_of_another_namespace_is_not_taken_for_ours() {
    ns::inside(|| {
        let sys = tempfile::tempdir_in("/dev/shm").unwrap();
        let device = sys.path().join("devices/virtual/net/br7");
        fs::create_dir_all(device.join("queues/rx-0")).unwrap();
        fs::create_dir_all(sys.path().join("class/net")).unwrap();
        symlink("../../devices/virtual/net/br7", sys.path().join("class/net/br7")).unwrap();
        fs::write(device.join("uevent"), "INTERFACE=br7\nIFINDEX=777\n").unwrap();
        let daemon = Plugd::run(&["--state", "none", "--sys", sys.path().to_str().unwrap()])
            .args([
                "--",
                "sh",
                "-c",
                "[ $SUBSYSTEM = net ] && echo $ACTION $INTERFACE >>$TMP/out; :",
            ])
            .start();
        inject::real_device("br7");
        eventually("its event", || daemon.lines("out").contains(&"add br7".into()).then_some(()));
        let rescan = |number: u32| {
            daemon.signal(Signal::ALARM);
            let text = format!("scans {number}");
            eventually("it is compared", || daemon.counters().contains(&text).then_some(()));
        };
        rescan(1);
        rescan(2);
        // Nor if that one goes.
        fs::remove_file(sys.path().join("class/net/br7")).unwrap();
        fs::remove_dir_all(device).unwrap();
        rescan(3);
        rescan(4);
        assert_eq!(daemon.lines("out"), ["add br7"]);
    });
}

#[test]
fn interfaces_of_another_namespace_are_neither_gone_nor_here() {
    // /sys is the outer namespace's here, the socket this one's.
    ns::inside(|| {
        let daemon = Plugd::run(&["--coldplug", "--state", "none", "--"])
            .args(["sh", "-c", "[ $SUBSYSTEM = net ] && echo $ACTION $INTERFACE >>$TMP/out; :"])
            .start();
        eventually("the first one", || (!daemon.lines("out").is_empty()).then_some(()));
        inject::real_device("br7");
        eventually("its event", || daemon.lines("out").contains(&"add br7".into()).then_some(()));
        daemon.signal(Signal::ALARM);
        eventually("it is compared", || daemon.counters().contains("scans 2").then_some(()));
        daemon.wait_for_counters(", stale");
        let lines = daemon.lines("out");
        assert!(!lines.contains(&"remove br7".into()), "{lines:?}");
        let added = lines.iter().filter(|line| line.starts_with("add "));
        let mut added: Vec<_> = added.collect();
        added.sort();
        added.dedup();
        assert_eq!(added, ["add br7", "add lo"], "none of the outer namespace's");
    });
}
