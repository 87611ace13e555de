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
mod trigger;

use std::path::PathBuf;
use std::time::Duration;

use crate::control::server;
use crate::control::wire::Reply;
use crate::inventory::identity::Tracked;
use crate::inventory::{Inventory, Progress, Trust, Verdict};
use crate::machine::Time;
use crate::netlink::LEAST_COST;
use crate::recovery::{self, Cause, Changes, Pace, Sequence};
use crate::state_file::Store;
use crate::sys;
use crate::sysfs::Sysfs;
use crate::uevent::Uevent;

use self::fresh::{FRESH_FOR, Fresh};
use self::interfaces::Moves;
use self::replay::{Finding, Replay, Stage};
use self::trigger::Triggering;
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

/// How far the daemon is with making up for what it missed.
#[derive(Debug)]
pub(super) struct Recovery {
    sys: PathBuf,
    pub(super) inventory: Inventory<Store>,
    changes: Changes,
    judges: bool,
    start: Start,
    pub(super) trust: Trust,
    phase: Phase,
    pace: Pace,
    /// The kernel's count of drops at the moment since when there is no gap, if
    /// it has not moved.
    pub(super) baseline: u64,
    /// Events were lost since, or the whole is to be done again.
    again: bool,
    /// Events of devices that are known may have been lost.
    changes_missed: bool,
    /// Events were lost, and not all of that is made up for.
    lost: bool,
    /// The queue was not empty since the last scan, which may have overtaken what
    /// waits.
    overtaken: bool,
    /// How far the daemon before this one had come, until devices are compared.
    before: Option<Progress>,
    /// Until then, what moves may have been about to when it was listed.
    in_doubt: Time,
    moves: Moves,
    /// Which events were acted on.
    sequence: Sequence,
    /// The queue was not empty since events were lost: the kernel may have dropped
    /// more of them in silence.
    congested: bool,
    /// /sys could not be read, and that was told.
    unreadable: bool,
    /// There were too few descriptors, or too little memory, to look at all devices: until
    /// that is made up for, nobody helps with it.
    short: bool,
    fresh: Fresh,
    /// The incarnation of the device whose replayed event is in hand.
    incarnation: u64,
    /// An event that has to wait until another one was acted on.
    pub(super) held_back: Option<(usize, Vec<u8>)>,
    /// Who is to be told when it is done.
    clients: Vec<server::Id>,
    /// Who is to be told when the next one is done, as this one had begun before.
    late_clients: Vec<server::Id>,
    /// What they are told.
    text: String,
}

#[derive(Debug)]
enum Phase {
    /// There is nothing to make up for.
    Quiet,
    /// So many datagrams were queued when events were lost.
    Draining {
        cause: Cause,
        left: u64,
    },
    /// The storm lasts, or /sys cannot be read.
    Waiting {
        cause: Cause,
        until: Time,
    },
    /// All devices are being found.
    Finding(Box<Finding>),
    Triggering(Box<Triggering>),
    Replaying(Box<Replay>),
    /// All is done; but what was found may have been about to go, its last event
    /// sent before. That is looked at once more.
    Doubting {
        replay: Box<Replay>,
        until: Time,
    },
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

impl Recovery {
    pub(super) fn new(settings: Settings) -> Self {
        let Settings { sys, mut inventory, start, changes, judges } = settings;
        let before = inventory.progress();
        if start != Start::Resume {
            inventory.set_progress(Progress::Unknown);
        }
        let phase = match start {
            Start::Nothing | Start::Resume => Phase::Quiet,
            Start::Scan(cause) => Phase::Waiting { cause, until: Duration::ZERO },
            Start::Trigger => Phase::Waiting { cause: Cause::Coldplug, until: Duration::ZERO },
        };
        Self {
            sys,
            inventory,
            changes,
            judges,
            start,
            trust: match start {
                // What is known may be of what was there before.
                Start::Scan(Cause::Restart) => Trust::Lossy,
                _ => Trust::Unscanned,
            },
            phase,
            pace: Pace::new(),
            baseline: 0,
            again: false,
            changes_missed: false,
            lost: false,
            overtaken: false,
            before: Some(before),
            in_doubt: Time::ZERO,
            moves: Moves::new(),
            sequence: match before {
                Progress::Through(number) | Progress::Left(number) => Sequence::after(number),
                Progress::Unknown => Sequence::after(0),
            },
            congested: false,
            unreadable: false,
            short: false,
            fresh: Fresh::default(),
            incarnation: 0,
            held_back: None,
            clients: Vec::new(),
            late_clients: Vec::new(),
            text: String::new(),
        }
    }

    /// Whether a scan is under way, which overtakes what waits.
    fn is_scanning(&self) -> bool {
        let Phase::Replaying(replay) = &self.phase else { return false };
        !matches!(replay.stage, Stage::Change(_) | Stage::Verify(_))
    }

    /// Whether all that was missed is made up for, as far as is known.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.phase, Phase::Quiet | Phase::Doubting { .. }) && self.held_back.is_none()
    }

    /// What the next plugd has to do once more, and whether changes of devices may
    /// have been missed.
    pub(super) fn unfinished(&self) -> Option<(Cause, bool)> {
        let cause = match &self.phase {
            Phase::Quiet => return None,
            Phase::Draining { cause, .. } | Phase::Waiting { cause, .. } => *cause,
            Phase::Finding(finding) => finding.cause,
            Phase::Triggering(_) => Cause::Coldplug,
            Phase::Replaying(replay) | Phase::Doubting { replay, .. } => replay.cause,
        };
        let cause = if self.lost && cause == Cause::Rescan { Cause::Overrun } else { cause };
        Some((cause, self.changes_missed))
    }

    /// Goes on where another one was, if what that one knew could be taken over.
    pub(super) fn resume(&mut self, trust: Trust, unfinished: Option<(Cause, bool)>, now: Time) {
        if self.start != Start::Resume {
            return;
        }
        self.trust = trust;
        self.overtaken = matches!(trust, Trust::Scanned { .. });
        // The scan may have been just before.
        self.in_doubt = now + DOUBT;
        self.fresh.due = Some(now + FRESH_FOR);
        if let Some((cause, changes)) = unfinished {
            self.phase = Phase::Waiting { cause, until: Duration::ZERO };
            self.changes_missed = changes;
            self.lost = cause == Cause::Overrun;
        }
    }

    /// A program is about to be started, or there are no descriptors for a node. Where there
    /// is a limit of processes, a thread that waits until what it has read is asked for has
    /// the place of one; and next to a program, reading takes no time. Returns whether
    /// anything was given back by that.
    pub(super) fn read_alone(&mut self) -> bool {
        match &mut self.phase {
            Phase::Replaying(replay) => replay.read_alone(),
            _ => false,
        }
    }

    /// When to go on, at the latest.
    pub(super) fn deadline(&self) -> Option<Time> {
        match &self.phase {
            Phase::Quiet => self.fresh.due,
            Phase::Waiting { until, .. } => Some(*until),
            Phase::Doubting { until, .. } => {
                Some(self.fresh.due.map_or(*until, |at| at.min(*until)))
            }
            Phase::Draining { .. }
            | Phase::Finding(_)
            | Phase::Triggering(_)
            | Phase::Replaying(_) => None,
        }
    }

    /// A datagram was taken from the queue.
    pub(super) fn took_one(&mut self) {
        self.fresh.measured = false;
        match &mut self.phase {
            Phase::Draining { left, .. } => *left = left.saturating_sub(1),
            Phase::Replaying(replay) => replay.took_one(),
            Phase::Triggering(triggering) => triggering.left = triggering.left.saturating_sub(1),
            Phase::Quiet | Phase::Waiting { .. } | Phase::Finding(_) | Phase::Doubting { .. } => {}
        }
    }

    /// The event in `datagram` has to wait until another one was acted on.
    pub(super) fn hold_back(&mut self, source: Option<usize>, datagram: &[u8]) {
        self.held_back = source.map(|source| (source, datagram.to_vec()));
    }

    /// Puts the event that has waited into the buffer.
    pub(super) fn take_held_back(&mut self, buffer: &mut [u8]) -> Option<(usize, usize)> {
        let (source, datagram) = self.held_back.take()?;
        buffer.get_mut(..datagram.len())?.copy_from_slice(&datagram);
        Some((source, datagram.len()))
    }

    /// This client is to be told when it is done.
    pub(super) fn tell(&mut self, id: server::Id) {
        match self.phase {
            // What it has seen may be of before.
            Phase::Finding(_) | Phase::Triggering(_) | Phase::Replaying(_) => {
                self.late_clients.push(id);
            }
            Phase::Quiet
            | Phase::Draining { .. }
            | Phase::Waiting { .. }
            | Phase::Doubting { .. } => self.clients.push(id),
        }
    }

    pub(super) fn forget(&mut self, id: server::Id) {
        for clients in [&mut self.clients, &mut self.late_clients] {
            clients.retain(|client| *client != id);
        }
    }

    /// Notes that an event is about to be acted on; `replayed` if it came of a
    /// comparison. Returns whether another device has to be acted on once more that
    /// no comparison under way will find.
    pub(super) fn begin(&mut self, event: &Uevent<'_>, replayed: bool) -> bool {
        self.moves.note(event);
        let tracked = Tracked::of(event).filter(|tracked| tracked.action != b"remove");
        // Which incarnation whoever acts on it takes along is known.
        let is_known = |path: &[u8]| self.inventory.get(path).is_some();
        let takes_along = tracked.and_then(|tracked| tracked.old_path).is_some_and(is_known);
        let unsettles = self.inventory.begin(event, self.trust != Trust::Lossy);
        // It may tell of the one that was there before the one that a scan found.
        if !replayed
            && self.is_overtaken(event)
            && !takes_along
            && let Some(tracked) = tracked
        {
            self.inventory.doubt(tracked.path);
        }
        // Before a scan every event is acted on as it comes, and on nothing else.
        unsettles && self.trust != Trust::Unscanned && !self.is_scanning()
    }

    /// Whether nobody knows which incarnation of a device was acted on.
    fn is_doubted(&self, tracked: &Tracked<'_>) -> bool {
        self.inventory.get(tracked.path).is_some_and(|known| known.incarnation == 0)
    }

    /// Whether an event may have been sent before the last scan.
    fn is_overtaken(&self, event: &Uevent<'_>) -> bool {
        let last = match self.trust {
            Trust::Scanned { last } => last,
            Trust::Lossy | Trust::Unscanned => None,
        };
        self.overtaken && event.number().zip(last).is_none_or(|(number, last)| number <= last)
    }

    /// Notes that an event from the kernel was read, and acted on if need be.
    pub(super) fn note_progress(&mut self, event: &Uevent<'_>) {
        if !self.has_file() {
            return;
        }
        let Some(number) = event.number() else { return };
        self.sequence.acted_on(number);
        self.tell_progress();
    }

    fn tell_progress(&mut self) {
        if self.has_file() && self.is_exact() && self.sequence.through() > 0 {
            self.inventory.set_progress(Progress::Through(self.sequence.through()));
        }
    }

    /// Whether another plugd may read what is known.
    fn has_file(&self) -> bool {
        matches!(self.inventory.storage(), Store::File(_))
    }

    /// Whether nothing is missing, as far as is known.
    fn is_exact(&self) -> bool {
        let settled = matches!(self.phase, Phase::Quiet | Phase::Doubting { .. });
        settled && self.held_back.is_none() && self.trust != Trust::Lossy && !self.congested
    }

    /// Notes that it was acted on, at the time `now`.
    pub(super) fn finish(&mut self, event: &Uevent<'_>, replayed: bool, now: Time) {
        self.inventory.finish(event);
        let incarnation = std::mem::take(&mut self.incarnation);
        let Some(tracked) = Tracked::of(event) else { return };
        if tracked.action == b"remove" {
            // Of the queues of an interface that goes to another namespace the kernel
            // tells nothing (__dev_change_net_namespace in net/core/dev.c).
            let is_interface = event.subsystem() == Some(b"net");
            if is_interface && event.last(b"SYNTH_UUID").is_none() && self.is_exact() {
                self.inventory.forget_queues(tracked.path);
            }
            return;
        }
        if replayed {
            if tracked.action == b"add" {
                self.inventory.set_incarnation(tracked.path, incarnation);
            }
        } else if tracked.action == b"add" || self.is_overtaken(event) && self.is_doubted(&tracked)
        {
            self.inventory.mark_unseen(tracked.path);
            self.fresh.due.get_or_insert(now + FRESH_FOR);
        }
        if let Phase::Triggering(triggering) = &mut self.phase {
            let uuid = event.last(b"SYNTH_UUID").map(|uuid| uuid.to_bytes());
            triggering.came += u64::from(uuid == Some(triggering.uuid.as_bytes()));
        }
    }
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
