//! Single cases, and the promise, over random histories.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::uevent::Header;

const NOW: Time = Time::from_secs(1000);
const LATER: Time = Time::from_secs(1060);

fn event(fields: &str) -> Vec<u8> {
    let fields: String = fields.split(' ').map(|field| format!("{field}\0")).collect();
    format!("x@/x\0{fields}").into_bytes()
}

fn acted_on(requests: &mut Requests<u32>, socket: usize, fields: &str) {
    let datagram = event(fields);
    acted_on_at(requests, NOW, Some(socket), &datagram);
}

fn acted_on_at(requests: &mut Requests<u32>, now: Time, socket: Option<usize>, datagram: &[u8]) {
    requests.acted_on(socket, &Uevent::parse(datagram, Header::Required).unwrap(), now);
}

fn answers(requests: &mut Requests<u32>) -> Vec<(u32, Answer)> {
    requests.answer(NOW, |_| Some(false))
}

/// A socket that does not tell how much waits in it.
fn unknown(socket: usize) -> (usize, Option<u64>) {
    (socket, None)
}

fn emitted(last: Option<u64>, sockets: usize) -> Emitted {
    Emitted { last, sockets: (0..sockets).map(unknown).collect(), lossy: false }
}

/// A device is as wanted when that is asked, and not before.
fn one(want: Want, last: Option<u64>, sockets: usize) -> Requests<u32> {
    let mut requests = Requests::default();
    requests.add(1, want, LATER, |_| None, || emitted(last, sockets));
    requests
}

const YES: [(u32, Answer); 1] = [(1, Answer::Yes)];

#[test]
fn an_empty_socket_settles() {
    let mut requests = one(Want::Settled, None, 1);
    assert_eq!(answers(&mut requests), []);
    requests.found_empty(0);
    assert_eq!(answers(&mut requests), YES);
    assert!(requests.is_empty());
}

#[test]
fn every_socket_has_to_be_empty_but_not_at_once() {
    let mut requests = one(Want::Settled, None, 2);
    requests.found_empty(1);
    requests.found_empty(1);
    assert_eq!(answers(&mut requests), []);
    acted_on(&mut requests, 1, "SEQNUM=5");
    requests.found_empty(0);
    assert_eq!(answers(&mut requests), YES);
}

#[test]
fn a_later_event_settles_its_own_socket_only() {
    let mut requests = one(Want::Settled, Some(7), 2);
    for fields in ["SEQNUM=6", "SEQNUM=7", "SEQNUM=", "SEQNUM=x", "A=8"] {
        acted_on(&mut requests, 0, fields);
        acted_on(&mut requests, 1, fields);
    }
    assert!(requests.wait_for(0) && requests.wait_for(1));
    acted_on(&mut requests, 0, "SEQNUM=8");
    assert_eq!(answers(&mut requests), []);
    acted_on(&mut requests, 1, "SEQNUM=100");
    assert_eq!(answers(&mut requests), YES);
}

#[test]
fn without_a_number_of_the_kernel_only_emptiness_counts() {
    let mut requests = one(Want::Settled, None, 1);
    acted_on(&mut requests, 0, "SEQNUM=18446744073709551615");
    assert_eq!(answers(&mut requests), []);
}

#[test]
fn as_much_as_was_queued_settles() {
    let mut requests = Requests::default();
    let sockets = vec![(0, Some(30)), (1, Some(0))];
    let emitted = Emitted { last: None, sockets, lossy: false };
    requests.add(1, Want::Settled, LATER, |_| None, || emitted);
    assert!(!requests.took(0, 20));
    assert!(!requests.took(1, 20), "only this one");
    assert!(!requests.took(0, 10), "this event is acted on from now on");
    acted_on(&mut requests, 0, "A=8");
    assert_eq!(answers(&mut requests), []);
    assert!(requests.took(0, 1));
    assert_eq!(answers(&mut requests), YES);
    // Where it cannot be told it does not.
    let mut requests = one(Want::Settled, None, 1);
    assert!((0..100).all(|_| !requests.took(0, 1000)));
}

#[test]
fn with_no_socket_left_everything_is_settled() {
    assert_eq!(answers(&mut one(Want::Settled, Some(1), 0)), YES);
}

#[test]
fn what_was_dropped_has_to_be_made_up_for() {
    let settled = |lossy, history: &dyn Fn(&mut Requests<u32>)| {
        let mut requests = Requests::default();
        let emitted = Emitted { lossy, ..emitted(Some(7), 1) };
        requests.add(1, Want::Settled, LATER, |_| None, || emitted);
        history(&mut requests);
        answers(&mut requests) == YES
    };
    let empty = |requests: &mut Requests<u32>| requests.found_empty(0);
    assert!(settled(false, &empty));
    assert!(!settled(true, &empty));
    assert!(!settled(false, &|r| (r.lost(), r.found_empty(0)).1));
    assert!(!settled(true, &|r| (r.found_empty(0), r.made_up(3, false)).1), "it began before");
    assert!(settled(true, &|r| (r.found_empty(0), r.made_up(3, true)).1));
    let compared = |r: &mut Requests<u32>, gapless| (r.begun(4, gapless), r.made_up(4, false)).1;
    assert!(settled(true, &|r| (r.found_empty(0), compared(r, false)).1));
    assert!(settled(true, &|r| (acted_on(r, 0, "SEQNUM=8"), compared(r, false)).1));
    assert!(settled(true, &|r| (compared(r, true), r.found_empty(0)).1));
    assert!(settled(true, &|r| (compared(r, true), r.lost(), r.found_empty(0)).2), "later ones");
    // An event that is acted on after the comparison, and that a dropped one followed.
    assert!(!settled(true, &|r| (compared(r, false), r.found_empty(0)).1));
    assert!(!settled(true, &|r| (r.begun(4, false), r.found_empty(0), r.made_up(4, false)).2));
    assert!(!settled(true, &|r| r.made_up(4, true)), "the socket may have some");
    assert!(settled(true, &|r| (r.made_up(4, true), acted_on(r, 0, "SEQNUM=8")).1));
}

#[test]
fn time_runs_out_at_the_deadline() {
    let mut requests = one(Want::Settled, None, 1);
    assert_eq!(requests.deadline(), Some(LATER));
    assert_eq!(requests.answer(LATER - Time::from_nanos(1), |_| Some(true)), []);
    assert_eq!(requests.answer(LATER, |_| Some(true)), [(1, Answer::TimedOut)]);
    assert_eq!(requests.deadline(), None);
    // What has come by then counts.
    let mut requests = one(Want::Settled, None, 1);
    requests.found_empty(0);
    assert_eq!(requests.answer(LATER, |_| Some(true)), YES);
}

#[test]
fn who_has_gone_is_not_answered() {
    let mut requests = one(Want::Settled, None, 1);
    requests.add(2, Want::Settled, LATER, |_| None, || emitted(None, 1));
    requests.remove(1);
    requests.found_empty(0);
    assert_eq!(answers(&mut requests), [(2, Answer::Yes)]);
}

fn path() -> Device {
    Device::Path(b"/devices/x".into())
}

fn node() -> Device {
    Device::Node(b"bus/usb/1".into())
}

fn fields() -> Device {
    Device::Fields(vec![b"SUBSYSTEM=net".into(), b"A=b=c".into()])
}

#[test]
fn an_event_of_the_device_answers() {
    for (device, fields, matches) in [
        (path(), "DEVPATH=/devices/x", true),
        (path(), "DEVPATH=/devices/x/y", false),
        (path(), "DEVNAME=/devices/x", false),
        (node(), "DEVNAME=bus/usb/1", true),
        (node(), "DEVNAME=/dev/bus/usb/1", true),
        (node(), "DEVNAME=usb/1", false),
        (fields(), "A=b=c B=1 SUBSYSTEM=net", true),
        (fields(), "A=b SUBSYSTEM=net", false),
        (fields(), "SUBSYSTEM=net", false),
    ] {
        for (action, removal) in [("add", false), ("change", false), ("remove", true)] {
            let event = format!("ACTION={action} {fields}");
            for (want, expected) in [
                (Want::Present(device.clone()), matches && !removal),
                (Want::Gone(device.clone()), matches && removal),
            ] {
                let mut requests = one(want.clone(), None, 1);
                acted_on(&mut requests, 0, &event);
                assert_eq!(!answers(&mut requests).is_empty(), expected, "{want:?} {event}");
            }
        }
    }
}

#[test]
fn what_is_there_counts_only_when_its_event_has_been_acted_on() {
    for device in [path(), node()] {
        for there in [true, false] {
            let want = if there { Want::Present } else { Want::Gone };
            let mut requests = Requests::default();
            let before = |_: &Device| Some(there);
            requests.add(1, want(device.clone()), LATER, before, || emitted(Some(7), 1));
            assert_eq!(requests.answer(NOW, |_| Some(there)), []);
            acted_on(&mut requests, 0, "SEQNUM=7");
            assert_eq!(requests.answer(NOW, |_| Some(there)), []);
            requests.found_empty(0);
            // No more, and looked for once only until something happens.
            assert_eq!(requests.answer(NOW, |_| Some(!there)), []);
            assert_eq!(requests.answer(NOW, |_| Some(there)), []);
            requests.found_empty(0);
            // Again, but its event may wait.
            assert!(!requests.renew(|| panic!("nothing was found")));
            assert_eq!(requests.answer(NOW, |_| Some(there)), []);
            assert!(requests.renew(|| emitted(Some(9), 1)));
            acted_on(&mut requests, 0, "SEQNUM=8");
            acted_on(&mut requests, 0, "SEQNUM=9");
            assert_eq!(requests.answer(NOW, |_| Some(there)), []);
            assert!(!requests.renew(|| panic!("it was found before")));
            acted_on(&mut requests, 0, "SEQNUM=10");
            assert_eq!(requests.answer(NOW, |_| Some(there)), YES);
        }
    }
    for want in [Want::Present(fields()), Want::Gone(fields())] {
        let mut requests = one(want, None, 1);
        requests.found_empty(0);
        assert_eq!(requests.answer(NOW, |_| panic!("looked for fields")), []);
    }
}

/// What comes beside the device of an event is found, but not looked for with each.
#[test]
fn what_comes_later_is_found_though_no_socket_is_ever_empty() {
    let mut requests = one(Want::Present(node()), Some(7), 1);
    let event = |requests: &mut Requests<u32>, ms, number| {
        let datagram = event(&format!("SEQNUM={number}"));
        acted_on_at(requests, NOW + Time::from_millis(ms), Some(0), &datagram);
    };
    event(&mut requests, 0, 7);
    assert_eq!(requests.answer(NOW, |_| Some(true)), [], "it is not settled");
    event(&mut requests, 50, 8);
    assert_eq!(requests.answer(NOW, |_| Some(false)), []);
    event(&mut requests, 99, 9);
    assert_eq!(requests.answer(NOW, |_| panic!("looked again")), []);
    event(&mut requests, 100, 10);
    assert_eq!(requests.answer(NOW, |_| Some(true)), [], "its event may wait");
    assert!(requests.renew(|| emitted(Some(20), 1)));
    event(&mut requests, 300, 20);
    assert_eq!(requests.answer(NOW, |_| panic!("looked before that")), []);
    event(&mut requests, 301, 21);
    assert_eq!(requests.answer(NOW, |_| Some(true)), YES);
}

/// What happens next in the world.
#[derive(Debug, Clone)]
enum Happening {
    /// An event is queued in this socket.
    Emit(usize),
    /// The loop tries this socket, and acts on what it gets.
    Receive(usize),
    /// The event in hand has been acted on.
    Done,
    /// Somebody asks.
    Ask,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => (0..3usize).prop_map(Happening::Emit),
        3 => (0..3usize).prop_map(Happening::Receive),
        3 => Just(Happening::Done),
        1 => Just(Happening::Ask),
    ]
}

#[derive(Default)]
struct World {
    requests: Requests<u32>,
    numbered: bool,
    /// It can be told how much waits: each event has its number in bytes, of which a
    /// third at least is told when it is taken.
    weighed: bool,
    last: u64,
    queues: [VecDeque<u64>; 3],
    hand: Option<(usize, u64)>,
    /// The events that were there when the question with this index was asked.
    asked: Vec<Vec<u64>>,
    answered: Vec<u32>,
    acted_on: Vec<u64>,
}

impl World {
    fn go(&mut self, happening: &Happening) {
        match *happening {
            Happening::Emit(socket) => {
                self.last += 1;
                self.queues[socket].push_back(self.last);
            }
            Happening::Receive(socket) if self.hand.is_none() => {
                self.hand = self.queues[socket].pop_front().map(|number| (socket, number));
                match self.hand {
                    None => self.requests.found_empty(socket),
                    Some((_, number)) => {
                        self.requests.took(socket, number - number * 2 / 3);
                    }
                }
            }
            Happening::Done => {
                if let Some((socket, number)) = self.hand.take() {
                    self.acted_on.push(number);
                    acted_on(&mut self.requests, socket, &format!("SEQNUM={number}"));
                }
            }
            Happening::Ask => {
                let waiting = self.queues.iter().flatten().copied();
                let there = waiting.chain(self.hand.map(|(_, number)| number)).collect();
                let id = u32::try_from(self.asked.len()).unwrap();
                self.asked.push(there);
                let last = self.numbered.then_some(self.last);
                let queued = |socket: usize| self.queues[socket].iter().sum::<u64>();
                let sockets = [0, 1, 2].map(|s| (s, self.weighed.then(|| queued(s))));
                let emitted = Emitted { last, sockets: sockets.into(), lossy: false };
                self.requests.add(id, Want::Settled, LATER, |_| None, || emitted);
            }
            Happening::Receive(_) => {}
        }
        for (id, answer) in self.requests.answer(NOW, |_| unreachable!()) {
            assert_eq!(answer, Answer::Yes);
            let there = &self.asked[id as usize];
            assert!(there.iter().all(|n| self.acted_on.contains(n)), "early: {there:?}");
            assert!(!self.answered.contains(&id), "answered twice");
            self.answered.push(id);
        }
    }
}

proptest! {
    #[test]
    fn nobody_is_answered_early(
        numbered: bool,
        weighed: bool,
        history in prop::collection::vec(happening(), 0..300),
    ) {
        let mut world = World { numbered, weighed, ..World::default() };
        history.iter().for_each(|happening| world.go(happening));
        // Nor never: all are once the queues are empty.
        for socket in [0, 1, 2] {
            while !world.queues[socket].is_empty() || world.hand.is_some() {
                world.go(&Happening::Receive(socket));
                world.go(&Happening::Done);
            }
            world.go(&Happening::Receive(socket));
        }
        prop_assert_eq!(world.answered.len(), world.asked.len());
        prop_assert!(world.requests.is_empty());
    }

    /// One more comes for each that is acted on: no socket is ever empty.
    #[test]
    fn a_constant_stream_starves_nobody(queued in 1..50usize, weighed: bool) {
        let mut world = World { numbered: !weighed, weighed, ..World::default() };
        let round = |world: &mut World| for socket in [0, 1, 2] {
            world.go(&Happening::Emit(socket));
            world.go(&Happening::Receive(socket));
            world.go(&Happening::Done);
        };
        (0..queued).for_each(|_| [0, 1, 2].map(Happening::Emit).iter().for_each(|e| world.go(e)));
        (0..queued).for_each(|_| round(&mut world));
        world.go(&Happening::Ask);
        // A third of what was taken is told.
        let rounds = if weighed { 3 * queued + 3 } else { queued + 1 };
        (0..rounds).for_each(|_| round(&mut world));
        prop_assert_eq!(world.answered, [0]);
    }
}
