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

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, Stat, flock, fstat, lstat, openat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, kill_process_group, pidfd_open};

use crate::error::Fatal;
use crate::signals;
use crate::sys;

use super::pid_file::{self, FileId, Sight, State};
use super::place::{self, Own};

/// How often to look at a lock: the kernel has no way to wait for one until a
/// certain time.
const INTERVAL: Duration = Duration::from_millis(10);

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

/// A signal that a daemon can be sent: none that the C library keeps to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    /// To read the configuration again, usually.
    pub const HUP: Self = Self(libc::SIGHUP);
    /// To end at once; it cannot be handled.
    pub const KILL: Self = Self(libc::SIGKILL);
    /// To end.
    pub const TERM: Self = Self(libc::SIGTERM);

    /// The signal of this name, with or without SIG before it. Real-time signals
    /// are RTMIN, RTMIN+n, RTMAX and RTMAX-n, where RTMIN is 34 and RTMAX 64.
    pub fn from_name(name: &str) -> Option<Self> {
        signals::number(name).map(Self)
    }

    /// The signal of this number, from 1 to 31 or from 34 to 64.
    pub fn from_number(number: i32) -> Option<Self> {
        let is_one = (1..=31).contains(&number) || signals::REAL_TIME.contains(&number);
        is_one.then_some(Self(number))
    }

    fn send(self, process: &OwnedFd) -> rustix::io::Result<()> {
        sys::pidfd_send_signal(process.as_fd(), self.0)
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
        match before.state {
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
            let left = self.abandon(&mut child, &before).err();
            let left = left.map_or_else(String::new, |error| format!("; and {error}"));
            return Err(self.too_late(&format!("start {program}"), &left));
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
    /// If that takes longer than the timeout; if the daemon cannot be
    /// signalled; if it is gone when it would be killed, but others hold its lock; if the guard or the PID file cannot be used.
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
        let _guard = self.guard(self.deadline())?;
        match self.look()?.state {
            State::NotRunning => Ok(Outcome::NotRunning),
            State::Stale => Ok(Outcome::Stale),
            State::Running(_) => Ok(Outcome::Done),
            State::Starting => Err(self.starting()),
        }
    }

    fn deadline(&self) -> Deadline {
        Deadline(self.timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
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

    fn guard(&self, deadline: Deadline) -> Result<Guard, Fatal> {
        let cannot = |error| self.cannot_lock_guard(error);
        loop {
            let (file, status) = self.open_guard().map_err(cannot)?;
            self.lock_guard(&file, deadline)?;
            // Whoever comes next may lock another file, if somebody has cleaned up.
            if place::is_still_there(&self.guard_file, &status).map_err(cannot)? {
                return Ok(Guard { _file: file });
            }
            if deadline.left() == Some(Duration::ZERO) {
                return Err(self.too_late("act: the guard file is being replaced", ""));
            }
        }
    }

    fn open_guard(&self) -> io::Result<(File, Stat)> {
        let flags = OFlags::RDWR
            | OFlags::CREATE
            | OFlags::CLOEXEC
            | OFlags::NOFOLLOW
            | OFlags::NOCTTY
            | OFlags::NONBLOCK;
        let (directory, name) = place::directory_of(&self.guard_file)?;
        // Nobody else's: whoever could open it could lock it for ever.
        let file = openat(&directory, name, flags, Mode::RUSR | Mode::WUSR)?;
        let status = fstat(&file)?;
        if let Some(why) = Own::now().why_no_guard(&status) {
            return Err(io::Error::other(why));
        }
        // By whatever way: its lock would be taken for the daemon's.
        match lstat(&self.pid_file) {
            Ok(other) if place::is_same(&other, &status) => {
                Err(io::Error::other("it is the PID file"))
            }
            _ => Ok((file.into(), status)),
        }
    }

    fn lock_guard(&self, file: &File, deadline: Deadline) -> Result<(), Fatal> {
        let wait = match deadline {
            Deadline(None) => FlockOperation::LockExclusive,
            Deadline(Some(_)) => FlockOperation::NonBlockingLockExclusive,
        };
        loop {
            match rustix::io::retry_on_intr(|| flock(file, wait)) {
                Ok(()) => return Ok(()),
                Err(Errno::WOULDBLOCK) if deadline.left() != Some(Duration::ZERO) => {
                    thread::sleep(deadline.at_most(INTERVAL));
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(self.too_late("act: another action is under way", ""));
                }
                Err(error) => return Err(self.cannot_lock_guard(error.into())),
            }
        }
    }

    fn cannot_lock_guard(&self, error: io::Error) -> Fatal {
        Fatal::system(format_args!("lock guard file {}", self.guard_file.display()), error)
    }

    fn too_late(&self, what: &str, more: &str) -> Fatal {
        let timeout = self.timeout.unwrap_or_default();
        let text = format!("not within {timeout:?}{more}");
        Fatal::system(what, io::Error::new(io::ErrorKind::TimedOut, text))
    }

    /// The state and, if there is one, the daemon's process. If one is being
    /// started, that is waited for.
    fn find(&self, deadline: Deadline) -> Result<(State, Option<OwnedFd>), Fatal> {
        let mut sight = self.look()?;
        loop {
            let state = sight.state;
            let (pid, file) = match (state, sight.file) {
                (State::Running(Some(pid)), Some(file)) => (pid, file),
                (State::Starting, _) if deadline.left() == Some(Duration::ZERO) => {
                    return Err(self.starting());
                }
                (State::Starting, _) => {
                    thread::sleep(deadline.at_most(INTERVAL));
                    sight = self.look()?;
                    continue;
                }
                (State::NotRunning | State::Stale | State::Running(_), _) => {
                    return Ok((state, None));
                }
            };
            let process = pidfd_open(pid, PidfdFlags::empty());
            let doubt = process.is_ok().then(|| why_another(pid, file)).flatten();
            // If nothing has changed, the daemon lived all the time with this
            // id, and so it was its own that was opened.
            let again = self.look()?;
            if again != sight {
                if deadline.left() == Some(Duration::ZERO) {
                    return Err(self.too_late("find the daemon: its PID file is changing", ""));
                }
                sight = again;
                continue;
            }
            return match (process, doubt) {
                (Ok(process), None) => Ok((state, Some(process))),
                // It is just ending: its files are closed first.
                (Ok(process), _) if is_readable(&process, INTERVAL) => Ok((state, None)),
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
        let kill_at = how.kill_after.and_then(|after| Instant::now().checked_add(after));
        // What it has left behind, too, may take a while to end. With a timeout, that
        // tells how long.
        let give_up_at = match how.deadline {
            Deadline(None) => kill_at.and_then(|at| at.checked_add(KILL_AFTER)),
            Deadline(Some(_)) => None,
        };
        let has_passed = |at: Option<Instant>| at.is_some_and(|at| at <= Instant::now());
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
            if how.deadline.left() == Some(Duration::ZERO) {
                return Err(self.too_late("stop the daemon", ""));
            }
            match &process {
                Some(process) if !killed && has_passed(kill_at) => {
                    killed = true;
                    signal(process, Signal::KILL, before)?;
                }
                None if has_passed(give_up_at) => return Err(outlived(before)),
                _ => {}
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
            deadline: Deadline(Instant::now().checked_add(kill_after.saturating_add(KILL_AFTER))),
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

/// Why this process may be another one than the daemon of this PID file.
fn why_another(pid: Pid, file: FileId) -> Option<&'static str> {
    let trusted = Own::now().trusts_user(file.owner);
    match holds_lock(pid, file) {
        Some(false) => Some("it does not hold the lock of the PID file"),
        // Whose file it is could have written anything, and handed the lock to
        // anybody.
        Some(true) if !trusted && real_user(pid) != Some(file.owner) => {
            Some("the PID file belongs to another user, and the process does not")
        }
        None if !trusted => Some("the PID file belongs to another user"),
        _ => None,
    }
}

/// Whether that process has this file open for writing, with an exclusive lock.
/// `None` if that cannot be known.
fn holds_lock(pid: Pid, file: FileId) -> Option<bool> {
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).ok()? {
        let Ok(fd) = fd else { return None };
        let is_it = |other: fs::Metadata| (other.dev(), other.ino()) == (file.device, file.inode);
        let name = fd.file_name();
        match fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", name.display())) {
            // Nothing else is looked at: stat(2) of whatever a process has open may
            // wait for a server that does not answer.
            Ok(info) if is_written_and_locked(&info) => {
                if fs::metadata(fd.path()).is_ok_and(is_it) {
                    return Some(true);
                }
            }
            Ok(_) => {}
            // Closed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return None,
        }
    }
    Some(false)
}

/// What /proc/PID/fdinfo/FD tells (proc_pid_fdinfo(5)). Anybody can lock a file
/// that he can only read.
fn is_written_and_locked(info: &str) -> bool {
    let field = |name| info.lines().filter_map(move |line: &str| line.strip_prefix(name));
    let writable = |flags: &str| {
        // O_RDONLY, O_WRONLY, O_RDWR.
        u32::from_str_radix(flags.trim(), 8).is_ok_and(|flags| matches!(flags & 3, 1 | 2))
    };
    let locked = |lock: &str| {
        let mut words = lock.split_whitespace().skip(1);
        words.next() == Some("FLOCK") && words.nth(1) == Some("WRITE")
    };
    field("flags:").any(writable) && field("lock:").any(locked)
}

/// The user who has started that process, and may signal it (kill(2)).
fn real_user(pid: Pid) -> Option<u32> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let ids = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    std::str::from_utf8(ids).ok()?.split_whitespace().next()?.parse().ok()
}

/// Waits for the end of a child; `None` if it is too late.
fn wait(child: &mut Child, deadline: Deadline) -> io::Result<Option<ExitStatus>> {
    let Deadline(Some(_)) = deadline else { return child.wait().map(Some) };
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty());
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        match (deadline.left(), &pidfd) {
            (Some(Duration::ZERO), _) => return Ok(None),
            (left, Ok(pidfd)) => _ = is_readable(pidfd, left.unwrap_or(INTERVAL)),
            // There may be no descriptor left; the command is not left alone for that.
            (_, Err(_)) => thread::sleep(deadline.at_most(INTERVAL)),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_a_daemon_can_be_sent() {
        for number in (1..=31).chain(34..=64) {
            assert_eq!(Signal::from_number(number), Some(Signal(number)));
        }
        for none in [i32::MIN, -1, 0, 32, 33, 65, i32::MAX] {
            assert_eq!(Signal::from_number(none), None, "{none}");
        }
        for signal in [Signal::HUP, Signal::KILL, Signal::TERM] {
            assert_eq!(Signal::from_number(signal.0), Some(signal));
        }
        assert_eq!(Signal::from_name("SIGRTMIN+1"), Some(Signal(35)));
    }

    #[test]
    fn who_holds_a_lock_is_told_by_the_kernel() {
        for (info, expected) in [
            ("flags:\t0100002\nlock:\t1: FLOCK  ADVISORY  WRITE 9 fe:00:1 0 EOF\n", true),
            ("flags:\t0102001\nlock:\t1: FLOCK  ADVISORY  WRITE 0 fe:00:1 0 EOF\n", true),
            ("flags:\t0100000\nlock:\t1: FLOCK  ADVISORY  WRITE 9 fe:00:1 0 EOF\n", false),
            ("flags:\t0100002\nlock:\t1: FLOCK  ADVISORY  READ  9 fe:00:1 0 EOF\n", false),
            ("flags:\t0100002\nlock:\t1: POSIX  ADVISORY  WRITE 9 fe:00:1 0 EOF\n", false),
            ("flags:\t0100002\n", false),
            ("", false),
        ] {
            assert_eq!(is_written_and_locked(info), expected, "{info}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let own = rustix::process::getpid();
        let status = file.as_file().metadata().unwrap();
        let id = FileId { device: status.dev(), inode: status.ino(), owner: status.uid() };
        assert_eq!(holds_lock(own, id), Some(false));
        flock(file.as_file(), FlockOperation::LockShared).unwrap();
        assert_eq!(holds_lock(own, id), Some(false));
        flock(file.as_file(), FlockOperation::LockExclusive).unwrap();
        assert_eq!(holds_lock(own, id), Some(true));
        assert_eq!(real_user(own), Some(rustix::process::getuid().as_raw()));
    }

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
