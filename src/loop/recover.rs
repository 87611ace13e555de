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

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netdevice::index_to_name;

use crate::beneath::{Failed, Why};
use crate::control::server;
use crate::control::wire::Reply;
use crate::inventory::identity::{self, Tracked};
use crate::inventory::{Inventory, Progress, Trust, Verdict};
use crate::machine::Time;
use crate::netlink::LEAST_COST;
use crate::recovery::{self, Cause, Changes, Pace, Sequence};
use crate::state_file::Store;
use crate::sys;
use crate::sysfs::{Listing, Reader, Search, Sysfs};
use crate::uevent::Uevent;

use super::Daemon;

/// How many devices are looked at, or asked for, before something else may get its
/// turn.
const AT_ONCE: usize = 16;

/// No event of the kernel's takes more.
const GREATEST_COST: u64 = 4608;

/// The kernel takes a device out of the lists, sends its last event, and then takes
/// it out of sysfs (device_del in drivers/base/core.c): what is listed has an event
/// to come, and what is not, but is there, is gone before so long.
const DOUBT: Duration = Duration::from_secs(1);

/// Of how many devices the incarnations are looked up at a time, and how long they wait
/// for it: there are better things to do while one event comes after the other.
const FRESH_MAX: usize = 1024;
const FRESH_FOR: Duration = Duration::from_secs(1);

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
    /// The queue was not empty since the last scan, which may have overtaken what
    /// waits.
    overtaken: bool,
    /// How far the daemon before this one had come.
    before: Progress,
    /// Until then, what moves may have been about to when it was listed.
    in_doubt: Time,
    /// Which events were acted on.
    sequence: Sequence,
    /// The queue was not empty since events were lost: the kernel may have dropped
    /// more of them in silence.
    congested: bool,
    /// /sys could not be read, and that was told.
    unreadable: bool,
    fresh: Fresh,
    /// The incarnation of the device whose replayed event is in hand.
    incarnation: u64,
    /// An event that has to wait until another one was acted on.
    pub(super) held_back: Option<(usize, Vec<u8>)>,
    /// Who is to be told when it is done.
    clients: Vec<server::Id>,
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

/// The devices that are there are being found.
#[derive(Debug)]
struct Finding {
    cause: Cause,
    /// To have the kernel tell of them.
    triggers: bool,
    sys: Sysfs,
    search: Search,
    /// The last event before.
    last: Option<u64>,
    began: Time,
}

/// The kernel is being asked to tell of all devices.
#[derive(Debug)]
struct Triggering {
    sys: Sysfs,
    listing: Listing,
    next: usize,
    /// So many datagrams were queued when that was asked for.
    left: u64,
    /// What its events are known by.
    uuid: String,
    asked: u64,
    came: u64,
    refused: u64,
    first_refusal: Option<Failed>,
    began: Time,
    number: u64,
}

/// The difference between what is there and what is known, being acted on.
#[derive(Debug)]
struct Replay {
    cause: Cause,
    sys: Sysfs,
    listing: Listing,
    /// Indices of the listing, in the order of paths.
    by_path: Vec<u32>,
    reader: Reader,
    /// The last event before the scan.
    last: Option<u64>,
    stage: Stage,
    /// Devices that are others now.
    changed: HashSet<Vec<u8>>,
    /// Those that are to be removed, the first last.
    gone: Vec<Vec<u8>>,
    /// Those whose addition was begun, and that no scan finds.
    unlisted: Vec<Vec<u8>>,
    /// One of the listed that was not there any more, before what waited then was read.
    suspect: Option<usize>,
    kept: Vec<usize>,
    /// Those that are known, and there, but not listed: they come, or go.
    lingering: Vec<Vec<u8>>,
    /// Network interfaces of other namespaces.
    foreign: HashSet<Vec<u8>>,
    /// It is the turn of an event that comes.
    live: bool,
    /// So many datagrams were queued when the additions were done.
    left: u64,
    /// Removed, added, changed.
    tally: [u64; 3],
    began: Time,
    /// Which comparison it is, counted from 1.
    number: u64,
    /// Until when what was found is in doubt, once all is done.
    in_doubt: Option<Time>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Who is at the paths that are known?
    Compare(usize),
    Remove,
    Resume,
    Add(usize),
    Change(usize),
    /// Is still there what was found?
    Verify(usize),
}

/// Devices that came by events, whose incarnations are not known yet. What is
/// looked up is right if the queue is empty before and after.
#[derive(Debug, Default)]
struct Fresh {
    /// The first of them, and what was found.
    found: Vec<(Vec<u8>, u64)>,
    /// When to look them up, or to do so once more.
    due: Option<Time>,
    measured: bool,
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
            overtaken: false,
            before,
            in_doubt: Time::ZERO,
            sequence: match before {
                Progress::Through(number) => Sequence::after(number),
                Progress::Unknown | Progress::Left => Sequence::default(),
            },
            congested: false,
            unreadable: false,
            fresh: Fresh::default(),
            incarnation: 0,
            held_back: None,
            clients: Vec::new(),
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
            Phase::Replaying(replay) => replay.left = replay.left.saturating_sub(1),
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
        self.clients.push(id);
    }

    pub(super) fn forget(&mut self, id: server::Id) {
        self.clients.retain(|client| *client != id);
    }

    /// Notes that an event is about to be acted on; `replayed` if it came of a
    /// comparison. Returns whether another device has to be acted on once more that
    /// no comparison under way will find.
    pub(super) fn begin(&mut self, event: &Uevent<'_>, replayed: bool) -> bool {
        let unsettles = self.inventory.begin(event, self.trust != Trust::Lossy);
        // It may tell of the one that was there before the one that a scan found.
        if !replayed
            && self.is_overtaken(event)
            && let Some(tracked) = Tracked::of(event).filter(|t| t.action != b"remove")
        {
            self.inventory.doubt(tracked.path);
        }
        // Before a scan every event is acted on as it comes, and on nothing else.
        unsettles && self.trust != Trust::Unscanned && !self.is_scanning()
    }

    /// Whether an event may have been sent before the last scan.
    fn is_overtaken(&self, event: &Uevent<'_>) -> bool {
        let last = match self.trust {
            Trust::Scanned { last } => last,
            Trust::Lossy | Trust::Unscanned => None,
        };
        self.overtaken && seqnum(event).zip(last).is_none_or(|(number, last)| number <= last)
    }

    /// Looks up the incarnations of some devices that came by events.
    fn measure_fresh(&mut self) {
        self.fresh.measured = true;
        let sys = Sysfs::open(&self.sys);
        let found = |path: &[u8]| sys.as_ref().ok().and_then(|sys| sys.incarnation(path));
        let unseen = self.inventory.unseen().take(FRESH_MAX);
        self.fresh.found = unseen.map(|path| (path.to_vec(), found(path).unwrap_or(0))).collect();
    }

    /// What was looked up is right: nothing has come since. Returns whether there may be
    /// more to look up.
    fn note_fresh(&mut self) -> bool {
        // Nor is anything under way any more.
        self.sequence.close();
        self.tell_progress();
        let found = std::mem::take(&mut self.fresh).found;
        for (path, incarnation) in &found {
            self.inventory.set_incarnation(path, *incarnation);
        }
        found.len() == FRESH_MAX
    }

    /// Notes that an event from the kernel was read, and acted on if need be, at the
    /// time `now`.
    pub(super) fn note_progress(&mut self, event: &Uevent<'_>, now: Time) {
        if !self.has_file() {
            return;
        }
        let Some(number) = seqnum(event) else { return };
        self.sequence.came(number);
        self.tell_progress();
        if self.sequence.has_gap() {
            self.fresh.due.get_or_insert(now + FRESH_FOR);
        }
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
            let is_interface = event.last(b"SUBSYSTEM").is_some_and(|it| it == c"net");
            if is_interface && event.last(b"SYNTH_UUID").is_none() && self.is_exact() {
                self.inventory.forget_queues(tracked.path);
            }
            return;
        }
        if replayed {
            if tracked.action == b"add" {
                self.inventory.set_incarnation(tracked.path, incarnation);
            }
        } else if tracked.action == b"add" || self.is_overtaken(event) {
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
        let now = self.started.elapsed();
        let recovery = &mut self.recovery;
        match recovery.inventory.judge(event, recovery.trust) {
            Verdict::StaleIfListed => {
                let subsystem = event.last(b"SUBSYSTEM").unwrap_or_default().to_bytes();
                match Sysfs::open(&recovery.sys) {
                    Ok(sys) if sys.lists(subsystem) => Verdict::Stale,
                    _ => Verdict::Act,
                }
            }
            Verdict::StaleIfSame => {
                let path = event.last(b"DEVPATH").unwrap_or_default().to_bytes();
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
                if now < recovery.in_doubt
                    && recovery.trust != Trust::Lossy
                    && event.last(b"ACTION") == Some(c"move") =>
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
        recovery.inventory.set_progress(Progress::Unknown);
        self.requests.lost();
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
                    // What is queued may wait: there is no gap before it.
                    Cause::Coldplug | Cause::Restart => 0,
                    Cause::Overrun | Cause::Rescan => queued / LEAST_COST + 1,
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
                if finding.search.go_on(&finding.sys) {
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

    /// Begins to find all devices. If that cannot be done, it is tried again later.
    fn find(&mut self, cause: Cause, triggers: bool) -> bool {
        self.counters.scans += 1;
        let (began, gapless) = (self.now(), self.queue().1 == self.recovery.baseline);
        let root = &self.recovery.sys;
        let begun = Sysfs::open(root)
            .map_err(|error| Failed::new("open", root.as_os_str().as_encoded_bytes(), error))
            // Whatever happens from here on has a greater number.
            .and_then(|sys| Ok((sys.last_event(), sys.search()?, sys)));
        match begun {
            Ok((last, search, sys)) => {
                self.recovery.unreadable = false;
                self.requests.begun(self.counters.scans, gapless);
                let finding = Finding { cause, triggers, sys, search, last, began };
                self.recovery.phase = Phase::Finding(Box::new(finding));
                true
            }
            Err(failed) => {
                if !std::mem::replace(&mut self.recovery.unreadable, true) {
                    log::warn!("{failed}; devices that were missed ({cause}) are looked for later");
                }
                let now = self.now();
                self.recovery.pace.ended(now, false);
                let until = self.recovery.pace.next(now);
                self.recovery.phase = Phase::Waiting { cause, until };
                false
            }
        }
    }

    fn have_found(&mut self, finding: Finding) {
        let Finding { cause, triggers, sys, search, last, began } = finding;
        let listing = search.finish();
        listing.failed.iter().for_each(|failed| log::warn!("{failed}"));
        if triggers {
            return self.begin_triggering(sys, listing, began);
        }
        if cause == Cause::Restart {
            self.recovery.changes_missed |= match self.recovery.before {
                Progress::Left => false,
                Progress::Through(number) => last != Some(number),
                Progress::Unknown => true,
            };
        }
        self.recovery.inventory.set_progress(Progress::Unknown);
        self.recovery.overtaken = true;
        // As long as this goes on; and for a while longer.
        self.recovery.in_doubt = Time::MAX;
        let mut by_path: Vec<u32> =
            (0..listing.len()).filter_map(|index| index.try_into().ok()).collect();
        // They are, but for a few at the end.
        by_path.sort_by(|&a, &b| listing.path(a as usize).cmp(listing.path(b as usize)));
        self.recovery.phase = Phase::Replaying(Box::new(Replay {
            cause,
            sys,
            listing,
            by_path,
            reader: Reader::default(),
            last,
            stage: Stage::Compare(0),
            changed: HashSet::new(),
            gone: Vec::new(),
            unlisted: Vec::new(),
            suspect: None,
            kept: Vec::new(),
            lingering: Vec::new(),
            foreign: HashSet::new(),
            live: false,
            left: 0,
            tally: [0; 3],
            began,
            number: self.counters.scans,
            in_doubt: None,
        }));
    }

    fn replay(&mut self, mut replay: Box<Replay>, idle: bool, buffer: &mut [u8]) -> Recovered {
        let stage = replay.stage;
        let made = match stage {
            Stage::Compare(next) => {
                self.compare(&mut replay, next);
                false
            }
            Stage::Remove => self.next_removal(&mut replay),
            Stage::Resume => self.next_unlisted(&mut replay),
            Stage::Add(next) => self.next_addition(&mut replay, next),
            Stage::Change(next) if next < replay.kept.len() => {
                if std::mem::take(&mut replay.live) && !idle {
                    self.recovery.phase = Phase::Replaying(replay);
                    return Recovered::Proceed;
                }
                replay.live = true;
                self.next_change(&mut replay, next)
            }
            Stage::Change(_) if !idle && replay.left > 0 => {
                self.recovery.phase = Phase::Replaying(replay);
                return Recovered::Proceed;
            }
            Stage::Change(_) => {
                replay.stage = Stage::Verify(0);
                false
            }
            // All is compared once more anyway.
            Stage::Verify(_) if self.recovery.again => {
                self.end_replay(replay);
                return Recovered::Again;
            }
            // What waits may tell of what is not there any more.
            Stage::Verify(_) if !idle && replay.left > 0 => {
                self.recovery.phase = Phase::Replaying(replay);
                return Recovered::Proceed;
            }
            Stage::Verify(next) if next >= replay.lingering.len() => {
                self.end_replay(replay);
                return Recovered::Again;
            }
            Stage::Verify(next) => self.verify(&mut replay, next),
        };
        let mut outcome = Recovered::Again;
        if made {
            let event = &mut replay.reader.event;
            recovery::mark(event, replay.cause, replay.last);
            match buffer.get_mut(..event.len()) {
                Some(space) => {
                    space.copy_from_slice(event);
                    let kind = match event.first() {
                        Some(b'r') => 0,
                        Some(b'a') => 1,
                        _ => 2,
                    };
                    replay.tally[kind] += 1;
                    self.counters.replayed[kind] += 1;
                    outcome = Recovered::Event(event.len());
                }
                None => {
                    log::warn!("a device says more than fits into an event: {} bytes", event.len())
                }
            }
        }
        self.recovery.phase = Phase::Replaying(replay);
        outcome
    }

    /// Finds those among the known devices that are others now; in the end, those
    /// that are gone.
    fn compare(&mut self, replay: &mut Replay, next: usize) {
        let known = &self.recovery.inventory;
        let end = if known.is_empty() { replay.listing.len() } else { next + AT_ONCE };
        let end = end.min(replay.listing.len());
        let (mut told, mut unread) = (Vec::new(), Vec::new());
        for index in next..end {
            let path = replay.listing.path(index);
            let Some(held) = known.get(path).filter(|_| !is_below(path, &replay.foreign)) else {
                continue;
            };
            match replay.reader.read(&replay.sys, &replay.listing, index, "add") {
                Ok(true) => {}
                // Its `remove` is queued; or was lost, and that is queued of one that came
                // after it.
                Ok(false) => {
                    replay.lingering.push(path.to_vec());
                    continue;
                }
                Err(failed) => {
                    log::warn!("{failed}");
                    unread.push(path.to_vec());
                    continue;
                }
            }
            let Some(event) = parse(&replay.reader.event) else { continue };
            identity::write(&event, &mut told);
            if recovery::interface(&told).is_some_and(|it| !self.has_interface(it)) {
                replay.foreign.insert(path.to_vec());
                continue;
            }
            let other_one = ![0, replay.reader.incarnation].contains(&held.incarnation);
            if held.identity != told || other_one {
                replay.changed.insert(path.to_vec());
            }
        }
        unread.iter().for_each(|path| self.recovery.inventory.unsettle(path));
        replay.stage = Stage::Compare(end);
        if end < replay.listing.len() {
            return;
        }
        let known = &self.recovery.inventory;
        let Replay { listing, by_path, sys, changed, gone, unlisted, lingering, .. } = replay;
        let listed = |path: &[u8]| {
            by_path.binary_search_by(|&index| listing.path(index as usize).cmp(path)).is_ok()
        };
        *gone = recovery::gone(known, changed, |path, identity| {
            let is_interface = recovery::interface(identity).is_some();
            if !is_interface && listed(path) {
                return true;
            }
            let is_there = !self.is_missing(sys, path, identity);
            if is_there && !listed(path) {
                lingering.push(path.to_vec());
            }
            is_there
        });
        lingering.sort_unstable();
        if replay.cause == Cause::Restart {
            let begun = known.iter().filter(|device| !device.settled && !listed(device.path));
            let begun = begun.filter(|device| !sys.is_gone(device.path));
            *unlisted = begun.map(|device| device.path.to_vec()).collect();
        }
        replay.stage = Stage::Remove;
    }

    /// Whether a device that is known is certainly not there any more.
    fn is_missing(&self, sys: &Sysfs, path: &[u8], identity: &[u8]) -> bool {
        match recovery::interface(identity) {
            Some(interface) => !self.has_interface(interface),
            None => sys.is_gone(path) && !self.is_of_unseen_interface(sys, path),
        }
    }

    /// Whether this network interface is where events come from.
    fn has_interface(&self, (name, index): (&[u8], u32)) -> bool {
        let mut sources = self.sources.iter().filter(|watched| watched.is_kernels);
        let found = sources.next().map(|watched| {
            let found = index_to_name(&watched.source, index);
            if !matches!(found, Err(Errno::NODEV | Errno::NXIO)) {
                return found;
            }
            // The kernel tells of an interface before it can be found by its number
            // (register_netdevice in net/core/dev.c).
            sys::await_interfaces(&watched.source);
            index_to_name(&watched.source, index)
        });
        match found {
            Some(Ok(found)) => found.as_bytes() == name,
            Some(Err(Errno::NODEV | Errno::NXIO)) => false,
            // Not to be found out: /sys is to be believed.
            Some(Err(_)) | None => true,
        }
    }

    /// Whether this is something below a network interface that is there, but not in
    /// this /sys.
    fn is_of_unseen_interface(&self, sys: &Sysfs, path: &[u8]) -> bool {
        let ends = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/');
        ends.filter_map(|(end, _)| self.recovery.inventory.get(&path[..end]))
            .filter_map(|device| Some((device.path, recovery::interface(device.identity)?)))
            .any(|(path, interface)| {
                self.has_interface(interface) && sys.interface(path) != Some(interface.1)
            })
    }

    fn next_removal(&mut self, replay: &mut Replay) -> bool {
        let Some(path) = replay.gone.pop() else {
            replay.stage = Stage::Resume;
            return false;
        };
        let Some(known) = self.recovery.inventory.get(&path) else { return false };
        recovery::write_event(&mut replay.reader.event, "remove", &path, known.identity);
        true
    }

    fn next_unlisted(&mut self, replay: &mut Replay) -> bool {
        let Some(path) = replay.unlisted.pop() else {
            replay.stage = Stage::Add(0);
            return false;
        };
        let Some(known) = self.recovery.inventory.get(&path) else { return false };
        recovery::write_event(&mut replay.reader.event, "add", &path, known.identity);
        true
    }

    fn next_addition(&mut self, replay: &mut Replay, next: usize) -> bool {
        let end = (next + AT_ONCE).min(replay.listing.len());
        for index in next..end {
            replay.stage = Stage::Add(index + 1);
            let path = replay.listing.path(index);
            if is_below(path, &replay.foreign) {
                continue;
            }
            let held = self.recovery.inventory.get(path);
            let missed = self.recovery.changes_missed;
            // Nobody knows whether it is the same one all the time.
            let doubtful = missed || replay.cause == Cause::Restart;
            if held.is_some_and(|held| held.settled && !(doubtful && held.incarnation == 0)) {
                if missed && self.recovery.changes.include(replay.listing.subsystem(index)) {
                    replay.kept.push(index);
                }
                continue;
            }
            if self.read_device(replay, index, "add") {
                let obstacle = parse(&replay.reader.event)
                    .and_then(|event| self.recovery.inventory.first_to_go(&event));
                if let Some(known) = obstacle {
                    // It has become another one since it was looked at.
                    let event = &mut replay.reader.event;
                    recovery::write_event(event, "remove", known.path, known.identity);
                    replay.stage = Stage::Add(index);
                    return true;
                }
                self.recovery.incarnation = replay.reader.incarnation;
                return true;
            }
        }
        if end == replay.listing.len() {
            self.recovery.trust = Trust::Scanned { last: replay.last };
            replay.left = self.queue().0 / LEAST_COST + 1;
            replay.stage = Stage::Change(0);
            self.mark_sources_ready();
        }
        false
    }

    /// Reads a device as an event, if it is there and one of ours.
    fn read_device(&self, replay: &mut Replay, index: usize, action: &str) -> bool {
        match replay.reader.read(&replay.sys, &replay.listing, index, action) {
            Ok(true) => {}
            Ok(false) => return false,
            Err(failed) => {
                log::warn!("{failed}");
                return false;
            }
        }
        let Some(event) = parse(&replay.reader.event) else { return false };
        let mut told = Vec::new();
        identity::write(&event, &mut told);
        let ours = recovery::interface(&told).is_none_or(|it| self.has_interface(it));
        if !ours {
            replay.foreign.insert(replay.listing.path(index).to_vec());
        }
        ours
    }

    fn next_change(&mut self, replay: &mut Replay, next: usize) -> bool {
        replay.stage = Stage::Change(next + 1);
        let index = replay.kept[next];
        let known = self.recovery.inventory.get(replay.listing.path(index));
        let Some(incarnation) = known.filter(|k| k.settled).map(|k| k.incarnation) else {
            return false;
        };
        // An event has come meanwhile that tells of this one, or of one before.
        let doubtful = incarnation == 0;
        if !self.read_device(replay, index, if doubtful { "add" } else { "change" }) {
            return false;
        }
        let Some(event) = parse(&replay.reader.event) else { return false };
        let mut told = Vec::new();
        identity::write(&event, &mut told);
        // If it is another one by now, an event has come that tells so, or waits.
        let known = self.recovery.inventory.get(replay.listing.path(index));
        if known.is_none_or(|known| known.identity != told) {
            return false;
        }
        self.recovery.incarnation = replay.reader.incarnation;
        doubtful || incarnation == replay.reader.incarnation
    }

    fn verify(&mut self, replay: &mut Replay, next: usize) -> bool {
        let count = replay.lingering.len();
        for position in next..count {
            replay.stage = Stage::Verify(position);
            // Children before their parents.
            let path = &*replay.lingering[count - 1 - position];
            if let Some(known) = self.recovery.inventory.get(path)
                && self.is_missing(&replay.sys, path, known.identity)
            {
                if replay.suspect.take() == Some(position) {
                    // Nothing has come that tells of it.
                    recovery::write_event(&mut replay.reader.event, "remove", path, known.identity);
                    return true;
                }
                replay.suspect = Some(position);
                replay.left = self.queue().0 / LEAST_COST + 1;
                self.mark_sources_ready();
                return false;
            }
        }
        replay.stage = Stage::Verify(count);
        false
    }

    fn end_replay(&mut self, mut replay: Box<Replay>) {
        let now = self.now();
        self.recovery.in_doubt = now + DOUBT;
        let in_doubt = *replay.in_doubt.get_or_insert_with(|| {
            let ([removed, added, changed], took) =
                (replay.tally, now.saturating_sub(replay.began));
            self.counters.recovery = took;
            let text = format!(
                "{}: {} devices; {added} added, {removed} removed, {changed} changed, in {} ms",
                replay.cause,
                replay.listing.len(),
                took.as_millis()
            );
            log::info!("{text}");
            self.recovery.text = text;
            // As after the start: most of what this took is not needed any more.
            let _ = sys::forget_code();
            now + DOUBT
        });
        self.end_recovery(replay.number, replay.last);
        if matches!(self.recovery.phase, Phase::Quiet)
            && !replay.lingering.is_empty()
            && now < in_doubt
        {
            self.recovery.phase = Phase::Doubting { replay, until: in_doubt };
        }
    }

    /// Finds out whether that is all. Its `number`, and the SEQNUM of the `last` event
    /// before it.
    fn end_recovery(&mut self, number: u64, last: Option<u64>) {
        let (now, (_, drops)) = (self.now(), self.queue());
        let recovery = &mut self.recovery;
        let all = !recovery.again && drops == recovery.baseline;
        recovery.pace.ended(now, all);
        if !all {
            recovery.trust = Trust::Lossy;
            recovery.changes_missed |= drops != recovery.baseline;
            let cause = if recovery.changes_missed { Cause::Overrun } else { Cause::Rescan };
            let until = recovery.pace.next(now);
            recovery.phase = Phase::Waiting { cause, until };
        } else {
            recovery.phase = Phase::Quiet;
            recovery.changes_missed = false;
            recovery.sequence.skip_to(last.unwrap_or(0));
            recovery.tell_progress();
        }
        let clients = std::mem::take(&mut recovery.clients);
        self.requests.made_up(number, all);
        self.answer_requests();
        self.mark_sources_ready();
        let (Some(control), text) = (&mut self.control, &*self.recovery.text) else { return };
        clients.into_iter().for_each(|id| control.reply(id, &Reply::ok(text), now));
    }

    /// Has the kernel send an event for every device.
    fn begin_triggering(&mut self, sys: Sysfs, listing: Listing, began: Time) {
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
        self.recovery.phase = Phase::Triggering(Box::new(Triggering {
            sys,
            listing,
            next: 0,
            left: 0,
            uuid: uuid.trim_end().to_owned(),
            asked: 0,
            came: 0,
            refused: 0,
            first_refusal: None,
            began,
            number: self.counters.scans,
        }));
    }

    /// Asks for as many events as fit for sure, now that those asked for before have come.
    fn trigger(&mut self, mut triggering: Box<Triggering>) {
        let (queued, drops) = self.queue();
        if triggering.next == triggering.listing.len() || drops != self.recovery.baseline {
            return self.end_triggering(*triggering);
        }
        let memory = self.sources.iter().filter(|watched| watched.is_kernels);
        let memory = memory.filter_map(|watched| sys::socket_memory(&watched.source).ok());
        let free = memory.map(|it| it.limit.saturating_sub(it.queued)).min().unwrap_or(0);
        let fit = usize::try_from(u64::from(free) / 2 / GREATEST_COST).unwrap_or(0);
        // A single one fits into any buffer if that is empty.
        let batch = fit.max(usize::from(queued == 0)).min(AT_ONCE);
        let end = (triggering.next + batch).min(triggering.listing.len());
        let Triggering { sys, listing, uuid, .. } = &*triggering;
        let trigger = format!("add {uuid}");
        let (mut asked, mut refused, mut first) = (0, 0, None);
        for index in triggering.next..end {
            match sys.trigger(listing.path(index), trigger.trim_end().as_bytes()) {
                Ok(()) => asked += 1,
                Err(Failed { why: Why::System(Errno::NOENT | Errno::NODEV), .. }) => {}
                Err(failed) => {
                    refused += 1;
                    first.get_or_insert(failed);
                }
            }
        }
        triggering.next = end;
        triggering.asked += asked;
        triggering.refused += refused;
        triggering.first_refusal = triggering.first_refusal.take().or(first);
        triggering.left = self.queue().0 / LEAST_COST + 1;
        self.recovery.phase = Phase::Triggering(triggering);
        self.mark_sources_ready();
    }

    fn end_triggering(&mut self, triggering: Triggering) {
        let Triggering { asked, came, refused, first_refusal, began, number, .. } = triggering;
        let took = self.now().saturating_sub(began);
        self.counters.recovery = took;
        let text = format!(
            "coldplug: had the kernel tell of {asked} devices, {came} events came, in {} ms",
            took.as_millis()
        );
        log::info!("{text}");
        self.recovery.text = text;
        if let Some(first) = first_refusal {
            log::warn!("{refused} devices are not told of by the kernel; the first one: {first}");
        } else if came < asked && self.queue().1 == self.recovery.baseline {
            // In a network namespace of another user namespace it tells of interfaces only.
            log::warn!("the kernel does not tell of {} devices", asked - came);
        } else {
            return self.end_recovery(number, None);
        }
        // Those are found by reading.
        self.find(Cause::Coldplug, false);
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
        self.recovery.inventory.set_progress(Progress::Left);
    }

    /// Looks up the incarnations of devices that came by events.
    fn look_up_fresh(&mut self, idle: bool) -> Recovered {
        let (now, fresh) = (self.now(), &self.recovery.fresh);
        if idle && fresh.measured {
            // Nothing has come since.
            self.recovery.fresh.due = self.recovery.note_fresh().then_some(now);
            return Recovered::Proceed;
        }
        if !idle || fresh.due.is_none_or(|due| due > now) {
            return Recovered::Proceed;
        }
        self.recovery.measure_fresh();
        // What comes now spoils it: not for every event is it done again.
        self.recovery.fresh.due = Some(now + FRESH_FOR);
        // To be found empty once more.
        self.mark_sources_ready();
        Recovered::Again
    }
}

fn is_below(path: &[u8], tops: &HashSet<Vec<u8>>) -> bool {
    let ends = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(end, _)| end);
    !tops.is_empty() && ends.chain([path.len()]).any(|end| tops.contains(&path[..end]))
}

fn seqnum(event: &Uevent<'_>) -> Option<u64> {
    event.last(b"SEQNUM")?.to_str().ok()?.parse().ok()
}

fn parse(event: &[u8]) -> Option<Uevent<'_>> {
    Uevent::parse(event, crate::uevent::Header::Required).ok()
}
