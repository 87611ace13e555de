//! A device read back as the event that the kernel would send for it. Owns what is kept
//! from one device to the next: memory, and the directory that the last one was in.

use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fstat};
use rustix::io::Errno;

use crate::beneath::{Beneath, Failed, split};
use crate::uevent::CORE;

use super::{FILE, Sysfs, append_file};

/// Reads devices, one after the other.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// The name of a device's file, and then what that says.
    text: Vec<u8>,
    parent: Parent,
}

/// The directory of the device that was read last. Most devices are beside each other, and
/// to look up the way to each of them takes a twentieth of the time that a coldplug does.
///
/// A descriptor stays with a directory that is renamed: what is read is what was at that
/// path when it was looked up. So it may be used as long as no event is taken that has
/// waited meanwhile, which is what tells of the new name.
#[derive(Debug, Default)]
struct Parent {
    path: Vec<u8>,
    /// Opened for the second device in it.
    directory: Option<Beneath>,
}

impl Reader {
    /// Reads a device, given its path and subsystem, as the event that the kernel would
    /// send for it now, without a SEQNUM, with this action; appends that to `event`.
    /// Returns the inode number of the file that it was read from; none if there is no
    /// such device.
    ///
    /// # Errors
    /// If that file cannot be read.
    pub(super) fn read(
        &mut self,
        sys: &Sysfs,
        (path, subsystem): (&[u8], &[u8]),
        action: &[u8],
        event: &mut Vec<u8>,
    ) -> Result<Option<u64>, Failed> {
        let Self { text, parent } = self;
        text.clear();
        text.extend_from_slice(path);
        text.extend_from_slice(b"/uevent");
        let read = parent.open(sys, &text[1..]).and_then(|file| {
            text.clear();
            append_file(&file, text)?;
            if text.contains(&0) { Err(Errno::BADMSG) } else { Ok(fstat(&file)?.st_ino) }
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
        append_variables(text, subsystem, event);
        Ok(Some(incarnation))
    }

    /// Directories may have other names by now. Returns whether one was kept.
    pub(super) fn forget_directory(&mut self) -> bool {
        self.parent.directory.take().is_some()
    }
}

impl Parent {
    /// Opens the file of a device, `DEVICE/uevent`.
    fn open(&mut self, sys: &Sysfs, name: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | FILE;
        let device = split(name).0.unwrap_or_default();
        let (parent, last) = split(device);
        let (parent, beside) = (parent.unwrap_or_default(), &name[device.len() - last.len()..]);
        if parent.is_empty() || self.path != parent {
            parent.clone_into(&mut self.path);
            self.directory = None;
            return sys.below.open(name, flags);
        }
        if self.directory.is_none() {
            self.directory = sys.below.directory(parent).ok();
        }
        let directory = self.directory.as_ref().ok_or(Errno::NOENT);
        match directory.and_then(|directory| directory.open(beside, flags)) {
            // Perhaps that directory has gone, and there is another one by now; or it has
            // the last descriptor.
            Err(Errno::NOENT | Errno::MFILE | Errno::NFILE | Errno::NOMEM) => {
                self.directory = None;
                sys.below.open(name, flags)
            }
            result => result,
        }
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

#[cfg(test)]
mod tests;
