//! How the daemon makes up for what it missed: at its start, after an overrun,
//! and when it is asked to. [`crate::recovery`] and [`crate::inventory`] decide;
//! here is what they are told, and what becomes of it.
//!
//! After an overrun, what was queued at that moment is acted on first. From then
//! on, unless the kernel's count of drops moves again, the events that wait have
//! no gaps: so those that come after the scan can be judged by it. Removals and
//! additions are then replayed while nothing is read; changes take turns with
//! the events that come. At the end the count of drops tells whether it was in
//! vain. The kernel does not tell of each drop: after the first one it is silent
//! until the queue was empty (netlink_overrun in net/netlink/af_netlink.c).

mod fresh;
mod interfaces;
mod replay;
mod state;
mod trigger;

use std::path::PathBuf;
use std::time::Duration;

use crate::control::wire::Reply;
use crate::inventory::{Inventory, Progress, Trust, Verdict};
use crate::machine::Time;
use crate::netlink::LEAST_COST;
use crate::recovery::{self, Cause, Changes};
use crate::state_file::Store;
use crate::sys;
use crate::sysfs::Sysfs;
use crate::uevent::Uevent;

use self::interfaces::Moves;
use self::replay::{Replay, Stage};
use self::state::Phase;
pub(super) use self::state::Recovery;
use super::Daemon;

/// How many devices are looked at, or asked for, before something else may get its
/// turn.
const AT_ONCE: usize = 16;

/// The kernel takes a device out of the lists, sends its last event, and then takes
/// it out of sysfs (device_del in drivers/base/core.c): what is listed has an event
/// to come, and what is not, but is there, is gone before so long.
const DOUBT: Duration = Duration::from_secs(1);

/// What there is to begin with.
#[derive(Debug)]
pub struct Settings {
    /// Where sysfs is, from any working directory.
    pub sys: PathBuf,
    /// What is known.
    pub inventory: Inventory<Store>,
    /// What to do first.
    pub start: Start,
    /// Of which devices a change is replayed.
    pub changes: Changes,
    /// Whether events are left out that a scan has overtaken.
    pub judges: bool,
}

/// What is done before the first event is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Nothing.
    Nothing,
    /// The devices that are there are compared with those that are known.
    Scan(Cause),
    /// The kernel is asked to tell of all devices.
    Trigger,
    /// What the plugd before this one had not done.
    Resume,
}

/// What comes next.
pub(super) enum Recovered {
    /// An event from a socket, if there is one.
    Proceed,
    /// Something has changed; nothing has come of it yet.
    Again,
    /// That many bytes of the buffer are an event to act on.
    Event(usize),
}

impl Daemon {
    /// Whether there is a socket for the kernel's uevents, without which nothing
    /// can be missed.
    pub(super) fn has_kernel_source(&self) -> bool {
        self.sources.iter().any(|watched| watched.is_kernels)
    }

    /// What is to be done with an event from the source with this index. If
    /// another one goes before it, that is written to `first`.
    pub(super) fn judge(
        &mut self,
        source: usize,
        event: &Uevent<'_>,
        first: &mut Vec<u8>,
    ) -> Verdict {
        if !self.is_tracked(Some(source), event) || !self.recovery.judges {
            return Verdict::Act;
        }
        let recovery = &mut self.recovery;
        match recovery.inventory.judge(event, recovery.trust) {
            Verdict::StaleIfListed => {
                let subsystem = event.subsystem().unwrap_or_default();
                match Sysfs::open(&recovery.sys) {
                    Ok(sys) if sys.lists(subsystem) => Verdict::Stale,
                    _ => Verdict::Act,
                }
            }
            Verdict::StaleIfSame => {
                let path = event.path().unwrap_or_default();
                let known = recovery.inventory.get(path).map(|known| known.incarnation);
                match Sysfs::open(&recovery.sys).ok().and_then(|sys| sys.incarnation(path)) {
                    Some(found) if known == Some(found) => Verdict::Stale,
                    _ => Verdict::Act,
                }
            }
            Verdict::RemoveFirst => {
                let known = recovery.inventory.first_to_go(event);
                let Some(known) = known else { return Verdict::Act };
                recovery::write_event(first, "remove", known.path, known.identity);
                let last = match recovery.trust {
                    Trust::Scanned { last } => last,
                    Trust::Unscanned | Trust::Lossy => None,
                };
                recovery::mark(first, Cause::Overrun, last);
                Verdict::RemoveFirst
            }
            // What is below it may not have been found, on its way.
            Verdict::Act
                if event.action() == Some(b"move")
                    && recovery.trust != Trust::Lossy
                    && self.started.elapsed() < recovery.in_doubt =>
            {
                Verdict::ActAndCompare
            }
            verdict => verdict,
        }
    }

    /// The kernel dropped events.
    pub(super) fn note_overrun(&mut self, source: usize) {
        if !self.sources[source].is_kernels {
            return;
        }
        self.recovery.congested = true;
        self.compare_again(Cause::Overrun);
    }

    /// What is known is not to be trusted any more: events were lost, or, if that is
    /// not the cause, what was found may have been about to change.
    pub(super) fn compare_again(&mut self, cause: Cause) {
        let now = self.now();
        let recovery = &mut self.recovery;
        recovery.trust = Trust::Lossy;
        recovery.again = true;
        recovery.changes_missed |= cause == Cause::Overrun;
        recovery.lost |= cause == Cause::Overrun;
        recovery.inventory.set_progress(Progress::Unknown);
        self.requests.lost();
        if cause != Cause::Overrun {
            self.requests.doubted();
        }
        if matches!(recovery.phase, Phase::Quiet | Phase::Doubting { .. }) {
            let until = recovery.pace.next(now);
            recovery.phase = Phase::Waiting { cause, until };
        }
    }

    /// Somebody wants the devices to be compared.
    ///
    /// # Errors
    /// Why that cannot be.
    pub(super) fn begin_rescan(&mut self) -> Result<(), &'static str> {
        if !self.has_kernel_source() {
            return Err("there is no socket for the kernel's events");
        }
        let (now, recovery) = (self.now(), &mut self.recovery);
        recovery.changes_missed = true;
        match &mut recovery.phase {
            Phase::Quiet | Phase::Doubting { .. } => {
                recovery.phase = Phase::Waiting { cause: Cause::Rescan, until: now };
            }
            Phase::Waiting { until, .. } => *until = now.min(*until),
            Phase::Draining { .. } => {}
            // What it has seen may be of before.
            Phase::Finding(_) | Phase::Triggering(_) | Phase::Replaying(_) => {
                recovery.again = true;
            }
        }
        self.mark_sources_ready();
        Ok(())
    }

    /// Goes on with what is to be made up for.
    pub(super) fn recover(&mut self, buffer: &mut [u8]) -> Recovered {
        // Only where the kernel's events come from can anything be missed.
        let idle = !self.sources.iter().any(|watched| watched.is_kernels && watched.ready);
        if idle && !self.recovery.is_scanning() {
            self.recovery.overtaken = false;
        }
        match std::mem::replace(&mut self.recovery.phase, Phase::Quiet) {
            Phase::Quiet if idle && self.recovery.congested => {
                self.end_congestion();
                Recovered::Again
            }
            Phase::Quiet => self.look_up_fresh(idle),
            Phase::Doubting { replay, until } => self.doubt(replay, until, idle),
            Phase::Waiting { cause, until } if until > self.now() => {
                self.recovery.phase = Phase::Waiting { cause, until };
                Recovered::Proceed
            }
            Phase::Waiting { cause, .. } => {
                let (queued, drops) = self.queue();
                self.recovery.baseline = drops;
                self.recovery.again = false;
                let left = match cause {
                    // What is queued may wait: there is no gap before it, nor in it.
                    Cause::Coldplug | Cause::Restart if drops == 0 => 0,
                    _ => queued / LEAST_COST + 1,
                };
                self.recovery.phase = Phase::Draining { cause, left };
                Recovered::Again
            }
            Phase::Draining { cause, left } if left > 0 && !idle => {
                self.recovery.phase = Phase::Draining { cause, left };
                Recovered::Proceed
            }
            Phase::Draining { cause, .. } => {
                let triggers = self.recovery.start == Start::Trigger;
                if self.find(cause, triggers) && triggers {
                    self.recovery.start = Start::Nothing;
                }
                Recovered::Again
            }
            Phase::Finding(mut finding) => {
                if finding.search.go_on() {
                    self.recovery.phase = Phase::Finding(finding);
                } else {
                    self.have_found(*finding);
                }
                Recovered::Again
            }
            Phase::Triggering(triggering) if idle || triggering.left == 0 => {
                self.trigger(triggering);
                Recovered::Again
            }
            Phase::Triggering(triggering) => {
                self.recovery.phase = Phase::Triggering(triggering);
                Recovered::Proceed
            }
            Phase::Replaying(replay) => self.replay(replay, idle, buffer),
        }
    }

    /// The queue is empty: from now on the kernel tells of the next drop.
    fn end_congestion(&mut self) {
        self.recovery.congested = false;
        if self.queue().1 != self.recovery.baseline {
            self.compare_again(Cause::Overrun);
        }
        self.recovery.tell_progress();
    }

    /// Whether events may have been dropped that are not made up for.
    pub(super) fn is_lossy(&self) -> bool {
        let recovery = &self.recovery;
        // What is in doubt is not looked at before it goes on.
        let quiet = match recovery.phase {
            Phase::Quiet => true,
            Phase::Doubting { .. } => self.machine.is_paused(),
            _ => false,
        };
        !quiet || recovery.congested && self.queue().1 != recovery.baseline
    }

    /// Somebody waits for all to be settled: what is in doubt is looked at from now on.
    pub(super) fn hurry(&mut self) {
        let now = self.now();
        match &mut self.recovery.phase {
            Phase::Doubting { until, .. } => *until = now,
            Phase::Replaying(replay) => {
                if let Stage::Verify(next) = &mut replay.stage {
                    *next = 0;
                }
            }
            Phase::Quiet
            | Phase::Draining { .. }
            | Phase::Waiting { .. }
            | Phase::Finding(_)
            | Phase::Triggering(_) => {}
        }
    }

    fn doubt(&mut self, mut replay: Box<Replay>, until: Time, idle: bool) -> Recovered {
        if idle && self.recovery.congested {
            self.end_congestion();
            if !matches!(self.recovery.phase, Phase::Quiet) {
                return Recovered::Again;
            }
        }
        if until > self.now() {
            self.recovery.phase = Phase::Doubting { replay, until };
            return if idle { self.look_up_fresh(idle) } else { Recovered::Proceed };
        }
        replay.stage = Stage::Verify(0);
        self.recovery.phase = Phase::Replaying(replay);
        Recovered::Again
    }

    /// How much waits in the kernel, in bytes, and how many drops it has counted.
    fn queue(&self) -> (u64, u64) {
        let memory = self.sources.iter().filter(|watched| watched.is_kernels);
        let memory = memory.filter_map(|watched| sys::socket_memory(&watched.source).ok());
        memory.fold((0, 0), |(queued, drops), memory| {
            (queued + u64::from(memory.queued), drops + u64::from(memory.drops))
        })
    }

    /// Finds out whether that is all; `number` is its own.
    fn end_recovery(&mut self, number: u64) {
        let (now, (_, drops)) = (self.now(), self.queue());
        let recovery = &mut self.recovery;
        let all = !recovery.again && drops == recovery.baseline;
        recovery.moves = Moves::new();
        recovery.pace.ended(now, all);
        if !all {
            recovery.trust = Trust::Lossy;
            let lost = drops != recovery.baseline;
            recovery.changes_missed |= lost;
            recovery.lost |= lost;
            let cause = if recovery.lost { Cause::Overrun } else { Cause::Rescan };
            let until = recovery.pace.next(now);
            recovery.phase = Phase::Waiting { cause, until };
        } else {
            recovery.phase = Phase::Quiet;
            recovery.changes_missed = false;
            recovery.lost = false;
            recovery.short = false;
            recovery.tell_progress();
        }
        let mut late = std::mem::take(&mut recovery.late_clients);
        let mut clients = std::mem::take(&mut recovery.clients);
        if all {
            clients.append(&mut late);
        }
        recovery.clients = late;
        self.requests.made_up(number, all);
        self.answer_requests();
        self.mark_sources_ready();
        let (Some(control), text) = (&mut self.control, &*self.recovery.text) else { return };
        clients.into_iter().for_each(|id| control.reply(id, &Reply::ok(text), now));
    }

    /// Notes whether events were left that nobody will act on.
    pub(super) fn leave(&mut self) {
        if !self.recovery.has_file() {
            return;
        }
        let nothing_waits = |daemon: &Self| daemon.queue() == (0, daemon.recovery.baseline);
        if !self.recovery.is_exact() || !nothing_waits(self) {
            return;
        }
        loop {
            self.recovery.measure_fresh();
            if !nothing_waits(self) {
                return;
            }
            if !self.recovery.note_fresh() {
                break;
            }
        }
        let through = self.recovery.sequence.through();
        self.recovery.inventory.set_progress(Progress::Left(through));
    }
}
