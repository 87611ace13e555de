//! Where the inventory of devices lives: in memory, or in a file that outlives
//! the daemon, mapped, so that keeping it costs no system call.
//!
//! Owns the file, locked (flock(2)): nobody else of plugd's has it at the same
//! time. All its space is allocated before it is used: a full file system is
//! an error then, and no SIGBUS later.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::{
    CWD, FallocateFlags, FileType, FlockOperation, Mode, OFlags, fallocate, flock, fstat,
    ftruncate, openat,
};
use rustix::io::{Errno, pread, retry_on_intr};
use rustix::process::geteuid;

use crate::error::reason;
use crate::inventory::{self, Storage};
use crate::sys::Mapping;

/// How often to try to lock the file, and for how long to wait in between: for a second in
/// all. (flock(2) would wait without end for another plugd.)
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// The storage of an inventory.
#[derive(Debug)]
pub enum Store {
    /// Gone with the process.
    Memory(Vec<u8>),
    /// In a file.
    File(StateFile),
}

/// A file, open, locked and mapped.
#[derive(Debug)]
pub struct StateFile {
    fd: OwnedFd,
    mapping: Mapping,
}

impl StateFile {
    /// Opens the file, or makes it with mode 0600.
    ///
    /// # Errors
    /// If it cannot be opened for writing, is a link or no regular file, has another
    /// name, belongs to somebody else or can be written by others, another process
    /// has locked it, or it is something else that somebody may miss.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags =
            OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK;
        let open = |flags| openat(CWD, path, flags, Mode::RUSR | Mode::WUSR);
        let (fd, is_new) = match open(flags) {
            Err(Errno::LOOP) => return Err(io::Error::other("it is a symbolic link")),
            Err(Errno::NOENT) => (open(flags | OFlags::CREATE | OFlags::EXCL)?, true),
            result => (result?, false),
        };
        let status = fstat(&fd)?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it is no regular file"));
        }
        if status.st_uid != geteuid().as_raw() || status.st_mode & 0o022 != 0 {
            return Err(io::Error::other("it is somebody else's, or others may write it"));
        }
        if status.st_nlink > 1 {
            return Err(io::Error::other("it has another name"));
        }
        lock(&fd, || thread::sleep(PAUSE))?;
        if status.st_size == 0 && !is_new {
            log::warn!("the state file is empty, and tells nothing of what was acted on");
        }
        let mut head = [0; 8];
        let count = retry_on_intr(|| pread(&fd, &mut head, 0))?;
        if !inventory::begins_like_one(&head[..count]) {
            return Err(io::Error::other("it is no state file, and is left as it is"));
        }
        Self::adopt(fd)
    }

    /// Goes on with one that was opened before, locked.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let length = usize::try_from(fstat(&fd)?.st_size).map_err(io::Error::other)?;
        let mapping = Mapping::of(fd.as_fd(), length)?;
        let mut file = Self { fd, mapping };
        if length > 0 {
            // Somebody may have punched holes into it.
            file.try_resize(length)?;
        }
        Ok(file)
    }

    fn try_resize(&mut self, length: usize) -> io::Result<()> {
        let size = u64::try_from(length).map_err(io::Error::other)?;
        if length == 0 || length < self.mapping.bytes().len() {
            // What is mapped is in the file at any moment.
            self.mapping = Mapping::of(self.fd.as_fd(), length)?;
            return Ok(ftruncate(&self.fd, size)?);
        }
        // Never longer than what it has space for: plugd may be killed in between.
        match retry_on_intr(|| fallocate(&self.fd, FallocateFlags::empty(), 0, size)) {
            Ok(()) => {}
            // Such a file system has to do without.
            Err(Errno::OPNOTSUPP) => ftruncate(&self.fd, size)?,
            Err(error) => return Err(error.into()),
        }
        self.mapping = Mapping::of(self.fd.as_fd(), length)?;
        Ok(())
    }
}

impl AsRawFd for StateFile {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Storage for Store {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::File(file) => file.mapping.bytes(),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Memory(bytes) => bytes,
            Self::File(file) => file.mapping.bytes_mut(),
        }
    }

    fn has_room(&mut self, length: usize) -> bool {
        let (Self::File(file), Ok(length)) = (self, u64::try_from(length)) else { return true };
        let reserve = || fallocate(&file.fd, FallocateFlags::KEEP_SIZE, 0, length.max(1));
        matches!(retry_on_intr(reserve), Ok(()) | Err(Errno::OPNOTSUPP))
    }

    /// A file that cannot be as long is given up, and left empty: it would tell
    /// the next daemon of devices as they were.
    fn resize(&mut self, length: usize) {
        let file = match self {
            Self::Memory(bytes) => return Storage::resize(bytes, length),
            Self::File(file) => file,
        };
        let mut bytes = Vec::new();
        if let Err(error) = file.try_resize(length) {
            log::warn!(
                "the state file cannot be kept: {}; after a restart all devices are acted on",
                reason(&error)
            );
            bytes.extend_from_slice(file.mapping.bytes());
            Storage::resize(&mut bytes, length);
            // With its mapping gone before.
            file.mapping = Mapping::default();
            let _ = ftruncate(&file.fd, 0);
            *self = Self::Memory(bytes);
        }
    }
}

/// Locks the file; `pause` is what is done between two attempts. A child of a plugd that
/// was killed has it, locked, until it executes its program.
fn lock(fd: &OwnedFd, mut pause: impl FnMut()) -> io::Result<()> {
    for _ in 0..ATTEMPTS {
        match flock(fd, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => pause(),
            result => return Ok(result?),
        }
    }
    Err(io::Error::other("another process has locked it"))
}

/// Makes the directory of a state file that nobody chose, if it is not there.
pub fn make_directory(file: &Path) {
    if let Some(directory) = file.parent().filter(|directory| !directory.exists()) {
        // What is wrong is told when the file is opened.
        let _ = DirBuilder::new().mode(0o755).create(directory);
    }
}

/// Which boot of the machine this is: what the kernel says, and 0 bytes where
/// that is not as expected.
pub fn boot() -> [u8; 36] {
    let text = fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.get(..36).and_then(|id| id.try_into().ok()).unwrap_or([0; 36])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_killed_plugd_is_waited_for() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || OwnedFd::from(file.reopen().unwrap());
        let mut remnant = Some(open());
        flock(remnant.as_ref().unwrap(), FlockOperation::LockExclusive).unwrap();
        let mut pauses = 0;
        let ours = open();
        lock(&ours, || {
            pauses += 1;
            if pauses == ATTEMPTS - 1 {
                remnant = None;
            }
        })
        .unwrap();
        assert_eq!(pauses, ATTEMPTS - 1);
        // Another plugd is not.
        pauses = 0;
        let error = lock(&open(), || pauses += 1).unwrap_err();
        assert_eq!(error.to_string(), "another process has locked it");
        assert_eq!(pauses, ATTEMPTS);
    }
}
