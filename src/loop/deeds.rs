//! An event being acted on: its steps carried out as the machine says, its program
//! started, waited for and, if need be, ended.

use std::io;

use crate::child::{self, Child};
use crate::engine::{Engine, Hands, Outcome};
use crate::environment::{self, Environment};
use crate::error::reason;
use crate::machine::{Action, Input, Reason, Time};
use crate::plan::{Step, Steps};
use crate::recovery::Cause;
use crate::uevent::{self, Uevent, short};

use super::{Daemon, Watch, register};

/// How many keys a log line names.
const KEYS_TOLD: usize = 16;

/// An event being acted on.
pub(super) struct Deed<'e> {
    /// Which socket it came from; `None`: it makes up for one that was missed.
    pub(super) source: Option<usize>,
    /// When.
    pub(super) since: Time,
    pub(super) datagram: &'e [u8],
    pub(super) event: &'e Uevent<'e>,
    pub(super) steps: Steps<'e>,
    pub(super) failed: bool,
    /// Why its program could not be started just now.
    pub(super) refused: Option<io::Error>,
    /// What carries out the steps that touch files.
    pub(super) hands: Option<&'e mut Hands>,
}

impl<'e> Deed<'e> {
    pub(super) fn step(&self) -> Option<Step<'e>> {
        self.steps.peek()
    }
}

impl Daemon {
    /// Carries out the plan for an event, as the machine says.
    pub(super) fn act(
        &mut self,
        engine: &mut Engine,
        source: Option<usize>,
        datagram: &[u8],
        event: &Uevent<'_>,
    ) -> io::Result<()> {
        let says_all = source.is_none_or(|source| self.sources[source].source.says_all());
        let (plan, hands) = engine.plan(event, says_all);
        if self.is_tracked(source, event) && self.recovery.begin(event, source.is_none()) {
            self.compare_again(Cause::Rescan);
        }
        let (steps, since) = (plan.steps(), self.now());
        let (failed, refused) = (false, None);
        let deed = Deed { source, since, datagram, event, steps, failed, refused, hands };
        self.carry_out(deed, Input::Event)
    }

    /// The same for an event that the plugd before this one had begun with.
    pub(super) fn go_on(&mut self, deed: Deed<'_>) -> io::Result<()> {
        let input = self.wait(&deed)?;
        self.carry_out(deed, input)
    }

    fn carry_out(&mut self, mut deed: Deed<'_>, mut input: Input) -> io::Result<()> {
        let event = deed.event;
        loop {
            if input == Input::ChildGone {
                self.report_end(&mut deed);
            }
            let action = self.machine.step(self.now(), input);
            if let Some(error) = deed.refused.take() {
                self.report_refusal(&error, action, &deed);
            }
            input = match action {
                Action::Perform => self.perform(&mut deed),
                Action::GiveUp => {
                    deed.steps.next();
                    deed.failed = true;
                    self.perform(&mut deed)
                }
                Action::Terminate(reason) => {
                    self.terminate(reason, &mut deed);
                    self.wait(&deed)?
                }
                Action::Kill => {
                    self.kill(&deed);
                    self.wait(&deed)?
                }
                Action::Continue => self.wait(&deed)?,
                Action::Read | Action::Exit => break,
            };
        }
        if let Some(child) = &self.child {
            log::error!("pid {} could not be killed, and is left behind", child.pid());
        }
        let now = self.now();
        match deed.step() {
            None => {
                self.outlets.pass_on(deed.datagram, now);
                if self.is_tracked(deed.source, event) {
                    self.recovery.finish(event, deed.source.is_none(), now);
                }
            }
            Some(step) => {
                deed.failed = true;
                log::error!("{event}: not completed, from here on: {step}");
            }
        }
        if deed.failed {
            self.counters.failed += 1;
        } else {
            self.counters.handled += 1;
        }
        self.note_acted_on(deed.source, event, now);
        Ok(())
    }

    /// Begins the step at hand.
    fn perform(&mut self, deed: &mut Deed<'_>) -> Input {
        let run = loop {
            let Some(step) = deed.step() else { return Input::PlanDone };
            // It is answered once and for all, for which it may want those descriptors.
            if matches!(step, Step::LoadFirmware(_)) {
                self.recovery.read_alone();
            }
            let outcome = match &mut deed.hands {
                Some(hands) => hands.perform(deed.event, step),
                None => Outcome::of_program(step),
            };
            match outcome {
                Outcome::Start(run) => break run,
                Outcome::Done => {}
                // What reads devices has some.
                Outcome::Short(_) if self.recovery.read_alone() => continue,
                Outcome::Short(why) | Outcome::Failed(why) => {
                    deed.failed = true;
                    log::error!("{}: {why}", deed.event);
                }
            }
            deed.steps.next();
        };
        self.unwatch_sources();
        if self.adopts_orphans && !self.update.is_probing() {
            child::reap_orphans();
        }
        self.recovery.read_alone();
        let environment = run.environment();
        match Child::spawn(&mut self.spawner, &run, &environment) {
            Ok(child) => {
                log::debug!("{}: {}, pid {}", deed.event, Step::Run(run), child.pid());
                self.warn_of_withheld(&environment, deed.event);
                self.watch_child(&child);
                self.child = Some(child);
                Input::Started
            }
            Err(error) => {
                let refusal = child::refusal(&error, run.program);
                deed.refused = Some(error);
                Input::Refused(refusal)
            }
        }
    }

    fn report_refusal(&mut self, error: &io::Error, action: Action, deed: &Deed<'_>) {
        let Some(Step::Run(run)) = deed.step() else { return };
        let (program, event) = (run.program.path.to_bytes().escape_ascii(), deed.event);
        let error = reason(error);
        if action == Action::Continue {
            self.counters.retried += 1;
            log::warn!("cannot run {program}: {error}; {event} waits for another attempt");
        } else {
            log::error!("cannot run {program}: {error}; {event} is not handled");
        }
    }

    /// Somebody else says of an event that it is replayed.
    pub(super) fn warn_of_replay(&mut self, event: &Uevent<'_>) {
        self.withheld += 1;
        let [_, limiter] = &mut self.limiters.withheld;
        if limiter.allows(self.started.elapsed()) {
            let (name, count) = (uevent::REPLAY.escape_ascii(), self.withheld);
            log::warn!("{event}: not passed on: {name}, which is plugd's to set ({count} so far)");
        }
    }

    fn warn_of_withheld(&mut self, environment: &Environment<'_>, event: &Uevent<'_>) {
        if environment.withheld.is_empty() {
            return;
        }
        self.withheld += environment.withheld.len();
        let (protected, odd): (Vec<&[u8]>, Vec<&[u8]>) =
            environment.withheld.iter().partition(|&&key| environment::is_protected(key));
        let now = self.now();
        for (keys, limiter) in [odd, protected].iter().zip(&mut self.limiters.withheld) {
            if keys.is_empty() || !limiter.allows(now) {
                continue;
            }
            let named: Vec<String> =
                keys.iter().take(KEYS_TOLD).map(|&key| short(key).to_string()).collect();
            let (named, more) = (named.join(" "), keys.len().saturating_sub(KEYS_TOLD));
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            let count = self.withheld;
            log::warn!("{event}: not passed on to its program: {named}{more} ({count} so far)");
        }
    }

    fn terminate(&mut self, why: Reason, deed: &mut Deed<'_>) {
        let Some(child) = &self.child else { return };
        let why = match why {
            Reason::Timeout => {
                self.counters.timed_out += 1;
                "takes too long"
            }
            Reason::Stop => "shall end at once",
        };
        deed.failed = true;
        log::warn!("pid {} {why}: SIGTERM to its process group; {}", child.pid(), deed.event);
        child.terminate_group();
    }

    fn kill(&self, deed: &Deed<'_>) {
        let Some(child) = &self.child else { return };
        let rest = if self.lingers { "what it has left" } else { "it" };
        log::warn!(
            "pid {}: {rest} does not end: SIGKILL to its process group; {}",
            child.pid(),
            deed.event
        );
        child.kill_group();
    }

    fn report_end(&mut self, deed: &mut Deed<'_>) {
        let Some(Step::Run(run)) = deed.steps.next() else { return };
        let Some(ended) = self.ended.take() else {
            deed.failed = true;
            return;
        };
        let event = deed.event;
        let program = run.program.argv[0].to_bytes().escape_ascii();
        if ended.success() {
            log::debug!("{event}: {program} {ended}");
        } else {
            deed.failed = true;
            log::warn!("{program} {ended}; {event}");
        }
    }

    /// The next thing that happens.
    pub(super) fn wait(&mut self, deed: &Deed<'_>) -> io::Result<Input> {
        loop {
            if let Some(input) = self.inbox.pop_front() {
                return Ok(input);
            }
            if !self.update_if_due(Some(deed)) {
                self.turn(None, Some(deed))?;
            }
        }
    }

    pub(super) fn reap_child(&mut self) {
        let Some(child) = &self.child else { return };
        self.lingers = self.machine.grants_time() && child.has_left_others();
        if self.lingers {
            return;
        }
        let ended = match child.try_reap(self.machine.ends_group()) {
            Ok(None) => return,
            Ok(Some(ended)) => Some(ended),
            Err(error) => {
                log::error!("cannot learn how pid {} ended: {}", child.pid(), reason(&error));
                None
            }
        };
        self.ended = ended;
        self.reaped = self.child.take();
        self.inbox.push_back(Input::ChildGone);
    }

    pub(super) fn watch_child(&mut self, child: &Child) {
        let result = register(self.poll.registry(), child, &Watch::Child);
        self.note_watch(result);
    }
}
