//! The kernel's devices, as sysfs shows them: read back as uevents, asked for
//! an attribute, told to announce themselves again.
//!
//! The file `uevent` of a device holds the variables that its `add` event has
//! (drivers/base/core.c, uevent_show), the link `subsystem` its SUBSYSTEM. A
//! directory with a `uevent` but without that link belongs to no bus and no
//! class, and the kernel sends no event for it (dev_uevent_filter). Owns a
//! descriptor of the root.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::vec;

use rustix::buffer::spare_capacity;
use rustix::fs::{FileType, OFlags, RawDir, fstat, readlinkat_raw};
use rustix::io::{Errno, read, retry_on_intr, write};

use crate::beneath::{Beneath, Failed, Why, check, strip_root};
use crate::uevent::CORE;

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

    /// Finds all devices.
    ///
    /// # Errors
    /// If there is neither a directory for buses nor one for classes.
    pub fn list(&self) -> Result<Listing, Failed> {
        let mut search = self.search()?;
        while search.go_on(self) {}
        Ok(search.finish())
    }

    /// Begins to find all devices.
    ///
    /// They are found by the links in /sys/bus and /sys/class, where every
    /// device is that an event can come of: a third of the system calls that
    /// it takes to walk through /sys/devices, most of whose directories are
    /// no devices.
    ///
    /// # Errors
    /// If there is neither a directory for buses nor one for classes.
    pub fn search(&self) -> Result<Search, Failed> {
        let mut search = Search::default();
        let buses = search.subsystems(&self.below, b"bus", b"/devices");
        let classes = search.subsystems(&self.below, b"class", b"");
        if (buses, classes) == (Err(Errno::NOENT), Err(Errno::NOENT)) {
            return Err(Failed::new("list devices in", b"/class", Errno::NOENT));
        }
        for (result, path) in [(buses, b"/bus".as_slice()), (classes, b"/class")] {
            match result {
                // There may be none of a kind.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => search.failed.push(Failed::new("list devices in", path, error)),
            }
        }
        Ok(search)
    }

    /// Finds all devices, and begins to look at them.
    ///
    /// # Errors
    /// As those of [`Sysfs::list`].
    pub fn scan(&self) -> Result<Scan<'_>, Failed> {
        let mut listing = self.list()?;
        let failed = std::mem::take(&mut listing.failed).into_iter();
        Ok(Scan { sys: self, listing, next: 0, failed, reader: Reader::default() })
    }

    /// Whether there is certainly nothing at the path of a device.
    pub fn is_gone(&self, devpath: &[u8]) -> bool {
        let Ok(name) = strip_root(devpath) else { return true };
        matches!(self.below.open(name, OFlags::PATH), Err(Errno::NOENT | Errno::NOTDIR))
    }

    /// Whether there is a bus or a class of that name, whose devices are listed.
    pub fn lists(&self, subsystem: &[u8]) -> bool {
        check(subsystem).is_ok()
            && [&b"class/"[..], b"bus/"]
                .into_iter()
                .any(|kind| self.below.open(&[kind, subsystem].concat(), OFlags::PATH).is_ok())
    }

    /// The inode number of a device's file `uevent`: another device that comes to
    /// the same path later has another one (fs/kernfs/dir.c).
    pub fn incarnation(&self, devpath: &[u8]) -> Option<u64> {
        let path = [devpath, b"/uevent"].concat();
        let file = self.below.open(strip_root(&path).ok()?, OFlags::PATH).ok()?;
        Some(fstat(&file).ok()?.st_ino)
    }

    /// The SEQNUM of the last event that the kernel has sent.
    pub fn last_event(&self) -> Option<u64> {
        let file = self.below.open(b"kernel/uevent_seqnum", OFlags::RDONLY).ok()?;
        let mut text = Vec::new();
        append_file(&file, &mut text).ok()?;
        std::str::from_utf8(&text).ok()?.trim_end().parse().ok()
    }

    /// The number of the network interface at this path.
    pub fn interface(&self, devpath: &[u8]) -> Option<u32> {
        let mut text = Vec::new();
        self.read(devpath, "ifindex", &mut text).ok()?;
        std::str::from_utf8(&text).ok()?.trim_end().parse().ok()
    }
}

/// All devices that there were, parents before their children; those made of
/// other devices come last.
#[derive(Debug)]
pub struct Listing {
    devices: Vec<Found>,
    text: Vec<u8>,
    /// What could not be listed.
    pub failed: Vec<Failed>,
}

impl Listing {
    /// How many devices.
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// The DEVPATH of one, by its index.
    pub fn path(&self, index: usize) -> &[u8] {
        &self.text[self.devices[index].path.clone()]
    }

    /// The name of its bus or class.
    pub fn subsystem(&self, index: usize) -> &[u8] {
        &self.text[self.devices[index].subsystem.clone()]
    }
}

/// What is made of other devices, or of others beside it, is listed after them:
/// arrays and mapped disks after disks, and the control node of a sound card,
/// which tells that the card is complete, after its other nodes.
fn rank(path: &[u8]) -> u8 {
    const LATE: [&[u8]; 2] = [b"/devices/virtual/block/md", b"/devices/virtual/block/dm-"];
    if LATE.iter().any(|late| path.starts_with(late)) {
        return 1;
    }
    u8::from(path.split(|&b| b == b'/').any(|component| component.starts_with(b"controlC")))
}

/// A device that was found.
#[derive(Debug)]
struct Found {
    /// When its turn is.
    rank: u8,
    /// Its DEVPATH.
    path: Range<usize>,
    /// The name of its bus or class.
    subsystem: Range<usize>,
}

/// The devices found so far, and where more are looked for.
#[derive(Debug, Default)]
pub struct Search {
    devices: Vec<Found>,
    text: Vec<u8>,
    failed: Vec<Failed>,
    /// The buses and classes whose devices are still to be found: where they are, and
    /// the name.
    left: Vec<(Vec<u8>, Range<usize>)>,
    /// The directory of the last of these, once that was begun with.
    directory: Option<OwnedFd>,
}

/// For a directory that is listed.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

impl Search {
    /// Finds some more devices, less than a hundred. Returns whether there may be others.
    pub fn go_on(&mut self, sys: &Sysfs) -> bool {
        let Some((path, subsystem)) = self.left.pop() else { return false };
        let directory = match self.directory.take() {
            Some(directory) => Ok(directory),
            None => sys.below.open(&path, DIRECTORY),
        };
        let more = directory.and_then(|directory| {
            let more = self.links(&directory, &subsystem)?;
            Ok(more.then_some(directory))
        });
        match more {
            Ok(Some(directory)) => {
                self.directory = Some(directory);
                self.left.push((path, subsystem));
            }
            // Gone, or none.
            Ok(None) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => {
                let path = [b"/", &path[..]].concat();
                self.failed.push(Failed::new("list devices in", &path, error));
            }
        }
        !self.left.is_empty()
    }

    /// The devices found.
    pub fn finish(self) -> Listing {
        let Self { mut devices, text, failed, .. } = self;
        // Of a device found twice the bus comes first.
        devices.sort_unstable_by(|a, b| {
            (a.rank, &text[a.path.clone()], a.subsystem.start).cmp(&(
                b.rank,
                &text[b.path.clone()],
                b.subsystem.start,
            ))
        });
        devices.dedup_by(|b, a| text[a.path.clone()] == text[b.path.clone()]);
        Listing { devices, text, failed }
    }

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
            let start = self.text.len();
            self.text.extend_from_slice(name);
            let path = [kind, b"/", name, devices].concat();
            self.left.push((path, start..self.text.len()));
        }
        Ok(())
    }

    /// Goes through some devices of one of them. Returns whether there may be more.
    fn links(&mut self, directory: &OwnedFd, subsystem: &Range<usize>) -> Result<bool, Errno> {
        let mut buffer = [MaybeUninit::uninit(); 2 * 1024];
        let mut entries = RawDir::new(directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            if matches!(entry.file_type(), FileType::Symlink | FileType::Unknown) {
                self.link(directory, entry.file_name(), subsystem)?;
            }
            if entries.is_buffer_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn link(
        &mut self,
        directory: &OwnedFd,
        name: &CStr,
        subsystem: &Range<usize>,
    ) -> Result<(), Errno> {
        let mut link = [MaybeUninit::uninit(); LINK_MAX];
        let target = match readlinkat_raw(directory, name, &mut link) {
            Ok((target, _)) => &*target,
            // It has gone, or is no link.
            Err(Errno::NOENT | Errno::INVAL) => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut device = target;
        while let Some(rest) = device.strip_prefix(b"../") {
            device = rest;
        }
        if device.starts_with(b"devices/") && check(device).is_ok() && target.len() < LINK_MAX {
            let start = self.text.len();
            self.text.push(b'/');
            self.text.extend_from_slice(device);
            let path = start..self.text.len();
            let rank = rank(&self.text[path.clone()]);
            self.devices.push(Found { rank, path, subsystem: subsystem.clone() });
        }
        Ok(())
    }
}

/// Longer than the path of any device: it would not fit into an event.
const LINK_MAX: usize = 4096;

/// A walk through all devices, in the order of their [`Listing`].
#[derive(Debug)]
pub struct Scan<'a> {
    sys: &'a Sysfs,
    listing: Listing,
    next: usize,
    failed: vec::IntoIter<Failed>,
    reader: Reader,
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
        while self.next < self.listing.len() {
            let index = self.next;
            self.next += 1;
            match self.reader.read(self.sys, &self.listing, index, "add") {
                Err(error) => return Some(Err(error)),
                Ok(false) => {}
                Ok(true) => return Some(Ok(&self.reader.event)),
            }
        }
        None
    }
}

/// Reads devices back as events.
#[derive(Debug)]
pub struct Reader {
    /// What is in a file `uevent`; before that, its path.
    variables: Vec<u8>,
    /// The datagram of the event, without a SEQNUM.
    pub event: Vec<u8>,
    /// The inode number of the file `uevent` that it was read from.
    pub incarnation: u64,
}

impl Default for Reader {
    fn default() -> Self {
        let (variables, event) = (Vec::with_capacity(8192), Vec::with_capacity(4096));
        Self { variables, event, incarnation: 0 }
    }
}

impl Reader {
    /// Reads a device as the event that the kernel would send for it now, with
    /// this action. Returns whether it is there.
    ///
    /// # Errors
    /// If its file cannot be read.
    pub fn read(
        &mut self,
        sys: &Sysfs,
        listing: &Listing,
        index: usize,
        action: &str,
    ) -> Result<bool, Failed> {
        let path = listing.path(index);
        match self.make_event(&sys.below, path, listing.subsystem(index), action.as_bytes()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::NODEV) => Ok(false),
            Err(error) => Err(Failed::new("read device", path, error)),
        }
    }

    fn make_event(
        &mut self,
        sys: &Beneath,
        path: &[u8],
        subsystem: &[u8],
        action: &[u8],
    ) -> Result<(), Errno> {
        self.variables.clear();
        self.variables.extend_from_slice(path);
        self.variables.extend_from_slice(b"/uevent");
        let file = sys.open(&self.variables[1..], OFlags::RDONLY)?;
        self.incarnation = fstat(&file)?.st_ino;
        self.variables.clear();
        append_file(&file, &mut self.variables)?;
        if self.variables.contains(&0) {
            return Err(Errno::BADMSG);
        }
        self.event.clear();
        for part in [action, b"@", path, b"\0ACTION=", action, b"\0DEVPATH=", path] {
            self.event.extend_from_slice(part);
        }
        for part in [b"\0SUBSYSTEM=", subsystem, b"\0"] {
            self.event.extend_from_slice(part);
        }
        append_variables(&self.variables, subsystem, &mut self.event);
        Ok(())
    }
}

/// Variables that nothing but the driver core, or the sender of an event, sets.
const RESERVED: [&[u8]; 11] = [
    b"DEVPATH_OLD",
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

/// Whether nothing sets that variable of a device of this subsystem but the driver
/// core, the sender of an event, or plugd.
fn is_reserved(key: &[u8], subsystem: &[u8]) -> bool {
    match key {
        b"DISKSEQ" | b"PARTN" => subsystem != b"block",
        b"IFINDEX" => subsystem != b"net",
        b"INTERFACE" => ![&b"net"[..], b"usb"].contains(&subsystem),
        _ => RESERVED.contains(&key) || key.starts_with(b"SYNTH_") || key.starts_with(b"PLUGD_"),
    }
}

/// Appends the variables in the text of a file `uevent`, one a line, each with
/// a NUL at its end.
///
/// A value may have newlines in it: of two cpu devices the MODALIAS ends in
/// one, and names that a USB device gives itself may have any. A line without
/// `=` goes on with the value before. So does one that would set what only the
/// driver core sets, unless it is where that does: else a keyboard could call
/// itself "x\nMAJOR=1\nMINOR=1" and be given a node for the machine's memory.
fn append_variables(text: &[u8], subsystem: &[u8], event: &mut Vec<u8>) {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let mut in_core = true;
    let mut any = false;
    for line in text.split(|&b| b == b'\n') {
        let key = line.iter().position(|&b| b == b'=').map(|equals| &line[..equals]);
        in_core &= key.is_some_and(|key| CORE.contains(&key));
        if key.is_some_and(|key| in_core || !is_reserved(key, subsystem)) {
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
