//! The daemon that acts by rules.

mod commands;
mod files;
mod nodes;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use crate::harness::eventually;
use crate::harness::inject::{Injector, uevent};
use crate::mdevd::World;

/// Variables of a device with numbers of nobody's: there is no such driver.
const DEVICE: [&str; 3] = ["SUBSYSTEM=mem", "MAJOR=4094", "MINOR=7"];

/// An event for a device of that name.
fn device(action: &str, name: &str) -> Vec<u8> {
    let name = format!("DEVNAME={name}");
    uevent(action, "/devices/virtual/mem/it", &[&DEVICE[..], &[&name]].concat())
}

/// Sends events, and waits until the daemon has made a node for one that comes
/// after them.
fn act_on(world: &World, events: impl IntoIterator<Item = Vec<u8>>) {
    let (injector, end) = (Injector::new(), world.path("dev/END"));
    for event in events {
        injector.send(&event).unwrap();
    }
    for (action, is_there) in [("add", true), ("remove", false)] {
        injector.send(&device(action, "END")).unwrap();
        eventually("all is acted on", || (end.exists() == is_there).then_some(()));
    }
}

/// Makes a node of root's.
fn mknod(path: &Path, kind: FileType, major: u32, minor: u32, mode: u32) {
    mknodat(CWD, path, kind, Mode::empty(), makedev(major, minor)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// What is at each path below /dev, sorted: `char 640 1 2 name`.
fn tree(world: &World) -> Vec<String> {
    let root = world.path("dev");
    let (mut found, mut directories) = (Vec::new(), vec![root.clone()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let (status, kind) =
                fs::symlink_metadata(&path).map(|s| (s.clone(), s.file_type())).unwrap();
            let name = path.strip_prefix(&root).unwrap().display();
            let access =
                format!("{:o} {} {} {name}", status.mode() & 0o7777, status.uid(), status.gid());
            found.push(match () {
                () if kind.is_symlink() => {
                    format!("link {name} -> {}", fs::read_link(&path).unwrap().display())
                }
                () if kind.is_dir() => format!("dir {access}"),
                () if kind.is_char_device() && status.rdev() == makedev(4094, 7) => {
                    format!("char {access}")
                }
                () => format!("other {access}"),
            });
            if kind.is_dir() {
                directories.push(path);
            }
        }
    }
    found.sort();
    found
}
