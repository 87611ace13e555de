//! Which devices they are that came by events: their incarnations are looked up when
//! nothing has come for a while.

use std::time::Duration;

use crate::machine::Time;
use crate::sysfs::Sysfs;

use super::{Daemon, Recovered, Recovery};

/// Of how many devices the incarnations are looked up at a time, and how long they wait
/// for it: there are better things to do while one event comes after the other.
const FRESH_MAX: usize = 1024;
pub(super) const FRESH_FOR: Duration = Duration::from_secs(1);

/// Devices that came by events, whose incarnations are not known yet. What is
/// looked up is right if the queue is empty before and after.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    /// The first of them, and what was found.
    found: Vec<(Vec<u8>, u64)>,
    /// When to look them up, or to do so once more.
    pub(super) due: Option<Time>,
    pub(super) measured: bool,
}

impl Recovery {
    /// Looks up the incarnations of some devices that came by events.
    pub(super) fn measure_fresh(&mut self) {
        self.fresh.measured = true;
        let sys = Sysfs::open(&self.sys);
        let found = |path: &[u8]| sys.as_ref().ok().and_then(|sys| sys.incarnation(path));
        let unseen = self.inventory.unseen().take(FRESH_MAX);
        self.fresh.found = unseen.map(|path| (path.to_vec(), found(path).unwrap_or(0))).collect();
    }

    /// What was looked up is right: nothing has come since. Returns whether there may be
    /// more to look up.
    pub(super) fn note_fresh(&mut self) -> bool {
        let found = std::mem::take(&mut self.fresh).found;
        for (path, incarnation) in &found {
            self.inventory.set_incarnation(path, *incarnation);
        }
        found.len() == FRESH_MAX
    }
}

impl Daemon {
    /// Looks up the incarnations of devices that came by events.
    pub(super) fn look_up_fresh(&mut self, idle: bool) -> Recovered {
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
