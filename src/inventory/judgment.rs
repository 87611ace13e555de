//! What is to be done with an event, in view of what is known: events that were
//! lost, and scans that have overtaken those that still wait, make some of
//! them wrong.
//!
//! After a scan, the inventory is what was there at some moment of it. Of each
//! device the events wait, without a gap, that were sent since before that
//! moment; the last of them tells how it is. So none may be left out that
//! changes what is known, and what is left out must be known already or be over.

use crate::uevent::Uevent;

use super::identity::{self, Tracked};
use super::{Inventory, Known, Storage};

/// How far the inventory can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// Every event was acted on as it came, as far as is known; there was no
    /// scan, so there may be devices that are not known.
    Unscanned,
    /// Events were lost.
    Lossy,
    /// There was a scan.
    Scanned {
        /// The SEQNUM of the last event before it, if that could be read.
        last: Option<u64>,
    },
}

/// What is to be done with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Act on it.
    Act,
    /// Leave it out: it is known already, or over.
    Stale,
    /// Leave it out, but only if its device is one that a scan can find: if its
    /// subsystem is a bus or a class.
    StaleIfListed,
    /// It cannot be told whether it was sent before the scan: leave it out, but only
    /// if the device at its path is still the one that the scan has found, if its
    /// incarnation is the one that is known.
    StaleIfSame,
    /// Another device is known at its path, or has its node or its name, whose
    /// `remove` was lost, and that of whatever is below it: act on that first.
    RemoveFirst,
    /// Act on it, and compare once more: it moves a device that is not known, so
    /// there may be more of the kind below it.
    ActAndCompare,
}

impl<S: Storage> Inventory<S> {
    /// The device that has to go before an event is acted on whose verdict is
    /// [`Verdict::RemoveFirst`]; then the event is to be judged again.
    pub fn first_to_go(&self, event: &Uevent<'_>) -> Option<Known<'_>> {
        let tracked = Tracked::of(event)?;
        let mut told = Vec::new();
        identity::write(event, &mut told);
        self.in_the_way_of(&tracked, &told)
    }

    /// The same for the `add` of the device at this path that has this identity.
    pub fn first_to_go_for(&self, path: &[u8], identity: &[u8]) -> Option<Known<'_>> {
        self.in_the_way_of(&Tracked { action: b"add", path, old_path: None }, identity)
    }

    fn in_the_way_of(&self, tracked: &Tracked<'_>, told: &[u8]) -> Option<Known<'_>> {
        let path = self.obstacle(tracked, told).or_else(|| self.rival_path(tracked, told))?;
        self.below(path).next_back().or_else(|| self.get(path))
    }

    /// Where another device is known than the one that comes or moves.
    fn obstacle<'a>(&self, tracked: &Tracked<'a>, told: &[u8]) -> Option<&'a [u8]> {
        let is_other = |path: &&[u8]| {
            self.get(path).is_some_and(|known| !identity::may_be_of(told, known.identity))
        };
        match tracked.action {
            b"add" => Some(tracked.path)
                .filter(|path| self.get(path).is_some_and(|known| known.identity != told)),
            b"move" => [Some(tracked.path), tracked.old_path].into_iter().flatten().find(is_other),
            _ => None,
        }
    }

    /// Where a device is known that has what the one has that comes.
    fn rival_path(&self, tracked: &Tracked<'_>, told: &[u8]) -> Option<&[u8]> {
        if tracked.action != b"add" {
            return None;
        }
        self.rival(tracked.path, told).map(|rival| rival.path)
    }

    /// Whether a device that goes or moves is not known, and has gone since: another
    /// one has what it had.
    fn is_over(&self, tracked: &Tracked<'_>, held: Option<Known<'_>>, told: &[u8]) -> bool {
        let may_be = |known: Known<'_>| identity::may_be_of(told, known.identity);
        !held.is_some_and(may_be)
            && tracked.old_path.is_none_or(|old| self.get(old).is_none())
            && self.rival(tracked.path, told).is_some()
    }

    /// Judges an event that comes from the kernel.
    pub fn judge(&mut self, event: &Uevent<'_>, trust: Trust) -> Verdict {
        let Some(tracked) = Tracked::of(event).filter(|_| trust != Trust::Unscanned) else {
            return Verdict::Act;
        };
        // Somebody wants it to be acted on.
        if event.last(b"SYNTH_UUID").is_some() {
            return Verdict::Act;
        }
        let mut told = std::mem::take(&mut self.scratch);
        identity::write(event, &mut told);
        let verdict = self.judge_tracked(&tracked, &told, event.number(), trust);
        self.scratch = told;
        verdict
    }

    fn judge_tracked(
        &self,
        tracked: &Tracked<'_>,
        told: &[u8],
        number: Option<u64>,
        trust: Trust,
    ) -> Verdict {
        let held = self.get(tracked.path);
        let (scanned, last) = match trust {
            Trust::Scanned { last } => (true, last),
            Trust::Lossy | Trust::Unscanned => (false, None),
        };
        let before = number.zip(last).map(|(number, last)| number <= last);
        let overtaken = before == Some(true);
        let obstructed =
            self.obstacle(tracked, told).is_some() || self.rival_path(tracked, told).is_some();
        match (tracked.action, held) {
            // The device at its path now came after it.
            (b"add" | b"move", _) if obstructed && overtaken => Verdict::Stale,
            (b"add" | b"move", _) if obstructed => Verdict::RemoveFirst,
            (b"add", Some(held)) if held.settled && scanned => match before {
                Some(true) => Verdict::Stale,
                // A scan may find a device before it is ready: only its event tells that
                // (device_add_disk in block/genhd.c).
                Some(false) => Verdict::Act,
                None => Verdict::StaleIfSame,
            },
            // Its node, or its name, is another one's by now.
            (b"remove" | b"move", held) if self.is_over(tracked, held, told) => Verdict::Stale,
            (_, _) if !scanned => Verdict::Act,
            (b"move", held) if tracked.old_path.and_then(|old| self.get(old)).is_none() => {
                match held {
                    // The scan has found it where it is now.
                    Some(_) if overtaken => Verdict::Stale,
                    Some(_) => Verdict::Act,
                    None => Verdict::ActAndCompare,
                }
            }
            (b"add" | b"move", _) => Verdict::Act,
            (b"remove", None) => Verdict::StaleIfListed,
            (b"remove", Some(held)) if !identity::may_be_of(told, held.identity) => Verdict::Stale,
            (b"remove", Some(_)) => Verdict::Act,
            (_, None) if overtaken => Verdict::StaleIfListed,
            (_, Some(held)) if overtaken && !identity::may_be_of(told, held.identity) => {
                Verdict::Stale
            }
            (_, _) => Verdict::Act,
        }
    }
}
