//! The other side: starts, stops and checks daemons, which may be any that
//! keep to the protocol ([`super`]).
//!
//! Whoever controls a daemon locks its *guard file*, so that of all who do only
//! one acts at a time. A process is signalled only if it is the daemon for
//! sure: its process id is turned into a pidfd, which cannot come to mean
//! another process; that process must hold the lock of the PID file, as far as
//! /proc can be read; then the file must still be locked with the same id in it.
//! Who could write an id there must be allowed to signal that process: a file of
//! another user (other than root) is good for that user's processes only.
//!
//! ```no_run
//! use plugd::daemon::control::{Control, Outcome, Signal};
//!
//! # fn main() -> Result<(), plugd::error::Fatal> {
//! let control = Control::new("/run/example.pid").expect("it ends in .pid");
//! let mut daemon = std::process::Command::new("/usr/sbin/exampled");
//! assert_eq!(control.start(&mut daemon)?, Outcome::Done);
//! assert_eq!(control.start(&mut daemon)?, Outcome::NothingToDo);
//! assert_eq!(control.stop(Signal::TERM)?, Outcome::Done);
//! # Ok(())
//! # }
//! ```

mod deadline;
mod guard;
mod holder;
mod signal;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, kill_process_group, pidfd_open};

use crate::error::Fatal;
use crate::sys;

use super::pid_file::{self, Sight, State};
use deadline::{Deadline, INTERVAL, await_child, ends_within};
use guard::Guard;
pub use signal::Signal;

/// How long a daemon that was started in vain has after SIGTERM, if nobody
/// says otherwise; and what outlives any daemon, after that was to be killed.
const KILL_AFTER: Duration = Duration::from_secs(5);

/// What came of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// There was nothing to do: the daemon is what it shall be.
    NothingToDo,
    /// The daemon does not run.
    NotRunning,
    /// The daemon has died and left its PID file. Starting it was done
    /// nevertheless.
    Stale,
}

impl Outcome {
    /// What daemon-control(8) exits with.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::NothingToDo => 100,
            Self::NotRunning => 101,
            Self::Stale => 103,
        }
    }
}

/// How to get at a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    pid_file: PathBuf,
    guard_file: PathBuf,
    /// How long an action may take in all; for ever if `None`.
    pub timeout: Option<Duration>,
    /// How long after its signal a daemon that is to stop is killed; never if `None`.
    pub kill_after: Option<Duration>,
}

/// How to end a daemon.
#[derive(Debug, Clone, Copy)]
struct Ending {
    signal: Signal,
    kill_after: Option<Duration>,
    deadline: Deadline,
}

impl Control {
    /// Controls the daemon that has this PID file. `None` if its name does not
    /// end in `.pid`, with which the name of the guard file could be made: that
    /// ends in `.lock`.
    pub fn new(pid_file: impl Into<PathBuf>) -> Option<Self> {
        let pid_file = pid_file.into();
        let stem = pid_file.as_os_str().as_bytes().strip_suffix(b".pid")?;
        let guard_file = OsString::from_vec([stem, b".lock"].concat());
        Some(Self::with_guard(pid_file, guard_file))
    }

    /// The same, with a guard file of any name, but not the PID file itself.
    pub fn with_guard(pid_file: impl Into<PathBuf>, guard_file: impl Into<PathBuf>) -> Self {
        let (pid_file, guard_file) = (pid_file.into(), guard_file.into());
        Self { pid_file, guard_file, timeout: None, kill_after: None }
    }

    /// Starts the daemon: runs `command`, which must go into the background by
    /// itself, and waits until that has exited. If SIGCHLD was ignored, it is
    /// not any more. If there is a timeout, the command runs in a process group
    /// of its own.
    ///
    /// # Errors
    /// If the command cannot be run, fails, or takes longer than the timeout
    /// (then its process group is killed, and what it has left in the background
    /// is ended); if it has left no daemon with a locked PID file; if the guard or
    /// the PID file cannot be used.
    pub fn start(&self, command: &mut Command) -> Result<Outcome, Fatal> {
        let deadline = Deadline::after(self.timeout);
        let _guard = self.guard(deadline)?;
        let before = self.look()?;
        match before.state {
            State::NotRunning | State::Stale => {}
            State::Running(_) => return Ok(Outcome::NothingToDo),
            State::Starting => return Err(self.starting()),
        }
        let program = command.get_program().as_bytes().escape_ascii().to_string();
        sys::do_not_ignore_children().map_err(|e| Fatal::system("have children waited for", e))?;
        if !deadline.is_never() {
            command.process_group(0);
        }
        let mut child =
            command.spawn().map_err(|e| Fatal::system(format_args!("execute {program}"), e))?;
        let status = await_child(&mut child, deadline)
            .map_err(|e| Fatal::system(format_args!("wait for {program}"), e))?;
        let Some(status) = status else {
            let left = self.abandon(&mut child, &before).err();
            let left = left.map_or_else(String::new, |error| format!("; and {error}"));
            return Err(deadline.error(format_args!("start {program}"), &left));
        };
        if !status.success() {
            let error = io::Error::other(format!("it ended with {status}"));
            return Err(Fatal::system(format_args!("start {program}"), error));
        }
        match (self.look()?.state, before.state) {
            (State::Running(_), State::Stale) => Ok(Outcome::Stale),
            (State::Running(_), _) => Ok(Outcome::Done),
            (State::Starting, _) => Err(self.starting()),
            (State::NotRunning | State::Stale, _) => {
                let text = "it has not locked the PID file, or has ended again";
                Err(Fatal::system(format_args!("start {program}"), io::Error::other(text)))
            }
        }
    }

    /// Stops the daemon: sends the signal, and waits until the PID file is not
    /// locked any more.
    ///
    /// # Errors
    /// If that takes longer than the timeout; if the daemon cannot be signalled; if it
    /// is gone when it would be killed, but others hold its lock; if the guard or the
    /// PID file cannot be used.
    pub fn stop(&self, signal: Signal) -> Result<Outcome, Fatal> {
        let deadline = Deadline::after(self.timeout);
        let _guard = self.guard(deadline)?;
        self.end(Ending { signal, kill_after: self.kill_after, deadline })
    }

    /// Sends a signal to the daemon.
    ///
    /// # Errors
    /// If it cannot be signalled; if the guard or the PID file cannot be used.
    pub fn reload(&self, signal: Signal) -> Result<Outcome, Fatal> {
        let deadline = Deadline::after(self.timeout);
        let _guard = self.guard(deadline)?;
        let (state, Some(process)) = self.find(deadline)? else { return Ok(Outcome::NotRunning) };
        match signal.send(&process) {
            Err(Errno::SRCH) => Ok(Outcome::NotRunning),
            result => result.map(|()| Outcome::Done).map_err(|e| cannot_signal(state, e)),
        }
    }

    /// Whether the daemon runs.
    ///
    /// # Errors
    /// If the guard or the PID file cannot be used.
    pub fn check(&self) -> Result<Outcome, Fatal> {
        let _guard = self.guard(Deadline::after(self.timeout))?;
        match self.look()?.state {
            State::NotRunning => Ok(Outcome::NotRunning),
            State::Stale => Ok(Outcome::Stale),
            State::Running(_) => Ok(Outcome::Done),
            State::Starting => Err(self.starting()),
        }
    }

    fn guard(&self, deadline: Deadline) -> Result<Guard, Fatal> {
        Guard::lock(&self.guard_file, &self.pid_file, deadline)
    }

    fn look(&self) -> Result<Sight, Fatal> {
        pid_file::examine(&self.pid_file).map_err(|e| self.cannot_use(e))
    }

    fn cannot_use(&self, error: io::Error) -> Fatal {
        Fatal::system(format_args!("use PID file {}", self.pid_file.display()), error)
    }

    fn starting(&self) -> Fatal {
        self.cannot_use(io::Error::other("the daemon is just being started"))
    }

    /// The state and, if there is one, the daemon's process. If one is being
    /// started, that is waited for.
    fn find(&self, deadline: Deadline) -> Result<(State, Option<OwnedFd>), Fatal> {
        let mut sight = self.look()?;
        loop {
            let state = sight.state;
            let (pid, file) = match (state, sight.file) {
                (State::Running(Some(pid)), Some(file)) => (pid, file),
                (State::Starting, _) if deadline.has_passed() => return Err(self.starting()),
                (State::Starting, _) => {
                    deadline.pause();
                    sight = self.look()?;
                    continue;
                }
                (State::NotRunning | State::Stale | State::Running(_), _) => {
                    return Ok((state, None));
                }
            };
            let process = pidfd_open(pid, PidfdFlags::empty());
            let doubt = process.is_ok().then(|| holder::why_another(pid, file)).flatten();
            // If nothing has changed, the daemon lived all the time with this
            // id, and so it was its own that was opened.
            let again = self.look()?;
            if again != sight {
                if deadline.has_passed() {
                    return Err(deadline.error("find the daemon: its PID file is changing", ""));
                }
                sight = again;
                continue;
            }
            return match (process, doubt) {
                // It is just ending: its files are closed first. One that has ended, and
                // that nobody has waited for, has no doubt on it: only root may see that
                // it has no files.
                (Ok(process), doubt)
                    if ends_within(&process, doubt.map_or(Duration::ZERO, |_| INTERVAL)) =>
                {
                    Ok((state, None))
                }
                (Ok(process), None) => Ok((state, Some(process))),
                (Ok(_), Some(why)) => Err(cannot_signal(state, io::Error::other(why))),
                // Whoever holds the lock is somebody else, and not to be found.
                (Err(Errno::SRCH), _) => Ok((state, None)),
                (Err(error), _) => Err(cannot_signal(state, error)),
            };
        }
    }

    fn end(&self, how: Ending) -> Result<Outcome, Fatal> {
        let (state, process) = self.find(how.deadline)?;
        match state {
            State::NotRunning => return Ok(Outcome::NothingToDo),
            State::Stale => return Ok(Outcome::Stale),
            State::Running(_) | State::Starting => {}
        }
        if let Some(process) = &process {
            signal(process, how.signal, state)?;
        }
        let after = self.await_end(state, process, how)?;
        if let (State::Running(Some(pid)), State::Stale) = (state, after) {
            // It could not do so itself if it was killed. If we may not either,
            // the file stays stale.
            let _ = pid_file::clear(&self.pid_file, format!("{pid}\n").as_bytes());
        }
        Ok(Outcome::Done)
    }

    /// Waits until the PID file is not locked any more; returns what it is then.
    fn await_end(
        &self,
        before: State,
        mut process: Option<OwnedFd>,
        how: Ending,
    ) -> Result<State, Fatal> {
        let kill_at = Deadline::after(how.kill_after);
        // What it has left behind, too, may take a while to end. With a timeout, that
        // tells how long.
        let patience = how.kill_after.filter(|_| how.deadline.is_never());
        let give_up_at = Deadline::after(patience.map(|after| after.saturating_add(KILL_AFTER)));
        let mut killed = false;
        loop {
            match (self.look()?.state, before) {
                (after @ (State::NotRunning | State::Stale), _) => return Ok(after),
                (State::Running(Some(now)), State::Running(old)) if old != Some(now) => {
                    let text = format!("another one was started meanwhile, process {now}");
                    return Err(Fatal::system("stop the daemon", io::Error::other(text)));
                }
                (State::Running(_) | State::Starting, _) => {}
            }
            if how.deadline.has_passed() {
                return Err(how.deadline.error("stop the daemon", ""));
            }
            match &process {
                Some(process) if !killed && kill_at.has_passed() => {
                    killed = true;
                    signal(process, Signal::KILL, before)?;
                }
                None if give_up_at.has_passed() => return Err(outlived(before)),
                _ => {}
            }
            match &process {
                // When it has died we look at the lock at once, and then now
                // and then: a process that it has forked may have that, too.
                Some(pidfd) if ends_within(pidfd, how.deadline.interval()) => process = None,
                Some(_) => {}
                None => how.deadline.pause(),
            }
        }
    }

    /// Ends what `start` has begun in vain, and empties the PID file if that has
    /// written there: it is another one than before, or has another text.
    fn abandon(&self, child: &mut Child, before: &Sight) -> Result<(), Fatal> {
        // Nobody else can have this id before it was waited for. A command that
        // has left its group is killed all the same.
        let _ = kill_process_group(Pid::from_child(child), rustix::process::Signal::KILL);
        child
            .kill()
            .and_then(|()| child.wait())
            .map_err(|e| Fatal::system("end what has been started", e))?;
        let kill_after = self.kill_after.unwrap_or(KILL_AFTER);
        self.end(Ending {
            signal: Signal::TERM,
            kill_after: Some(kill_after),
            deadline: Deadline::after(Some(kill_after.saturating_add(KILL_AFTER))),
        })?;
        // Whoever was killed could not do so: the daemon, in the foreground or in
        // the background, or one that had no process id yet.
        let now = self.look()?;
        if now.state == State::Stale && now != *before {
            let _ = pid_file::clear(&self.pid_file, &now.text);
        }
        Ok(())
    }
}

/// A process that has just gone needs no signal any more.
fn signal(process: &OwnedFd, signal: Signal, state: State) -> Result<(), Fatal> {
    match signal.send(process) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(cannot_signal(state, error)),
    }
}

fn cannot_signal(state: State, error: impl Into<io::Error>) -> Fatal {
    match state {
        State::Running(Some(pid)) => {
            Fatal::system(format_args!("signal the daemon, process {pid}"), error)
        }
        _ => Fatal::system("signal the daemon", error),
    }
}

/// The lock is held, and there is nobody who could be killed.
fn outlived(state: State) -> Fatal {
    let text = match state {
        State::Running(Some(pid)) => format!("process {pid} has ended, but others hold its lock"),
        _ => "it has no process id any more, but holds its lock".to_owned(),
    };
    Fatal::system("stop the daemon", io::Error::other(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_has_no_limit() {
        let dir = tempfile::tempdir().unwrap();
        let mut control = Control::new(dir.path().join("x.pid")).unwrap();
        control.timeout = Some(Duration::from_millis(10));
        control.kill_after = Some(Duration::MAX);
        let error = control.start(Command::new("sleep").arg("100")).unwrap_err();
        assert!(error.to_string().ends_with("not within 10ms"), "{error}");
        control.timeout = Some(Duration::MAX);
        assert_eq!(control.stop(Signal::TERM).unwrap(), Outcome::NothingToDo);
    }
}
