//! What is done to files: nodes, links, firmware; and what is refused.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

use rustix::pipe::{PipeFlags, pipe_with};

use super::{World, file, stream};
use crate::harness::inject::uevent;
use crate::harness::{eventually, ns};

fn acted_on(world: &World, events: &[Vec<u8>]) -> String {
    let finished = world.mdevd().stdin(file(&stream(events.iter().cloned()))).finish();
    assert_eq!(finished.code, Some(0), "{finished:?}");
    finished.stderr
}

fn null(action: &str, name: &str) -> Vec<u8> {
    let name = format!("DEVNAME={name}");
    uevent(action, "/devices/virtual/mem/null", &["SUBSYSTEM=mem", "MAJOR=1", "MINOR=3", &name])
}

#[test]
fn nodes_come_and_go() {
    ns::inside_as_root_apart(|| {
        let rules = "a 2:3 640\nb 0:4 600 >sub/c @echo $MDEV >>$W/out\n! 0:0 600 !\n\
                     c 0:0 600 =deep/er/ $test -e $MDEV && echo gone $MDEV >>$W/out\n";
        let world = World::new(rules);
        let names = ["a", "b", "c", "d"];
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let mut writer = File::from(writer);
        let mut daemon = world.mdevd().stdin(reader).start();
        writer.write_all(&stream(names.map(|name| null("add", name)))).unwrap();
        eventually("the last one is there", || {
            let node = fs::symlink_metadata(world.path("dev/d")).ok()?;
            (node.mode() & 0o7777 == 0o660).then_some(())
        });
        let expected = [
            ("a", 2, 3, 0o640),
            ("sub/c", 0, 4, 0o600),
            ("deep/er/c", 0, 0, 0o600),
            ("d", 0, 0, 0o660),
        ];
        for (name, owner, group, mode) in expected {
            let node = fs::symlink_metadata(world.path("dev").join(name)).unwrap();
            assert!(node.file_type().is_char_device());
            assert_eq!(node.rdev(), 0x103);
            assert_eq!(
                (node.uid(), node.gid(), node.mode() & 0o7777),
                (owner, group, mode),
                "{name}"
            );
        }
        assert_eq!(fs::read_link(world.path("dev/b")).unwrap().to_str(), Some("sub/c"));
        writer.write_all(&stream(names.map(|name| null("remove", name)))).unwrap();
        drop(writer);
        assert_eq!(daemon.wait_exit().code(), Some(0));
        assert_eq!(daemon.log(), [""; 0]);
        assert_eq!(fs::read_dir(world.path("dev")).unwrap().count(), 0);
        assert_eq!(world.lines("out"), ["sub/c", "gone deep/er/c"]);
    });
}

/// Nothing is made outside of /dev, whatever an event or a link says, and
/// those after it are acted on.
#[test]
fn hostile_names_lead_nowhere() {
    ns::inside_as_root_apart(|| {
        let world = World::new("evil 0:0 666 =/etc/passwd\nlink/x 0:0 666\n.* 0:0 666\n");
        fs::create_dir(world.path("outside")).unwrap();
        symlink("../outside", world.path("dev/link")).unwrap();
        let long = "x".repeat(5000);
        let names = [
            "../escaped",
            "a/../../escaped",
            "/escaped",
            "",
            ".",
            "..",
            "a/",
            "a//b/../..",
            "link/x",
            "evil",
            &long,
        ];
        let mut events: Vec<_> = names.iter().map(|name| null("add", name)).collect();
        events.push(null("add", "good"));
        events.extend(names.iter().map(|name| null("remove", name)));
        let told = acted_on(&world, &events);
        let mut here: Vec<_> =
            fs::read_dir(world.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
        here.sort();
        assert_eq!(here, ["dev", "firmware", "mdev.conf", "outside", "sys"]);
        assert_eq!(fs::read_dir(world.path("outside")).unwrap().count(), 0);
        assert!(fs::symlink_metadata(world.path("dev/good")).unwrap().file_type().is_char_device());
        assert!(told.matches("refuse name").count() >= 12, "{told}");
        assert!(told.lines().all(|line| line.len() < 6000), "{told}");
    });
}

#[test]
fn firmware_is_loaded_or_refused_at_once() {
    let world = World::new("");
    let device = world.path("sys/devices/fw");
    fs::create_dir_all(&device).unwrap();
    fs::create_dir_all(world.path("firmware/vendor")).unwrap();
    fs::write(world.path("firmware/vendor/blob"), "firmware!").unwrap();
    let load = |name: &str| {
        fs::write(device.join("loading"), "").unwrap();
        fs::write(device.join("data"), "").unwrap();
        let name = format!("FIRMWARE={name}");
        let told =
            acted_on(&world, &[uevent("add", "/devices/fw", &["SUBSYSTEM=firmware", &name])]);
        let read = |file: &str| fs::read_to_string(device.join(file)).unwrap();
        (read("loading"), read("data"), told)
    };
    // A file keeps what it had where sysfs takes each write by itself.
    let (loading, data, told) = load("vendor/blob");
    assert_eq!((&*loading, &*data, &*told), ("10", "firmware!", ""));
    for (name, why) in [
        ("absent", "cannot read firmware: No such file or directory"),
        ("../mdev.conf", "firmware refused: "),
        ("/etc/passwd", "firmware refused: "),
    ] {
        let (loading, data, told) = load(name);
        assert_eq!((&*loading, &*data), ("-1", ""), "{name}");
        assert!(told.contains(why), "{told}");
    }
}
