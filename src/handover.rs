//! What one plugd hands to the next one, which takes its place in the same
//! process: its state, as text.
//!
//! Pure. File descriptors are numbers here; they stay open across execve(2).
#![forbid(unsafe_code)]

mod text;

use std::os::fd::RawFd;
use std::time::Duration;

use crate::counters::Counters;
use crate::inventory::Trust;
use crate::machine::{State, Time};
use crate::recovery::Cause;

/// Tells the next plugd where its predecessor's state is: `PID:FD`.
pub const VARIABLE: &str = "PLUGD_HANDOVER";

/// What the variable holds instead if the program is only to tell, by its exit
/// code, whether it could go on: with these options and this configuration.
pub const REHEARSAL: &str = "rehearsal";

/// What it says then, before it ends with 0: it reads what such a one writes.
pub const REHEARSED: &str = MAGIC;

/// Begins the text.
const MAGIC: &str = "plugd-handover 1";

/// The state of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// The version of plugd that it comes from.
    pub version: String,
    /// Where that is, as it was named at the start.
    pub file: Option<Vec<u8>>,
    /// When the daemon was started, by CLOCK_MONOTONIC. All times count from there.
    pub started: Duration,
    /// What it is doing; never `Acting` or `Done`.
    pub state: State,
    /// It reads nothing for now.
    pub paused: bool,
    /// What it has counted.
    pub counters: Counters,
    /// The sockets that bring events.
    pub sources: Vec<RawFd>,
    /// The event in hand; there is one unless the state is `Reading`.
    pub event: Option<InHand>,
    /// The pidfd and the process id of the running program.
    pub child: Option<(RawFd, i32)>,
    /// The listening control socket.
    pub listener: Option<Listener>,
    /// Who is connected to it.
    pub clients: Vec<Client>,
    /// The level of logging that was chosen at run time.
    pub log_level: Option<String>,
    /// The files that the rules in force come from, if they do: their names and text.
    pub rules_of_files: Option<Vec<(String, Vec<u8>)>>,
    /// The limit of open files (soft, hard) that children get.
    pub open_files: Option<(u64, u64)>,
    /// Where events are written that were acted on, and what there was no room for.
    pub output: Option<(RawFd, Vec<u8>)>,
    /// What is known of devices: the state file, mapped and locked.
    pub state_file: Option<RawFd>,
    /// Or a file in memory, to be read.
    pub inventory: Option<RawFd>,
    /// How far that can be trusted.
    pub trust: Trust,
    /// The kernel's count of dropped events at the moment since when none is missing.
    pub drops: u64,
    /// What was being made up for; that is begun anew.
    pub unfinished: Option<(Cause, bool)>,
    /// An event that waits until the one in hand has been acted on, and the socket
    /// that it came from.
    pub held_back: Option<(usize, Vec<u8>)>,
}

/// An event that is being acted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InHand {
    /// Which of the sockets it came from; `None`: it makes up for one that was
    /// missed.
    pub source: Option<usize>,
    /// The bytes received.
    pub datagram: Vec<u8>,
    /// How many of its steps have been carried out.
    pub steps_done: usize,
    /// The text of the one that is being carried out: the rules may be others now.
    pub step: String,
    /// One of them failed.
    pub failed: bool,
    /// When it was read.
    pub since: Time,
}

/// The control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// It.
    pub fd: RawFd,
    /// Its file, if it has one: device and inode. By now there may be another one at
    /// its path.
    pub file: Option<(u64, u64)>,
}

/// A client of the control socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its socket.
    pub fd: RawFd,
    /// What it said and was not answered.
    pub input: Vec<u8>,
    /// What it has still to hear.
    pub output: Vec<u8>,
    /// It is sent away when it has heard that.
    pub last_words: bool,
    /// The first thing it said was the request for the update.
    pub asked_for_update: bool,
    /// When that has to be answered at the latest, if it waits for something.
    pub until: Option<Time>,
}

/// Why a text cannot be read: its line, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable(pub String);

impl Handover {
    /// All file descriptors that are handed over.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        let clients = self.clients.iter().map(|client| client.fd);
        let child = self.child.map(|(pidfd, _)| pidfd);
        let listener = self.listener.map(|listener| listener.fd);
        let output = self.output.as_ref().map(|(fd, _)| *fd);
        let few = child.into_iter().chain(listener).chain(output);
        let few = few.chain(self.state_file).chain(self.inventory);
        self.sources.iter().copied().chain(few).chain(clients)
    }
}

/// The descriptor that the variable's value names, if it is meant for the
/// process `pid`; else it is left over from an ancestor.
pub fn descriptor(value: &str, pid: u32) -> Option<RawFd> {
    let (owner, fd) = value.split_once(':')?;
    (owner == pid.to_string()).then(|| fd.parse().ok())?
}

#[cfg(test)]
mod tests;
