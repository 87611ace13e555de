//! The comparison of the devices that are there with those that are known, and the
//! events that come of it: removals and additions while nothing is read, then changes,
//! in turns with the events that come.

use std::collections::HashSet;
use std::sync::Arc;

use crate::beneath::Failed;
use crate::inventory::identity;
use crate::inventory::{Progress, Trust};
use crate::machine::Time;
use crate::netlink::LEAST_COST;
use crate::recovery::{self, Cause};
use crate::sys;
use crate::sysfs::{Scan, Search, Sysfs};
use crate::uevent::{Header, Uevent};

use super::interfaces::Sight;
use super::{AT_ONCE, DOUBT, Daemon, Phase, Recovered};

/// The devices that are there are being found.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) cause: Cause,
    /// To have the kernel tell of them.
    triggers: bool,
    sys: Sysfs,
    pub(super) search: Search,
    /// The last event before.
    last: Option<u64>,
    began: Time,
}

/// The difference between what is there and what is known, being acted on.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) cause: Cause,
    scan: Scan,
    /// Indices of the listing, in the order of paths.
    by_path: Vec<u32>,
    /// The datagram of the event that is next.
    event: Vec<u8>,
    /// The identity that it tells.
    told: Vec<u8>,
    /// The last event before the scan.
    last: Option<u64>,
    pub(super) stage: Stage,
    /// Devices that are others now.
    changed: HashSet<Vec<u8>>,
    /// There are interfaces that have other names than they are known by.
    renamed: bool,
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
    pub(super) left: u64,
    /// Removed, added, changed.
    tally: [u64; 3],
    began: Time,
    /// Which comparison it is, counted from 1.
    number: u64,
    /// Until when what was found is in doubt, once all is done.
    in_doubt: Option<Time>,
}

impl Replay {
    /// A datagram was taken from the queue.
    pub(super) fn took_one(&mut self) {
        self.left = self.left.saturating_sub(1);
        self.scan.forget_directory();
    }

    /// From now on nobody else reads. Returns whether somebody did, or a directory was kept.
    pub(super) fn read_alone(&mut self) -> bool {
        self.scan.read_no_more_ahead()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Who is at the paths that are known?
    Compare(usize),
    Remove,
    Resume,
    Add(usize),
    Change(usize),
    /// Is still there what was found?
    Verify(usize),
}

impl Daemon {
    /// Begins to find all devices. If that cannot be done, it is tried again later.
    pub(super) fn find(&mut self, cause: Cause, triggers: bool) -> bool {
        self.counters.scans += 1;
        let (began, gapless) = (self.now(), self.queue().1 == self.recovery.baseline);
        let root = &self.recovery.sys;
        let begun = Sysfs::open(root)
            .map_err(|error| Failed::new("open", root.as_os_str().as_encoded_bytes(), error))
            // Whatever happens from here on has a greater number.
            .and_then(|sys| Ok((sys.last_event(), Search::new(&sys)?, sys)));
        match begun {
            Ok((last, mut search, sys)) => {
                if !self.recovery.short {
                    search.get_help();
                }
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

    pub(super) fn have_found(&mut self, finding: Finding) {
        let Finding { cause, triggers, sys, search, last, began } = finding;
        let listing = search.finish();
        listing.failed.iter().for_each(|failed| log::warn!("{failed}"));
        let recovery = &mut self.recovery;
        // Then it is all done once more, later.
        recovery.short |= listing.is_short();
        recovery.again |= listing.is_short();
        if let Some(before) = recovery.before.take().filter(|_| cause == Cause::Restart) {
            recovery.changes_missed |= recovery::has_missed_changes(before, last);
        }
        // Nothing is spared then.
        let acts_on_all = recovery.changes_missed || recovery.inventory.is_empty();
        recovery.sequence.compare(last, acts_on_all);
        if triggers {
            return self.begin_triggering(sys, listing, began);
        }
        self.recovery.inventory.set_progress(Progress::Unknown);
        let known = self.recovery.inventory.len();
        self.recovery.inventory.reserve(listing.len().saturating_sub(known));
        let mut by_path: Vec<u32> =
            (0..listing.len()).filter_map(|index| index.try_into().ok()).collect();
        // They are, but for a few at the end.
        by_path.sort_by(|&a, &b| listing.path(a as usize).cmp(listing.path(b as usize)));
        self.recovery.phase = Phase::Replaying(Box::new(Replay {
            cause,
            scan: Scan::new(sys, listing),
            by_path,
            event: Vec::with_capacity(4096),
            told: Vec::new(),
            last,
            stage: Stage::Compare(0),
            changed: HashSet::new(),
            renamed: false,
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

    pub(super) fn replay(
        &mut self,
        mut replay: Box<Replay>,
        idle: bool,
        buffer: &mut [u8],
    ) -> Recovered {
        let stage = replay.stage;
        let made = match stage {
            Stage::Compare(next) => {
                self.compare(&mut replay, next);
                if replay.stage == Stage::Remove {
                    // That they have moved is queued, or was lost.
                    if replay.renamed && self.recovery.moves.wait() {
                        let left = self.queue().0 / LEAST_COST + 1;
                        self.recovery.phase = Phase::Draining { cause: replay.cause, left };
                        self.mark_sources_ready();
                        return Recovered::Again;
                    }
                    self.recovery.overtaken = true;
                    // As long as this goes on; and for a while longer.
                    self.recovery.in_doubt = Time::MAX;
                }
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
            let event = &mut replay.event;
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
        let listing = Arc::clone(replay.scan.listing());
        let next = if known.is_empty() { listing.len() } else { next };
        let end = (next + AT_ONCE).min(listing.len());
        if next == 0 && !self.recovery.short && known.len() > listing.len() / 2 {
            replay.scan.read_ahead();
        }
        let mut unread = Vec::new();
        for index in next..end {
            let path = listing.path(index);
            let Some(held) = known.get(path).filter(|_| !is_below(path, &replay.foreign)) else {
                continue;
            };
            let incarnation = match replay.scan.read(index, "add", &mut replay.event) {
                Ok(Some(incarnation)) => incarnation,
                // Its `remove` is queued; or was lost, and that is queued of one that came
                // after it.
                Ok(None) => {
                    replay.lingering.push(path.to_vec());
                    continue;
                }
                Err(failed) => {
                    log::warn!("{failed}");
                    unread.push(path.to_vec());
                    continue;
                }
            };
            let Some(event) = parse(&replay.event) else { continue };
            identity::write(&event, &mut replay.told);
            let told = &replay.told;
            if recovery::interface(told).is_some_and(|it| !self.has_interface(it)) {
                replay.foreign.insert(path.to_vec());
                continue;
            }
            let other_one = ![0, incarnation].contains(&held.incarnation);
            if held.identity != *told || other_one {
                if recovery::is_renamed(held.identity, told) {
                    replay.renamed = true;
                    self.await_interfaces();
                }
                replay.changed.insert(path.to_vec());
            }
        }
        unread.iter().for_each(|path| self.recovery.inventory.unsettle(path));
        replay.stage = Stage::Compare(end);
        if end < listing.len() {
            return;
        }
        replay.scan.read_no_more_ahead();
        let known = &self.recovery.inventory;
        let Replay { scan, by_path, changed, gone, unlisted, lingering, .. } = replay;
        let sys = scan.sys();
        let listed = |path: &[u8]| {
            by_path.binary_search_by(|&index| listing.path(index as usize).cmp(path)).is_ok()
        };
        let renamed = &mut replay.renamed;
        *gone = recovery::gone(known, changed, |path, identity| {
            let is_there = match recovery::interface(identity).map(|it| self.sight(it)) {
                None => listed(path) || !self.is_missing(sys, path, identity),
                Some(sight) => {
                    *renamed |= sight == Sight::Renamed;
                    sight == Sight::Here
                }
            };
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

    fn next_removal(&mut self, replay: &mut Replay) -> bool {
        let Some(path) = replay.gone.pop() else {
            replay.stage = Stage::Resume;
            return false;
        };
        let Some(known) = self.recovery.inventory.get(&path) else { return false };
        recovery::write_event(&mut replay.event, "remove", &path, known.identity);
        true
    }

    fn next_unlisted(&mut self, replay: &mut Replay) -> bool {
        let Some(path) = replay.unlisted.pop() else {
            replay.stage = Stage::Add(0);
            return false;
        };
        let Some(known) = self.recovery.inventory.get(&path) else { return false };
        recovery::write_event(&mut replay.event, "add", &path, known.identity);
        true
    }

    fn next_addition(&mut self, replay: &mut Replay, next: usize) -> bool {
        let listing = Arc::clone(replay.scan.listing());
        let end = (next + AT_ONCE).min(listing.len());
        let helps = !self.recovery.short;
        if next == 0 && helps && self.recovery.inventory.len() < listing.len() / 2 {
            replay.scan.read_ahead();
        }
        for index in next..end {
            replay.stage = Stage::Add(index + 1);
            let path = listing.path(index);
            if is_below(path, &replay.foreign) {
                continue;
            }
            let held = self.recovery.inventory.get(path);
            let missed = self.recovery.changes_missed;
            // Nobody knows whether it is the same one all the time.
            let doubtful = missed || replay.cause == Cause::Restart;
            if held.is_some_and(|held| held.settled && !(doubtful && held.incarnation == 0)) {
                if missed && self.recovery.changes.include(listing.subsystem(index)) {
                    replay.kept.push(index);
                }
                continue;
            }
            if let Some(incarnation) = self.read_device(replay, index, "add") {
                let known = self.recovery.inventory.get(path);
                if known.is_some_and(|known| recovery::is_renamed(known.identity, &replay.told)) {
                    // Its `move` is on its way, and acted on before this is done anew.
                    self.recovery.inventory.unsettle(path);
                    self.recovery.again = true;
                    continue;
                }
                let obstacle = self.recovery.inventory.first_to_go_for(path, &replay.told);
                if let Some(known) = obstacle {
                    // It has become another one since it was looked at.
                    let event = &mut replay.event;
                    recovery::write_event(event, "remove", known.path, known.identity);
                    replay.stage = Stage::Add(index);
                    return true;
                }
                self.recovery.incarnation = incarnation;
                return true;
            }
        }
        if end == listing.len() {
            replay.scan.read_no_more_ahead();
            self.recovery.trust = Trust::Scanned { last: replay.last };
            replay.left = self.queue().0 / LEAST_COST + 1;
            replay.stage = Stage::Change(0);
            self.mark_sources_ready();
        }
        false
    }

    /// Reads a device as an event, if it is there and one of ours. Returns which
    /// incarnation it is.
    fn read_device(&mut self, replay: &mut Replay, index: usize, action: &str) -> Option<u64> {
        let incarnation = match replay.scan.read(index, action, &mut replay.event) {
            Ok(incarnation) => incarnation?,
            Err(failed) => {
                log::warn!("{failed}");
                self.recovery.short |= failed.is_shortage();
                self.recovery.again |= failed.is_shortage();
                return None;
            }
        };
        let event = parse(&replay.event)?;
        identity::write(&event, &mut replay.told);
        let ours = recovery::interface(&replay.told).is_none_or(|it| self.has_interface(it));
        if !ours {
            replay.foreign.insert(replay.scan.listing().path(index).to_vec());
        }
        ours.then_some(incarnation)
    }

    fn next_change(&mut self, replay: &mut Replay, next: usize) -> bool {
        replay.stage = Stage::Change(next + 1);
        let index = replay.kept[next];
        let listing = Arc::clone(replay.scan.listing());
        let known = self.recovery.inventory.get(listing.path(index));
        let Some(incarnation) = known.filter(|k| k.settled).map(|k| k.incarnation) else {
            return false;
        };
        // An event has come meanwhile that tells of this one, or of one before.
        let doubtful = incarnation == 0;
        let action = if doubtful { "add" } else { "change" };
        let Some(found) = self.read_device(replay, index, action) else { return false };
        // If it is another one by now, an event has come that tells so, or waits.
        let known = self.recovery.inventory.get(listing.path(index));
        if known.is_none_or(|known| known.identity != replay.told) {
            return false;
        }
        self.recovery.incarnation = found;
        doubtful || incarnation == found
    }

    fn verify(&mut self, replay: &mut Replay, next: usize) -> bool {
        let count = replay.lingering.len();
        for position in next..count {
            replay.stage = Stage::Verify(position);
            // Children before their parents.
            let path = &*replay.lingering[count - 1 - position];
            let Some(known) = self.recovery.inventory.get(path) else { continue };
            let interface = recovery::interface(known.identity);
            if interface.is_some_and(|it| self.sight(it) == Sight::Renamed) {
                self.recovery.again = true;
                return false;
            }
            if self.is_missing(replay.scan.sys(), path, known.identity) {
                if replay.suspect.take() == Some(position) {
                    // Nothing has come that tells of it.
                    recovery::write_event(&mut replay.event, "remove", path, known.identity);
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
        // What may be looked at once more is not read.
        replay.scan.read_no_more_ahead();
        let now = self.now();
        self.recovery.in_doubt = now + DOUBT;
        let is_the_end = replay.in_doubt.is_none();
        let in_doubt = *replay.in_doubt.get_or_insert_with(|| {
            let ([removed, added, changed], took) =
                (replay.tally, now.saturating_sub(replay.began));
            self.counters.recovery = took;
            let text = format!(
                "{}: {} devices; {added} added, {removed} removed, {changed} changed, in {} ms",
                replay.cause,
                replay.scan.listing().len(),
                took.as_millis()
            );
            log::info!("{text}");
            self.recovery.text = text;
            now + DOUBT
        });
        self.end_recovery(replay.number);
        if is_the_end {
            // As after the start: most of what this took is not needed any more.
            let _ = sys::forget_code();
        }
        if matches!(self.recovery.phase, Phase::Quiet)
            && !replay.lingering.is_empty()
            && now < in_doubt
        {
            self.recovery.phase = Phase::Doubting { replay, until: in_doubt };
        }
    }
}

fn is_below(path: &[u8], tops: &HashSet<Vec<u8>>) -> bool {
    let ends = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(end, _)| end);
    !tops.is_empty() && ends.chain([path.len()]).any(|end| tops.contains(&path[..end]))
}

fn parse(event: &[u8]) -> Option<Uevent<'_>> {
    Uevent::parse(event, Header::Required).ok()
}
