//! The PID file: locked and written by the daemon, read by who controls it.
//!
//! [`PidFile`] owns the file descriptor with the lock (flock(2)). The lock
//! belongs to the open file, so a process keeps it that was forked from the one
//! that took it; it is gone with the last descriptor.

mod sight;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, fstat, openat};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::error::Fatal;

use super::place::{self, Own};
pub(super) use sight::{FileId, Sight, examine};
use sight::{STARTING, process_id, text};
pub use sight::{State, look};

/// How often to try to lock a file that others only look at, and for how long to wait
/// in between. (flock(2) would wait for a daemon, too, and that for ever.)
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(1);

/// Empties a stale PID file, if this is still in it and it is not a trap.
pub(super) fn clear(path: &Path, stale: &[u8]) -> io::Result<()> {
    let file = File::from(openat(CWD, path, open_flags() - OFlags::CREATE, Mode::empty())?);
    if let Some(why) = Own::now().why_no_pid_file(&fstat(&file)?) {
        return Err(io::Error::other(why));
    }
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    if text(&file)? == stale { file.set_len(0) } else { Ok(()) }
}

/// Whether it has the process id of a process that there is.
fn is_of_living(file: &File) -> io::Result<bool> {
    Ok(process_id(&text(file)?).is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH)))
}

fn open_flags() -> OFlags {
    // The last two, as somebody may have put something there that is no file.
    OFlags::RDWR
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOFOLLOW
        | OFlags::NOCTTY
        | OFlags::NONBLOCK
}

/// A PID file, locked. Dropped, it is emptied and, unless a forked process has
/// it too, unlocked.
#[derive(Debug)]
#[must_use = "dropped, it is emptied and unlocked"]
pub struct PidFile {
    file: File,
    path: PathBuf,
}

impl PidFile {
    /// Opens the file, or makes it with mode 0644, and locks it.
    ///
    /// # Errors
    /// If another process has locked it: of the kind
    /// [`io::ErrorKind::ResourceBusy`], with its id in the text. If writing
    /// there could be turned against us: through a link, to something that is
    /// no regular file, that belongs to another user (except root) or can be
    /// written by others; in a directory that belongs to another user, or that
    /// others can write, without the sticky bit; by way of another user's
    /// symbolic link. Others are also all groups but root's and the own one.
    /// Those of the system calls.
    pub fn lock(path: &Path) -> Result<Self, Fatal> {
        let file = lock(path, || thread::sleep(PAUSE))
            .map_err(|e| Fatal::system(format_args!("lock PID file {}", path.display()), e))?;
        let pid_file = Self { file, path: path.to_owned() };
        // A daemon that is controlled by LibUCW's tools says this.
        pid_file.replace(STARTING)?;
        Ok(pid_file)
    }

    /// Writes the id of the daemon.
    ///
    /// # Errors
    /// Those of pwrite(2) and ftruncate(2).
    pub fn write(&mut self, pid: Pid) -> Result<(), Fatal> {
        self.replace(format!("{pid}\n").as_bytes())
    }

    /// Makes it the file of a daemon that does not run, or is about to end.
    pub(super) fn clear(&mut self) -> Result<(), Fatal> {
        self.replace(b"")
    }

    fn replace(&self, text: &[u8]) -> Result<(), Fatal> {
        // In this order the file is never empty, if it is not meant to be.
        self.file
            .write_all_at(text, 0)
            .and_then(|()| self.file.set_len(text.len() as u64))
            .map_err(|e| Fatal::system(format_args!("write PID file {}", self.path.display()), e))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            log::error!("{error}");
        }
    }
}

/// Opens and locks the file; `pause` is what is done between two attempts.
fn lock(path: &Path, mut pause: impl FnMut()) -> io::Result<File> {
    loop {
        let (directory, name) = place::directory_of(path)?;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let file = match openat(&directory, name, open_flags(), mode) {
            Err(Errno::LOOP) => return Err(io::Error::other("it is a symbolic link")),
            result => File::from(result?),
        };
        let status = fstat(&file)?;
        if let Some(why) = Own::now().why_no_pid_file(&status) {
            return Err(io::Error::other(why));
        }
        lock_exclusive(&file, path, &mut pause)?;
        if place::is_still_there(path, &status)? {
            return Ok(file);
        }
    }
}

fn lock_exclusive(file: &File, path: &Path, pause: &mut impl FnMut()) -> io::Result<()> {
    use FlockOperation::{NonBlockingLockExclusive, NonBlockingLockShared, Unlock};

    let lock = |operation| rustix::io::retry_on_intr(|| flock(file.as_fd(), operation));
    for _ in 0..ATTEMPTS {
        match lock(NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {}
            result => return Ok(result?),
        }
        // A daemon has an exclusive lock; whoever looks has a shared one for a
        // moment, and whoever empties a stale file, an exclusive one.
        match lock(NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) if is_of_living(file)? => break,
            Err(Errno::WOULDBLOCK) => {}
            result => {
                result?;
                lock(Unlock)?;
            }
        }
        pause();
    }
    let text = match look(path) {
        Ok(State::Running(Some(pid))) => format!("already running with process id {pid}"),
        Ok(State::Starting) => "already being started".to_owned(),
        _ => "already running".to_owned(),
    };
    Err(io::Error::new(io::ErrorKind::ResourceBusy, text))
}

#[cfg(test)]
mod tests;
