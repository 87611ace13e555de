//! How far the daemon is with making up for what it missed, and what events that are
//! acted on change of that. Looks at nothing by itself.

use std::path::PathBuf;
use std::time::Duration;

use crate::control::server;
use crate::inventory::identity::Tracked;
use crate::inventory::{Inventory, Progress, Trust};
use crate::machine::Time;
use crate::recovery::{Cause, Changes, Pace, Sequence};
use crate::state_file::Store;
use crate::uevent::Uevent;

use super::fresh::{FRESH_FOR, Fresh};
use super::interfaces::Moves;
use super::replay::{Finding, Replay, Stage};
use super::trigger::Triggering;
use super::{DOUBT, Settings, Start};

/// How far the daemon is with making up for what it missed.
#[derive(Debug)]
pub(in crate::r#loop) struct Recovery {
    pub(super) sys: PathBuf,
    pub(in crate::r#loop) inventory: Inventory<Store>,
    pub(super) changes: Changes,
    pub(super) judges: bool,
    pub(super) start: Start,
    pub(in crate::r#loop) trust: Trust,
    pub(super) phase: Phase,
    pub(super) pace: Pace,
    /// The kernel's count of drops at the moment since when there is no gap, if
    /// it has not moved.
    pub(in crate::r#loop) baseline: u64,
    /// Events were lost since, or the whole is to be done again.
    pub(super) again: bool,
    /// Events of devices that are known may have been lost.
    pub(super) changes_missed: bool,
    /// Events were lost, and not all of that is made up for.
    pub(super) lost: bool,
    /// The queue was not empty since the last scan, which may have overtaken what
    /// waits.
    pub(super) overtaken: bool,
    /// How far the daemon before this one had come, until devices are compared.
    pub(super) before: Option<Progress>,
    /// Until then, what moves may have been about to when it was listed.
    pub(super) in_doubt: Time,
    pub(super) moves: Moves,
    /// Which events were acted on.
    pub(super) sequence: Sequence,
    /// The queue was not empty since events were lost: the kernel may have dropped
    /// more of them in silence.
    pub(super) congested: bool,
    /// /sys could not be read, and that was told.
    pub(super) unreadable: bool,
    /// There were too few descriptors, or too little memory, to look at all devices: until
    /// that is made up for, nobody helps with it.
    pub(super) short: bool,
    pub(super) fresh: Fresh,
    /// The incarnation of the device whose replayed event is in hand.
    pub(super) incarnation: u64,
    /// An event that has to wait until another one was acted on.
    pub(in crate::r#loop) held_back: Option<(usize, Vec<u8>)>,
    /// Who is to be told when it is done.
    pub(super) clients: Vec<server::Id>,
    /// Who is to be told when the next one is done, as this one had begun before.
    pub(super) late_clients: Vec<server::Id>,
    /// What they are told.
    pub(super) text: String,
}

#[derive(Debug)]
pub(super) enum Phase {
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

impl Recovery {
    pub(in crate::r#loop) fn new(settings: Settings) -> Self {
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
    pub(super) fn is_scanning(&self) -> bool {
        let Phase::Replaying(replay) = &self.phase else { return false };
        !matches!(replay.stage, Stage::Change(_) | Stage::Verify(_))
    }

    /// Whether all that was missed is made up for, as far as is known.
    pub(in crate::r#loop) fn is_quiet(&self) -> bool {
        matches!(self.phase, Phase::Quiet | Phase::Doubting { .. }) && self.held_back.is_none()
    }

    /// What the next plugd has to do once more, and whether changes of devices may
    /// have been missed.
    pub(in crate::r#loop) fn unfinished(&self) -> Option<(Cause, bool)> {
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
    pub(in crate::r#loop) fn resume(
        &mut self,
        trust: Trust,
        unfinished: Option<(Cause, bool)>,
        now: Time,
    ) {
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

    /// A program is about to be started, firmware to be loaded, or there are no descriptors
    /// for a node. Where there is a limit of processes, a thread that waits until what it has
    /// read is asked for has the place of one; and next to a program, reading takes no time.
    /// Returns whether anything was given back by that.
    pub(in crate::r#loop) fn read_alone(&mut self) -> bool {
        match &mut self.phase {
            Phase::Replaying(replay) => replay.read_alone(),
            _ => false,
        }
    }

    /// When to go on, at the latest.
    pub(in crate::r#loop) fn deadline(&self) -> Option<Time> {
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
    pub(in crate::r#loop) fn took_one(&mut self) {
        self.fresh.measured = false;
        match &mut self.phase {
            Phase::Draining { left, .. } => *left = left.saturating_sub(1),
            Phase::Replaying(replay) => replay.took_one(),
            Phase::Triggering(triggering) => triggering.left = triggering.left.saturating_sub(1),
            Phase::Quiet | Phase::Waiting { .. } | Phase::Finding(_) | Phase::Doubting { .. } => {}
        }
    }

    /// The event in `datagram` has to wait until another one was acted on.
    pub(in crate::r#loop) fn hold_back(&mut self, source: Option<usize>, datagram: &[u8]) {
        self.held_back = source.map(|source| (source, datagram.to_vec()));
    }

    /// Puts the event that has waited into the buffer.
    pub(in crate::r#loop) fn take_held_back(
        &mut self,
        buffer: &mut [u8],
    ) -> Option<(usize, usize)> {
        let (source, datagram) = self.held_back.take()?;
        buffer.get_mut(..datagram.len())?.copy_from_slice(&datagram);
        Some((source, datagram.len()))
    }

    /// This client is to be told when it is done.
    pub(in crate::r#loop) fn tell(&mut self, id: server::Id) {
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

    pub(in crate::r#loop) fn forget(&mut self, id: server::Id) {
        for clients in [&mut self.clients, &mut self.late_clients] {
            clients.retain(|client| *client != id);
        }
    }

    /// Notes that an event is about to be acted on; `replayed` if it came of a
    /// comparison. Returns whether another device has to be acted on once more that
    /// no comparison under way will find.
    pub(in crate::r#loop) fn begin(&mut self, event: &Uevent<'_>, replayed: bool) -> bool {
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
    pub(in crate::r#loop) fn note_progress(&mut self, event: &Uevent<'_>) {
        if !self.has_file() {
            return;
        }
        let Some(number) = event.number() else { return };
        self.sequence.acted_on(number);
        self.tell_progress();
    }

    pub(super) fn tell_progress(&mut self) {
        if self.has_file() && self.is_exact() && self.sequence.through() > 0 {
            self.inventory.set_progress(Progress::Through(self.sequence.through()));
        }
    }

    /// Whether another plugd may read what is known.
    pub(super) fn has_file(&self) -> bool {
        matches!(self.inventory.storage(), Store::File(_))
    }

    /// Whether nothing is missing, as far as is known.
    pub(super) fn is_exact(&self) -> bool {
        let settled = matches!(self.phase, Phase::Quiet | Phase::Doubting { .. });
        settled && self.held_back.is_none() && self.trust != Trust::Lossy && !self.congested
    }

    /// Notes that it was acted on, at the time `now`.
    pub(in crate::r#loop) fn finish(&mut self, event: &Uevent<'_>, replayed: bool, now: Time) {
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
