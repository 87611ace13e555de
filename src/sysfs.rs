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
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, FileType, OFlags, RawDir, readlinkat_raw, statat};
use rustix::io::{Errno, read, retry_on_intr, write};

use crate::beneath::{BadName, Beneath, Failed, Why, check, open_here};

/// No file that is read here has more bytes; sysfs has at most a page.
const FILE_MAX: usize = 64 * 1024;

/// A sysfs.
#[derive(Debug)]
pub struct Sysfs {
    below: Beneath,
}

/// The name relative to the root of sysfs of the device that a DEVPATH tells of.
///
/// # Errors
/// If the DEVPATH is none.
pub fn relative(devpath: &[u8]) -> Result<&[u8], BadName> {
    let name = devpath.strip_prefix(b"/").unwrap_or(devpath);
    check(name).map(|()| name)
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
    pub(crate) fn below(&self) -> &Beneath {
        &self.below
    }

    /// Appends the contents of a device's file `attribute` to `contents`;
    /// nothing is appended if it fails.
    ///
    /// # Errors
    /// If there is no such device or file, or it cannot be read.
    pub fn read(
        &self,
        devpath: &[u8],
        attribute: &str,
        contents: &mut Vec<u8>,
    ) -> Result<(), Failed> {
        let path = [devpath, b"/", attribute.as_bytes()].concat();
        let file = relative(&path).map_err(Why::from);
        file.and_then(|name| Ok(self.below.open(name, OFlags::RDONLY)?))
            .and_then(|file| Ok(append_file(&file, contents)?))
            .map_err(|why| Failed::new("read", &path, why))
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
        let file = relative(&path).map_err(Why::from);
        file.and_then(|name| Ok(self.below.open(name, OFlags::WRONLY)?))
            .and_then(|file| Ok(retry_on_intr(|| write(&file, trigger))?))
            .map(drop)
            .map_err(|why| Failed::new("trigger an event by", &path, why))
    }

    /// Begins to look at all devices.
    ///
    /// # Errors
    /// If the directory that they are in cannot be opened.
    pub fn scan(&self) -> Result<Scan, Failed> {
        let mut scan = Scan {
            levels: Vec::with_capacity(32),
            names: Vec::with_capacity(4096),
            path: b"devices".to_vec(),
            entries: Vec::with_capacity(32 * 1024),
            text: Vec::with_capacity(8192),
            event: Vec::with_capacity(4096),
        };
        let top = self.below.open(&scan.path, DIRECTORY);
        top.and_then(|top| scan.list(top))
            .map_err(|error| Failed::new("read", b"/devices", error))?;
        Ok(scan)
    }
}

/// For a directory that is listed.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// How deep below /sys/devices directories are looked at. Each level takes a
/// file descriptor; real ones are some 20 deep.
const DEPTH_MAX: usize = 200;

/// A walk through all devices, parents before their children. Where a device
/// comes or goes meanwhile, it may or may not be found.
#[derive(Debug)]
pub struct Scan {
    /// From the outermost to the one being looked at.
    levels: Vec<Level>,
    /// Of directories still to be looked at, in all levels, each with a NUL at
    /// its end; the last comes next.
    names: Vec<u8>,
    /// Of the directory being looked at.
    path: Vec<u8>,
    /// Space for directory entries.
    entries: Vec<u8>,
    /// What is in a file `uevent`.
    text: Vec<u8>,
    event: Vec<u8>,
}

/// A directory on the way.
#[derive(Debug)]
struct Level {
    directory: OwnedFd,
    /// How much of the path it has.
    path_len: usize,
    /// Where its part of the names begins.
    names_start: usize,
}

/// What there is in a directory.
#[derive(Default)]
struct Found {
    uevent: bool,
    subsystem: bool,
}

impl Scan {
    /// The next device, as the datagram of the `add` event that the kernel
    /// would send for it now, but for its SEQNUM.
    ///
    /// # Errors
    /// If a directory or a file cannot be read. That is no reason not to go on.
    #[allow(clippy::should_implement_trait, reason = "it lends what it returns")]
    pub fn next(&mut self) -> Option<Result<&[u8], Failed>> {
        loop {
            let level = self.levels.last()?;
            let Some(nul) = self.names.len().checked_sub(1).filter(|&end| end >= level.names_start)
            else {
                self.levels.pop();
                continue;
            };
            let names = &self.names[level.names_start..nul];
            let start = names.iter().rposition(|&b| b == 0).map_or(0, |nul| nul + 1);
            let start = level.names_start + start;
            self.path.truncate(level.path_len);
            self.path.push(b'/');
            self.path.extend_from_slice(&self.names[start..nul]);
            let result = self.look(start);
            match result {
                Ok(false) | Err(Errno::NOENT | Errno::NODEV) => {}
                Ok(true) => return Some(Ok(&self.event)),
                Err(error) => {
                    let path = [b"/", &self.path[..]].concat();
                    return Some(Err(Failed::new("read", &path, error)));
                }
            }
        }
    }

    /// Looks at the directory whose name begins at `start`, and takes that
    /// name away; whether it makes an event.
    fn look(&mut self, start: usize) -> Result<bool, Errno> {
        let Some(level) = self.levels.last() else { return Ok(false) };
        let name = CStr::from_bytes_until_nul(&self.names[start..]).unwrap_or_default();
        let directory = if is_plain(&level.directory, name, &mut self.text) {
            Ok(None)
        } else {
            open_here(level.directory.as_fd(), name.to_bytes(), DIRECTORY).map(Some)
        };
        self.names.truncate(start);
        let Some(directory) = directory? else { return Ok(false) };
        if self.levels.len() == DEPTH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let found = self.list(directory)?;
        Ok(found.uevent && found.subsystem && self.read_device()?)
    }

    /// Enters a directory: notes the directories in it, and whether it is a device's.
    fn list(&mut self, directory: OwnedFd) -> Result<Found, Errno> {
        let mut found = Found::default();
        let names_start = self.names.len();
        let mut entries = RawDir::new(&directory, self.entries.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            let mut file_type = entry.file_type();
            if file_type == FileType::Unknown {
                let stat = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                file_type = FileType::from_raw_mode(stat.st_mode);
            }
            match (file_type, name.to_bytes()) {
                (FileType::Directory, b"." | b"..") => {}
                (FileType::Directory, _) => self.names.extend_from_slice(name.to_bytes_with_nul()),
                (FileType::RegularFile, b"uevent") => found.uevent = true,
                (FileType::Symlink, b"subsystem") => found.subsystem = true,
                _ => {}
            }
        }
        self.levels.push(Level { directory, path_len: self.path.len(), names_start });
        Ok(found)
    }

    /// Makes the event of the device whose directory this is.
    fn read_device(&mut self) -> Result<bool, Errno> {
        let Some(Level { directory, .. }) = self.levels.last() else { return Ok(false) };
        let mut link = [MaybeUninit::uninit(); 1024];
        let (link, _) = readlinkat_raw(directory, c"subsystem", &mut link)?;
        let subsystem = link.rsplit(|&b| b == b'/').next().unwrap_or_default();
        self.text.clear();
        append_file(&open_here(directory.as_fd(), b"uevent", OFlags::RDONLY)?, &mut self.text)?;
        if self.text.contains(&0) {
            return Err(Errno::ILSEQ);
        }
        self.event.clear();
        for part in [b"add@/", &self.path[..], b"\0ACTION=add\0DEVPATH=/", &self.path] {
            self.event.extend_from_slice(part);
        }
        for part in [b"\0SUBSYSTEM=", subsystem, b"\0"] {
            self.event.extend_from_slice(part);
        }
        append_variables(&self.text, &mut self.event);
        Ok(true)
    }
}

/// Whether a directory has neither directories nor a `uevent` in it, as most
/// of them have not: there is no need to open it then. A directory without
/// directories has just two links, its name and `.`, where a file system
/// counts them.
fn is_plain(parent: &OwnedFd, name: &CStr, path: &mut Vec<u8>) -> bool {
    let has_no_directories =
        statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| stat.st_nlink == 2);
    path.clear();
    path.extend_from_slice(name.to_bytes());
    path.extend_from_slice(b"/uevent\0");
    has_no_directories
        && CStr::from_bytes_until_nul(path).is_ok_and(|path| {
            statat(parent, path, AtFlags::SYMLINK_NOFOLLOW).is_err_and(|e| e == Errno::NOENT)
        })
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
        match retry_on_intr(|| read(file, spare_capacity(contents))) {
            Ok(0) => return Ok(()),
            Ok(_) if contents.len() - start > FILE_MAX => break Errno::FBIG,
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    contents.truncate(start);
    Err(result)
}
