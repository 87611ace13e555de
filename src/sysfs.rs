//! The kernel's devices, as sysfs shows them: read back as uevents, asked for
//! an attribute, told to announce themselves again.
//!
//! The file `uevent` of a device holds the variables that its `add` event has
//! (drivers/base/core.c, uevent_show), the link `subsystem` its SUBSYSTEM. A
//! directory with a `uevent` but without that link belongs to no bus and no
//! class, and the kernel sends no event for it (dev_uevent_filter). Owns a
//! descriptor of the root. [`Scan`] reads many devices.

mod ahead;
mod device;
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
