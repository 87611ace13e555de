//! The update in place: the daemon executes its own file anew, and the new
//! program goes on where the old one was, in the same process.
//!
//! First the file is asked for its version, then with plugd's own arguments,
//! state and sockets whether it could go on: that costs nothing if it does not
//! start, finds a mistake in its rules, or cannot read the state. Then everything is
//! handed over: the sockets and the child stay open and keep their numbers, the rest
//! is text in a file in memory ([`crate::handover`]). It remains one process, so the
//! child has its parent all the time; signals wait meanwhile, as events do.

mod probe;
mod state;

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{self, ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::stat;
use rustix::io::FdFlags;
use rustix::time::{ClockId, clock_gettime};

use crate::child;
use crate::control::server::Id;
use crate::control::wire::Reply;
use crate::error::reason;
use crate::handover::{self, Handover};
use crate::machine::{State, Stop, Time};
use crate::sys;

use self::probe::{Probe, Question};
use self::state::in_memory;
pub use self::state::{inherited, is_rehearsal};
use super::{Daemon, Deed, Watch, register};

/// How long the new program may take to answer each question.
const PATIENCE: Duration = Duration::from_secs(5);

/// An update, from the wish to the deed.
#[derive(Debug)]
pub(super) struct Update {
    /// The command line, executed once more, would go on with what is there.
    allowed: bool,
    /// plugd's own file: its path, as it was at the start.
    file: Option<PathBuf>,
    probe: Option<Probe>,
    /// The probe may have ended.
    pub(super) ready: bool,
    /// It has this version; the update is to be done as soon as can be.
    due: Option<String>,
    /// Who is to be told how it went.
    clients: Vec<Id>,
    /// When the first plugd of the line was started, by CLOCK_MONOTONIC.
    started: Duration,
}

impl Update {
    pub(super) fn new(allowed: bool) -> Self {
        Self {
            allowed,
            file: own_file(),
            probe: None,
            ready: false,
            due: None,
            clients: Vec::new(),
            started: monotonic(),
        }
    }

    /// Whether a new version is being tried: a child that is none of an event's.
    pub(super) fn is_probing(&self) -> bool {
        self.probe.is_some()
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.probe.as_ref().map(|probe| probe.deadline)
    }

    /// This client is to be told how it went.
    pub(super) fn tell(&mut self, id: Id) {
        self.clients.push(id);
    }

    pub(super) fn forget(&mut self, id: Id) {
        self.clients.retain(|client| *client != id);
    }
}

impl Daemon {
    /// Asks the new program for its version, unless it was asked already.
    pub(super) fn begin_update(&mut self) -> Result<String, String> {
        if !self.may_update() {
            return Err("plugd is stopping".into());
        }
        if !self.update.allowed {
            return Err(
                "not with --daemonize, --pid-file, --user and the like, or relative paths of rules"
                    .into(),
            );
        }
        let Some(file) = &self.update.file else {
            return Err("plugd could not find out what file it is when it was started".into());
        };
        let text = format!("asking {} for its version", file.as_os_str().as_bytes().escape_ascii());
        if self.update.probe.is_none() && self.update.due.is_none() {
            self.probe(Question::Version).map_err(|error| reason(&error))?;
        }
        Ok(text)
    }

    fn probe(&mut self, question: Question) -> io::Result<()> {
        let file = self.update.file.as_deref().unwrap_or(Path::new(""));
        let deadline = self.now() + PATIENCE;
        let probe = match question {
            Question::Version => Probe::start(file, question, Stdio::null(), deadline)?,
            Question::Rehearsal(_) => {
                let handover = self.rehearsed();
                let memory = in_memory(&handover)?;
                // For a moment: nothing else is started meanwhile.
                sys::keep_across_exec(handover.fds(), true)?;
                let probe = Probe::start(file, question, memory.into(), deadline);
                sys::keep_across_exec(handover.fds(), false)?;
                probe?
            }
        };
        let watched = register(self.poll.registry(), &probe.pidfd, &Watch::Probe);
        self.update.probe = Some(probe);
        if watched.is_err() {
            self.end_probe();
        }
        watched
    }

    fn may_update(&self) -> bool {
        match self.machine.state() {
            State::Reading | State::Retrying { .. } => true,
            State::Acting { stop, .. } | State::Running { stop, .. } => stop == Stop::No,
            State::Done => false,
        }
    }

    /// Looks whether the new program has answered.
    pub(super) fn check_probe(&mut self) {
        let ready = std::mem::take(&mut self.update.ready);
        let late = self.update.deadline().is_some_and(|at| at <= self.now());
        let Some(probe) = &self.update.probe else { return };
        if !ready && !late {
            return;
        }
        let ended = probe.has_ended();
        if !ended && !late {
            return;
        }
        let Some((mut probe, status)) = self.end_probe() else { return };
        let question = probe.question.clone();
        let asked = match question {
            Question::Version => "asked for its version, it",
            Question::Rehearsal(_) => "started to try whether it could go on, it",
        };
        let answer = match status {
            _ if !ended => Err(format!("{asked} took longer than {} s", PATIENCE.as_secs())),
            Ok(status) if !status.success() => Err(format!("{asked} ended with {status}")),
            Ok(_) => Ok(probe.said()),
            Err(error) => Err(reason(&error)),
        };
        let outcome = match (answer, question) {
            (Err(why), _) => Err(why),
            (Ok(said), Question::Rehearsal(version)) if said == handover::REHEARSED => {
                self.update.due = Some(version);
                Ok(())
            }
            (Ok(_), Question::Rehearsal(_)) => Err("it is no plugd that could go on".into()),
            (Ok(said), Question::Version) => match said.strip_prefix("plugd ") {
                Some(version) => {
                    self.probe(Question::Rehearsal(version.into())).map_err(|error| reason(&error))
                }
                None => Err(format!("{asked} said '{}'", said.escape_debug())),
            },
        };
        if let Err(why) = outcome {
            self.refuse_update(&why);
        }
    }

    /// Ends the new program, if one is asked, and tells how it ended. Closing the pidfd,
    /// of which there is no other copy, unregisters it.
    pub(super) fn end_probe(&mut self) -> Option<(Probe, io::Result<ExitStatus>)> {
        self.update.probe.take().map(Probe::end)
    }

    fn refuse_update(&mut self, why: &str) {
        self.update.due = None;
        log::error!("not updated, plugd goes on as it is: {why}");
        let now = self.now();
        let Some(control) = &mut self.control else { return };
        for id in std::mem::take(&mut self.update.clients) {
            control.reply(id, &Reply::no(format!("not updated: {why}")), now);
        }
    }

    /// Becomes the new program if that is due. To be called where no input
    /// waits for the machine; `deed` is what is being done. Returns whether
    /// something happened, an input perhaps.
    pub(super) fn update_if_due(&mut self, deed: Option<&Deed<'_>>) -> bool {
        if self.update.due.is_none() {
            return false;
        }
        if !self.may_update() {
            self.refuse_update("plugd is stopping");
            return true;
        }
        if let Err(error) = sys::block_signals() {
            self.refuse_update(&reason(&error));
            return true;
        }
        // Still due: another request for it means this one.
        self.take_signals(deed);
        // What they ask for comes first.
        let version = if self.inbox.is_empty() { self.update.due.take() } else { None };
        let error = version.map(|version| {
            log::info!("updating to version {version}");
            self.become_new(deed)
        });
        if let Err(error) = sys::normalize_signals() {
            log::error!("cannot unblock signals: {}", reason(&error));
        }
        if let Some(error) = error {
            self.refuse_update(&reason(&error));
        }
        true
    }

    /// Returns only if that fails.
    fn become_new(&mut self, deed: Option<&Deed<'_>>) -> io::Error {
        let copy = match self.copy_inventory() {
            Ok(copy) => copy,
            Err(error) => return error,
        };
        let handover = self.hand_over(deed, copy.as_ref());
        let Err(error) = self.execute(&handover);
        if let Err(error) = sys::keep_across_exec(handover.fds(), false) {
            log::error!("cannot set file descriptors close-on-exec: {}", reason(&error));
        }
        error
    }

    fn execute(&self, handover: &Handover) -> io::Result<Infallible> {
        let memory = in_memory(handover)?;
        rustix::io::fcntl_setfd(&memory, FdFlags::empty())?;
        sys::keep_across_exec(handover.fds(), true)?;

        let file = self.update.file.as_deref().unwrap_or(Path::new(""));
        let file = CString::new(file.as_os_str().as_bytes())?;
        let arguments = strings(std::env::args_os())?;
        let name = format!("{}=", handover::VARIABLE);
        let value = format!("{}:{}", process::id(), memory.as_raw_fd());
        let mut environment = sys::environment();
        environment.retain(|string| !string.to_bytes().starts_with(name.as_bytes()));
        environment.push(CString::new(name + &value)?);
        let strings = |strings| <[CString]>::iter(strings).map(CString::as_c_str);
        Err(sys::execute(&file, strings(&arguments), strings(&environment)))
    }
}

fn strings(strings: impl Iterator<Item = OsString>) -> io::Result<Vec<CString>> {
    strings.map(|string| Ok(CString::new(string.as_bytes())?)).collect()
}

/// Where this program's file was when it was started, and where a new version
/// of it will be.
fn own_file() -> Option<PathBuf> {
    named_file().or_else(|| {
        let file = std::env::current_exe().ok()?;
        // It may have been replaced since (proc_pid_exe(5)).
        let replaced = file.as_os_str().as_bytes().strip_suffix(b" (deleted)");
        let replacement = replaced.map(|bytes| PathBuf::from(OsStr::from_bytes(bytes)));
        Some(replacement.filter(|file| file.exists()).unwrap_or(file))
    })
}

/// That file as it was named, if that is a path from anywhere: there may be links in
/// it, which will lead to a new version.
fn named_file() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let file = child::find_program(&std::env::args_os().next()?, &path).ok()?;
    let file = PathBuf::from(OsStr::from_bytes(file.as_bytes()));
    let identity = |file: &Path| stat(file).map(|status| (status.st_dev, status.st_ino)).ok();
    let is_own = identity(&file)? == identity(Path::new("/proc/self/exe"))?;
    (is_own && file.is_absolute()).then_some(file)
}

fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let (seconds, nanoseconds) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanoseconds.unwrap_or(0))
}
