//! The other side: starts, stops and checks daemons, which may be any that
//! keep to the protocol ([`super`]).
//!
//! Whoever controls a daemon locks its *guard file*, so that of all who do only
//! one acts at a time. A process is signalled only if it is the daemon for
//! sure: its process id is turned into a pidfd, which cannot come to mean
//! another process; then the PID file must still be locked with the same id in
//! it, and that process must have the file open, as far as /proc can be read.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, fstat, openat};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, geteuid, kill_process_group, pidfd_open, pidfd_send_signal,
};

use crate::error::Fatal;
use crate::sys;

use super::pid_file::{self, State, why_unsafe};

/// How often to look at a lock: the kernel has no way to wait for one until a
/// certain time.
const INTERVAL: Duration = Duration::from_millis(10);

/// How long a daemon that was started in vain has after SIGTERM, if nobody
/// says otherwise.
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

/// The guard, locked until it is dropped.
#[derive(Debug)]
struct Guard {
    _file: File,
}

/// When an action has to be over.
#[derive(Debug, Clone, Copy)]
struct Deadline(Option<Instant>);

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
        let guard_file = OsStr::from_bytes(&[stem, b".lock"].concat()).into();
        Some(Self::with_guard(pid_file, guard_file))
    }

    /// The same, with a guard file of any name, but not the PID file itself.
    pub fn with_guard(pid_file: PathBuf, guard_file: PathBuf) -> Self {
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
        let deadline = self.deadline();
        let _guard = self.guard(deadline)?;
        let before = self.look()?;
        match before {
            State::NotRunning | State::Stale => {}
            State::Running(_) => return Ok(Outcome::NothingToDo),
            State::Starting => return Err(self.starting()),
        }
        let program = command.get_program().as_bytes().escape_ascii().to_string();
        sys::do_not_ignore_children().map_err(|e| Fatal::system("have children waited for", e))?;
        if deadline.left().is_some() {
            command.process_group(0);
        }
        let mut child =
            command.spawn().map_err(|e| Fatal::system(format_args!("execute {program}"), e))?;
        let status = wait(&mut child, deadline)
            .map_err(|e| Fatal::system(format_args!("wait for {program}"), e))?;
        let Some(status) = status else {
            let left = self.abandon(&mut child).err();
            let left = left.map_or_else(String::new, |error| format!("; and {error}"));
            return Err(self.too_late(&format!("start {program}"), &left));
        };
        if !status.success() {
            let error = io::Error::other(format!("it ended with {status}"));
            return Err(Fatal::system(format_args!("start {program}"), error));
        }
        match (self.look()?, before) {
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
    /// If that takes longer than the timeout; if the daemon cannot be
    /// signalled; if the guard or the PID file cannot be used.
    pub fn stop(&self, signal: Signal) -> Result<Outcome, Fatal> {
        let deadline = self.deadline();
        let _guard = self.guard(deadline)?;
        self.end(Ending { signal, kill_after: self.kill_after, deadline })
    }

    /// Sends a signal to the daemon.
    ///
    /// # Errors
    /// If it cannot be signalled; if the guard or the PID file cannot be used.
    pub fn reload(&self, signal: Signal) -> Result<Outcome, Fatal> {
        let deadline = self.deadline();
        let _guard = self.guard(deadline)?;
        let (state, Some(process)) = self.find(deadline)? else { return Ok(Outcome::NotRunning) };
        match pidfd_send_signal(process, signal) {
            Err(Errno::SRCH) => Ok(Outcome::NotRunning),
            result => result.map(|()| Outcome::Done).map_err(|e| cannot_signal(state, e)),
        }
    }

    /// Whether the daemon runs.
    ///
    /// # Errors
    /// If the guard or the PID file cannot be used.
    pub fn check(&self) -> Result<Outcome, Fatal> {
        let _guard = self.guard(self.deadline())?;
        match self.look()? {
            State::NotRunning => Ok(Outcome::NotRunning),
            State::Stale => Ok(Outcome::Stale),
            State::Running(_) => Ok(Outcome::Done),
            State::Starting => Err(self.starting()),
        }
    }

    fn deadline(&self) -> Deadline {
        Deadline(self.timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    fn look(&self) -> Result<State, Fatal> {
        pid_file::look(&self.pid_file).map_err(|e| self.cannot_use(e))
    }

    fn cannot_use(&self, error: io::Error) -> Fatal {
        Fatal::system(format_args!("use PID file {}", self.pid_file.display()), error)
    }

    fn starting(&self) -> Fatal {
        self.cannot_use(io::Error::other("the daemon is just being started"))
    }

    fn guard(&self, deadline: Deadline) -> Result<Guard, Fatal> {
        let cannot = |e: io::Error| {
            Fatal::system(format_args!("lock guard file {}", self.guard_file.display()), e)
        };
        let flags = OFlags::RDWR
            | OFlags::CREATE
            | OFlags::CLOEXEC
            | OFlags::NOFOLLOW
            | OFlags::NOCTTY
            | OFlags::NONBLOCK;
        // Nobody else's: whoever could open it could lock it for ever.
        let file = openat(CWD, &self.guard_file, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|e| cannot(e.into()))?;
        let status = fstat(&file).map_err(|e| cannot(e.into()))?;
        if let Some(why) = why_unsafe(&status, geteuid().as_raw()) {
            return Err(cannot(io::Error::other(why)));
        }
        let wait = match deadline {
            Deadline(None) => FlockOperation::LockExclusive,
            Deadline(Some(_)) => FlockOperation::NonBlockingLockExclusive,
        };
        loop {
            match rustix::io::retry_on_intr(|| flock(&file, wait)) {
                Ok(()) => return Ok(Guard { _file: file.into() }),
                Err(Errno::WOULDBLOCK) if deadline.left() != Some(Duration::ZERO) => {
                    thread::sleep(deadline.at_most(INTERVAL));
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(self.too_late("act: another action is under way", ""));
                }
                Err(error) => return Err(cannot(error.into())),
            }
        }
    }

    fn too_late(&self, what: &str, more: &str) -> Fatal {
        let timeout = self.timeout.unwrap_or_default();
        let text = format!("not within {timeout:?}{more}");
        Fatal::system(what, io::Error::new(io::ErrorKind::TimedOut, text))
    }

    /// The state and, if there is one, the daemon's process. If one is being
    /// started, that is waited for.
    fn find(&self, deadline: Deadline) -> Result<(State, Option<OwnedFd>), Fatal> {
        let mut state = self.look()?;
        loop {
            let pid = match state {
                State::Running(Some(pid)) => pid,
                State::NotRunning | State::Stale | State::Running(None) => {
                    return Ok((state, None));
                }
                State::Starting if deadline.left() == Some(Duration::ZERO) => {
                    return Err(self.starting());
                }
                State::Starting => {
                    thread::sleep(deadline.at_most(INTERVAL));
                    state = self.look()?;
                    continue;
                }
            };
            let process = pidfd_open(pid, PidfdFlags::empty());
            let plausible = process.is_ok() && has_open(pid, &self.pid_file);
            // If nothing has changed, the daemon lived all the time with this
            // id, and so it was its own that was opened.
            let again = self.look()?;
            if again != state {
                state = again;
                continue;
            }
            return match process {
                Ok(process) if plausible => Ok((state, Some(process))),
                // It is just ending: its files are closed first.
                Ok(process) if is_readable(&process, INTERVAL) => Ok((state, None)),
                Ok(_) => {
                    let error = io::Error::other("it does not have the PID file open");
                    Err(cannot_signal(state, error))
                }
                // Whoever holds the lock is somebody else, and not to be found.
                Err(Errno::SRCH) => Ok((state, None)),
                Err(error) => Err(cannot_signal(state, error)),
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
            let _ = pid_file::clear(&self.pid_file, Some(pid));
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
        let mut kill_at = how.kill_after.and_then(|after| Instant::now().checked_add(after));
        loop {
            match (self.look()?, before) {
                (after @ (State::NotRunning | State::Stale), _) => return Ok(after),
                (State::Running(Some(now)), State::Running(old)) if old != Some(now) => {
                    let text = format!("another one was started meanwhile, process {now}");
                    return Err(Fatal::system("stop the daemon", io::Error::other(text)));
                }
                (State::Running(_) | State::Starting, _) => {}
            }
            if how.deadline.left() == Some(Duration::ZERO) {
                return Err(self.too_late("stop the daemon", ""));
            }
            if let Some(process) = &process
                && kill_at.is_some_and(|at| at <= Instant::now())
            {
                kill_at = None;
                signal(process, Signal::KILL, before)?;
            }
            let pause = how.deadline.at_most(INTERVAL);
            match &process {
                // When it has died we look at the lock at once, and then now
                // and then: a process that it has forked may have that, too.
                Some(pidfd) if is_readable(pidfd, pause) => process = None,
                Some(_) => {}
                None => thread::sleep(pause),
            }
        }
    }

    /// Ends what `start` has begun in vain, and empties the PID file.
    fn abandon(&self, child: &mut Child) -> Result<(), Fatal> {
        // Nobody else can have this id before it was waited for. A command that
        // has left its group is killed all the same.
        let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
        child
            .kill()
            .and_then(|()| child.wait())
            .map_err(|e| Fatal::system("end what has been started", e))?;
        let kill_after = self.kill_after.unwrap_or(KILL_AFTER);
        self.end(Ending {
            signal: Signal::TERM,
            kill_after: Some(kill_after),
            deadline: Deadline(Instant::now().checked_add(kill_after + KILL_AFTER)),
        })?;
        // Whoever was killed could not do so: the daemon, in the foreground or in
        // the background, or one that had no process id yet.
        let _ = pid_file::clear(&self.pid_file, None);
        Ok(())
    }
}

impl Deadline {
    /// The time left; `None`: any.
    fn left(self) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(Instant::now()))
    }

    fn at_most(self, longest: Duration) -> Duration {
        self.left().map_or(longest, |left| left.min(longest))
    }
}

/// A process that has just gone needs no signal any more.
fn signal(process: &OwnedFd, signal: Signal, state: State) -> Result<(), Fatal> {
    match pidfd_send_signal(process, signal) {
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

/// Whether that process has this file open. Where that cannot be known, true.
fn has_open(pid: Pid, path: &Path) -> bool {
    let (Ok(file), Ok(fds)) = (rustix::fs::stat(path), fs::read_dir(format!("/proc/{pid}/fd")))
    else {
        return true;
    };
    fds.flatten().any(|fd| {
        rustix::fs::stat(fd.path())
            .is_ok_and(|other| (other.st_dev, other.st_ino) == (file.st_dev, file.st_ino))
    })
}

/// Waits for the end of a child; `None` if it is too late.
fn wait(child: &mut Child, deadline: Deadline) -> io::Result<Option<ExitStatus>> {
    let Deadline(Some(_)) = deadline else { return child.wait().map(Some) };
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        match deadline.left() {
            Some(Duration::ZERO) => return Ok(None),
            left => is_readable(&pidfd, left.unwrap_or(INTERVAL)),
        };
    }
}

/// Whether the process has ended; waits for that, but not for longer than `pause`.
fn is_readable(pidfd: &OwnedFd, pause: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: pause.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: pause.subsec_nanos().into(),
    };
    matches!(poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout)), Ok(1..))
}
