//! How what was missed is made up for: the devices that are there are compared
//! with those that are known, and the difference is acted on.
//!
//! Pure: what differs, the events that are made of it, and when to do it again
//! if events are lost meanwhile.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt;
use std::io::Write;
use std::time::Duration;

use crate::inventory::{Inventory, Storage, identity};
use crate::machine::Time;

/// Why devices are compared. The text is in PLUGD_REPLAY, in the environment of
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

/// How far the kernel's events have come, by their SEQNUM.
///
/// One that is missing has gone to another network namespace; or it will come: since
/// Linux 6.10 events are numbered before they queue up to be sent
/// (kobject_uevent_env in lib/kobject_uevent.c), so that one may overtake another.
#[derive(Debug, Default)]
pub struct Sequence {
    /// All up to this one have come, or never will.
    through: u64,
    /// Which of those after it have come, the next one lowest.
    ahead: u64,
}

impl Sequence {
    /// All up to this one have come.
    pub fn after(through: u64) -> Self {
        Self { through, ahead: 0 }
    }

    /// All up to this one have come, or never will.
    pub fn through(&self) -> u64 {
        self.through
    }

    /// Whether some are missing before one that has come.
    pub fn has_gap(&self) -> bool {
        self.ahead != 0
    }

    /// The one with this number came. What is missing when so many others have come is
    /// not waited for any more.
    pub fn came(&mut self, number: u64) {
        let last = u64::from(u64::BITS);
        self.skip_to(number.saturating_sub(last));
        if number > self.through {
            self.ahead |= 1 << (number - self.through - 1);
        }
        self.skip_to(self.through);
    }

    /// Those up to this one that are missing will not come.
    pub fn skip_to(&mut self, number: u64) {
        let count = number.saturating_sub(self.through);
        self.advance(count);
        self.advance(self.ahead.trailing_ones().into());
    }

    /// What is missing will not come.
    pub fn close(&mut self) {
        self.advance((u64::BITS - self.ahead.leading_zeros()).into());
    }

    fn advance(&mut self, count: u64) {
        self.through += count;
        let shifted = u32::try_from(count).ok().and_then(|count| self.ahead.checked_shr(count));
        self.ahead = shifted.unwrap_or(0);
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
    let _ = write!(event, "SEQNUM={last}\0PLUGD_REPLAY={cause}\0");
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
            numbers.iter().for_each(|number| events.came(*number));
            (events.through(), events.has_gap())
        };
        assert_eq!(come(&[101, 102]), (102, false));
        assert_eq!(come(&[104, 105, 107]), (102, true), "103 may come");
        assert_eq!(come(&[103]), (105, true));
        assert_eq!(come(&[106, 90, 107]), (107, false));
        // Too many others have come since.
        assert_eq!(come(&[109]), (107, true));
        assert_eq!(come(&(110..171).collect::<Vec<_>>()), (107, true));
        assert_eq!(come(&[171]), (107, true));
        assert_eq!(come(&[172]), (172, false));
        assert_eq!(come(&[1000]), (936, true));
        events.close();
        assert_eq!((events.through(), events.has_gap()), (1000, false));
        events.came(1003);
        events.came(1004);
        events.skip_to(1002);
        assert_eq!((events.through(), events.has_gap()), (1004, false));
        events.skip_to(90);
        assert_eq!(events.through(), 1004);
        events.skip_to(u64::MAX);
        events.came(u64::MAX);
        assert_eq!((events.through(), events.has_gap()), (u64::MAX, false));
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
    }
}
