//! What is done to a /dev that has more in it than ours.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FileType;

use super::{act_on, device, mknod, tree};
use crate::harness::daemon::Daemon;
use crate::harness::inject::Injector;
use crate::harness::{eventually, ns, skip};
use crate::mdevd::World;

/// As devtmpfs makes them: they are not made again, which would take them
/// from whoever has one open.
#[test]
fn a_node_that_is_there_is_adjusted() {
    ns::inside_as_root_apart(|| {
        let world = World::new("a 1:2 640\nb 0:0 600 !\n");
        for name in ["a", "b", "c"] {
            mknod(&world.path("dev").join(name), FileType::CharacterDevice, 4094, 7, 0o604);
        }
        let inodes =
            || ["a", "b", "c"].map(|n| fs::metadata(world.path("dev").join(n)).unwrap().ino());
        let before = inodes();
        let _daemon = world.plugd().start();
        act_on(&world, ["a", "b", "c"].map(|name| device("add", name)));
        assert_eq!(tree(&world), ["char 604 0 0 b", "char 640 1 2 a", "char 660 0 0 c"]);
        assert_eq!(inodes(), before);
        act_on(&world, ["a", "b", "c"].map(|name| device("remove", name)));
        assert_eq!(tree(&world), ["char 604 0 0 b"]);
    });
}

/// What mdevd 0.1.8.3 has made of the same, whatever its umask: but `link/k`, which
/// it makes where the link leads, out of /dev.
#[test]
fn directories_are_made_as_mdevd_makes_them() {
    ns::inside_as_root_apart(|| {
        let world = World::new(
            "a 0:0 640 =sub/deep/x\nb 0:0 640 >links/to/y\nf 0:0 600 =g/\n\
             h 2:3 600 =twice//slash\ni 0:0 600 >there/i\nj 0:0 600 =file/inside\n\
             k 0:0 600 =link/k\n.* 0:0 600\n",
        );
        let at = |name: &str| world.path("dev").join(name);
        fs::create_dir(at("there")).unwrap();
        fs::set_permissions(at("there"), fs::Permissions::from_mode(0o700)).unwrap();
        fs::create_dir(world.path("outside")).unwrap();
        symlink("../outside", at("link")).unwrap();
        fs::write(at("file"), "").unwrap();
        fs::set_permissions(at("file"), fs::Permissions::from_mode(0o644)).unwrap();
        let daemon = world.plugd().prelude("umask 077").start();
        act_on(&world, ["a", "b", "c/d/e", "f", "h", "i", "j", "k"].map(|n| device("add", n)));
        let expected = [
            "char 600 0 0 c/d/e",
            "char 600 0 0 g/f",
            "char 600 0 0 there/i",
            "char 600 2 3 twice/slash",
            "char 640 0 0 links/to/y",
            "char 640 0 0 sub/deep/x",
            "dir 700 0 0 there",
            "dir 755 0 0 c",
            "dir 755 0 0 c/d",
            "dir 755 0 0 g",
            "dir 755 0 0 links",
            "dir 755 0 0 links/to",
            "dir 755 0 0 sub",
            "dir 755 0 0 sub/deep",
            "dir 755 0 0 twice",
            "link b -> links/to/y",
            "link i -> there/i",
            "link link -> ../outside",
            "other 644 0 0 file",
        ];
        assert_eq!(tree(&world), expected);
        assert_eq!(fs::read_dir(world.path("outside")).unwrap().count(), 0);
        for name in ["file/inside", "link/k"] {
            daemon.wait_for_log(&format!("cannot make device node {name}: Not a directory"));
        }
    });
}

#[test]
fn what_has_the_name_of_a_node_is_replaced() {
    ns::inside_as_root_apart(|| {
        let world = World::new("link 0:0 600 >there\n.* 0:0 600\n");
        let at = |name: &str| world.path("dev").join(name);
        mknod(&at("numbers"), FileType::CharacterDevice, 4094, 8, 0o666);
        mknod(&at("kind"), FileType::BlockDevice, 4094, 7, 0o666);
        mknod(&at("link"), FileType::CharacterDevice, 4094, 7, 0o666);
        fs::write(at("file"), "contents").unwrap();
        fs::hard_link(at("file"), world.path("kept")).unwrap();
        symlink("../kept", at("symlink")).unwrap();
        symlink("elsewhere", at("there")).unwrap();
        fs::create_dir(at("directory")).unwrap();
        let names = ["numbers", "kind", "link", "file", "symlink", "directory"];
        let daemon = world.plugd().start();
        act_on(&world, names.map(|name| device("add", name)));
        let expected = [
            "char 600 0 0 file",
            "char 600 0 0 kind",
            "char 600 0 0 numbers",
            "char 600 0 0 symlink",
            "char 600 0 0 there",
            "dir 755 0 0 directory",
            "link link -> there",
        ];
        assert_eq!(tree(&world), expected);
        assert_eq!(fs::read_to_string(world.path("kept")).unwrap(), "contents");
        daemon.wait_for_log("cannot make device node directory: ");
        assert_eq!(daemon.logged("cannot ").len(), 1, "{:?}", daemon.log());
        daemon.wait_for_counters("failed 1");
    });
}

#[test]
fn what_a_kill_left_half_done_is_removed_at_the_next_start() {
    ns::inside_as_root_apart(|| {
        let world = World::new("");
        let at = |name: &str| world.path("dev").join(name);
        mknod(&at(".plugd.4711.0"), FileType::CharacterDevice, 4094, 7, 0o666);
        mknod(&at(".plugd.1.31"), FileType::BlockDevice, 4094, 7, 0o666);
        fs::create_dir(at("sub")).unwrap();
        symlink("there", at("sub/.plugd.12.1")).unwrap();
        // What is mounted may not answer.
        fs::create_dir(at("mounted")).unwrap();
        ns::mount(&["-t", "tmpfs", "tmpfs", at("mounted").to_str().unwrap()]);
        symlink("there", at("mounted/.plugd.12.1")).unwrap();
        // These plugd does not make.
        fs::write(at(".plugd.2.0"), "").unwrap();
        symlink("there", at(".plugd.conf")).unwrap();
        let dry_run = world.plugd().args(["--dry-run"]).start();
        assert_eq!(tree(&world).len(), 8);
        drop(dry_run);
        let _daemon = world.plugd().start();
        let kept = [
            "dir 1777 0 0 mounted",
            "dir 755 0 0 sub",
            "link .plugd.conf -> there",
            "link mounted/.plugd.12.1 -> there",
            "other 644 0 0 .plugd.2.0",
        ];
        assert_eq!(tree(&world), kept);
    });
}

#[test]
fn only_what_is_ours_is_removed() {
    ns::inside_as_root_apart(|| {
        let world = World::new("(.*)/(.*) 0:0 600 >%2/%1/deep\n");
        let at = |name: &str| world.path("dev").join(name);
        fs::create_dir(at("mine")).unwrap();
        let names = ["a/x", "b/x", "c/x", "mine/x", "d/y"];
        let _daemon = world.plugd().start();
        act_on(&world, names.map(|name| device("add", name)));
        assert_eq!(fs::read_link(at("a/x")).unwrap().to_str(), Some("../x/a/deep"));
        // Of a: another link; of b: other numbers; of c: somebody's file.
        fs::remove_file(at("a/x")).unwrap();
        symlink("elsewhere", at("a/x")).unwrap();
        fs::remove_file(at("x/b/deep")).unwrap();
        mknod(&at("x/b/deep"), FileType::CharacterDevice, 4094, 8, 0o600);
        fs::write(at("x/c/more"), "").unwrap();
        act_on(&world, names.map(|name| device("remove", name)));
        let expected = [
            "dir 755 0 0 a",
            "dir 755 0 0 mine",
            "dir 755 0 0 x",
            "dir 755 0 0 x/b",
            "dir 755 0 0 x/c",
            "link a/x -> elsewhere",
            "other 600 0 0 x/b/deep",
            "other 644 0 0 x/c/more",
        ];
        assert_eq!(tree(&world), expected);
    });
}

/// Somebody with access to a directory of /dev puts links in the place of
/// directories and nodes, while events come.
#[test]
fn nothing_outside_is_touched_while_somebody_tampers() {
    ns::inside_as_root_apart(|| {
        let world = World::new("tampered/.* 1:1 666 >tampered/deep/er/\n.* 1:1 666\n");
        fs::create_dir(world.path("outside")).unwrap();
        fs::write(world.path("outside/victim"), "").unwrap();
        fs::set_permissions(world.path("outside/victim"), fs::Permissions::from_mode(0o600))
            .unwrap();
        let at = |name: &str| world.path("dev").join(name);
        let daemon = world.plugd().args(["-qq"]).start();
        let inode = daemon.netlink().1;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for name in ["tampered", "tampered/deep", "tampered/deep/er"] {
                        // Whatever works at the moment.
                        let _ = fs::rename(at(name), at("aside"));
                        let _ = symlink(world.path("outside"), at(name));
                        let _ = fs::remove_file(at(name));
                        let _ = fs::rename(at("aside"), at(name));
                        let _ = fs::remove_dir_all(at("aside"));
                    }
                    let _ = symlink(world.path("outside/victim"), at("tampered/victim"));
                }
            });
            let events = (0..5000).map(|n| {
                let action = if n % 3 == 2 { "remove" } else { "add" };
                device(action, if n % 2 == 0 { "tampered/victim" } else { "tampered/x" })
            });
            Injector::new().paced(events, inode);
            stop.store(true, Ordering::Relaxed);
        });
        let _ = fs::remove_dir_all(at("tampered"));
        let _ = fs::remove_file(at("tampered"));
        act_on(&world, [device("add", "tampered/x")]);
        assert!(tree(&world).contains(&"char 666 1 1 tampered/deep/er/tampered/x".into()));
        let outside: Vec<_> = fs::read_dir(world.path("outside")).unwrap().collect();
        assert_eq!(outside.len(), 1, "{outside:?}");
        let victim = fs::metadata(world.path("outside/victim")).unwrap();
        assert_eq!((victim.mode() & 0o7777, victim.uid(), victim.gid()), (0o600, 0, 0));
    });
}

#[test]
fn the_root_device_has_a_link() {
    ns::inside_as_root_apart(|| {
        let root = fs::metadata("/").unwrap().dev();
        let (major, minor) = (rustix::fs::major(root), rustix::fs::minor(root));
        if major == 0 {
            return skip("vm", "the link to the root device", "/ is on no device");
        }
        let world = World::new("it 0:0 600 =disks/");
        let _daemon = world.plugd().start();
        let [major, minor] = [format!("MAJOR={major}"), format!("MINOR={minor}")];
        let fields = ["SUBSYSTEM=block", "DEVNAME=it", &major, &minor];
        let event = |action| crate::harness::inject::uevent(action, "/devices/it", &fields);
        act_on(&world, [event("add")]);
        assert_eq!(fs::read_link(world.path("dev/root")).unwrap().to_str(), Some("disks/it"));
        act_on(&world, [event("remove")]);
        assert_eq!(tree(&world), [""; 0]);
    });
}

/// How many descriptors it has when all devices were acted on.
fn descriptors(daemon: &Daemon) -> usize {
    daemon.wait_for_log("coldplug: ");
    // What it did when it said so is over when it has answered.
    (0..2).for_each(|_| drop(daemon.counters()));
    fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

/// What reads devices before their turn has descriptors that their nodes need.
#[test]
fn no_node_is_missing_because_devices_are_read_ahead() {
    ns::inside_as_root_apart(|| {
        const DEVICES: usize = 200;
        let world = World::new(".* 0:0 660\n");
        for n in 0..DEVICES {
            let fields = format!("MAJOR=4094\nMINOR={n}\nDEVNAME=sub/d{n}\n");
            world.device("c", &format!("d{n}"), &fields);
        }
        let coldplug = |prelude: &str| {
            let options = ["--coldplug", "--state", "none"];
            let daemon = world.plugd().args(options).prelude(prelude).start();
            // If not all was found, it is looked for again.
            let what = format!("all nodes are there: {prelude}");
            eventually(&what, || (tree(&world).len() == 1 + DEVICES).then_some(()));
            let descriptors = descriptors(&daemon);
            drop(daemon);
            fs::remove_dir_all(world.path("dev/sub")).unwrap();
            descriptors
        };
        let descriptors = coldplug(":");
        // It needs two: one for /sys, and one for what is in it.
        for limit in descriptors + 2..descriptors + 9 {
            for processors in ["taskset -pc 0 $$ >&2", ":"] {
                coldplug(&format!("ulimit -n {limit}; {processors}"));
            }
        }
    });
}

/// Nor has firmware to do without descriptors because of that: the driver hears once that
/// there is none.
#[test]
fn firmware_is_loaded_while_devices_are_read_ahead() {
    ns::inside_as_root_apart(|| {
        let world = World::new("");
        for n in 0..40 {
            world.device("c", &format!("d{n}"), "FIRMWARE=blob\n");
            for file in ["loading", "data"] {
                fs::write(world.path(&format!("sys/devices/d{n}/{file}")), "").unwrap();
            }
        }
        fs::write(world.path("firmware/blob"), "firmware!").unwrap();
        let coldplug = |prelude: &str| {
            let options = ["--coldplug", "--state", "none"];
            let daemon = world.plugd().args(options).prelude(prelude).start();
            let descriptors = descriptors(&daemon);
            let told = daemon.logged("firmware");
            assert!(told.is_empty(), "{prelude}: {told:?}");
            for n in 0..40 {
                let data = world.path(&format!("sys/devices/d{n}/data"));
                assert_eq!(fs::read_to_string(&data).unwrap(), "firmware!", "{prelude}");
                fs::write(&data, "").unwrap();
            }
            descriptors
        };
        let descriptors = coldplug(":");
        // One for /sys, and three to load firmware.
        for processors in ["taskset -pc 0 $$ >&2", ":"] {
            coldplug(&format!("ulimit -n {}; {processors}", descriptors + 4));
        }
    });
}
