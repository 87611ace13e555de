//! Who waits for what: requests to tell when all events emitted so far have
//! been acted on, or when a certain device has.
//!
//! Pure: the loop says what it found, and asks who can be answered. The promise
//! that lives here: a request is answered neither early nor never.
//!
//! Events leave a socket in the order in which they were queued. So all that
//! were queued when the request came have been acted on once the socket is
//! found empty while none is in hand; or once one has been acted on that the
//! kernel numbered after the request came: SEQNUM counts up by one for every
//! event of the machine (lib/kobject_uevent.c), and the request notes where it
//! stood; or once as much was taken from it as was queued, and acted on.
//! Every socket that is read has to pass one of the three.
//!
//! A device is there, or gone, before its event comes: found so, it counts when all
//! events have been acted on that were queued by then.
//!
//! Events that the kernel dropped are not in that order. They are made up for by a
//! comparison of what is there with what is known: one that had all in it, as nothing
//! was dropped since it was due; or one that began after the request came, when no
//! event from before was queued any more, or none that one dropped later should have
//! followed. What such an event has brought could be gone already.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::machine::Time;
use crate::uevent::Uevent;
use crate::units;

/// How often to look whether a device is there, at most, while events come all the time.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What a request waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// Everything that was emitted before has been acted on.
    Settled,
    /// An event of this device has been acted on; or it is settled, and the
    /// device is there already.
    Present(Device),
    /// Likewise, its removal; or it is settled, and the device is not there.
    Gone(Device),
}

/// How a device is told from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// By its path below /sys, which begins with `/`, as DEVPATH.
    Path(Vec<u8>),
    /// By its node, or what leads there: a path below /dev, which does not
    /// begin with `/`, as DEVNAME.
    Node(Vec<u8>),
    /// By fields of its events, `KEY=VALUE`, all of them. Whether it is there
    /// takes a walk through /sys, for which the daemon has no time: its client
    /// does that.
    Fields(Vec<Vec<u8>>),
}

/// What devices are told by, of an event: found once, however many wait.
#[derive(Debug)]
pub struct Traits<'e> {
    removal: bool,
    path: Option<&'e [u8]>,
    node: Option<&'e [u8]>,
    number: Option<u64>,
    /// In order, so that one is soon found.
    fields: Vec<&'e [u8]>,
}

impl<'e> Traits<'e> {
    /// Those of this event.
    pub fn of(event: &Uevent<'e>) -> Self {
        let mut traits = Self {
            removal: false,
            path: None,
            node: None,
            number: None,
            fields: event.fields().map(|field| field.whole().to_bytes()).collect(),
        };
        // The last one of a key counts.
        for field in event.fields() {
            let value = field.value_bytes();
            match field.key() {
                b"ACTION" => traits.removal = value == b"remove",
                b"DEVPATH" => traits.path = Some(value),
                // libudev's format has it with the directory, the kernel's without.
                b"DEVNAME" => traits.node = Some(value.strip_prefix(b"/dev/").unwrap_or(value)),
                b"SEQNUM" => {
                    traits.number = std::str::from_utf8(value).ok().and_then(units::digits)
                }
                _ => {}
            }
        }
        traits.fields.sort_unstable();
        traits
    }
}

impl Device {
    /// Whether this is one of its events.
    pub fn matches(&self, event: &Traits<'_>) -> bool {
        match self {
            Self::Path(path) => event.path == Some(path),
            Self::Node(node) => event.node == Some(node),
            Self::Fields(fields) => {
                fields.iter().all(|field| event.fields.binary_search(&&field[..]).is_ok())
            }
        }
    }
}

impl Want {
    /// Whether it is so that all is as wanted, as far as can be told without an event.
    fn is_found(&self, is_there: impl Fn(&Device) -> Option<bool>) -> bool {
        match self {
            Self::Settled => true,
            Self::Present(Device::Fields(_)) | Self::Gone(Device::Fields(_)) => false,
            Self::Present(device) => is_there(device) == Some(true),
            Self::Gone(device) => is_there(device) == Some(false),
        }
    }

    fn met_by(&self, event: &Traits<'_>) -> bool {
        match self {
            Self::Settled => false,
            Self::Present(device) => !event.removal && device.matches(event),
            Self::Gone(device) => event.removal && device.matches(event),
        }
    }
}

/// The answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It has come.
    Yes,
    /// Its time is over.
    TimedOut,
}

#[derive(Debug)]
struct Request<I> {
    id: I,
    want: Want,
    /// The kernel's last SEQNUM when the request came, if it could be read.
    last: Option<u64>,
    /// The sockets that may still hold events from before.
    unsettled: Vec<Unsettled>,
    loss: Loss,
    /// The first comparison that finds all that was dropped before.
    finder: Option<u64>,
    deadline: Time,
    met: bool,
    /// Whether the device is there has to be looked up.
    look: bool,
    /// What is wanted was found before what is waited for now was noted.
    found: Found,
}

/// Whether a device is there or not, as wanted, before its event may have been emitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// It was not.
    No,
    /// It is by now: what waits has to be noted anew.
    Since,
    /// It was.
    Before,
}

/// A socket that may hold events from before a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unsettled {
    socket: usize,
    /// How much of it is from before, at most, if that can be told.
    left: Option<u64>,
}

/// What may have been emitted before a request, or before its device was found.
#[derive(Debug)]
pub struct Emitted {
    /// The number that the kernel gave out last, if it could be read.
    pub last: Option<u64>,
    /// All sockets that may bring events, and how much waits in each, if that can be told.
    pub sockets: Vec<(usize, Option<u64>)>,
    /// Events may have been dropped that are not made up for.
    pub lossy: bool,
}

/// What is known of events from before a request that were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// There are none, as far as has been told.
    None,
    /// There may be some.
    Possible,
    /// They are made up for.
    MadeUp,
}

impl<I> Request<I> {
    fn note(&mut self, emitted: &Emitted) {
        let Emitted { last, sockets, lossy } = emitted;
        self.last = *last;
        let unsettled = sockets.iter().map(|&(socket, left)| Unsettled { socket, left });
        self.unsettled = unsettled.collect();
        self.loss = if *lossy { Loss::Possible } else { Loss::None };
        self.finder = None;
        self.look = self.is_settled();
    }

    fn is_settled(&self) -> bool {
        self.unsettled.is_empty() && self.loss != Loss::Possible
    }
}

/// All requests that wait, told apart by `I`.
#[derive(Debug)]
pub struct Requests<I> {
    requests: Vec<Request<I>>,
    /// Not before that is looked for devices again because an event was acted on.
    look_again: Time,
}

impl<I> Default for Requests<I> {
    fn default() -> Self {
        Self { requests: Vec::new(), look_again: Time::ZERO }
    }
}

impl<I: Copy + PartialEq> Requests<I> {
    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Takes a request that is to be answered until `deadline`.
    ///
    /// `is_there` is as for [`Requests::answer`]. It is asked at once; what may have been
    /// `emitted` is to be found out after that: the event of a device that is there by
    /// then is waited for. No socket may be held to be empty any more because it was
    /// before.
    pub fn add(
        &mut self,
        id: I,
        want: Want,
        deadline: Time,
        is_there: impl Fn(&Device) -> Option<bool>,
        emitted: impl FnOnce() -> Emitted,
    ) {
        let found = if want.is_found(is_there) { Found::Before } else { Found::No };
        let mut request = Request {
            id,
            want,
            last: None,
            unsettled: Vec::new(),
            loss: Loss::None,
            finder: None,
            deadline,
            met: false,
            look: false,
            found,
        };
        request.note(&emitted());
        self.requests.push(request);
    }

    /// Notes what may have been `emitted` by now for those whose device was found since
    /// they came. Returns whether there are any: then as for [`Requests::add`], no socket
    /// may be held to be empty any more.
    pub fn renew(&mut self, emitted: impl FnOnce() -> Emitted) -> bool {
        let found = |request: &&mut Request<I>| request.found == Found::Since;
        let mut found = self.requests.iter_mut().filter(found).peekable();
        if found.peek().is_none() {
            return false;
        }
        let emitted = emitted();
        for request in found {
            request.found = Found::Before;
            request.note(&emitted);
        }
        true
    }

    /// The kernel has told that it dropped events.
    pub fn lost(&mut self) {
        for request in self.requests.iter_mut().filter(|request| request.loss == Loss::None) {
            request.loss = Loss::Possible;
        }
    }

    /// An event is acted on that may be of another device than is known: those who wait
    /// for it wait for the next comparison, too, and not for one that has begun.
    pub fn doubted(&mut self) {
        for request in self.requests.iter_mut().filter(|request| !request.unsettled.is_empty()) {
            request.loss = Loss::Possible;
            request.finder = None;
        }
    }

    /// The comparison of this number begins, counted from 1. `gapless`: nothing was
    /// dropped since the events came that are queued.
    pub fn begun(&mut self, number: u64, gapless: bool) {
        for request in &mut self.requests {
            if gapless || request.unsettled.is_empty() {
                request.finder.get_or_insert(number);
            }
        }
    }

    /// What was dropped is made up for, by the comparison of this number. `all`:
    /// nothing was dropped since it was due.
    pub fn made_up(&mut self, number: u64, all: bool) {
        for request in &mut self.requests {
            if all || request.finder.is_some_and(|finder| number >= finder) {
                request.loss = Loss::MadeUp;
                request.look = request.is_settled();
            }
        }
    }

    /// Nobody wants to know any more.
    pub fn remove(&mut self, id: I) {
        self.requests.retain(|request| request.id != id);
    }

    /// Whether somebody waits for this socket to be found empty.
    pub fn wait_for(&self, socket: usize) -> bool {
        let mut unsettled = self.requests.iter().flat_map(|request| &request.unsettled);
        unsettled.any(|unsettled| unsettled.socket == socket)
    }

    /// An attempt to receive found the socket empty, or at its end, while no
    /// event was in hand.
    pub fn found_empty(&mut self, socket: usize) {
        for request in &mut self.requests {
            request.unsettled.retain(|unsettled| unsettled.socket != socket);
            // What an event has brought beside its own device is found here.
            request.look = request.is_settled();
        }
    }

    /// So much of what waited in the socket was taken, at the least, while no event was
    /// in hand. Returns whether somebody may be answered now.
    pub fn took(&mut self, socket: usize, weight: u64) -> bool {
        let mut settles = false;
        for request in &mut self.requests {
            let before = request.unsettled.len();
            // What was taken before has been acted on.
            request
                .unsettled
                .retain(|unsettled| (unsettled.socket, unsettled.left) != (socket, Some(0)));
            for unsettled in request.unsettled.iter_mut().filter(|u| u.socket == socket) {
                unsettled.left = unsettled.left.map(|left| left.saturating_sub(weight));
            }
            if request.unsettled.len() < before && request.is_settled() {
                request.look = true;
                settles = true;
            }
        }
        settles
    }

    /// An event has been acted on, to its end, at the time `now`. `socket` is where it
    /// came from, if it came from one.
    pub fn acted_on(&mut self, socket: Option<usize>, event: &Uevent<'_>, now: Time) {
        if self.requests.is_empty() {
            return;
        }
        // It may have brought more than its own device, and no socket may ever be empty.
        let looks = now >= self.look_again;
        if looks {
            self.look_again = now.saturating_add(LOOK_INTERVAL);
        }
        let event = &Traits::of(event);
        for request in &mut self.requests {
            request.met |= request.want.met_by(event);
            let later = request.last.is_some() && event.number > request.last;
            if socket.is_some() && later && !request.unsettled.is_empty() {
                request.unsettled.retain(|unsettled| Some(unsettled.socket) != socket);
                request.look = request.is_settled();
            }
            request.look |= looks && request.is_settled();
        }
    }

    /// When [`Requests::answer`] is to be asked, at the latest.
    pub fn deadline(&self) -> Option<Time> {
        self.requests.iter().map(|request| request.deadline).min()
    }

    /// When this one is to be answered at the latest.
    pub fn deadline_of(&self, id: I) -> Option<Time> {
        self.requests.iter().find(|request| request.id == id).map(|request| request.deadline)
    }

    /// Takes out the requests that can be answered at the time `now`.
    /// `is_there` looks up whether a device is there now, for a path or a node, if
    /// that can be told.
    pub fn answer(
        &mut self,
        now: Time,
        is_there: impl Fn(&Device) -> Option<bool>,
    ) -> Vec<(I, Answer)> {
        let mut answers = Vec::new();
        self.requests.retain_mut(|request| {
            let mut yes = request.met;
            if std::mem::take(&mut request.look) {
                request.found = match (request.want.is_found(&is_there), request.found) {
                    (false, _) => Found::No,
                    (true, Found::Before) => {
                        yes = true;
                        Found::Before
                    }
                    (true, Found::No | Found::Since) => Found::Since,
                };
            }
            let answer = match yes {
                true => Answer::Yes,
                false if request.deadline <= now => Answer::TimedOut,
                false => return true,
            };
            answers.push((request.id, answer));
            false
        });
        answers
    }
}

#[cfg(test)]
mod tests;
