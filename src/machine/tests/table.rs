//! Each state with each input: what it leads to, and what is to be done.

use std::collections::HashMap;

use super::*;

/// What is before [`NOW`] is due.
const BEFORE: Time = Time::from_secs(999);
const AFTER: Time = Time::from_secs(1001);
const TIMEOUT: Duration = Duration::from_secs(180);
const KILL_AFTER: Duration = Duration::from_secs(5);
const LIMITS: Limits = Limits { timeout: Some(TIMEOUT), kill_after: KILL_AFTER };

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
