//! The promises, over random histories of a world that objects to a broken one.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// What the machine is told next, from what can happen in the world as it is.
#[derive(Debug, Clone)]
enum Happening {
    /// One of the inputs that are possible now.
    Possible(Index),
    /// One that is not.
    Impossible(Index),
    /// Time passes, by so much.
    Later(Duration),
    /// Time passes, up to the machine's deadline and this many ms more or less.
    Deadline(i64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        8 => any::<Index>().prop_map(Happening::Possible),
        1 => any::<Index>().prop_map(Happening::Impossible),
        1 => (0u64..10_000).prop_map(|ms| Happening::Later(Duration::from_millis(ms))),
        3 => prop_oneof![Just(0), -2i64..200].prop_map(Happening::Deadline),
    ]
}

/// What happens, one after the other, and how many steps an event then has.
type History = Vec<(Happening, usize)>;

fn history(length: usize) -> impl Strategy<Value = History> {
    prop::collection::vec((happening(), 0..4usize), 0..length)
}

fn limits() -> impl Strategy<Value = Limits> {
    let ms = |range| proptest::strategy::Strategy::prop_map(range, Duration::from_millis);
    (proptest::option::of(ms(1u64..20_000)), ms(0u64..10_000))
        .prop_map(|(timeout, kill_after)| Limits { timeout, kill_after })
}

/// A child, as the world sees it.
#[derive(Debug)]
struct Child {
    started: Time,
    terminated: Option<Time>,
    killed: Option<Time>,
}

/// Whether a step was carried out, and how.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Fate {
    Pending,
    Ran,
    GivenUp,
}

/// What the loop and the kernel know; it does what the machine says, and
/// objects if a promise is broken.
#[derive(Debug)]
struct World {
    machine: Machine,
    now: Time,
    /// The fates of the steps of the event in hand.
    hand: Option<Vec<Fate>>,
    child: Option<Child>,
    /// `Started`, `Refused` or `PlanDone` is to be said.
    owes_answer: bool,
    stops: u32,
    input_ended: bool,
    /// When attempts to start the step at hand were refused, and why.
    refused: Vec<(Time, Refusal)>,
    exited: bool,
    steps_of_next_event: usize,
}

impl World {
    fn new(limits: Limits, steps_of_next_event: usize) -> Self {
        Self {
            machine: Machine::new(limits),
            now: NOW,
            hand: None,
            child: None,
            owes_answer: false,
            stops: 0,
            input_ended: false,
            refused: Vec::new(),
            exited: false,
            steps_of_next_event,
        }
    }

    /// What has become of it.
    fn after(limits: Limits, history: History) -> Self {
        let mut world = Self::new(limits, 1);
        for (happening, steps) in history {
            world.steps_of_next_event = steps;
            world.go(&happening);
        }
        world
    }

    /// The step to be carried out next.
    fn pending(&mut self) -> Option<&mut Fate> {
        self.hand.as_mut()?.iter_mut().find(|fate| **fate == Fate::Pending)
    }

    fn possible(&mut self) -> Vec<Input> {
        let mut inputs = vec![TICK];
        if self.exited {
            return inputs;
        }
        inputs.push(STOP);
        if self.owes_answer {
            let answers: &[Input] = match self.pending() {
                Some(_) => &[STARTED, STARTED, TRANSIENT, MISSING, FINAL],
                None => &[PLAN_DONE; 3],
            };
            inputs.extend(answers);
        } else if self.child.is_some() {
            inputs.extend([CHILD_GONE; 2]);
        } else if self.hand.is_none() {
            inputs.extend([EVENT, EVENT, EVENT, EVENT, END_OF_INPUT]);
        }
        inputs
    }

    /// Tells the machine, does what it says, and checks all promises.
    fn say(&mut self, input: Input) -> Action {
        let waited = !self.owes_answer && self.child.is_none() && self.hand.is_some();
        let (state, deadline) = (self.machine.state(), self.machine.deadline());
        self.happen(input);
        let action = self.machine.step(self.now, input);

        if input == TICK && deadline.is_none_or(|at| at > self.now) {
            assert_eq!((self.machine.state(), action), (state, Continue), "a tick too early");
        }
        if input == TICK && deadline.is_some_and(|at| at <= self.now) {
            assert_ne!(action, Continue, "a tick in time");
            let now = (self.machine.state(), self.machine.deadline());
            assert_ne!(now, (state, deadline), "a busy loop");
        }
        match action {
            Continue => {
                let idle = self.hand.is_none() && input != TICK;
                assert!(!idle, "{input:?} while idle is not answered");
                if matches!(input, Input::Refused(_)) {
                    self.check_retry();
                }
                if waited {
                    assert_eq!(input, TICK, "{input:?} is not answered");
                }
            }
            Perform => {
                assert!(self.child.is_none(), "a second child");
                assert!(self.hand.is_some(), "nothing to perform");
                assert!(!self.owes_answer, "performed twice");
                assert!(self.stops < 2, "a further step although it shall end at once");
                self.owes_answer = true;
            }
            GiveUp => {
                self.check_given_up(input);
                assert!(self.stops < 2, "further steps although it shall end at once");
                *self.pending().expect("nothing to give up") = Fate::GivenUp;
                self.refused.clear();
                self.owes_answer = true;
            }
            Read => {
                assert_eq!(input, PLAN_DONE);
                assert_eq!(self.stops, 0, "read after a stop request");
                self.finish_event();
            }
            Terminate(reason) => self.terminate(reason),
            Kill => {
                let now = self.now;
                let kill_after = self.machine.limits.kill_after;
                let child = self.child.as_mut().expect("nobody to kill");
                let terminated = child.terminated.expect("killed before it was asked to end");
                assert!(terminated + kill_after <= now, "killed early");
                let before = child.killed.replace(now);
                assert!(before.is_none_or(|at| at + KILL_AGAIN <= now), "killed again so soon");
            }
            Exit => {
                assert!(!self.exited, "ended twice");
                if let Some(child) = &self.child {
                    let killed = child.killed.expect("a child is left that was not killed");
                    assert!(self.stops >= 2, "a child is left although it might end");
                    assert!(killed + LAST_MOMENT <= self.now, "a child had no time to die");
                }
                assert!(self.stops > 0 || self.input_ended, "nobody asked to end");
                if self.stops < 2 && self.hand.is_some() {
                    self.finish_event();
                }
                self.exited = true;
                self.owes_answer = false;
            }
        }
        assert_eq!(self.exited, self.machine.state() == Done);
        assert_eq!(self.may_read(), self.machine.state() == Reading);
        action
    }

    fn may_read(&self) -> bool {
        self.hand.is_none() && self.child.is_none() && !self.exited
    }

    /// What the input means in the world.
    fn happen(&mut self, input: Input) {
        match input {
            Input::Event => {
                assert!(self.may_read());
                self.hand = Some(vec![Fate::Pending; self.steps_of_next_event]);
            }
            Input::Started => {
                self.owes_answer = false;
                self.refused.clear();
                let child = Child { started: self.now, terminated: None, killed: None };
                assert!(self.child.replace(child).is_none(), "a second child");
            }
            Input::Refused(refusal) => {
                self.owes_answer = false;
                self.refused.push((self.now, refusal));
            }
            Input::PlanDone => self.owes_answer = false,
            Input::ChildGone => {
                self.child = None;
                *self.pending().unwrap() = Fate::Ran;
            }
            Input::Stop => self.stops += 1,
            Input::EndOfInput => self.input_ended = true,
            Input::Pause | Input::Resume | Input::Tick => {}
        }
    }

    /// Each step was acted on or given up; that it was so only once is seen
    /// from `pending` having found it.
    fn finish_event(&mut self) {
        let fates = self.hand.take().expect("no event to finish");
        assert!(!fates.contains(&Fate::Pending), "a step was left out: {fates:?}");
    }

    fn check_retry(&self) {
        assert_eq!(self.stops, 0, "another attempt although a stop was requested");
        assert_ne!(self.refused.last().unwrap().1, Final);
        let pause = self.machine.deadline().expect("no other attempt will come") - self.now;
        let doubled = FIRST_PAUSE * 2u32.pow(u32::try_from(self.refused.len() - 1).unwrap().min(9));
        let missing = match self.missing_for() {
            Some(time) => MISSING_PATIENCE.checked_sub(time).expect("no more patience"),
            None => LONGEST_PAUSE,
        };
        assert_eq!(pause, doubled.min(LONGEST_PAUSE).min(missing));
        assert!(pause > Duration::ZERO);
    }

    fn check_given_up(&self, input: Input) {
        assert_eq!(input, Input::Refused(self.refused.last().unwrap().1));
        match self.refused.last().unwrap().1 {
            _ if self.stops > 0 => {}
            Transient => panic!("given up for want of something"),
            Missing => assert!(self.missing_for().unwrap() >= MISSING_PATIENCE, "too early"),
            Final => {}
        }
    }

    /// How long it has been missing at every attempt.
    fn missing_for(&self) -> Option<Duration> {
        let missing = self.refused.iter().rev().take_while(|(_, refusal)| *refusal == Missing);
        missing.last().map(|(since, _)| self.now - *since)
    }

    fn terminate(&mut self, reason: Reason) {
        let (now, stops, limits) = (self.now, self.stops, self.machine.limits);
        let child = self.child.as_mut().expect("nobody to terminate");
        assert!(child.terminated.replace(now).is_none(), "terminated twice");
        match reason {
            Reason::Timeout => assert!(child.started + limits.timeout.unwrap() <= now, "too early"),
            Reason::Stop => assert!(stops >= 2, "one stop request lets the child finish"),
        }
    }

    fn go(&mut self, happening: &Happening) {
        match happening {
            Happening::Possible(index) => {
                let input = *index.get(&self.possible());
                self.say(input);
            }
            Happening::Impossible(index) => {
                let possible = self.possible();
                let impossible: Vec<_> =
                    INPUTS.into_iter().filter(|input| !possible.contains(input)).collect();
                let input = *index.get(&impossible);
                // How many steps a plan has, the machine is not told.
                if !(self.owes_answer && matches!(input, Input::Refused(_) | PLAN_DONE | STARTED)) {
                    let state = self.machine.state();
                    assert_eq!(self.machine.step(self.now, input), Continue, "{input:?}");
                    assert_eq!(self.machine.state(), state, "{input:?}");
                }
            }
            Happening::Later(time) => self.now += *time,
            Happening::Deadline(ms) => {
                if let Some(at) = self.machine.deadline() {
                    let more = Duration::from_millis(ms.unsigned_abs());
                    let at = if *ms < 0 { at - more } else { at + more };
                    self.now = self.now.max(at);
                    self.say(TICK);
                }
            }
        }
    }

    /// From here on children end as it is said, and time passes only at deadlines.
    /// Returns the number of inputs until the end, or until nothing more can
    /// happen without one.
    fn run_down(&mut self, children_end: Children) -> usize {
        (0..)
            .find(|_| {
                let input = if self.exited {
                    return true;
                } else if self.owes_answer {
                    if self.pending().is_some() { STARTED } else { PLAN_DONE }
                } else if self.ends(children_end) {
                    CHILD_GONE
                } else if let Some(at) = self.machine.deadline() {
                    self.now = self.now.max(at);
                    TICK
                } else {
                    return true;
                };
                self.say(input);
                false
            })
            .unwrap()
    }

    fn ends(&self, children_end: Children) -> bool {
        self.child.as_ref().is_some_and(|child| match children_end {
            Children::ByThemselves => true,
            Children::WhenKilled => child.killed.is_some(),
            Children::Never => false,
        })
    }
}

/// When children end.
#[derive(Debug, Clone, Copy)]
enum Children {
    ByThemselves,
    WhenKilled,
    Never,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_promises_hold_whatever_happens(
        limits in limits(),
        history in history(100),
    ) {
        World::after(limits, history);
    }

    #[test]
    fn an_event_is_always_brought_to_its_end(
        limits in limits(),
        history in history(50),
    ) {
        let mut world = World::after(limits, history);
        let inputs = world.run_down(Children::ByThemselves);
        prop_assert!(world.exited || world.may_read(), "stuck: {world:?}");
        prop_assert!(inputs <= 10, "{inputs} inputs");
    }

    #[test]
    fn a_stop_request_ends_it(
        limits in limits(),
        history in history(50),
        twice: bool,
        dies: bool,
    ) {
        let mut world = World::after(limits, history);
        for _ in 0..if twice { 2 } else { 1 } {
            if !world.exited {
                world.say(STOP);
            }
        }
        // Asked twice, it ends even if no child does so by itself, nor by being killed.
        let inputs = world.run_down(match (twice, dies) {
            (false, _) => Children::ByThemselves,
            (true, true) => Children::WhenKilled,
            (true, false) => Children::Never,
        });
        prop_assert!(world.exited, "{world:?}");
        prop_assert!(inputs <= 10, "{inputs} inputs");
    }
}
