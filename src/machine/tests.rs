//! The whole table, pair by pair, and the promises, over random histories.

mod promises;
mod table;

use super::Action::{Continue, Exit, GiveUp, Kill, Perform, Read, Terminate};
use super::Refusal::{Final, Missing, Transient};
use super::State::{Done, Reading};
use super::*;

/// When it begins, or, in the table, the moment of every input.
const NOW: Time = Time::from_secs(1000);

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
