//! How what was missed is made up for: the devices that are there are compared
//! with those that are known, and the difference is acted on.
//!
//! Pure: what differs, the events that are made of it, and when to do it again
//! if events are lost meanwhile.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt;
use std::io::Write;
use std::iter;
use std::ops::Range;
use std::time::Duration;

use crate::inventory::{Inventory, Progress, Storage, identity};
use crate::machine::Time;
use crate::uevent::REPLAY;

/// Why devices are compared. The text is in [`REPLAY`], in the environment of
/// whatever acts on what comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// At the start nothing is known.
    Coldplug,
    /// At the start it is known what an earlier daemon has acted on.
    Restart,
    /// The kernel dropped events.
    Overrun,
    /// Somebody asked for it, or what an earlier one had found is in doubt.
    Rescan,
}

impl Cause {
    const ALL: [Self; 4] = [Self::Coldplug, Self::Restart, Self::Overrun, Self::Rescan];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coldplug => "coldplug",
            Self::Restart => "restart",
            Self::Overrun => "overrun",
            Self::Rescan => "rescan",
        }
    }

    /// The one of that name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.name() == name)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Of which devices that were there all the time a `change` is replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changes {
    /// Of all.
    All,
    /// Of none.
    None,
    /// Of those of these subsystems.
    Of(Vec<Vec<u8>>),
}

impl Changes {
    /// Reads `yes`, `no`, or names of subsystems with commas between them.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "yes" => Some(Self::All),
            "no" => Some(Self::None),
            _ if text.split(',').any(str::is_empty) => None,
            _ => Some(Self::Of(text.split(',').map(|name| name.as_bytes().to_vec()).collect())),
        }
    }

    /// Whether those of this subsystem are among them.
    pub fn include(&self, subsystem: &[u8]) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Of(subsystems) => subsystems.iter().any(|name| name == subsystem),
        }
    }
}

/// When to compare again if events are lost all the time: a storm must not keep
/// the daemon from acting on the events that do come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    pause: Duration,
    last: Option<Time>,
}

impl Pace {
    const FIRST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_secs(5);

    /// Nothing was lost yet.
    pub fn new() -> Self {
        Self { pause: Self::FIRST, last: None }
    }

    /// Says when to begin, at the time `now` or later.
    pub fn next(&self, now: Time) -> Time {
        self.last.map_or(now, |last| now.max(last + self.pause))
    }

    /// A comparison has ended. `complete`: nothing was lost meanwhile.
    pub fn ended(&mut self, now: Time, complete: bool) {
        self.pause = match complete {
            true => Self::FIRST,
            false => (self.pause * 2).min(Self::LONGEST),
        };
        self.last = Some(now);
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::new()
    }
}

/// Which of the kernel's events were acted on, by their SEQNUM.
///
/// One that is missing has gone to another network namespace; or it will come: since
/// Linux 6.10 events are numbered before they queue up to be sent
/// (kobject_uevent_env in lib/kobject_uevent.c), so that one may overtake another, and
/// nothing tells for how long. So whatever is missing is waited for until it comes, or
/// all devices are acted on once more: after a kill they may be for nothing, but no
/// event is forgotten that was on its way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sequence {
    /// Without gaps, and in their order. All of the first run were acted on, or are made
    /// up for; of the others, those before them are missing.
    runs: Vec<Range<u64>>,
}

impl Sequence {
    /// More of them are not remembered: what comes after them is as if it were missing.
    const RUNS_MAX: usize = 64;

    /// All up to this one were acted on; after 0, nothing is known.
    pub fn after(number: u64) -> Self {
        Self { runs: iter::once(0..number.saturating_add(1)).collect() }
    }

    /// All up to this one were acted on, or are made up for.
    pub fn through(&self) -> u64 {
        self.runs[0].end - 1
    }

    /// The one with this number was acted on.
    pub fn acted_on(&mut self, number: u64) {
        let Some(next) = number.checked_add(1) else { return };
        let at = self.runs.partition_point(|run| run.end < number);
        let may_add = self.runs.len() < Self::RUNS_MAX;
        match &mut self.runs[at..] {
            [run, ..] if run.contains(&number) => {}
            [run, after, ..] if run.end == number && after.start == next => {
                run.end = after.end;
                self.runs.remove(at + 1);
            }
            [run, ..] if run.end == number => run.end = next,
            [run, ..] if run.start == next => run.start = number,
            _ if may_add => self.runs.insert(at, number..next),
            _ => {}
        }
    }

    /// Devices are about to be compared; the SEQNUM of the `last` event is from before
    /// any of them is looked at. If all are acted on, whatever has happened by then is
    /// made up for, once that is done.
    pub fn compare(&mut self, last: Option<u64>, acts_on_all: bool) {
        if acts_on_all {
            *self = Self::after(last.unwrap_or(0));
        }
    }
}

/// Whether events that were not acted on may have told of changes, at the start of a
/// daemon: by how far the one `before` it had come, and the SEQNUM of the `last` event
/// by now.
pub fn has_missed_changes(before: Progress, last: Option<u64>) -> bool {
    match before {
        // What happened after that is nothing that somebody would have heard of.
        Progress::Left(_) => false,
        Progress::Through(number) => last != Some(number),
        Progress::Unknown => true,
    }
}

/// The known devices that are not there any more, or are others now, children
/// after their parents; so the last is the first to be removed.
///
/// `changed` are paths of devices that are others now: all that was below them
/// went with them. `is_there` tells of what is at no other path.
pub fn gone<S: Storage>(
    known: &Inventory<S>,
    changed: &HashSet<Vec<u8>>,
    mut is_there: impl FnMut(&[u8], &[u8]) -> bool,
) -> Vec<Vec<u8>> {
    let went = |path: &[u8]| {
        let ends = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(end, _)| end);
        !changed.is_empty() && ends.chain([path.len()]).any(|end| changed.contains(&path[..end]))
    };
    let gone =
        known.iter().filter(|device| went(device.path) || !is_there(device.path, device.identity));
    let mut gone: Vec<Vec<u8>> = gone.map(|device| device.path.to_vec()).collect();
    gone.sort_unstable();
    gone
}

/// Appends to the datagram of an event what tells that it is replayed. `last` is
/// the SEQNUM of the last event of the kernel's own.
pub fn mark(event: &mut Vec<u8>, cause: Cause, last: Option<u64>) {
    let last = last.unwrap_or(0);
    // To memory that never fails.
    let _ = write!(event, "SEQNUM={last}\0");
    for part in [REPLAY, b"=", cause.name().as_bytes(), b"\0"] {
        event.extend_from_slice(part);
    }
}

/// Writes the datagram of an event for a device that is known, in place of what
/// is there.
pub fn write_event(event: &mut Vec<u8>, action: &str, path: &[u8], identity: &[u8]) {
    let action = action.as_bytes();
    event.clear();
    for part in [action, b"@", path, b"\0ACTION=", action, b"\0DEVPATH=", path, b"\0", identity] {
        event.extend_from_slice(part);
    }
}

/// The name and the number of a network interface, which is to be looked for in
/// the network namespace that events come from, and not in a /sys that may be of
/// another one.
pub fn interface(identity: &[u8]) -> Option<(&[u8], u32)> {
    if identity::value(identity, b"SUBSYSTEM") != Some(b"net") {
        return None;
    }
    let index = identity::number(identity, b"IFINDEX")?;
    Some((identity::value(identity, b"INTERFACE")?, u32::try_from(index).ok()?))
}

/// Whether a network interface that is `known` has another name by now.
pub fn is_renamed(known: &[u8], told: &[u8]) -> bool {
    let renamed = interface(known).zip(interface(told));
    renamed.is_some_and(|(known, told)| known.1 == told.1 && known.0 != told.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::World;
    use crate::uevent::{Header, Uevent};

    fn known(paths: &[&str]) -> Inventory<Vec<u8>> {
        let mut inventory = Inventory::new(Vec::new(), World { boot: [0; 36], engine: 0 });
        for path in paths {
            let text = format!("add@{path}\0ACTION=add\0DEVPATH={path}\0SUBSYSTEM=s\0");
            let event = Uevent::parse(text.as_bytes(), Header::Required).unwrap();
            inventory.begin(&event, true);
            inventory.finish(&event);
        }
        inventory
    }

    #[test]
    fn what_is_gone_goes_children_first() {
        let paths = ["/devices/a", "/devices/a/b", "/devices/a/b/c", "/devices/ab", "/devices/d"];
        let known = known(&paths);
        let gone = |changed: &[&str], there: &[&str]| {
            let changed = changed.iter().map(|path| path.as_bytes().to_vec()).collect();
            let gone = gone(&known, &changed, |path, _| there.iter().any(|t| t.as_bytes() == path));
            gone.into_iter().rev().map(|path| String::from_utf8(path).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(gone(&[], &paths), [""; 0]);
        assert_eq!(gone(&[], &["/devices/ab"]), [paths[4], paths[2], paths[1], paths[0]]);
        assert_eq!(gone(&[paths[1]], &paths), [paths[2], paths[1]], "all below goes with it");
        assert_eq!(gone(&[paths[0]], &paths), [paths[2], paths[1], paths[0]]);
    }

    #[test]
    fn a_storm_is_met_ever_more_seldom() {
        let ms = Duration::from_millis;
        let mut pace = Pace::new();
        let mut now = ms(1000);
        assert_eq!(pace.next(now), now, "at once");
        for pause in [20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000] {
            pace.ended(now, false);
            assert_eq!(pace.next(now), now + ms(pause));
            now += ms(pause);
        }
        pace.ended(now, true);
        assert_eq!(pace.next(now), now + ms(10), "the storm is over");
        assert_eq!(pace.next(now + ms(50)), now + ms(50));
    }

    #[test]
    fn what_comes_late_is_waited_for() {
        let mut events = Sequence::after(100);
        let mut come = |numbers: &[u64]| {
            numbers.iter().for_each(|number| events.acted_on(*number));
            events.through()
        };
        assert_eq!(come(&[101, 102]), 102);
        assert_eq!(come(&[104, 105, 107]), 102, "103 may come");
        assert_eq!(come(&[103]), 105);
        assert_eq!(come(&[106, 90, 107]), 107);
        assert_eq!(come(&(109..10_000).rev().collect::<Vec<_>>()), 107, "108 still may");
        assert_eq!(come(&[10_001, u64::MAX, 108]), 9_999);
        // What cannot be remembered is missing.
        let gaps: Vec<u64> = (10_000..20_000).step_by(2).skip(1).collect();
        assert_eq!(come(&gaps), 9_999);
        assert_eq!(come(&(10_000..20_000).collect::<Vec<_>>()), 19_999);
        events.compare(Some(30_000), false);
        assert_eq!(events.through(), 19_999);
        events.compare(Some(30_000), true);
        assert_eq!(events.through(), 30_000);
        events.compare(None, true);
        assert_eq!(events.through(), 0);
    }

    /// Where an event is.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    enum Way {
        /// It has not happened.
        Ahead,
        /// It has, and has a number; but it is not yet sent.
        Numbered,
        Queued,
        /// Nobody had it.
        Lost,
        /// It was acted on, or the device was acted on after it has happened, or it goes
        /// to another network namespace, or it is of a time when plugd was stopped.
        Done,
    }

    /// All that there is: the kernel, which numbers events in their order and sends them
    /// in any, and a plugd, as `loop::recover` has it.
    #[derive(Debug, Clone, PartialEq, Eq, Hash)]
    struct Model {
        events: [Way; 4],
        /// What is in the state file.
        progress: Progress,
        sequence: Sequence,
        runs: bool,
        /// The number of the last event, and whether all devices are acted on.
        comparison: Option<(u64, bool)>,
        /// What the one before had left, until the first comparison.
        before: Option<Progress>,
        /// The kernel has dropped an event.
        overrun: bool,
        /// How often something may still happen.
        kills: u8,
        stops: u8,
        rescans: u8,
        drops: u8,
    }

    impl Model {
        fn last(&self) -> u64 {
            self.events.iter().filter(|way| **way != Way::Ahead).count() as u64
        }

        /// With something done to it, if that can be.
        fn with(&self, change: impl FnOnce(&mut Self) -> Option<()>) -> Option<Self> {
            let mut next = self.clone();
            change(&mut next).map(|()| next)
        }

        fn end(&mut self, lost: &[Way], becomes: Way) {
            self.runs = false;
            self.comparison = None;
            let lost = self.events.iter_mut().filter(|way| lost.contains(way));
            lost.for_each(|way| *way = becomes);
        }

        fn tell(&mut self) {
            if self.comparison.is_none() && self.before.is_none() && !self.overrun {
                self.progress = Progress::Through(self.sequence.through());
            }
        }

        /// Whatever can happen next.
        fn next(&self) -> Vec<Self> {
            let mut next = Vec::new();
            next.extend(self.with(|it| {
                let event = it.events.iter_mut().find(|way| **way == Way::Ahead)?;
                *event = Way::Numbered;
                Some(())
            }));
            next.extend(self.with(|it| {
                let event = it.events.iter_mut().find(|way| **way == Way::Ahead)?;
                *event = Way::Done;
                Some(())
            }));
            for (index, number) in (0..self.events.len()).zip(1..) {
                next.extend(self.with(|it| {
                    let sent = if it.runs { Way::Queued } else { Way::Lost };
                    (it.events[index] == Way::Numbered).then(|| it.events[index] = sent)
                }));
                next.extend(self.with(|it| {
                    it.drops = it.drops.checked_sub(1)?;
                    it.overrun = true;
                    (it.runs && it.events[index] == Way::Numbered)
                        .then(|| it.events[index] = Way::Lost)
                }));
                // It is acted on. Which of those that wait does not matter.
                next.extend(self.with(|it| {
                    let reads = it.runs && it.comparison.is_none();
                    (reads && it.events[index] == Way::Queued).then(|| {
                        it.events[index] = Way::Done;
                        it.sequence.acted_on(number);
                        it.tell();
                    })
                }));
            }
            next.extend(self.with(|it| {
                it.kills = it.kills.checked_sub(1)?;
                it.runs.then(|| it.end(&[Way::Queued], Way::Lost))
            }));
            // What has happened until the next start is not made up for.
            next.extend(self.with(|it| {
                it.stops = it.stops.checked_sub(1)?;
                let settled = it.comparison.is_none() && it.before.is_none() && !it.overrun;
                (it.runs && settled && !it.events.contains(&Way::Queued)).then(|| {
                    it.progress = Progress::Left(it.sequence.through());
                    it.end(&[], Way::Done);
                })
            }));
            next.extend(self.with(|it| {
                (!it.runs).then(|| {
                    if let Progress::Left(_) = it.progress {
                        it.end(&[Way::Numbered, Way::Lost], Way::Done);
                    }
                    it.runs = true;
                    it.overrun = false;
                    it.before = Some(it.progress);
                    it.sequence = Sequence::after(match it.progress {
                        Progress::Through(number) | Progress::Left(number) => number,
                        Progress::Unknown => 0,
                    });
                    it.progress = Progress::Unknown;
                })
            }));
            next.extend(self.with(|it| {
                if it.before.is_none() && !it.overrun {
                    it.rescans = it.rescans.checked_sub(1)?;
                }
                (it.runs && it.comparison.is_none()).then(|| {
                    let last = it.last();
                    let missed = |before| has_missed_changes(before, Some(last));
                    let acts_on_all = it.before.take().is_some_and(missed) || it.overrun;
                    it.sequence.compare(Some(last), acts_on_all);
                    it.comparison = Some((last, acts_on_all));
                    it.progress = Progress::Unknown;
                    it.overrun = false;
                })
            }));
            next.extend(self.with(|it| {
                let (last, acts_on_all) = it.comparison?;
                it.comparison = None;
                if acts_on_all {
                    // That some are still to come does not matter any more.
                    it.events[..usize::try_from(last).unwrap()].fill(Way::Done);
                }
                it.tell();
                Some(())
            }));
            next
        }
    }

    #[test]
    fn killed_at_any_moment_no_change_is_forgotten_that_is_on_its_way() {
        let first = Model {
            events: [Way::Ahead; 4],
            progress: Progress::Unknown,
            sequence: Sequence::after(0),
            runs: false,
            comparison: None,
            before: None,
            overrun: false,
            kills: 2,
            stops: 1,
            rescans: 1,
            drops: 1,
        };
        let (mut known, mut left) = (HashSet::from([first.clone()]), vec![first]);
        let (mut spared, mut repeated) = (0, 0);
        while let Some(state) = left.pop() {
            let made_up = state.comparison.is_none() && state.before.is_none() && !state.overrun;
            let forgotten = state.runs && made_up && state.events.contains(&Way::Lost);
            assert!(!forgotten, "{state:#?}");
            if state.kills < 2 && state.comparison.is_some_and(|(last, _)| last > 0) {
                let acts_on_all = state.comparison.is_some_and(|(_, all)| all);
                *if acts_on_all { &mut repeated } else { &mut spared } += 1;
            }
            let next = state.next().into_iter();
            left.extend(next.filter(|state| known.insert(state.clone())));
        }
        assert!(known.len() > 100_000, "{}", known.len());
        assert!(spared > 0 && repeated > 0, "{spared} {repeated}");
    }

    #[test]
    fn changes_are_read() {
        assert_eq!(Changes::parse("yes"), Some(Changes::All));
        assert_eq!(Changes::parse("no"), Some(Changes::None));
        assert_eq!(Changes::parse(""), None);
        assert_eq!(Changes::parse("block,"), None);
        let some = Changes::parse("block,net").unwrap();
        assert_eq!(
            [some.include(b"block"), some.include(b"net"), some.include(b"tty")],
            [true, true, false]
        );
    }

    #[test]
    fn an_event_is_made_of_what_is_known() {
        let mut event = b"old".to_vec();
        write_event(&mut event, "remove", b"/devices/x", b"SUBSYSTEM=s\0MAJOR=1\0");
        mark(&mut event, Cause::Overrun, Some(7));
        let expected = "remove@/devices/x\0ACTION=remove\0DEVPATH=/devices/x\0SUBSYSTEM=s\0\
                        MAJOR=1\0SEQNUM=7\0PLUGD_REPLAY=overrun\0";
        assert_eq!(
            event.escape_ascii().to_string(),
            expected.as_bytes().escape_ascii().to_string()
        );
    }

    #[test]
    fn an_interface_has_a_name_and_a_number() {
        let identity = b"SUBSYSTEM=net\0INTERFACE=lo\0IFINDEX=1\0";
        assert_eq!(interface(identity), Some((&b"lo"[..], 1)));
        assert_eq!(interface(b"SUBSYSTEM=queues\0INTERFACE=lo\0IFINDEX=1\0"), None);
        assert_eq!(interface(b"SUBSYSTEM=net\0"), None);
        let others: [&[u8]; 4] = [
            identity,
            b"SUBSYSTEM=net\0INTERFACE=lo\0IFINDEX=2\0",
            b"SUBSYSTEM=net\0INTERFACE=other\0IFINDEX=2\0",
            b"SUBSYSTEM=net\0INTERFACE=other\0IFINDEX=1\0",
        ];
        assert_eq!(others.map(|other| is_renamed(identity, other)), [false, false, false, true]);
    }
}
