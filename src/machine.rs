//! The state machine: what the daemon does next, decided apart from how.
//!
//! Pure: no file descriptor, no clock, no mio. Time comes in with each input.
//! The promises that live here: never two children; never a read while a child
//! lives or an event is in hand; a stop request lets the child finish; every
//! event that was read is acted on exactly once, or given up with a report.
#![forbid(unsafe_code)]

use std::time::Duration;

/// Time since some fixed moment, monotonic.
pub type Time = Duration;

/// The pause before the first new attempt to start a program; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long a program that has gone may take to come back: a new version may
/// be just being installed.
const MISSING_PATIENCE: Duration = Duration::from_secs(5);
/// How long before a child that did not die of it is killed once more.
const KILL_AGAIN: Duration = Duration::from_secs(60);
/// How long a killed child has to die, at least, if a stop waits for it.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// How long a child may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From its start until its process group is asked to end; `None`: for ever.
    pub timeout: Option<Duration>,
    /// From then until the group is killed.
    pub kill_after: Duration,
}

impl Limits {
    /// How long a killed child has until more is done about it.
    fn time_to_die(self, stop: Stop) -> Duration {
        match stop {
            Stop::No | Stop::Finish => KILL_AGAIN,
            Stop::Now => self.kill_after.max(LAST_MOMENT),
        }
    }
}

/// The state of the daemon, and what it may do in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No event in hand, no child: the sockets may be read, unless
    /// [`Machine::is_paused`].
    Reading,
    /// An event's steps are being carried out; no child at this moment.
    Acting {
        /// A stop was requested meanwhile.
        stop: Stop,
        /// This is a new attempt to start a program.
        retry: Option<Retry>,
    },
    /// A child runs.
    Running {
        /// A stop was requested meanwhile.
        stop: Stop,
        /// How far its termination has got.
        stage: Stage,
    },
    /// A program could not be started; the event waits for the next attempt.
    Retrying {
        /// The attempts so far.
        retry: Retry,
        /// When to try again.
        until: Time,
    },
    /// Nothing more will be done.
    Done,
}

/// How urgently the daemon shall end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Not at all.
    No,
    /// When the event in hand has been acted on.
    Finish,
    /// As soon as the child is gone, or cannot be made to.
    Now,
}

/// How far the termination of a child has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It is left alone, until then if at all.
    Free(Option<Time>),
    /// It was asked to end, and will be killed then.
    Terminated(Time),
    /// It was killed; until then it has time to be gone.
    Killed(Time),
}

/// The attempts to start a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// The pause after the latest one.
    pub pause: Duration,
    /// Since when it has been missing at every attempt, if it was at the latest.
    pub missing_since: Option<Time>,
}

/// Why a program could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// For want of processes, memory or descriptors, or its file is being
    /// written: try again for as long as it takes.
    Transient,
    /// Its file is missing or not executable: try again for a while.
    Missing,
    /// It would not get better.
    Final,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// An event was read.
    Event,
    /// A step's program was started.
    Started,
    /// A step's program could not be started.
    Refused(Refusal),
    /// The event has no more steps.
    PlanDone,
    /// The child is gone, and reaped.
    ChildGone,
    /// A stop was requested.
    Stop,
    /// No socket will bring anything any more.
    EndOfInput,
    /// No further event shall be read, for now.
    Pause,
    /// Events shall be read again.
    Resume,
    /// Time has passed.
    Tick,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Go on with what is being done, or waited for.
    Continue,
    /// Read the sockets.
    Read,
    /// Carry out the next steps, and say `Started`, `Refused` or `PlanDone`.
    Perform,
    /// Report the step at hand as failed, then carry out the ones after it and
    /// answer as to `Perform`.
    GiveUp,
    /// Ask the child's process group to end.
    Terminate(Reason),
    /// Kill the child's process group.
    Kill,
    /// End. If there are steps left, report the event as not completed; leave a
    /// child that is still there alone.
    Exit,
}

/// Why a child is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It took too long.
    Timeout,
    /// A stop was requested twice.
    Stop,
}

/// The machine.
#[derive(Debug, Clone)]
pub struct Machine {
    state: State,
    limits: Limits,
    /// Nothing is read. Apart from the state, for it changes nothing about an
    /// event that was read before.
    paused: bool,
}

impl Machine {
    /// Begins by reading.
    pub fn new(limits: Limits) -> Self {
        Self { state: State::Reading, limits, paused: false }
    }

    /// Goes on where another machine was.
    pub fn resume(&mut self, state: State, paused: bool) {
        self.state = state;
        self.paused = paused;
    }

    /// The present state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether no event is read until `Resume`.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// When to say `Tick`, at the latest.
    pub fn deadline(&self) -> Option<Time> {
        match self.state {
            State::Running { stage: Stage::Free(until), .. } => until,
            State::Running { stage: Stage::Terminated(until), .. }
            | State::Running { stage: Stage::Killed(until), .. }
            | State::Retrying { until, .. } => Some(until),
            State::Reading | State::Acting { .. } | State::Done => None,
        }
    }

    /// Whether what is left of the child's process group shall be killed when
    /// the child itself has ended: it was asked to end as well.
    pub fn ends_group(&self) -> bool {
        matches!(self.state, State::Running { stage: Stage::Terminated(_) | Stage::Killed(_), .. })
    }

    /// Whether the rest of the child's group still has time to end, when the child
    /// itself has.
    pub fn grants_time(&self) -> bool {
        matches!(self.state, State::Running { stage: Stage::Terminated(_), .. })
    }

    /// Takes an input at the time `now`, and says what to do.
    pub fn step(&mut self, now: Time, input: Input) -> Action {
        let (state, action) = transition(self.state, input, now, self.limits);
        self.state = state;
        match input {
            Input::Pause => self.paused = true,
            Input::Resume => self.paused = false,
            Input::Event
            | Input::Started
            | Input::Refused(_)
            | Input::PlanDone
            | Input::ChildGone
            | Input::Stop
            | Input::EndOfInput
            | Input::Tick => {}
        }
        action
    }
}

/// The table. An input that cannot come in a state changes nothing.
fn transition(state: State, input: Input, now: Time, limits: Limits) -> (State, Action) {
    use Action::{Continue, Exit, GiveUp, Kill, Perform, Read, Terminate};
    match (state, input) {
        (State::Reading, Input::Event) => (State::Acting { stop: Stop::No, retry: None }, Perform),
        (State::Reading, Input::Stop | Input::EndOfInput) => (State::Done, Exit),
        (
            State::Reading,
            Input::Started
            | Input::Refused(_)
            | Input::PlanDone
            | Input::ChildGone
            | Input::Pause
            | Input::Resume
            | Input::Tick,
        ) => (state, Continue),

        (State::Acting { stop: Stop::Now, .. }, Input::Started) => {
            let stage = Stage::Terminated(now + limits.kill_after);
            (State::Running { stop: Stop::Now, stage }, Terminate(Reason::Stop))
        }
        (State::Acting { stop, .. }, Input::Started) => {
            let stage = Stage::Free(limits.timeout.map(|timeout| now + timeout));
            (State::Running { stop, stage }, Continue)
        }
        (State::Acting { stop: Stop::No, retry }, Input::Refused(refusal)) => {
            match next_attempt(refusal, retry, now) {
                Some(retrying) => (retrying, Continue),
                None => (State::Acting { stop: Stop::No, retry: None }, GiveUp),
            }
        }
        (State::Acting { stop: Stop::Finish, .. }, Input::Refused(_)) => {
            (State::Acting { stop: Stop::Finish, retry: None }, GiveUp)
        }
        (State::Acting { stop: Stop::Now, .. }, Input::Refused(_)) => (State::Done, Exit),
        (State::Acting { stop: Stop::No, .. }, Input::PlanDone) => (State::Reading, Read),
        (State::Acting { stop: Stop::Finish | Stop::Now, .. }, Input::PlanDone) => {
            (State::Done, Exit)
        }
        (State::Acting { stop, retry }, Input::Stop) => {
            (State::Acting { stop: more_urgent(stop), retry }, Continue)
        }
        (
            State::Acting { .. },
            Input::Event
            | Input::ChildGone
            | Input::EndOfInput
            | Input::Pause
            | Input::Resume
            | Input::Tick,
        ) => (state, Continue),

        (State::Running { stop: Stop::Now, .. }, Input::ChildGone) => (State::Done, Exit),
        (State::Running { stop, .. }, Input::ChildGone) => {
            (State::Acting { stop, retry: None }, Perform)
        }
        (State::Running { stop, stage }, Input::Stop) => {
            let stop = more_urgent(stop);
            match (stop, stage) {
                (Stop::Now, Stage::Free(_)) => {
                    let stage = Stage::Terminated(now + limits.kill_after);
                    (State::Running { stop, stage }, Terminate(Reason::Stop))
                }
                (Stop::Now, Stage::Killed(until)) => {
                    let stage = Stage::Killed(until.min(now + limits.time_to_die(stop)));
                    (State::Running { stop, stage }, Continue)
                }
                (Stop::No | Stop::Finish, _) | (Stop::Now, Stage::Terminated(_)) => {
                    (State::Running { stop, stage }, Continue)
                }
            }
        }
        (State::Running { stop, stage: Stage::Free(Some(until)) }, Input::Tick) if until <= now => {
            let stage = Stage::Terminated(now + limits.kill_after);
            (State::Running { stop, stage }, Terminate(Reason::Timeout))
        }
        (State::Running { stop, stage: Stage::Terminated(until) }, Input::Tick) if until <= now => {
            let stage = Stage::Killed(now + limits.time_to_die(stop));
            (State::Running { stop, stage }, Kill)
        }
        // One that may not be killed, or is stuck in the kernel.
        (State::Running { stop: Stop::Now, stage: Stage::Killed(until) }, Input::Tick)
            if until <= now =>
        {
            (State::Done, Exit)
        }
        (State::Running { stop, stage: Stage::Killed(until) }, Input::Tick) if until <= now => {
            let stage = Stage::Killed(now + limits.time_to_die(stop));
            (State::Running { stop, stage }, Kill)
        }
        (
            State::Running { .. },
            Input::Event
            | Input::Started
            | Input::Refused(_)
            | Input::PlanDone
            | Input::EndOfInput
            | Input::Pause
            | Input::Resume
            | Input::Tick,
        ) => (state, Continue),

        (State::Retrying { retry, until }, Input::Tick) if until <= now => {
            (State::Acting { stop: Stop::No, retry: Some(retry) }, Perform)
        }
        // The event is not dropped without a last attempt.
        (State::Retrying { retry, .. }, Input::Stop) => {
            (State::Acting { stop: Stop::Finish, retry: Some(retry) }, Perform)
        }
        (
            State::Retrying { .. },
            Input::Event
            | Input::Started
            | Input::Refused(_)
            | Input::PlanDone
            | Input::ChildGone
            | Input::EndOfInput
            | Input::Pause
            | Input::Resume
            | Input::Tick,
        ) => (state, Continue),

        (
            State::Done,
            Input::Event
            | Input::Started
            | Input::Refused(_)
            | Input::PlanDone
            | Input::ChildGone
            | Input::Stop
            | Input::EndOfInput
            | Input::Pause
            | Input::Resume
            | Input::Tick,
        ) => (state, Continue),
    }
}

fn more_urgent(stop: Stop) -> Stop {
    match stop {
        Stop::No => Stop::Finish,
        Stop::Finish | Stop::Now => Stop::Now,
    }
}

/// What a refusal leads to: the wait for another attempt, or nothing more.
fn next_attempt(refusal: Refusal, retry: Option<Retry>, now: Time) -> Option<State> {
    let pause = retry.map_or(FIRST_PAUSE, |retry| (retry.pause * 2).min(LONGEST_PAUSE));
    let (missing_since, until) = match refusal {
        Refusal::Transient => (None, now + pause),
        Refusal::Missing => {
            let since = retry.and_then(|retry| retry.missing_since).unwrap_or(now);
            let last = since + MISSING_PATIENCE;
            if last <= now {
                return None;
            }
            (Some(since), last.min(now + pause))
        }
        Refusal::Final => return None,
    };
    Some(State::Retrying { retry: Retry { pause, missing_since }, until })
}

#[cfg(test)]
mod tests;
