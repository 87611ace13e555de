//! The guard file: its lock has whoever acts on a daemon, so that there is one at a time.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, Stat, flock, fstat, lstat, openat};
use rustix::io::Errno;

use crate::daemon::place::{self, Own};
use crate::error::Fatal;

use super::deadline::Deadline;

/// The guard file, locked until this is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    _file: File,
}

impl Guard {
    /// Locks the file, which is made with mode 0600 if need be. It must be another one
    /// than `pid_file`.
    ///
    /// # Errors
    /// If it is that one, or no safe place; if others keep it locked, or replace it, for
    /// too long; those of the system calls.
    pub(super) fn lock(path: &Path, pid_file: &Path, deadline: Deadline) -> Result<Self, Fatal> {
        let cannot =
            |error| Fatal::system(format_args!("lock guard file {}", path.display()), error);
        loop {
            let (file, status) = open(path, pid_file).map_err(cannot)?;
            if !lock(&file, deadline).map_err(cannot)? {
                return Err(deadline.error("act: another action is under way", ""));
            }
            // Whoever comes next may lock another file, if somebody has cleaned up.
            if place::is_still_there(path, &status).map_err(cannot)? {
                return Ok(Self { _file: file });
            }
            if deadline.has_passed() {
                return Err(deadline.error("act: the guard file is being replaced", ""));
            }
        }
    }
}

fn open(path: &Path, pid_file: &Path) -> io::Result<(File, Stat)> {
    let flags = OFlags::RDWR
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOFOLLOW
        | OFlags::NOCTTY
        | OFlags::NONBLOCK;
    let (directory, name) = place::directory_of(path)?;
    // Nobody else's: whoever could open it could lock it for ever.
    let file = openat(&directory, name, flags, Mode::RUSR | Mode::WUSR)?;
    let status = fstat(&file)?;
    if let Some(why) = Own::now().why_no_guard(&status) {
        return Err(io::Error::other(why));
    }
    // By whatever way: its lock would be taken for the daemon's.
    match lstat(pid_file) {
        Ok(other) if place::is_same(&other, &status) => Err(io::Error::other("it is the PID file")),
        _ => Ok((file.into(), status)),
    }
}

/// Whether it could be locked in time.
fn lock(file: &File, deadline: Deadline) -> io::Result<bool> {
    let operation = if deadline.is_never() {
        FlockOperation::LockExclusive
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    loop {
        match rustix::io::retry_on_intr(|| flock(file, operation)) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if deadline.has_passed() => return Ok(false),
            Err(Errno::WOULDBLOCK) => deadline.pause(),
            Err(error) => return Err(error.into()),
        }
    }
}
