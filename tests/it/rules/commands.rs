//! What is run, when, and with what; and what else is done.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::FileType;
use rustix::process::Signal;

use super::{DEVICE, act_on, device, mknod, tree};
use crate::harness::inject::{Injector, uevent};
use crate::harness::ns;
use crate::mdevd::World;

/// Of other actions than add and remove nothing is done but what asks for it.
#[test]
fn other_actions_only_run_commands() {
    ns::inside_as_root_apart(|| {
        let world = World::new(
            "-x 1:1 666 @echo $ACTION @ >>$W/out\n-x 1:1 666 $echo $ACTION $ >>$W/out\n\
             -x 1:1 666 *echo $ACTION '*' >>$W/out\nACTION=^bind$;x 1:1 666 >y *echo only >>$W/out\n",
        );
        let daemon = world.plugd().start();
        let actions = ["change", "bind", "unbind", "move", "online", "offline", "Add", "removed"];
        act_on(&world, actions.map(|action| device(action, "x")));
        assert_eq!(tree(&world), [""; 0]);
        let mut expected = Vec::new();
        for action in actions {
            expected.push(format!("{action} *"));
            expected.extend((action == "bind").then(|| "only".to_owned()));
        }
        assert_eq!(world.lines("out"), expected);
        act_on(&world, [device("add", "x"), device("bind", "x"), device("unbind", "x")]);
        assert_eq!(tree(&world), ["char 660 1 1 x"]);
        assert_eq!(daemon.logged("cannot"), []);
    });
}

/// Nodes are there when the command of their rule runs, and go after it.
#[test]
fn a_plan_is_done_in_its_order() {
    ns::inside_as_root_apart(|| {
        let look = "for f in x a b c/b; do [ -e $f ] && ls -l $f | cut -c1-10,11-; done | wc -l";
        let world = World::new(&format!(
            "-x 1:2 640 >a *echo $ACTION $MDEV $({look}) >>$W/out\n\
             -x 0:0 600 =b *echo $ACTION $MDEV $({look}) >>$W/out\n\
             -x 0:0 600 ! *echo $ACTION $MDEV $({look}) >>$W/out\nx 0:0 604 =c/b\n"
        ));
        let _daemon = world.plugd().start();
        act_on(&world, [device("add", "x")]);
        let expected = [
            "char 600 0 0 b",
            "char 604 0 0 c/b",
            "char 640 1 2 a",
            "dir 755 0 0 c",
            "link x -> a",
        ];
        assert_eq!(tree(&world), expected);
        assert_eq!(world.lines("out"), ["add a 2", "add b 3", "add x 3"]);
        act_on(&world, [device("remove", "x")]);
        assert_eq!(tree(&world), [""; 0]);
        assert_eq!(world.lines("out")[3..], ["remove a 4", "remove b 2", "remove x 1"]);
    });
}

#[test]
fn an_error_is_told_and_the_rest_is_done() {
    ns::inside_as_root_apart(|| {
        let world = World::new(
            "-x 0:0 600 =dir @echo one >>$W/out\n-x 0:0 600 =../x @echo never >>$W/out\n\
             -x 0:0 600 ! @exit 7\n-x 0:0 600 ! @kill -9 $$\n-x 0:0 600 ! +true\n\
             -x 0:0 600 =file/x @echo two >>$W/out\nx 1:1 640\n",
        );
        fs::create_dir(world.path("dev/dir")).unwrap();
        fs::write(world.path("dev/file"), "").unwrap();
        // No execlineb is found, and where it is looked for then is none.
        fs::create_dir(world.path("bin")).unwrap();
        if Path::new("/bin/execlineb").exists() {
            ns::mount(&["--bind", "/dev/null", "/bin/execlineb"]);
        }
        let daemon = world.plugd().env("PATH", world.path("bin")).start();
        act_on(&world, [device("add", "x"), device("add", "y")]);
        assert_eq!(world.lines("out"), ["one", "two"]);
        let expected =
            ["char 640 1 1 x", "char 660 0 0 y", "dir 755 0 0 dir", "other 644 0 0 file"];
        assert_eq!(tree(&world), expected);
        let told = [
            "cannot make device node dir: Is a directory",
            "refuse name \"../x\": it is absolute, ends in /, or has . or .. in it",
            "/bin/sh exited with 7",
            "/bin/sh was killed by SIGKILL",
            "error: cannot run /bin/execlineb: ",
            "cannot make device node file/x: Not a directory",
        ];
        for text in told {
            assert_eq!(daemon.logged(text).len(), 1, "{text}: {:#?}", daemon.log());
        }
        // What is not there is not waited for, as what is replaced is.
        assert_eq!(daemon.logged("waits for another attempt"), []);
        // The event, not each of its steps.
        daemon.wait_for_counters("failed 1");
    });
}

#[test]
fn a_command_that_hangs_is_ended_and_the_rest_is_done() {
    ns::inside_as_root_apart(|| {
        // The shell does not end, nor does what it started.
        let world = World::new("-x 0:0 600 @sleep 1000 & trap '' TERM; sleep 1000\nx 0:0 640 =y\n");
        let options = ["--timeout", "0.2", "--kill-after", "0.2"];
        let daemon = world.plugd().args(options).start();
        act_on(&world, [device("add", "x")]);
        assert_eq!(tree(&world), ["char 600 0 0 x", "char 640 0 0 y"]);
        daemon.wait_for_log("takes too long: SIGTERM to its process group");
        daemon.wait_for_log("does not end: SIGKILL to its process group");
        daemon.wait_for_counters("failed 1");
    });
}

/// A driver waits for it, which the command may well have to do with.
#[test]
fn firmware_does_not_wait_for_a_command() {
    ns::inside(|| {
        let world = World::new(".* 0:0 600 @read x <$TMP/gate\n");
        let device = world.path("sys/devices/fw");
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("loading"), "").unwrap();
        let daemon = world.plugd().start();
        daemon.fifo("gate");
        Injector::new().event("add", "/devices/fw", &["FIRMWARE=absent"]);
        daemon.wait_for_child("sh");
        assert_eq!(fs::read_to_string(device.join("loading")).unwrap(), "-1");
    });
}

/// The next plugd goes on with the plan, in the midst of which it was.
#[test]
fn an_update_repeats_and_forgets_no_step() {
    ns::inside_as_root_apart(|| {
        let world = World::new(
            "-x 1:2 640 >a @echo one >>$W/out; read x <$TMP/gate\n\
             -x 0:0 600 =b @echo two >>$W/out; read x <$TMP/gate\nx 0:0 604 =c/d\n",
        );
        let daemon = world.plugd().start();
        daemon.fifo("gate");
        Injector::new().send(&device("add", "x")).unwrap();
        for count in 1..=2 {
            world.wait_for_lines("out", count);
            daemon.signal(Signal::USR2);
            daemon.wait_for_logs("updated from version", count);
            // It would be made again.
            fs::remove_file(world.path("dev/x")).unwrap();
            symlink("mine", world.path("dev/x")).unwrap();
            daemon.release("gate");
        }
        act_on(&world, []);
        assert_eq!(world.lines("out"), ["one", "two"]);
        let expected = [
            "char 600 0 0 b",
            "char 604 0 0 c/d",
            "char 640 1 2 a",
            "dir 755 0 0 c",
            "link x -> mine",
        ];
        assert_eq!(tree(&world), expected);
        daemon.wait_for_counters("failed 0");
    });
}

/// An update reads the rules. What the plugd before it was doing is looked for in
/// the new plan, and not entered at the same number.
#[test]
fn an_update_to_other_rules_repeats_no_step() {
    let old = "-x 1:2 640 >a @echo one >>$W/out; read x <$TMP/gate\nx 0:0 604 =c/d\n";
    let before = "-x 0:0 600 ! @echo new >>$W/out\n";
    let cases = [
        // There are more steps before it, and others after it.
        (format!("{before}{}=e\n", old.strip_suffix("=c/d\n").unwrap()), "char 604 0 0 e", 0),
        // It is in there no more.
        (before.repeat(5), "", 1),
    ];
    ns::inside_as_root_apart(|| {
        for (new, made, failed) in &cases {
            let world = World::new(old);
            let daemon = world.plugd().start();
            daemon.fifo("gate");
            Injector::new().send(&device("add", "x")).unwrap();
            world.wait_for_lines("out", 1);
            fs::write(world.path("mdev.conf"), new).unwrap();
            daemon.signal(Signal::USR2);
            daemon.wait_for_log("updated from version");
            daemon.release("gate");
            daemon.wait_for_counters(&format!("failed {failed}"));
            act_on(&world, []);
            assert_eq!(world.lines("out"), ["one"]);
            let mut expected = vec!["char 640 1 2 a", "link x -> a"];
            expected.extend(Some(*made).filter(|made| !made.is_empty()));
            expected.sort_unstable();
            assert_eq!(tree(&world), expected);
            let told = daemon.logged("the rules are others now").len();
            assert_eq!(told, *failed);
        }
    });
}

/// mdevd and busybox run commands with 0, and what `mkdir -p` makes in /dev is
/// anybody's then; files for them have `mkdir -m 755`.
#[test]
fn commands_have_the_file_mode_creation_mask_of_the_daemon() {
    ns::inside(|| {
        let world =
            World::new("-.* 0:0 600 *umask >>$W/out; mkdir made; stat -c %a made >>$W/out\n");
        let _daemon = world.plugd().prelude("umask 027").start();
        Injector::new().event("add", "/devices/x", &[]);
        assert_eq!(world.wait_for_lines("out", 2), ["0027", "750"]);
    });
}

#[test]
fn a_dry_run_prints_and_does_nothing() {
    ns::inside_as_root_apart(|| {
        let world =
            World::new("-x 1:2 640 >a/ *echo >$W/out\nold 0:0 600 =gone\n.* 0:0 600 &echo\n");
        fs::create_dir_all(world.path("sys/devices/fw")).unwrap();
        fs::write(world.path("sys/devices/fw/loading"), "").unwrap();
        let plan = fs::File::create(world.path("plan")).unwrap();
        let mut daemon = world.plugd().args(["-n"]).stdout(plan).start();
        // What a real run would remove.
        mknod(&world.path("dev/gone"), FileType::CharacterDevice, 4094, 7, 0o666);
        let firmware = ["SUBSYSTEM=firmware", "FIRMWARE=blob"];
        let events = [
            device("add", "x"),
            device("remove", "old"),
            uevent("add", "/devices/fw", &firmware),
            device("add", "../x"),
        ];
        events.iter().for_each(|event| Injector::new().send(event).unwrap());
        world.wait_for_lines("plan", 9);
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait_exit().code(), Some(0));
        let told: Vec<String> = world
            .lines("plan")
            .iter()
            .map(|line| line.split_once("): ").unwrap().1.to_owned())
            .collect();
        let expected = [
            "make node a/x, character 4094:7, owner 1:2, mode 0640",
            "make link x to a/x",
            "run /bin/sh -c echo >$W/out with MDEV=a/x",
            "make node x, character 4094:7, owner 0:0, mode 0600",
            "run execlineb -Pc echo with MDEV=x",
            "remove node gone, character 4094:7",
            "load firmware blob",
            "run execlineb -Pc echo with MDEV=fw",
            "refuse name \"../x\": it is absolute, ends in /, or has . or .. in it",
        ];
        assert_eq!(told, expected);
        assert_eq!(tree(&world), ["char 666 0 0 gone"]);
        assert!(!world.path("out").exists());
        assert_eq!(fs::read(world.path("sys/devices/fw/loading")).unwrap(), b"");
    });
}

/// Only the devices that are there take memory, not those that were.
#[test]
fn memory_does_not_grow_with_events() {
    const PAIRS: usize = 10_000;
    ns::inside_as_root_apart(|| {
        let world = World::new(
            "-SUBSYSTEM=^m(e)*m$;.* 0:6 660\n(sd|hd)([a-z]+)([0-9]*) 0:6 660 >disks/%2/%3\n",
        );
        // A disk is slow.
        ns::mount(&["-t", "tmpfs", "tmpfs", world.path("dev").to_str().unwrap()]);
        let daemon = world.plugd().start();
        let (injector, inode) = (Injector::new(), daemon.netlink().1);
        let round = |round: usize| {
            let events = (0..2 * PAIRS).map(|n| {
                let number = round * PAIRS + n / 2;
                let (name, path) = (format!("DEVNAME=sda{number}"), format!("/devices/{number}"));
                let action = if n % 2 == 0 { "add" } else { "remove" };
                uevent(action, &path, &[&DEVICE[..], &[&name]].concat())
            });
            injector.paced(events, inode);
            act_on(&world, []);
            assert_eq!(tree(&world), [""; 0]);
            let memory = daemon.status("RssAnon");
            memory.split(' ').next().unwrap().parse::<usize>().unwrap()
        };
        // In the first, what is known of devices gets room to be written anew in. What
        // is to be looked up at the next leisure takes more or less, by how fast things
        // go; but a byte for each event would be more than that.
        let (_, before) = (round(0), round(1));
        let (_, after) = (round(2), round(3));
        let limit = 4 * PAIRS / 1024;
        assert!(after < before + limit, "{before} KiB, then {after} KiB");
    });
}
