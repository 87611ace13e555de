//! In place of skarnet's mdevd, mdevd-netlink and mdevd-coldplug.

mod coldplug;
mod netlink;
mod rules;
mod stream;
mod usage;

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::harness::daemon::Plugd;
use crate::harness::eventually;
use crate::harness::inject::uevent;

/// A directory with all that rules look at and act on: mdev.conf, dev, sys
/// and firmware. Commands of rules know it as `$W`.
pub(crate) struct World(TempDir);

impl World {
    /// With these rules.
    pub(crate) fn new(conf: &str) -> Self {
        let world = Self(tempfile::tempdir().unwrap());
        for directory in ["dev", "sys/bus", "sys/class", "sys/devices", "firmware"] {
            fs::create_dir_all(world.path(directory)).unwrap();
        }
        fs::write(world.path("mdev.conf"), conf).unwrap();
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// mdevd, for what is in here.
    fn mdevd(&self) -> Plugd {
        self.with(mdevd(), ["-f", "-d", "-s", "-F"])
    }

    /// `plugd run`, for what is in here.
    pub(crate) fn plugd(&self) -> Plugd {
        self.with(Plugd::run(&[]), ["--conf", "--dev", "--sys", "--firmware"])
    }

    fn with(&self, program: Plugd, options: [&str; 4]) -> Plugd {
        let paths = ["mdev.conf", "dev", "sys", "firmware"].map(|name| self.path(name));
        let options = options.into_iter().zip(paths);
        options.fold(program.env("W", self.0.path()), |program, (option, path)| {
            program.args([option.as_ref(), path.as_os_str()])
        })
    }

    /// Makes a device of a class, with these lines in its file `uevent`.
    pub(crate) fn device(&self, class: &str, name: &str, uevent: &str) {
        let device = self.path("sys/devices").join(name);
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(self.path("sys/class").join(class)).unwrap();
        fs::write(device.join("uevent"), uevent).unwrap();
        symlink(format!("../../class/{class}"), device.join("subsystem")).unwrap();
        let link = self.path("sys/class").join(class).join(name);
        symlink(format!("../../devices/{name}"), link).unwrap();
    }

    /// The complete lines of a file.
    pub(crate) fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(name)).unwrap_or_default();
        text.split_inclusive('\n').filter_map(|l| l.strip_suffix('\n')).map(Into::into).collect()
    }

    pub(crate) fn wait_for_lines(&self, name: &str, count: usize) -> Vec<String> {
        eventually(&format!("{name} has {count} lines"), || {
            Some(self.lines(name)).filter(|lines| lines.len() >= count)
        })
    }
}

fn mdevd() -> Plugd {
    Plugd::new().arg0("mdevd")
}

/// An event with a number.
fn event(n: usize) -> Vec<u8> {
    uevent("add", &format!("/devices/x{n}"), &[&format!("N={n}")])
}

/// These events as a stream.
fn stream(events: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    events.into_iter().flat_map(|event| [&event[..], b"\0"].concat()).collect()
}

/// A file with this in it, to be read from its beginning.
fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

fn numbers(range: std::ops::RangeInclusive<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

/// Tells the number of each event.
const TELL: &str = "-.* 0:0 660 *echo $N >>$W/out\n";
