//! Finds all devices, by the links in /sys/bus and /sys/class, where every device is
//! that an event can come of: a third of the system calls that it takes to walk through
//! /sys/devices, most of whose directories are no devices.
//!
//! May own a thread as long as there is something to find. Whoever has nothing to do
//! takes the next directory, and lays it back after a hundred devices.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, OFlags, RawDir, readlinkat_raw};
use rustix::io::Errno;

use crate::beneath::{Failed, check};

use super::Sysfs;
use super::helper::Helper;

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

    /// Whether there may be more, for which there was no descriptor or memory.
    pub fn is_short(&self) -> bool {
        self.failed.iter().any(Failed::is_shortage)
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

/// A device that was found.
#[derive(Debug)]
struct Found {
    /// When its turn is.
    rank: u8,
    /// Where in the text its DEVPATH is.
    path: Range<usize>,
    kind: Kind,
    /// The name of its bus or class.
    subsystem: Range<usize>,
}

/// Of a device found twice the bus comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Bus,
    Class,
}

impl Kind {
    /// Where they all are, and, in the directory of one, its devices.
    fn place(self) -> (&'static [u8], &'static [u8]) {
        match self {
            Self::Bus => (b"bus", b"/devices"),
            Self::Class => (b"class", b""),
        }
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

/// The search for all devices.
#[derive(Debug)]
pub struct Search {
    shared: Arc<Shared>,
    helper: Option<Helper>,
    found: Finds,
}

#[derive(Debug)]
struct Shared {
    sys: Sysfs,
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Work {
    /// Where devices are still to be found.
    left: Vec<Place>,
    /// How many of them somebody is looking through.
    under_way: usize,
    /// Somebody waits for what the other one lays back.
    waits: bool,
    /// What the thread has found, once it has ended.
    found: Finds,
}

/// The directory of a bus or a class.
#[derive(Debug)]
struct Place {
    kind: Kind,
    subsystem: Box<[u8]>,
    /// Once that was begun with.
    directory: Option<OwnedFd>,
}

/// What somebody has found.
#[derive(Debug, Default)]
struct Finds {
    devices: Vec<Found>,
    text: Vec<u8>,
    failed: Vec<Failed>,
}

/// For a directory that is listed.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// Longer than the path of any device: it would not fit into an event.
const LINK_MAX: usize = 4096;

impl Search {
    /// Begins to find all devices.
    ///
    /// # Errors
    /// If there is neither a directory for buses nor one for classes, or no descriptor or
    /// memory for them.
    pub fn new(sys: &Sysfs) -> Result<Self, Failed> {
        let (mut work, mut found) = (Work::default(), Finds::with_room());
        let results = [Kind::Bus, Kind::Class].map(|kind| (kind, subsystems(sys, kind, &mut work)));
        if results.iter().all(|(_, result)| *result == Err(Errno::NOENT)) {
            return Err(Failed::new("list devices in", b"/class", Errno::NOENT));
        }
        for (kind, result) in results {
            match result {
                // There may be none of a kind.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => {
                    let path = [b"/", kind.place().0].concat();
                    let failed = Failed::new("list devices in", &path, error);
                    if failed.is_shortage() {
                        return Err(failed);
                    }
                    found.failed.push(failed);
                }
            }
        }
        let shared =
            Arc::new(Shared { sys: sys.clone(), work: Mutex::new(work), changed: Condvar::new() });
        Ok(Self { shared, helper: None, found })
    }

    /// From now on another thread helps, if there is another processor for it. It is done
    /// a third sooner then, but takes more processor time: both look at the same
    /// directories on their way.
    pub fn get_help(&mut self) {
        let other = Arc::clone(&self.shared);
        self.helper = Helper::start(move || {
            let mut found = Finds::with_room();
            while other.go_on(&mut found) {}
            other.lock().found = found;
        });
    }

    /// Finds some more devices, less than a hundred. Returns whether there may be others.
    pub fn go_on(&mut self) -> bool {
        self.shared.go_on(&mut self.found)
    }

    /// How many this thread has found.
    #[cfg(test)]
    pub(super) fn found_here(&self) -> usize {
        self.found.devices.len()
    }

    /// The devices found.
    pub fn finish(mut self) -> Listing {
        self.end();
        let Finds { mut devices, mut text, mut failed } = std::mem::take(&mut self.found);
        let others = std::mem::take(&mut self.shared.lock().found);
        let moved = |range: Range<usize>| range.start + text.len()..range.end + text.len();
        devices.extend(others.devices.into_iter().map(|found| Found {
            path: moved(found.path),
            subsystem: moved(found.subsystem),
            ..found
        }));
        text.extend_from_slice(&others.text);
        failed.extend(others.failed);
        devices.sort_unstable_by(|a, b| {
            let key = |found: &Found| (found.rank, &text[found.path.clone()], found.kind);
            // Who has found it must not decide what it is.
            let subsystem = |found: &Found| &text[found.subsystem.clone()];
            key(a).cmp(&key(b)).then_with(|| subsystem(a).cmp(subsystem(b)))
        });
        devices.dedup_by(|b, a| text[a.path.clone()] == text[b.path.clone()]);
        Listing { devices, text, failed }
    }

    fn end(&mut self) {
        self.shared.lock().left.clear();
        // It looks through one more buffer, at most.
        self.helper.take().into_iter().for_each(Helper::end);
    }
}

impl Drop for Search {
    fn drop(&mut self) {
        self.end();
    }
}

/// Lists the buses or the classes.
fn subsystems(sys: &Sysfs, kind: Kind, work: &mut Work) -> Result<(), Errno> {
    let all = sys.below.open(kind.place().0, DIRECTORY)?;
    let mut buffer = Vec::with_capacity(8 * 1024);
    let mut entries = RawDir::new(&all, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !name.starts_with(b".") {
            work.left.push(Place { kind, subsystem: name.into(), directory: None });
        }
    }
    Ok(())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go_on(&self, found: &mut Finds) -> bool {
        let mut work = self.lock();
        let place = loop {
            match work.left.pop() {
                Some(place) => break place,
                None if work.under_way == 0 => return false,
                // It may be laid back.
                None => {
                    work.waits = true;
                    work = self.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
                }
            }
        };
        work.under_way += 1;
        drop(work);
        let rest = found.look_through(&self.sys, place);
        let mut work = self.lock();
        work.under_way -= 1;
        work.left.extend(rest);
        let waits = std::mem::take(&mut work.waits);
        drop(work);
        if waits {
            self.changed.notify_one();
        }
        true
    }
}

impl Finds {
    /// For as many as most machines have: room that is not used takes no memory.
    fn with_room() -> Self {
        let (devices, text) = (Vec::with_capacity(512), Vec::with_capacity(512 * 64));
        Self { devices, text, failed: Vec::new() }
    }

    /// Finds the next devices in a directory. Returns it if there may be more.
    fn look_through(&mut self, sys: &Sysfs, place: Place) -> Option<Place> {
        let Place { kind, subsystem, directory } = place;
        let (all, devices) = kind.place();
        let path = || [all, b"/", &subsystem, devices].concat();
        let directory = directory.map_or_else(|| sys.below.open(&path(), DIRECTORY), Ok);
        let more = directory.and_then(|directory| {
            let more = self.links(&directory, kind, &subsystem)?;
            Ok(more.then_some(directory))
        });
        match more {
            Ok(directory @ Some(_)) => return Some(Place { kind, subsystem, directory }),
            // Gone, or none.
            Ok(None) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => {
                let path = [b"/", &path()[..]].concat();
                self.failed.push(Failed::new("list devices in", &path, error));
            }
        }
        None
    }

    /// Goes through some devices. Returns whether there may be more.
    fn links(&mut self, directory: &OwnedFd, kind: Kind, subsystem: &[u8]) -> Result<bool, Errno> {
        let start = self.text.len();
        self.text.extend_from_slice(subsystem);
        let subsystem = start..self.text.len();
        let mut buffer = [MaybeUninit::uninit(); 2 * 1024];
        let mut entries = RawDir::new(directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            if matches!(entry.file_type(), FileType::Symlink | FileType::Unknown) {
                self.link(directory, entry.file_name(), kind, &subsystem)?;
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
        kind: Kind,
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
            self.devices.push(Found { rank, path, kind, subsystem: subsystem.clone() });
        }
        Ok(())
    }
}
