//! The kernel's devices, as sysfs shows them: read back as uevents, asked for
//! an attribute, told to announce themselves again.
//!
//! The file `uevent` of a device holds the variables that its `add` event has
//! (drivers/base/core.c, uevent_show), the link `subsystem` its SUBSYSTEM. A
//! directory with a `uevent` but without that link belongs to no bus and no
//! class, and the kernel sends no event for it (dev_uevent_filter). Owns a
//! descriptor of the root.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::vec;

use rustix::buffer::spare_capacity;
use rustix::fs::{FileType, OFlags, RawDir, readlinkat_raw};
use rustix::io::{Errno, read, retry_on_intr, write};

use crate::beneath::{Beneath, Failed, Why, check, strip_root};

/// No file that is read here has more bytes; sysfs has at most a page.
const FILE_MAX: usize = 64 * 1024;

/// A sysfs.
#[derive(Debug)]
pub struct Sysfs {
    below: Beneath,
}

impl Sysfs {
    /// The one mounted at `path`.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> Result<Self, Errno> {
        Ok(Self { below: Beneath::open_root(path)? })
    }

    /// Its files.
    pub fn below(&self) -> &Beneath {
        &self.below
    }

    /// Appends the contents of a device's file `attribute` to `contents`;
    /// nothing is appended if it fails. Allocates only what `contents` needs.
    ///
    /// # Errors
    /// If there is no such device or file, which is nothing unusual, or it
    /// cannot be read.
    pub fn read(&self, devpath: &[u8], attribute: &str, contents: &mut Vec<u8>) -> Result<(), Why> {
        let start = contents.len();
        for part in [devpath, b"/", attribute.as_bytes()] {
            contents.extend_from_slice(part);
        }
        let file = strip_root(&contents[start..])
            .map_err(Why::from)
            .and_then(|name| Ok(self.below.open(name, OFlags::RDONLY)?));
        contents.truncate(start);
        Ok(append_file(&file?, contents)?)
    }

    /// Has the kernel send an event for a device. `trigger` is an action,
    /// `add`, and may have a UUID and `KEY=VALUE` after it, separated by blanks:
    /// these come as SYNTH_UUID and SYNTH_ARG_KEY
    /// (Documentation/ABI/testing/sysfs-uevent).
    ///
    /// # Errors
    /// If there is no such device, or the kernel does not want to.
    pub fn trigger(&self, devpath: &[u8], trigger: &[u8]) -> Result<(), Failed> {
        let path = [devpath, b"/uevent"].concat();
        let file = strip_root(&path).map_err(Why::from);
        file.and_then(|name| Ok(self.below.open(name, OFlags::WRONLY)?))
            .and_then(|file| Ok(retry_on_intr(|| write(&file, trigger))?))
            .map(drop)
            .map_err(|why| Failed::new("trigger an event by", &path, why))
    }

    /// Finds all devices, and begins to look at them.
    ///
    /// They are found by the links in /sys/bus and /sys/class, where every
    /// device is that an event can come of: a third of the system calls that
    /// it takes to walk through /sys/devices, most of whose directories are
    /// no devices.
    ///
    /// # Errors
    /// If there is neither a directory for buses nor one for classes.
    pub fn scan(&self) -> Result<Scan<'_>, Failed> {
        let mut gathering = Gathering::default();
        let buses = gathering.subsystems(&self.below, b"bus", b"/devices");
        let classes = gathering.subsystems(&self.below, b"class", b"");
        if (buses, classes) == (Err(Errno::NOENT), Err(Errno::NOENT)) {
            return Err(Failed::new("list devices in", b"/class", Errno::NOENT));
        }
        for (result, path) in [(buses, b"/bus".as_slice()), (classes, b"/class")] {
            match result {
                // There may be none of a kind.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => gathering.failed.push(Failed::new("list devices in", path, error)),
            }
        }
        let Gathering { mut devices, text, failed, .. } = gathering;
        // Parents before their children, and of a device found twice the bus first.
        devices.sort_unstable_by(|a, b| {
            text[a.path.clone()]
                .cmp(&text[b.path.clone()])
                .then(a.subsystem.start.cmp(&b.subsystem.start))
        });
        devices.dedup_by(|b, a| text[a.path.clone()] == text[b.path.clone()]);
        Ok(Scan {
            sys: &self.below,
            devices: devices.into_iter(),
            text,
            failed: failed.into_iter(),
            variables: Vec::with_capacity(8192),
            event: Vec::with_capacity(4096),
        })
    }
}

/// A device that was found.
#[derive(Debug)]
struct Found {
    /// Relative to the root of sysfs.
    path: Range<usize>,
    /// The name of its bus or class.
    subsystem: Range<usize>,
}

/// The devices found so far.
#[derive(Debug, Default)]
struct Gathering {
    devices: Vec<Found>,
    text: Vec<u8>,
    failed: Vec<Failed>,
}

/// For a directory that is listed.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

impl Gathering {
    /// Goes through the buses or the classes.
    fn subsystems(&mut self, sys: &Beneath, kind: &[u8], devices: &[u8]) -> Result<(), Errno> {
        let all = sys.open(kind, DIRECTORY)?;
        let mut buffer = Vec::with_capacity(8 * 1024);
        let mut entries = RawDir::new(&all, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name.starts_with(b".") {
                continue;
            }
            let path = [kind, b"/", name, devices].concat();
            let start = self.text.len();
            self.text.extend_from_slice(name);
            match self.links(sys, &path, start..self.text.len()) {
                // Gone, or none.
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => {
                    let path = [b"/", &path[..]].concat();
                    self.failed.push(Failed::new("list devices in", &path, error));
                }
            }
        }
        Ok(())
    }

    /// Goes through the devices of one of them.
    fn links(&mut self, sys: &Beneath, path: &[u8], subsystem: Range<usize>) -> Result<(), Errno> {
        let directory = sys.open(path, DIRECTORY)?;
        let mut buffer = [MaybeUninit::uninit(); 8 * 1024];
        let mut entries = RawDir::new(&directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if !matches!(entry.file_type(), FileType::Symlink | FileType::Unknown) {
                continue;
            }
            let mut link = [MaybeUninit::uninit(); LINK_MAX];
            let target = match readlinkat_raw(&directory, name, &mut link) {
                Ok((target, _)) => &*target,
                // It has gone, or is no link.
                Err(Errno::NOENT | Errno::INVAL) => continue,
                Err(error) => return Err(error),
            };
            let mut device = target;
            while let Some(rest) = device.strip_prefix(b"../") {
                device = rest;
            }
            if device.starts_with(b"devices/") && check(device).is_ok() && target.len() < LINK_MAX {
                let start = self.text.len();
                self.text.extend_from_slice(device);
                let path = start..self.text.len();
                self.devices.push(Found { path, subsystem: subsystem.clone() });
            }
        }
        Ok(())
    }
}

/// Longer than the path of any device: it would not fit into an event.
const LINK_MAX: usize = 4096;

/// A walk through all devices, parents before their children.
#[derive(Debug)]
pub struct Scan<'a> {
    sys: &'a Beneath,
    devices: vec::IntoIter<Found>,
    /// What the ranges are of.
    text: Vec<u8>,
    failed: vec::IntoIter<Failed>,
    /// What is in a file `uevent`; before that, its path.
    variables: Vec<u8>,
    event: Vec<u8>,
}

impl Scan<'_> {
    /// The next device, as the datagram of the `add` event that the kernel
    /// would send for it now, but for its SEQNUM. One that has gone meanwhile
    /// is passed over.
    ///
    /// # Errors
    /// If a directory or a file cannot be read. That is no reason not to go on.
    #[allow(clippy::should_implement_trait, reason = "it lends what it returns")]
    pub fn next(&mut self) -> Option<Result<&[u8], Failed>> {
        if let Some(failed) = self.failed.next() {
            return Some(Err(failed));
        }
        loop {
            let Found { path, subsystem } = self.devices.next()?;
            match self.read_device(path.clone(), subsystem) {
                Err(Errno::NOENT | Errno::NODEV) => {}
                Ok(()) => return Some(Ok(&self.event)),
                Err(error) => {
                    let path = [b"/", &self.text[path]].concat();
                    return Some(Err(Failed::new("read device", &path, error)));
                }
            }
        }
    }

    /// Makes the event of a device.
    fn read_device(&mut self, path: Range<usize>, subsystem: Range<usize>) -> Result<(), Errno> {
        let (path, subsystem) = (&self.text[path], &self.text[subsystem]);
        self.variables.clear();
        self.variables.extend_from_slice(path);
        self.variables.extend_from_slice(b"/uevent");
        let file = self.sys.open(&self.variables, OFlags::RDONLY)?;
        self.variables.clear();
        append_file(&file, &mut self.variables)?;
        if self.variables.contains(&0) {
            return Err(Errno::BADMSG);
        }
        self.event.clear();
        for part in [b"add@/", path, b"\0ACTION=add\0DEVPATH=/", path] {
            self.event.extend_from_slice(part);
        }
        for part in [b"\0SUBSYSTEM=", subsystem, b"\0"] {
            self.event.extend_from_slice(part);
        }
        append_variables(&self.variables, &mut self.event);
        Ok(())
    }
}

/// Variables that the kernel's driver core has first in an event, if at all
/// (drivers/base/core.c, dev_uevent).
const CORE: [&[u8]; 8] =
    [b"MAJOR", b"MINOR", b"DEVNAME", b"DEVMODE", b"DEVUID", b"DEVGID", b"DEVTYPE", b"DRIVER"];

/// Variables that nothing but the driver core, or the sender of an event, sets.
const RESERVED: [&[u8]; 10] = [
    b"MAJOR",
    b"MINOR",
    b"DEVNAME",
    b"DEVMODE",
    b"DEVUID",
    b"DEVGID",
    b"ACTION",
    b"DEVPATH",
    b"SUBSYSTEM",
    b"SEQNUM",
];

/// Appends the variables in the text of a file `uevent`, one a line, each with
/// a NUL at its end.
///
/// A value may have newlines in it: of two cpu devices the MODALIAS ends in
/// one, and names that a USB device gives itself may have any. A line without
/// `=` goes on with the value before. So does one that would set what only the
/// driver core sets, unless it is where that does: else a keyboard could call
/// itself "x\nMAJOR=1\nMINOR=1" and be given a node for the machine's memory.
fn append_variables(text: &[u8], event: &mut Vec<u8>) {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let mut in_core = true;
    let mut any = false;
    for line in text.split(|&b| b == b'\n') {
        let key = line.iter().position(|&b| b == b'=').map(|equals| &line[..equals]);
        in_core &= key.is_some_and(|key| CORE.contains(&key));
        if key.is_some_and(|key| in_core || !RESERVED.contains(&key)) {
            any = true;
        } else if any {
            event.pop();
            event.push(b'\n');
        } else {
            continue;
        }
        event.extend_from_slice(line);
        event.push(0);
    }
}

/// Appends what a file holds, or nothing if it fails.
fn append_file(file: &OwnedFd, contents: &mut Vec<u8>) -> Result<(), Errno> {
    let start = contents.len();
    let result = loop {
        contents.reserve(4096);
        let space = contents.capacity() - contents.len();
        match retry_on_intr(|| read(file, spare_capacity(contents))) {
            Ok(_) if contents.len() - start > FILE_MAX => break Errno::FBIG,
            // A file that has more fills the space, except at its end.
            Ok(count) if count < space => return Ok(()),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    contents.truncate(start);
    Err(result)
}

#[cfg(test)]
mod tests;
