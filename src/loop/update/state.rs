//! What an update leaves to the new program: gathered by the plugd that goes, taken by
//! the one that comes. Its text is in [`crate::handover`].

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process;
use std::time::Instant;

use rustix::fs::MemfdFlags;

use crate::child::Child;
use crate::control::server::Server;
use crate::control::wire::Reply;
use crate::error::Fatal;
use crate::handover::{self, Handover, InHand, Unreadable};
use crate::logging;
use crate::machine::State;
use crate::rules;
use crate::state_file::Store;
use crate::sys;

use super::monotonic;
use crate::r#loop::{Daemon, Deed};

impl Daemon {
    /// All of it; `deed` is what is being done, `copy` what is known of devices, where that
    /// is in no file.
    pub(super) fn hand_over(&self, deed: Option<&Deed<'_>>, copy: Option<&File>) -> Handover {
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

    /// As much of that as can be tried out by a program that takes over nothing: the
    /// sockets for events, as if none were in hand.
    pub(super) fn rehearsed(&self) -> Handover {
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

    /// What is known of devices, in a file in memory, if it is in none already.
    pub(super) fn copy_inventory(&self) -> io::Result<Option<File>> {
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

/// The state as a file, at its beginning.
pub(super) fn in_memory(handover: &Handover) -> io::Result<File> {
    let memory = rustix::fs::memfd_create("plugd-handover", MemfdFlags::CLOEXEC)?;
    let mut memory = File::from(memory);
    memory.write_all(handover.to_text().as_bytes())?;
    memory.rewind()?;
    Ok(memory)
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
