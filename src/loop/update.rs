//! The update in place: the daemon executes its own file anew, and the new
//! program goes on where the old one was, in the same process.
//!
//! First the file is asked for its version, then with plugd's own arguments,
//! state and sockets whether it could go on: that costs nothing if it does not
//! start, finds a mistake in its rules, or cannot read the state. Then everything is
//! handed over: the sockets and the child stay open and keep their numbers, the rest
//! is text in a file in memory ([`crate::handover`]). It remains one process, so the
//! child has its parent all the time; signals wait meanwhile, as events do.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, stat};
use rustix::io::FdFlags;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open, waitid,
};
use rustix::time::{ClockId, clock_gettime};

use crate::child::{self, Child};
use crate::control::server::{Id, Server};
use crate::control::wire::Reply;
use crate::error::{Fatal, reason};
use crate::handover::{self, Handover, InHand, Unreadable};
use crate::logging;
use crate::machine::{State, Stop, Time};
use crate::rules;
use crate::state_file::Store;
use crate::sys;

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

/// The new program, asked a question.
#[derive(Debug)]
pub(super) struct Probe {
    question: Question,
    child: process::Child,
    pidfd: OwnedFd,
    deadline: Time,
}

/// What the new program is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Question {
    /// Its version.
    Version,
    /// Whether it could go on; it has this version.
    Rehearsal(String),
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

    /// Ends the new program, if one is asked, with all that it has started, and tells
    /// how it ended. Closing the pidfd, of which there is no other copy, unregisters it.
    pub(super) fn end_probe(&mut self) -> Option<(Probe, io::Result<ExitStatus>)> {
        let mut probe = self.update.probe.take()?;
        // The group's id cannot have been recycled: its leader is not yet reaped.
        let _ = kill_process_group(Pid::from_child(&probe.child), Signal::KILL);
        // It may have left its group. Either way this does not take long.
        let _ = probe.child.kill();
        let status = probe.child.wait();
        Some((probe, status))
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

    /// As much of that as can be tried out by a program that takes over nothing: the
    /// sockets for events, as if none were in hand.
    fn rehearsed(&self) -> Handover {
        Handover {
            state: State::Reading,
            child: None,
            listener: None,
            clients: Vec::new(),
            output: None,
            state_file: None,
            ..self.hand_over(None, None)
        }
    }

    fn hand_over(&self, deed: Option<&Deed<'_>>, copy: Option<&File>) -> Handover {
        let (level, chosen) = logging::current();
        let open = || self.sources.iter().filter(|watched| !watched.ended);
        // Those that have ended are not handed over.
        let open_before =
            |source| self.sources[..source].iter().filter(|watched| !watched.ended).count();
        let event = deed.map(|deed| InHand {
            source: deed.source.map(open_before),
            datagram: deed.datagram.to_vec(),
            steps_done: deed.steps.done(),
            step: deed.step().map(|step| step.to_string()).unwrap_or_default(),
            failed: deed.failed,
            since: deed.since,
        });
        let control = self.control.as_ref();
        Handover {
            version: env!("CARGO_PKG_VERSION").into(),
            file: self.update.file.as_ref().map(|file| file.as_os_str().as_bytes().to_vec()),
            started: self.update.started,
            state: self.machine.state(),
            paused: self.machine.is_paused(),
            counters: self.counters,
            sources: open().map(|watched| watched.source.as_raw_fd()).collect(),
            event,
            child: self.child.as_ref().map(|child| (child.as_raw_fd(), child.pid())),
            listener: control.map(Server::listener),
            clients: control
                .map(|c| c.hand_over(&self.update.clients, |id| self.requests.deadline_of(id)))
                .unwrap_or_default(),
            log_level: chosen.then(|| level.into()),
            rules_of_files: self.rules_of_files.as_deref().map(rules::texts),
            open_files: control.and_then(Server::open_files),
            output: self.outlets.output.as_ref().map(|o| (o.as_raw_fd(), o.rest().to_vec())),
            state_file: match self.recovery.inventory.storage() {
                Store::File(file) => Some(file.as_raw_fd()),
                Store::Memory(_) => None,
            },
            inventory: copy.map(AsRawFd::as_raw_fd),
            trust: self.recovery.trust,
            drops: self.recovery.baseline,
            unfinished: self.recovery.unfinished(),
            held_back: self
                .recovery
                .held_back
                .as_ref()
                .map(|(source, datagram)| (open_before(*source), datagram.clone())),
        }
    }

    /// What is known of devices, in a file in memory, if it is in none already.
    fn copy_inventory(&self) -> io::Result<Option<File>> {
        let Store::Memory(bytes) = self.recovery.inventory.storage() else { return Ok(None) };
        let memory = rustix::fs::memfd_create("plugd-inventory", MemfdFlags::CLOEXEC)?;
        let mut memory = File::from(memory);
        memory.write_all(bytes)?;
        Ok(Some(memory))
    }

    /// Goes on where the plugd before this one was. The sockets for events,
    /// and the one that listens, were given to [`Daemon::new`].
    ///
    /// # Errors
    /// If the child's descriptor cannot be taken over.
    pub fn resume(&mut self, handover: Handover) -> Result<(), Fatal> {
        let age = monotonic().saturating_sub(handover.started);
        self.started = Instant::now().checked_sub(age).unwrap_or(self.started);
        self.update.started = handover.started;
        if let Some(file) = handover.file {
            self.update.file = Some(OsString::from_vec(file).into());
        }
        if let Some((pidfd, pid)) = handover.child {
            let child = sys::adopt(pidfd).and_then(|pidfd| Child::resume(pidfd, pid));
            let child = child.map_err(|e| Fatal::system("go on with the running program", e))?;
            self.watch_child(&child);
            self.child = Some(child);
        }
        self.machine.resume(handover.state, handover.paused);
        self.recovery.baseline = handover.drops;
        self.recovery.resume(handover.trust, handover.unfinished, self.now());
        self.recovery.held_back = handover.held_back;
        self.counters = handover.counters;
        self.resumed = handover.event;
        self.notifier.was_ready();
        if let Some(level) = handover.log_level.as_deref().and_then(logging::level) {
            logging::set_level(level);
        }
        if let Some(limit) = handover.open_files {
            self.spawner.limit_open_files(limit);
        }
        let (now, own) = (self.now(), env!("CARGO_PKG_VERSION"));
        let text = format!("updated from version {} to {own}", handover.version);
        log::info!("{text}");
        if let Some(control) = &mut self.control {
            let registry = self.poll.registry();
            let told = control.resume(handover.clients, handover.open_files, registry, now);
            told.into_iter().for_each(|id| control.reply(id, &Reply::ok(&*text), now));
        }
        Ok(())
    }
}

impl Probe {
    fn start(file: &Path, question: Question, stdin: Stdio, deadline: Time) -> io::Result<Self> {
        let mut command = Command::new(file);
        match question {
            // It may be anything: it hears nothing and is not heard.
            Question::Version => {
                command.arg("--version").stdout(Stdio::piped()).stderr(Stdio::null());
            }
            // It is a plugd, and may say what is wrong.
            Question::Rehearsal(_) => {
                let mut arguments = std::env::args_os();
                command.arg0(arguments.next().unwrap_or_default()).args(arguments);
                command.env(handover::VARIABLE, handover::REHEARSAL).stdout(Stdio::piped());
            }
        }
        let mut child = command.stdin(stdin).process_group(0).spawn()?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { question, child, pidfd, deadline }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::PidFd(self.pidfd.as_fd()), options), Ok(Some(_)))
    }

    /// The first line that it said, now that it has ended. Somebody else may
    /// still have its output open: that is not waited for.
    fn said(&mut self) -> String {
        let mut text = [0; 200];
        let length = self.child.stdout.take().and_then(|mut stdout| {
            rustix::io::ioctl_fionbio(&stdout, true).ok()?;
            stdout.read(&mut text).ok()
        });
        let said = String::from_utf8_lossy(&text[..length.unwrap_or(0)]);
        said.lines().next().unwrap_or_default().to_owned()
    }
}

/// Whether this program is only to tell whether it could go on where another
/// plugd is.
pub fn is_rehearsal() -> bool {
    std::env::var_os(handover::VARIABLE).is_some_and(|value| value == handover::REHEARSAL)
}

/// Takes the state that the plugd before this one left, if there was one; in a
/// rehearsal, what that one would leave, if it says so.
///
/// # Errors
/// If it cannot be read.
pub fn inherited() -> Result<Option<Handover>, Fatal> {
    let fail = |error| Fatal::system("read what the plugd before this one left", error);
    let Some(value) = std::env::var_os(handover::VARIABLE) else { return Ok(None) };
    let fd = match value.to_str() {
        Some(handover::REHEARSAL) => Some(0),
        value => value.and_then(|value| handover::descriptor(value, process::id())),
    };
    let Some(fd) = fd else { return Ok(None) };
    let mut memory = File::from(sys::adopt(fd).map_err(fail)?);
    let mut text = String::new();
    memory.rewind().and_then(|()| memory.read_to_string(&mut text)).map_err(fail)?;
    // One that says nothing about it gives /dev/null.
    if text.is_empty() && is_rehearsal() {
        return Ok(None);
    }
    Handover::parse(&text).map(Some).map_err(|Unreadable(why)| fail(io::Error::other(why)))
}

/// The state as a file, at its beginning.
fn in_memory(handover: &Handover) -> io::Result<File> {
    let memory = rustix::fs::memfd_create("plugd-handover", MemfdFlags::CLOEXEC)?;
    let mut memory = File::from(memory);
    memory.write_all(handover.to_text().as_bytes())?;
    memory.rewind()?;
    Ok(memory)
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
