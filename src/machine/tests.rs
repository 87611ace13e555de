//! The whole table, pair by pair, and the promises, over random histories.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::sample::Index;

use super::Action::{Continue, Exit, GiveUp, Kill, Perform, Read, Terminate};
use super::Refusal::{Final, Missing, Transient};
use super::State::{Done, Reading};
use super::*;

// The table.

/// The moment of every input in the table; what is before it is due.
const NOW: Time = Time::from_secs(1000);
const BEFORE: Time = Time::from_secs(999);
const AFTER: Time = Time::from_secs(1001);
const TIMEOUT: Duration = Duration::from_secs(180);
const KILL_AFTER: Duration = Duration::from_secs(5);
const LIMITS: Limits = Limits { timeout: Some(TIMEOUT), kill_after: KILL_AFTER };

const EVENT: Input = Input::Event;
const STARTED: Input = Input::Started;
const TRANSIENT: Input = Input::Refused(Transient);
const MISSING: Input = Input::Refused(Missing);
const FINAL: Input = Input::Refused(Final);
const PLAN_DONE: Input = Input::PlanDone;
const CHILD_GONE: Input = Input::ChildGone;
const STOP: Input = Input::Stop;
const END_OF_INPUT: Input = Input::EndOfInput;
const PAUSE: Input = Input::Pause;
const RESUME: Input = Input::Resume;
const TICK: Input = Input::Tick;

const INPUTS: [Input; 12] = [
    EVENT,
    STARTED,
    TRANSIENT,
    MISSING,
    FINAL,
    PLAN_DONE,
    CHILD_GONE,
    STOP,
    END_OF_INPUT,
    PAUSE,
    RESUME,
    TICK,
];
const STOPS: [Stop; 3] = [Stop::No, Stop::Finish, Stop::Now];
const STAGES: [Stage; 7] = [
    FREE,
    TIMED,
    TIMED_OUT,
    Stage::Terminated(AFTER),
    Stage::Terminated(BEFORE),
    Stage::Killed(AFTER),
    Stage::Killed(BEFORE),
];

const FREE: Stage = Stage::Free(None);
const TIMED: Stage = Stage::Free(Some(AFTER));
const TIMED_OUT: Stage = Stage::Free(Some(BEFORE));
/// What a child that is left alone from now on starts with.
const STARTING: Stage = Stage::Free(Some(Time::from_secs(1180)));
/// What a child that is asked to end now gets.
const ENDING: Stage = Stage::Terminated(Time::from_secs(1005));
/// What a child that is killed now gets, and if a stop waits for it.
const DYING: Stage = Stage::Killed(Time::from_secs(1060));
const DYING_FAST: Stage = Stage::Killed(Time::from_secs(1005));

/// It was refused for want of something; the last pause was 800 ms.
const WANTING: Option<Retry> = retry(800, None);
/// It has been missing for 3 s, and for 5 s; the last pause was 3.2 s.
const LACKING: Option<Retry> = retry(3200, Some(Time::from_secs(997)));
const LACKED: Option<Retry> = retry(3200, Some(Time::from_secs(995)));
const RETRIES: [Option<Retry>; 4] = [None, WANTING, LACKING, LACKED];

const fn retry(pause_ms: u64, missing_since: Option<Time>) -> Option<Retry> {
    Some(Retry { pause: Duration::from_millis(pause_ms), missing_since })
}

fn acting(stop: Stop, retry: Option<Retry>) -> State {
    State::Acting { stop, retry }
}

fn running(stop: Stop, stage: Stage) -> State {
    State::Running { stop, stage }
}

fn retrying(retry: Option<Retry>, until: Time) -> State {
    State::Retrying { retry: retry.unwrap(), until }
}

fn waiting(pause_ms: u64, missing_since: Option<u64>, until_ms: u64) -> State {
    let missing_since = missing_since.map(Time::from_secs);
    retrying(retry(pause_ms, missing_since), Time::from_millis(until_ms))
}

/// Every state there is, times and pauses reduced to what makes a difference.
fn states() -> Vec<State> {
    // A new variant does not compile here: it wants a place in the lists.
    match Reading {
        Reading | State::Acting { .. } | State::Running { .. } => {}
        State::Retrying { .. } | Done => {}
    }
    match (EVENT, Stop::No, FREE) {
        (EVENT | STARTED | Input::Refused(Transient | Missing | Final) | PLAN_DONE, ..) => {}
        (CHILD_GONE | STOP | END_OF_INPUT, Stop::No | Stop::Finish | Stop::Now, _) => {}
        (PAUSE | RESUME | TICK, ..) => {}
    }
    match FREE {
        Stage::Free(None | Some(_)) | Stage::Terminated(_) | Stage::Killed(_) => {}
    }
    let mut states = vec![Reading, Done];
    for stop in STOPS {
        states.extend(RETRIES.map(|retry| acting(stop, retry)));
        states.extend(STAGES.map(|stage| running(stop, stage)));
    }
    for retry in RETRIES.into_iter().filter(Option::is_some) {
        states.extend([BEFORE, AFTER].map(|until| retrying(retry, until)));
    }
    states
}

/// In this state, these inputs lead to that state and that action.
struct Row {
    from: State,
    inputs: Vec<Input>,
    to: State,
    action: Action,
}

/// The inputs that change nothing, being impossible or of no interest.
fn ignores(from: State, inputs: &[Input]) -> Row {
    Row { from, inputs: inputs.to_vec(), to: from, action: Continue }
}

fn row(from: State, inputs: &[Input], to: State, action: Action) -> Row {
    Row { from, inputs: inputs.to_vec(), to, action }
}

const REFUSED: [Input; 3] = [TRANSIENT, MISSING, FINAL];
/// All but what the loop says about a plan and a child.
const OUTSIDE: [Input; 6] = [EVENT, CHILD_GONE, END_OF_INPUT, PAUSE, RESUME, TICK];
/// All that says how a step or a plan began or ended.
const ANSWERS: [Input; 5] = [STARTED, TRANSIENT, MISSING, FINAL, PLAN_DONE];

fn table() -> Vec<Row> {
    let mut rows = vec![
        row(Reading, &[EVENT], acting(Stop::No, None), Perform),
        row(Reading, &[STOP, END_OF_INPUT], Done, Exit),
        ignores(Reading, &ANSWERS),
        ignores(Reading, &[CHILD_GONE, PAUSE, RESUME, TICK]),
        ignores(Done, &INPUTS),
        // The first refusal, and later ones.
        row(acting(Stop::No, None), &[TRANSIENT], waiting(100, None, 1_000_100), Continue),
        row(acting(Stop::No, None), &[MISSING], waiting(100, Some(1000), 1_000_100), Continue),
        row(acting(Stop::No, None), &[FINAL], acting(Stop::No, None), GiveUp),
        row(acting(Stop::No, WANTING), &[TRANSIENT], waiting(1600, None, 1_001_600), Continue),
        row(acting(Stop::No, WANTING), &[MISSING], waiting(1600, Some(1000), 1_001_600), Continue),
        row(acting(Stop::No, WANTING), &[FINAL], acting(Stop::No, None), GiveUp),
        row(acting(Stop::No, LACKING), &[TRANSIENT], waiting(5000, None, 1_005_000), Continue),
        row(acting(Stop::No, LACKING), &[MISSING], waiting(5000, Some(997), 1_002_000), Continue),
        row(acting(Stop::No, LACKING), &[FINAL], acting(Stop::No, None), GiveUp),
        row(acting(Stop::No, LACKED), &[TRANSIENT], waiting(5000, None, 1_005_000), Continue),
        row(acting(Stop::No, LACKED), &[MISSING, FINAL], acting(Stop::No, None), GiveUp),
    ];
    for retry in RETRIES {
        let [no, finish, now] = STOPS.map(|stop| acting(stop, retry));
        rows.extend([
            row(no, &[STARTED], running(Stop::No, STARTING), Continue),
            row(no, &[PLAN_DONE], Reading, Read),
            row(no, &[STOP], finish, Continue),
            ignores(no, &OUTSIDE),
            row(finish, &[STARTED], running(Stop::Finish, STARTING), Continue),
            row(finish, &REFUSED, acting(Stop::Finish, None), GiveUp),
            row(finish, &[PLAN_DONE], Done, Exit),
            row(finish, &[STOP], now, Continue),
            ignores(finish, &OUTSIDE),
            row(now, &[STARTED], running(Stop::Now, ENDING), Terminate(Reason::Stop)),
            row(now, &REFUSED, Done, Exit),
            row(now, &[PLAN_DONE], Done, Exit),
            ignores(now, &[STOP]),
            ignores(now, &OUTSIDE),
        ]);
    }
    for stage in STAGES {
        let [no, finish, now] = STOPS.map(|stop| running(stop, stage));
        rows.extend([
            row(no, &[CHILD_GONE], acting(Stop::No, None), Perform),
            row(no, &[STOP], finish, Continue),
            row(finish, &[CHILD_GONE], acting(Stop::Finish, None), Perform),
            row(now, &[CHILD_GONE], Done, Exit),
        ]);
        for state in [no, finish, now] {
            rows.push(ignores(state, &ANSWERS));
            rows.push(ignores(state, &[EVENT, END_OF_INPUT, PAUSE, RESUME]));
        }
    }
    for stage in [FREE, TIMED, TIMED_OUT] {
        let [_, finish, now] = STOPS.map(|stop| running(stop, stage));
        let ending = running(Stop::Now, ENDING);
        rows.push(row(finish, &[STOP], ending, Terminate(Reason::Stop)));
        rows.push(row(now, &[STOP], ending, Terminate(Reason::Stop)));
    }
    for stage in [
        Stage::Terminated(AFTER),
        Stage::Terminated(BEFORE),
        Stage::Killed(AFTER),
        Stage::Killed(BEFORE),
    ] {
        let [_, finish, now] = STOPS.map(|stop| running(stop, stage));
        rows.push(row(finish, &[STOP], now, Continue));
        rows.push(ignores(now, &[STOP]));
    }
    for stop in STOPS {
        let [timed_out, terminated] =
            [TIMED_OUT, Stage::Terminated(BEFORE)].map(|stage| running(stop, stage));
        let dying = running(stop, if stop == Stop::Now { DYING_FAST } else { DYING });
        let killed = running(stop, Stage::Killed(BEFORE));
        let again = if stop == Stop::Now { (Done, Exit) } else { (dying, Kill) };
        rows.extend([
            row(timed_out, &[TICK], running(stop, ENDING), Terminate(Reason::Timeout)),
            row(terminated, &[TICK], dying, Kill),
            row(killed, &[TICK], again.0, again.1),
            ignores(running(stop, FREE), &[TICK]),
            ignores(running(stop, TIMED), &[TICK]),
            ignores(running(stop, Stage::Terminated(AFTER)), &[TICK]),
            ignores(running(stop, Stage::Killed(AFTER)), &[TICK]),
        ]);
    }
    for retry in [WANTING, LACKING, LACKED] {
        let [due, early] = [BEFORE, AFTER].map(|until| retrying(retry, until));
        rows.extend([row(due, &[TICK], acting(Stop::No, retry), Perform), ignores(early, &[TICK])]);
        for state in [due, early] {
            // Not dropped without a last attempt.
            rows.push(row(state, &[STOP], acting(Stop::Finish, retry), Perform));
            rows.push(ignores(state, &ANSWERS));
            rows.push(ignores(state, &[EVENT, CHILD_GONE, END_OF_INPUT, PAUSE, RESUME]));
        }
    }
    rows
}

fn after(state: State, input: Input, limits: Limits) -> (State, Action) {
    let mut machine = Machine { state, limits, paused: false };
    let action = machine.step(NOW, input);
    (machine.state(), action)
}

#[test]
fn every_state_with_every_input() {
    let mut expected = HashMap::new();
    for Row { from, inputs, to, action } in table() {
        for input in inputs {
            let pair = format!("{from:?} with {input:?}");
            assert!(expected.insert(pair.clone(), (to, action)).is_none(), "{pair} is there twice");
        }
    }
    let mut pairs = 0;
    for state in states() {
        for input in INPUTS {
            let pair = format!("{state:?} with {input:?}");
            let expected = expected.get(&pair).unwrap_or_else(|| panic!("{pair} is missing"));
            assert_eq!(after(state, input, LIMITS), *expected, "{pair}");
            pairs += 1;
        }
    }
    assert_eq!(pairs, expected.len(), "the table has pairs of states that are not listed");
}

#[test]
fn a_pause_lasts_until_it_is_ended_whatever_happens_meanwhile() {
    for state in states() {
        let mut machine = Machine { state, limits: LIMITS, paused: false };
        machine.step(NOW, PAUSE);
        for input in INPUTS.into_iter().filter(|&input| input != RESUME) {
            machine.step(NOW, input);
            assert!(machine.is_paused(), "{state:?}, {input:?}");
        }
        machine.step(NOW, RESUME);
        for input in INPUTS.into_iter().filter(|&input| input != PAUSE) {
            machine.step(NOW, input);
            assert!(!machine.is_paused(), "{state:?}, {input:?}");
        }
    }
}

#[test]
fn a_stop_waits_less_for_a_killed_child() {
    let expected = (running(Stop::Now, DYING_FAST), Continue);
    assert_eq!(after(running(Stop::Finish, DYING), STOP, LIMITS), expected);
    let at_once = Limits { kill_after: Duration::ZERO, ..LIMITS };
    let last_moment = Stage::Killed(NOW + LAST_MOMENT);
    let terminated = running(Stop::Now, Stage::Terminated(NOW));
    assert_eq!(after(terminated, TICK, at_once), (running(Stop::Now, last_moment), Kill));
}

#[test]
fn without_a_timeout_a_child_may_run_for_ever() {
    let limits = Limits { timeout: None, ..LIMITS };
    let expected = (running(Stop::No, FREE), Continue);
    assert_eq!(after(acting(Stop::No, None), STARTED, limits), expected);
}

#[test]
fn what_is_due_now_is_due() {
    for (state, action) in [
        (running(Stop::No, Stage::Free(Some(NOW))), Terminate(Reason::Timeout)),
        (running(Stop::No, Stage::Terminated(NOW)), Kill),
        (running(Stop::No, Stage::Killed(NOW)), Kill),
        (running(Stop::Now, Stage::Killed(NOW)), Exit),
        (retrying(WANTING, NOW), Perform),
    ] {
        assert_eq!(after(state, TICK, LIMITS).1, action, "{state:?}");
    }
}

/// The attempts for one event, each refused: when, in ms, and the last answer.
fn attempts(refusals: impl IntoIterator<Item = Refusal>) -> (Vec<u128>, Action) {
    let mut machine = Machine::new(LIMITS);
    let mut now = NOW;
    let mut action = machine.step(now, EVENT);
    let mut times = Vec::new();
    for refusal in refusals {
        assert_eq!(action, Perform);
        times.push((now - NOW).as_millis());
        action = machine.step(now, Input::Refused(refusal));
        if action != Continue {
            break;
        }
        now = machine.deadline().unwrap();
        action = machine.step(now, TICK);
    }
    (times, action)
}

#[test]
fn pauses_grow_from_a_tenth_of_a_second_to_five() {
    let (times, action) = attempts([Transient; 10]);
    assert_eq!(times, [0, 100, 300, 700, 1500, 3100, 6300, 11300, 16300, 21300]);
    assert_eq!(action, Perform);
}

#[test]
fn a_missing_program_has_five_seconds_to_come_back() {
    assert_eq!(attempts([Missing; 10]), (vec![0, 100, 300, 700, 1500, 3100, 5000], GiveUp));
    // They begin anew if it was, or may have been, there meanwhile.
    let (times, action) = attempts([[Missing; 6], [Transient; 6], [Missing; 6]].concat());
    assert_eq!(times[5..], [3100, 5000, 10_000, 15_000, 20_000, 25_000, 30_000, 35_000, 40_000]);
    assert_eq!(action, GiveUp);
}

// The promises.

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
        history in prop::collection::vec((happening(), 0..4usize), 0..100),
    ) {
        let mut world = World::new(limits, 1);
        for (happening, steps) in history {
            world.steps_of_next_event = steps;
            world.go(&happening);
        }
    }

    #[test]
    fn an_event_is_always_brought_to_its_end(
        limits in limits(),
        history in prop::collection::vec((happening(), 0..4usize), 0..50),
    ) {
        let mut world = World::new(limits, 1);
        for (happening, steps) in history {
            world.steps_of_next_event = steps;
            world.go(&happening);
        }
        let inputs = world.run_down(Children::ByThemselves);
        prop_assert!(world.exited || world.may_read(), "stuck: {world:?}");
        prop_assert!(inputs <= 10, "{inputs} inputs");
    }

    #[test]
    fn a_stop_request_ends_it(
        limits in limits(),
        history in prop::collection::vec((happening(), 0..4usize), 0..50),
        twice: bool,
        dies: bool,
    ) {
        let mut world = World::new(limits, 1);
        for (happening, steps) in history {
            world.steps_of_next_event = steps;
            world.go(&happening);
        }
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
