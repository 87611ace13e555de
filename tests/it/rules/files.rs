//! Which rules are in force: several files, none, others after SIGHUP.

use std::fs;

use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::Signal;

use super::{act_on, device, tree};
use crate::harness::daemon::{Daemon, Plugd};
use crate::harness::inject::{Injector, uevent};
use crate::harness::ns;
use crate::mdevd::World;

/// Has the rules read anew; what it says of that.
fn reload(daemon: &Daemon, says: &str) {
    let before = daemon.logged(says).len();
    daemon.signal(Signal::HUP);
    daemon.wait_for_logs(says, before + 1);
}

const TAKEN: &str = "rules were read anew";
const KEPT: &str = "rules in force stay in force";

#[test]
fn without_a_file_there_are_nodes() {
    ns::inside_as_root_apart(|| {
        let world = World::new("");
        fs::remove_file(world.path("mdev.conf")).unwrap();
        let daemon = world.plugd().start();
        daemon.wait_for_log("mdev.conf: nodes are made as root's with mode 0660, nothing else");
        act_on(&world, [device("add", "sub/x")]);
        assert_eq!(tree(&world), ["char 660 0 0 sub/x", "dir 755 0 0 sub"]);
        act_on(&world, [device("remove", "sub/x")]);
        assert_eq!(tree(&world), [""; 0]);
        // It comes, and is gone again, by mistake or for a moment.
        fs::write(world.path("mdev.conf"), "x 1:2 600\n").unwrap();
        reload(&daemon, TAKEN);
        act_on(&world, [device("add", "x")]);
        assert_eq!(tree(&world), ["char 600 1 2 x"]);
        fs::remove_file(world.path("mdev.conf")).unwrap();
        reload(&daemon, KEPT);
        daemon.wait_for_log("mdev.conf any more");
        act_on(&world, [device("add", "x"), device("add", "y")]);
        assert_eq!(tree(&world), ["char 600 1 2 x", "char 660 0 0 y"]);
        // One with nothing in it is meant so.
        fs::write(world.path("mdev.conf"), "").unwrap();
        reload(&daemon, TAKEN);
        act_on(&world, [device("remove", "y"), device("add", "z")]);
        assert_eq!(tree(&world), ["char 600 1 2 x", "char 660 0 0 z"]);
    });
}

#[test]
fn more_files_are_beside_it() {
    ns::inside_as_root_apart(|| {
        let world = World::new("a 0:0 601\n");
        let directory = world.path("mdev.conf.d");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("20.conf"), "a 0:0 602\nb 0:0 602\nc 0:0 602\n").unwrap();
        fs::write(directory.join("10.conf"), "b 0:0 603\n").unwrap();
        let daemon = world.plugd().start();
        let add = || act_on(&world, ["a", "b", "c"].map(|name| device("add", name)));
        add();
        assert_eq!(tree(&world), ["char 601 0 0 a", "char 602 0 0 c", "char 603 0 0 b"]);
        fs::write(directory.join("05.conf"), "b 0:0 604\n").unwrap();
        fs::write(directory.join("30.conf"), "d nobody-here:0 600\n").unwrap();
        reload(&daemon, KEPT);
        daemon.wait_for_log("mdev.conf.d/30.conf:1:3: ");
        add();
        assert_eq!(tree(&world), ["char 601 0 0 a", "char 602 0 0 c", "char 603 0 0 b"]);
        fs::remove_file(directory.join("30.conf")).unwrap();
        reload(&daemon, TAKEN);
        add();
        assert_eq!(tree(&world), ["char 601 0 0 a", "char 602 0 0 c", "char 604 0 0 b"]);
    });
}

/// Nothing is waited for, and the rules in force stay in force.
#[test]
fn a_fifo_in_place_of_the_file_is_refused() {
    ns::inside_as_root_apart(|| {
        let world = World::new("a 0:0 601\n");
        let file = world.path("mdev.conf");
        let daemon = world.plugd().start();
        fs::remove_file(&file).unwrap();
        mkfifoat(CWD, &file, Mode::RUSR | Mode::WUSR).unwrap();
        reload(&daemon, KEPT);
        daemon.wait_for_log("mdev.conf: not a regular file");
        act_on(&world, [device("add", "a")]);
        assert_eq!(tree(&world), ["char 601 0 0 a"]);
        let finished = Plugd::new().args(["check".as_ref(), file.as_os_str()]).finish();
        assert_eq!(finished.code, Some(111));
        assert!(finished.stderr.contains("mdev.conf: not a regular file"), "{finished:?}");
    });
}

/// A file that is written while it is read is wrong, or an older one; no event
/// is lost or acted on twice meanwhile.
#[test]
fn rules_change_under_load() {
    const EVENTS: usize = 10_000;
    ns::inside(|| {
        let rules = |name: &str| {
            let filler = "never.* 0:0 600\n".repeat(100);
            format!("{filler}N=00$;.* 0:0 660 *echo {name} $N >>$TMP/out\n")
        };
        let world = World::new(&rules("first"));
        let daemon = world.plugd().start();
        let inode = daemon.netlink().1;
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let event = |n| uevent("add", &format!("/devices/{n}"), &[&format!("N={n}")]);
                Injector::new().paced((1..=EVENTS).map(event), inode);
            });
            for round in (0..).take_while(|_| !sender.is_finished()) {
                let text = match round % 3 {
                    0 => rules("second"),
                    1 => rules("third") + "( 0:0 660\n",
                    _ => rules("fourth"),
                };
                fs::write(world.path("mdev.conf"), text).unwrap();
                reload(&daemon, "rules");
            }
        });
        let lines = daemon.wait_for_lines("out", EVENTS / 100);
        let (names, told): (Vec<&str>, Vec<&str>) =
            lines.iter().map(|line| line.split_once(' ').unwrap()).unzip();
        let hundreds: Vec<String> = (1..=EVENTS / 100).map(|n| format!("{n}00")).collect();
        assert_eq!(told, hundreds);
        assert!(names.contains(&"second") && names.contains(&"fourth"), "{:?}", daemon.log());
        assert!(!names.contains(&"third"));
        daemon.wait_for_counters(&format!("handled {EVENTS}, failed 0"));
    });
}
