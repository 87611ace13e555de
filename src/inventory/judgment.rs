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
use super::{Inventory, Storage};

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
    /// Another device is known at its path, whose `remove` was lost: act on that
    /// first.
    RemoveFirst,
}

impl<S: Storage> Inventory<S> {
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
        let number = event.last(b"SEQNUM").and_then(|text| text.to_str().ok()?.parse::<u64>().ok());
        let verdict = self.judge_tracked(&tracked, &told, number, trust);
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
        let (scanned, overtaken) = match trust {
            Trust::Scanned { last } => (true, number.is_some() && number <= last),
            Trust::Lossy | Trust::Unscanned => (false, false),
        };
        match (tracked.action, held) {
            (b"add", Some(held)) if held.identity == told && held.settled => {
                if scanned {
                    Verdict::Stale
                } else {
                    Verdict::Act
                }
            }
            (b"add", Some(held)) if held.identity == told => Verdict::Act,
            // The device at its path now came after it.
            (b"add", Some(_)) if overtaken => Verdict::Stale,
            (b"add", Some(_)) => Verdict::RemoveFirst,
            (_, _) if !scanned => Verdict::Act,
            // The scan has found it where it is now.
            (b"move", Some(held))
                if overtaken
                    && identity::may_be_of(told, held.identity)
                    && tracked.old_path.and_then(|old| self.get(old)).is_none() =>
            {
                Verdict::Stale
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
