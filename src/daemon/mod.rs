//! Daemons: how a process becomes one, says that it is up, and is found and
//! stopped again, without races. For any program, not only plugd.
//!
//! It is LibUCW's way, and its protocol: the daemon holds a lock (flock(2)) on
//! its PID file as long as it lives, so whether it runs is never guessed from
//! a number in a file. The file's text has a meaning only while it is locked;
//! empty and not locked: the daemon was stopped; not empty and not locked: it
//! died, the file is *stale*.
//!
//! A daemon goes through three types, each of which is all that is left of the
//! one before:
//!
//! 1. [`Settings`], which [`Settings::prepare`] makes to
//! 2. [`Standby`]: nothing can go wrong any more with the PID file, the names of
//!    user and group, the log file. Now the program does the rest of its setup,
//!    as the user and in the directory that it was started with.
//!    [`Standby::start`] makes it to
//! 3. [`Running`]: in the background, in its own session, without its
//!    privileges. [`Running::ready`] lets go whoever waits for it; when it is
//!    dropped, the PID file is emptied.
//!
//! [`control`] is the other side: it starts and stops daemons, and looks after
//! them. `examples/daemon.rs` is a daemon, `examples/control.rs` controls it.
//!
//! ```no_run
//! use plugd::daemon::Settings;
//!
//! # fn main() -> Result<(), plugd::error::Fatal> {
//! let settings = Settings {
//!     detach: true,
//!     pid_file: Some("/run/example.pid".into()),
//!     user: Some("nobody".into()),
//!     ..Settings::default()
//! };
//! let standby = settings.prepare()?;
//! // Open sockets, read the configuration. An error ends the program here, and
//! // whoever started it sees it.
//! let mut running = standby.start()?; // In the daemon only; its parent waits.
//! // Install signal handlers, set up the event loop.
//! running.ready()?; // Its parent exits with 0.
//! // Serve.
//! # Ok(())
//! # }
//! ```

pub mod control;
mod detach;
mod identity;
pub mod pid_file;
mod place;

// What the functions here take and return, so that nobody needs to depend on the
// same version of that crate.
#[doc(no_inline)]
pub use rustix::process::{Gid, Pid, Uid};

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fcntl_setfl, openat, stat};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::getpid;

use crate::error::Fatal;
use detach::Starter;
use identity::Identity;
use pid_file::PidFile;

/// What shall become of a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Go into the background: a new process in a session of its own, with stdin and
    /// stdout from and to /dev/null (where there is none: a pipe that is at its end and
    /// cannot be written), umask 022, and `/` as working directory. If not, the rest is
    /// done in this process.
    pub detach: bool,
    /// The file with the daemon's process id, which it locks.
    pub pid_file: Option<PathBuf>,
    /// The user to become: a name in /etc/passwd, or `#` and a user id.
    pub user: Option<OsString>,
    /// The group to become: a name in /etc/group, or `#` and a group id.
    /// Without it, those of the user.
    pub group: Option<OsString>,
    /// What becomes of stderr once the daemon is ready.
    pub stderr: Stderr,
}

/// What becomes of stderr once the daemon is ready; until then it stays where
/// it was, for errors of the start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Stderr {
    /// It stays there.
    #[default]
    Keep,
    /// It goes to the end of this file, which is made if need be.
    Append(PathBuf),
    /// It goes nowhere.
    Null,
}

impl Settings {
    /// Opens what has to be opened, and locks the PID file.
    ///
    /// # Errors
    /// If one of the files cannot be had, a name is not known, or the PID file
    /// is no safe place ([`PidFile::lock`]). If the daemon runs already, the
    /// kind of error is [`std::io::ErrorKind::ResourceBusy`].
    pub fn prepare(self) -> Result<Standby, Fatal> {
        let identity = Identity::resolve(self.user.as_deref(), self.group.as_deref())?;
        let stderr = match self.stderr {
            Stderr::Keep => None,
            Stderr::Append(path) => Some(
                open_log(&path)
                    .map_err(|e| Fatal::system(format_args!("open {}", path.display()), e))?,
            ),
            Stderr::Null => Some(open_null().map_err(|e| Fatal::system("make a pipe", e))?),
        };
        // Last, so that an error does not touch the file of a daemon that died.
        let pid_file = self.pid_file.as_deref().map(PidFile::lock).transpose()?;
        Ok(Standby { detach: self.detach, pid_file, identity, stderr })
    }
}

/// A process that can become a daemon. Dropped without that, it empties the
/// PID file.
#[derive(Debug)]
#[must_use = "dropped, it gives up the PID file"]
pub struct Standby {
    detach: bool,
    pid_file: Option<PidFile>,
    identity: Identity,
    stderr: Option<OwnedFd>,
}

impl Standby {
    /// The user and the group that the daemon becomes, to whom files should belong that
    /// it uses then; `None` where it stays what it is.
    pub fn ids(&self) -> (Option<Uid>, Option<Gid>) {
        self.identity.ids()
    }

    /// Makes this process the daemon; or, if it shall be detached, a new one,
    /// which alone returns. The parent stays until the daemon is ready and
    /// exits with 0 then; with the daemon's exit status, if that exits before;
    /// with 111 if it is killed, or exits with 0. Then the parent tells so, as an
    /// error to the log ([`log`]), or to stderr if there is no logger that takes
    /// errors. Of what else fails the daemon has to tell itself, on the stderr that
    /// both have. The parent drops nothing.
    ///
    /// What a process does not hand on to a new one (fork(2)) should be made
    /// after this: signal handlers that know the process id, locks of fcntl(2),
    /// threads. File descriptors are handed on. Until the daemon is ready it
    /// gets SIGTERM if its parent dies, for then nobody would know about it.
    /// If SIGCHLD was ignored, it is not any more.
    ///
    /// As soon as its id is in the PID file the daemon may get signals, which end
    /// it if it does not handle them yet. Block those that it will handle before
    /// this (sigprocmask(2)), and unblock them when the handlers are installed. In
    /// the parent none is blocked while it waits.
    ///
    /// # Errors
    /// Those of the system calls that it takes. If this process has other
    /// threads, and shall be detached or become another user or group, the kind
    /// is [`std::io::ErrorKind::Unsupported`].
    pub fn start(self) -> Result<Running, Fatal> {
        self.start_with(|| Ok(()))
    }

    /// The same; `privileged` is called in the daemon's own process, before it becomes
    /// another user or group.
    ///
    /// # Errors
    /// Those of [`Standby::start`], and of `privileged`.
    pub fn start_with(
        mut self,
        privileged: impl FnOnce() -> Result<(), Fatal>,
    ) -> Result<Running, Fatal> {
        let starter = if self.detach {
            Some(detach::detach(self.pid_file.as_mut())?)
        } else {
            if let Some(pid_file) = &mut self.pid_file {
                pid_file.write(getpid())?;
            }
            None
        };
        privileged()?;
        self.identity.assume()?;
        if let Some(starter) = &starter {
            starter.end_with_parent()?;
        }
        Ok(Running { starter, _pid_file: self.pid_file, stderr: self.stderr })
    }
}

/// A daemon. When dropped, it empties its PID file, and unlocks it: that
/// should be the last thing to happen.
#[derive(Debug)]
#[must_use = "dropped, it gives up the PID file, while the daemon lives"]
pub struct Running {
    // Before the PID file, so that the parent learns of a failure while the
    // lock is still held.
    starter: Option<Starter>,
    _pid_file: Option<PidFile>,
    stderr: Option<OwnedFd>,
}

impl Running {
    /// Tells the parent that the daemon is up, and gives up the stderr that it
    /// was started with, if it shall. From then on errors reach nobody but the
    /// log.
    ///
    /// # Errors
    /// If the parent has died: nobody knows then that the daemon is up.
    pub fn ready(&mut self) -> Result<(), Fatal> {
        // First, as the parent's end is also the end of who waits for its stderr.
        if let Some(stderr) = self.stderr.take() {
            rustix::stdio::dup2_stderr(stderr).map_err(|e| Fatal::system("replace stderr", e))?;
        }
        self.starter.take().map_or(Ok(()), Starter::release)
    }
}

/// /dev/null; or where that is still to be made, the end of a pipe to read from: it has
/// nothing to read either, but writing there fails.
///
/// # Errors
/// Those of pipe2(2).
pub(crate) fn open_null() -> io::Result<OwnedFd> {
    match OpenOptions::new().read(true).write(true).open("/dev/null") {
        Ok(null) => Ok(null.into()),
        Err(_) => Ok(pipe_with(PipeFlags::CLOEXEC)?.0),
    }
}

/// Opens a file for the log.
fn open_log(path: &Path) -> io::Result<OwnedFd> {
    // A FIFO is not waited for that nobody reads from, nor becomes a terminal ours.
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOCTTY
        | OFlags::NONBLOCK;
    let file = match openat(CWD, path, flags, Mode::RUSR | Mode::WUSR | Mode::RGRP) {
        Err(Errno::NXIO) if is_fifo(path) => return Err(io::Error::other("nobody reads from it")),
        result => result?,
    };
    fcntl_setfl(&file, OFlags::APPEND)?;
    Ok(file)
}

fn is_fifo(path: &Path) -> bool {
    stat(path).is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Fifo)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{getgroups, getuid};
    use std::io::ErrorKind;
    use std::thread;

    /// The others would keep their privileges.
    #[test]
    fn a_process_with_threads_becomes_nobody_else() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("x.pid");
        let own = format!("#{}", getuid().as_raw());
        let groups = getgroups().unwrap();
        for detach in [false, true] {
            let settings = Settings {
                detach,
                pid_file: Some(pid_file.clone()),
                user: Some(own.clone().into()),
                ..Settings::default()
            };
            // libtest may run a test in its only thread.
            let start = move || (settings.prepare().unwrap().start(), getgroups().unwrap());
            let (started, groups_there) = thread::spawn(start).join().unwrap();
            let Err(Fatal::System { error, .. }) = started else { panic!("{started:?}") };
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            assert_eq!(groups_there, groups);
            assert_eq!(std::fs::read(&pid_file).unwrap(), b"");
        }
        // Nobody's thread has anything to lose.
        let settings = Settings { pid_file: Some(pid_file), ..Settings::default() };
        drop(thread::spawn(move || settings.prepare().unwrap().start().unwrap()).join().unwrap());
    }
}
