//! The kernel's devices, as sysfs shows them: read back as uevents, asked for
//! an attribute, told to announce themselves again.
//!
//! The file `uevent` of a device holds the variables that its `add` event has
//! (drivers/base/core.c, uevent_show), the link `subsystem` its SUBSYSTEM. A
//! directory with a `uevent` but without that link belongs to no bus and no
//! class, and the kernel sends no event for it (dev_uevent_filter). Owns a
//! descriptor of the root. [`Scan`] reads many devices.

mod ahead;
mod helper;
mod scan;
mod search;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{OFlags, fstat};
use rustix::io::{Errno, read, retry_on_intr, write};

use crate::beneath::{Beneath, Failed, Why, check, strip_root};
use crate::uevent::CORE;

pub use self::scan::Scan;
pub use self::search::{Listing, Search};

/// No file that is read here has more bytes; sysfs has at most a page.
const FILE_MAX: usize = 64 * 1024;

/// For any file: a made-up sysfs may have a FIFO in its place, which would be waited for.
const FILE: OFlags = OFlags::NONBLOCK;

/// A sysfs; a copy is the same one.
#[derive(Debug, Clone)]
pub struct Sysfs {
    below: Arc<Beneath>,
}

impl Sysfs {
    /// The one mounted at `path`.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> Result<Self, Errno> {
        Ok(Self { below: Arc::new(Beneath::open_root(path)?) })
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
            .and_then(|name| Ok(self.below.open(name, OFlags::RDONLY | FILE)?));
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
        file.and_then(|name| Ok(self.below.open(name, OFlags::WRONLY | FILE)?))
            .and_then(|file| Ok(retry_on_intr(|| write(&file, trigger))?))
            .map(drop)
            .map_err(|why| Failed::new("trigger an event by", &path, why))
    }

    /// Finds all devices.
    ///
    /// # Errors
    /// If there is neither a directory for buses nor one for classes.
    pub fn list(&self) -> Result<Listing, Failed> {
        let mut search = Search::new(self)?;
        search.get_help();
        while search.go_on() {}
        Ok(search.finish())
    }

    /// Finds all devices, to look at them.
    ///
    /// # Errors
    /// As those of [`Sysfs::list`].
    pub fn scan(&self) -> Result<Scan, Failed> {
        let mut scan = Scan::new(self.clone(), self.list()?);
        scan.read_ahead();
        Ok(scan)
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
        let file = self.below.open(b"kernel/uevent_seqnum", OFlags::RDONLY | FILE).ok()?;
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

/// Reads a device as the event that the kernel would send for it now, without a SEQNUM,
/// with this action; appends that to `event`. Returns the inode number of the file that
/// it was read from; none if there is no such device. `variables` is scratch.
fn read_device(
    sys: &Sysfs,
    (path, subsystem): (&[u8], &[u8]),
    action: &[u8],
    variables: &mut Vec<u8>,
    event: &mut Vec<u8>,
) -> Result<Option<u64>, Failed> {
    variables.clear();
    variables.extend_from_slice(path);
    variables.extend_from_slice(b"/uevent");
    let read = sys.below.open(&variables[1..], OFlags::RDONLY | FILE).and_then(|file| {
        variables.clear();
        append_file(&file, variables)?;
        if variables.contains(&0) { Err(Errno::BADMSG) } else { Ok(fstat(&file)?.st_ino) }
    });
    let incarnation = match read {
        Ok(incarnation) => incarnation,
        Err(Errno::NOENT | Errno::NODEV) => return Ok(None),
        Err(error) => return Err(Failed::new("read device", path, error)),
    };
    for part in [action, b"@", path, b"\0ACTION=", action, b"\0DEVPATH=", path] {
        event.extend_from_slice(part);
    }
    for part in [b"\0SUBSYSTEM=", subsystem, b"\0"] {
        event.extend_from_slice(part);
    }
    append_variables(variables, subsystem, event);
    Ok(Some(incarnation))
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
