//! The loop: watches signals, the child and the sockets, tells the state
//! machine what happened, and does what it says.
//!
//! Owns the poll and all that is watched. mio reports edges: a socket is read
//! until it is empty, and while a program runs it is not watched at all, so
//! that it causes no wake-ups and its events wait in the kernel.
//!
//! What it is asked, by signals and on the control socket, is in `orders`; how
//! it makes up for what it missed in `recover`; how it becomes another version
//! of itself in `update`.

mod orders;
mod recover;
mod update;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};

use crate::child::{self, Child, Ended};
use crate::control::server::{self, Server};
use crate::counters::{Counters, Dropped, Limiter};
use crate::engine::{Engine, Hands, Outcome};
use crate::environment::{self, Environment};
use crate::error::reason;
use crate::handover::InHand;
use crate::inventory::{Trust, Verdict};
use crate::machine::{Action, Input, Limits, Machine, Reason, State, Time};
use crate::netlink::{DATAGRAM_MAX, Received, Source};
use crate::notify::Notifier;
use crate::plan::{Step, Steps};
use crate::presence::Presence;
use crate::rebroadcast::Outlets;
use crate::recovery::Cause;
use crate::settle::Requests;
use crate::signals::{Manner, Signals};
use crate::status;
use crate::sys::Spawner;
use crate::uevent::{Header, Malformed, Uevent, short};

use self::recover::{Recovered, Recovery};
pub use self::recover::{Settings, Start};
use self::update::Update;
pub use self::update::{inherited, is_rehearsal};

/// How many datagrams may be read before signals are looked at again. A flood
/// of datagrams that are dropped must not keep a stop request waiting.
const READS_PER_TURN: u32 = 64;

/// As many may be a step in making up for what was missed, which looks at some devices.
const READS_PER_STEP: u32 = 16;

/// How often to look at what cannot be watched: for want of kernel memory, or as it
/// is not our child.
const RECHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How many keys a log line names.
const KEYS_TOLD: usize = 16;

/// Tokens from here on belong to the control socket.
const CONTROL_TOKENS: usize = 1 << 16;

/// What a daemon is made of.
#[derive(Debug)]
pub struct Setup {
    /// The sockets that bring events.
    pub sources: Vec<Source>,
    /// How long a child may take.
    pub limits: Limits,
    /// Whose signals it understands.
    pub manner: Manner,
    /// The control socket, if it has one.
    pub control: Option<Server>,
    /// Whom to tell that it is ready.
    pub notifier: Notifier,
    /// Where to look whether a device is there.
    pub presence: Presence,
    /// What decides, for its status.
    pub engine: status::Engine,
    /// Whether its own command line, executed once more, would go on with it.
    pub may_update: bool,
    /// Where events go that were acted on.
    pub outlets: Outlets,
    /// How it makes up for what it missed.
    pub recovery: Settings,
}

/// The daemon at work.
#[derive(Debug)]
pub struct Daemon {
    poll: Poll,
    events: Events,
    signals: Signals,
    manner: Manner,
    /// The configuration shall be read again, when no event is in hand.
    reload: bool,
    /// Who is to be told how that went.
    reloaders: Vec<server::Id>,
    sources: Vec<Watched>,
    /// Whether the sources are registered with the poll.
    watching: bool,
    /// Something could not be registered, and has to be looked at now and then.
    unwatched: bool,
    /// The source to read next.
    turn_of: usize,
    reads_left: u32,
    spawner: Spawner,
    child: Option<Child>,
    /// It has ended, but others of its group still have time to do so.
    lingers: bool,
    /// What programs leave in the background is for this process to reap.
    adopts_orphans: bool,
    /// How the last child ended, until it is reported.
    ended: Option<Ended>,
    machine: Machine,
    /// What has happened and was not yet told to the machine.
    inbox: VecDeque<Input>,
    outlets: Outlets,
    recovery: Recovery,
    counters: Counters,
    limiters: Limiters,
    /// Variables that were not passed on to programs.
    withheld: usize,
    started: Instant,
    control: Option<Server>,
    requests: Requests<server::Id>,
    presence: Presence,
    notifier: Notifier,
    engine: status::Engine,
    update: Update,
    /// The event that the plugd before this one had in hand.
    resumed: Option<InHand>,
    /// The rules in force come from files.
    has_rule_files: bool,
}

#[derive(Debug)]
struct Watched {
    source: Source,
    /// The kernel's uevents come from it.
    is_kernels: bool,
    /// Among them those of interfaces that are in no /sys here.
    from_everywhere: bool,
    /// It may have something to read.
    ready: bool,
    /// The last attempt to receive failed.
    failed: bool,
    ended: bool,
}

#[derive(Debug, Default)]
struct Limiters {
    dropped: [Limiter; Dropped::ALL.len()],
    receive: Limiter,
    watch: Limiter,
    /// Of keys that are odd, and of those that are protected.
    withheld: [Limiter; 2],
}

/// What is watched, as mio's tokens tell it.
enum Watch {
    Signals,
    Child,
    /// The new program that was asked for its version.
    Probe,
    /// Where events are written to.
    Output,
    Source(usize),
    Control,
}

impl Watch {
    fn token(&self) -> Token {
        match *self {
            Self::Signals => Token(0),
            Self::Child => Token(1),
            Self::Probe => Token(2),
            Self::Output => Token(3),
            Self::Source(index) => Token(index + 4),
            Self::Control => Token(CONTROL_TOKENS),
        }
    }

    fn of(token: Token) -> Self {
        match token {
            Token(0) => Self::Signals,
            Token(1) => Self::Child,
            Token(2) => Self::Probe,
            Token(3) => Self::Output,
            Token(CONTROL_TOKENS..) => Self::Control,
            Token(n) => Self::Source(n - 4),
        }
    }
}

/// What is to be done when no event is in hand.
enum Next {
    /// Act on a datagram from the source with this index, of that many bytes.
    Datagram(usize, usize),
    /// Act on an event of that many bytes that makes up for one that was missed.
    Replay(usize),
    /// Read the configuration again.
    Reload,
    /// End.
    End,
}

/// An event being acted on.
struct Deed<'e> {
    /// Which socket it came from; `None`: it makes up for one that was missed.
    source: Option<usize>,
    /// When.
    since: Time,
    datagram: &'e [u8],
    event: &'e Uevent<'e>,
    steps: Steps<'e>,
    failed: bool,
    /// Why its program could not be started just now.
    refused: Option<io::Error>,
    /// What carries out the steps that touch files.
    hands: Option<&'e mut Hands>,
}

impl<'e> Deed<'e> {
    fn step(&self) -> Option<Step<'e>> {
        self.steps.peek()
    }
}

impl Daemon {
    /// Prepares to do its work. Handles the signals of its manner from now on.
    ///
    /// # Errors
    /// Those of epoll_create1(2), epoll_ctl(2), pipe2(2) and sigaction(2).
    pub fn new(setup: Setup) -> io::Result<Self> {
        let Setup { sources, limits, manner, mut control, .. } = setup;
        let Setup { notifier, presence, engine, may_update, outlets, recovery, .. } = setup;
        // Soon, as another file may be put in the place of its own.
        let update = Update::new(may_update);
        let poll = Poll::new()?;
        let signals = Signals::handle(manner.orders().map(|(signal, _)| signal))?;
        register(poll.registry(), &signals, &Watch::Signals)?;
        if let Some(control) = &mut control {
            control.register(poll.registry(), CONTROL_TOKENS)?;
        }
        let watched = |source: Source| Watched {
            is_kernels: source.is_kernels(),
            from_everywhere: source.listens_to_all_namespaces(),
            source,
            ready: true,
            failed: false,
            ended: false,
        };
        Ok(Self {
            poll,
            events: Events::with_capacity(64),
            signals,
            manner,
            reload: false,
            reloaders: Vec::new(),
            sources: sources.into_iter().map(watched).collect(),
            watching: false,
            unwatched: false,
            turn_of: 0,
            reads_left: READS_PER_TURN,
            // After the signal handlers, which it notes.
            spawner: Spawner::new(),
            child: None,
            adopts_orphans: child::adopts_orphans(),
            lingers: false,
            ended: None,
            machine: Machine::new(limits),
            inbox: VecDeque::new(),
            outlets,
            recovery: Recovery::new(recovery),
            counters: Counters::default(),
            limiters: Limiters::default(),
            withheld: 0,
            started: Instant::now(),
            control,
            requests: Requests::default(),
            presence,
            notifier,
            engine,
            update,
            resumed: None,
            has_rule_files: false,
        })
    }

    /// Tells whoever started plugd that it is ready.
    ///
    /// # Errors
    /// Those of write(2) on the notification descriptor.
    pub fn announce(&mut self) -> io::Result<()> {
        self.notifier.ready(orders::activity(self.machine.is_paused()))
    }

    /// Acts on one event after the other, as `engine` says, until it is asked
    /// to stop or nothing can come any more. Returns what it has counted.
    ///
    /// # Errors
    /// Those of epoll_wait(2) that mean that the poll itself is broken.
    pub fn run(mut self, engine: &mut Engine) -> io::Result<Counters> {
        self.has_rule_files = engine.has_rule_files();
        if let Some(InHand { source, datagram, steps_done, step, mut failed, since }) =
            self.resumed.take()
        {
            // It was read before: what comes of it if the new version reads it
            // otherwise has no steps left.
            let from = source.and_then(|source| self.sources.get(source));
            let from = from.map(|watched| &watched.source);
            let header = from.map_or(Header::Required, Source::header);
            let says_all = from.is_none_or(Source::says_all);
            let event = &Uevent::parse(&datagram, header).unwrap_or(Uevent::EMPTY);
            let (plan, hands) = engine.plan(event, says_all);
            let mut steps = plan.steps();
            if !steps.go_to(steps_done, &step) {
                failed = true;
                log::error!(
                    "{event}: the rules are others now, and have nothing to do with what is \
                     being done: nothing more is done for it"
                );
            }
            let (datagram, refused) = (&datagram[..], None);
            self.go_on(Deed { source, since, datagram, event, steps, failed, refused, hands })?;
        }
        let (mut buffer, mut first) = (vec![0; DATAGRAM_MAX], Vec::new());
        loop {
            let (source, datagram) = match self.read(&mut buffer)? {
                Next::Datagram(source, length) => (Some(source), &buffer[..length]),
                Next::Replay(length) => (None, &buffer[..length]),
                Next::Reload => {
                    self.reload_now(engine);
                    continue;
                }
                Next::End => break,
            };
            let header =
                source.map_or(Header::Required, |source| self.sources[source].source.header());
            let event = match Uevent::parse(datagram, header) {
                Ok(event) => event,
                Err(malformed) => {
                    self.drop_malformed(malformed);
                    continue;
                }
            };
            match source.map_or(Verdict::Act, |source| self.judge(source, &event, &mut first)) {
                verdict @ (Verdict::Act | Verdict::ActAndCompare) => {
                    let compares = verdict == Verdict::ActAndCompare;
                    if compares {
                        // Nothing was lost before this event itself.
                        let trust = self.recovery.trust;
                        self.compare_again(Cause::Rescan);
                        self.recovery.trust = trust;
                    }
                    self.counters.received += u64::from(source.is_some());
                    self.act(engine, source, datagram, &event)?;
                    if compares {
                        self.recovery.trust = Trust::Lossy;
                    }
                }
                Verdict::RemoveFirst => {
                    self.recovery.hold_back(source, datagram);
                    if let Ok(event) = Uevent::parse(&first, Header::Required) {
                        self.counters.replayed[0] += 1;
                        self.act(engine, None, &first, &event)?;
                    }
                }
                Verdict::Stale | Verdict::StaleIfListed | Verdict::StaleIfSame => {
                    self.pass_over(source, &event);
                }
            }
        }
        self.end_probe();
        self.finish_writing()?;
        self.leave();
        self.notifier.stopping();
        if let Some(control) = self.control.take() {
            control.close(self.now());
        }
        Ok(self.counters)
    }

    /// Reads the next datagram, from each socket in turn, or finds something
    /// else to do; waits for it if need be.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Next> {
        loop {
            // What comes after a stop is for whoever waits for something then.
            while self.machine.state() == State::Reading
                && let Some(input) = self.inbox.pop_front()
            {
                self.machine.step(self.now(), input);
            }
            if self.machine.state() != State::Reading {
                return Ok(Next::End);
            }
            if std::mem::take(&mut self.reload) {
                return Ok(Next::Reload);
            }
            if self.update_if_due(None) {
                continue;
            }
            if self.outlets.awaited().is_some() {
                self.await_output()?;
                continue;
            }
            if self.machine.is_paused() {
                self.unwatch_sources();
                self.settle_paused();
                self.turn(None, None)?;
                continue;
            }
            if self.reads_left == 0 {
                self.turn(Some(Duration::ZERO), None)?;
                continue;
            }
            if let Some((source, length)) = self.recovery.take_held_back(buffer) {
                return Ok(Next::Datagram(source, length));
            }
            let ready = self.next_ready();
            match self.recover(buffer) {
                Recovered::Proceed => {}
                Recovered::Again => {
                    self.reads_left = self.reads_left.saturating_sub(READS_PER_STEP);
                    continue;
                }
                Recovered::Event(length) => {
                    self.reads_left -= 1;
                    return Ok(Next::Replay(length));
                }
            }
            let Some(index) = ready else {
                self.watch_sources();
                self.turn(None, None)?;
                continue;
            };
            self.reads_left -= 1;
            self.turn_of = index + 1;
            if let Some(length) = self.receive(index, buffer) {
                return Ok(Next::Datagram(index, length));
            }
        }
    }

    /// Lets the reader of what was acted on catch up. Meanwhile nothing is read.
    fn await_output(&mut self) -> io::Result<()> {
        self.outlets.catch_up(self.now());
        let Some(output) = self.outlets.awaited() else { return Ok(()) };
        self.unwatch_sources();
        let mut output = SourceFd(&output);
        let registry = self.poll.registry();
        let result = registry.register(&mut output, Watch::Output.token(), Interest::WRITABLE);
        let is_watched = result.is_ok();
        self.note_watch(result);
        self.turn(None, None)?;
        if is_watched {
            self.poll.registry().deregister(&mut output)?;
        }
        Ok(())
    }

    /// The same at the end, unless a stop is asked for once more.
    fn finish_writing(&mut self) -> io::Result<()> {
        while self.outlets.awaited().is_some() {
            if self.inbox.drain(..).any(|input| input == Input::Stop) {
                self.outlets.give_up("plugd shall end at once");
                break;
            }
            self.await_output()?;
        }
        Ok(())
    }

    fn next_ready(&self) -> Option<usize> {
        let count = self.sources.len();
        (0..count).map(|i| (self.turn_of + i) % count).find(|&i| self.sources[i].ready)
    }

    fn receive(&mut self, index: usize, buffer: &mut [u8]) -> Option<usize> {
        let watched = &mut self.sources[index];
        let failed_before = std::mem::take(&mut watched.failed);
        let received = watched.source.receive(buffer);
        let weight = watched.source.weight(&received);
        if watched.is_kernels && !matches!(received, Received::Empty) {
            self.recovery.took_one();
        }
        if weight > 0 && self.requests.took(index, weight) {
            self.answer_requests();
        }
        let watched = &mut self.sources[index];
        match received {
            Received::Datagram(length) => return Some(length),
            Received::Empty => {
                watched.ready = false;
                self.requests.found_empty(index);
                self.answer_requests();
            }
            Received::Overrun => {
                self.counters.overruns += 1;
                log::warn!(
                    "overrun: the receive buffer was full and the kernel dropped events \
                     ({} so far); going on with those that are queued",
                    self.counters.overruns
                );
                self.note_overrun(index);
            }
            Received::Foreign(sender) => {
                self.drop_datagram(Dropped::Foreign, &format_args!("sent by {sender}"));
            }
            Received::Truncated => self.drop_datagram(
                Dropped::Truncated,
                &format_args!("it is larger than {} bytes", buffer.len()),
            ),
            Received::EndOfInput => self.end_source(index),
            Received::Invalid(invalid) => {
                self.counters.dropped[Dropped::Malformed as usize] += 1;
                log::error!("{invalid}; nothing after it is read");
                self.end_source(index);
            }
            Received::Failed(error) => {
                // Many errors are told once (ECONNRESET), with data behind them.
                // Otherwise there may be no edge to tell of what is there.
                watched.failed = true;
                watched.ready = !failed_before;
                self.unwatched |= failed_before;
                if self.limiters.receive.allows(self.started.elapsed()) {
                    log::warn!("cannot receive: {}", reason(&error));
                }
            }
        }
        None
    }

    fn end_source(&mut self, index: usize) {
        let watched = &mut self.sources[index];
        watched.ready = false;
        watched.ended = true;
        if self.watching {
            let _ = deregister(self.poll.registry(), &watched.source);
        }
        log::info!("end of input on file descriptor {}", watched.source.as_raw_fd());
        if self.sources.iter().all(|watched| watched.ended) {
            self.inbox.push_back(Input::EndOfInput);
        }
        self.requests.found_empty(index);
        self.answer_requests();
    }

    /// Leaves out an event that a scan has overtaken.
    fn pass_over(&mut self, source: Option<usize>, event: &Uevent<'_>) {
        log::debug!("{event}: passed over, as it was acted on already or is over");
        self.counters.received += 1;
        self.counters.stale += 1;
        self.note_acted_on(source, event);
    }

    /// Tells those who wait for it.
    fn note_acted_on(&mut self, source: Option<usize>, event: &Uevent<'_>) {
        if source.is_some_and(|source| self.sources[source].is_kernels) {
            self.recovery.note_progress(event);
        }
        self.requests.acted_on(source, event, self.started.elapsed());
        self.answer_requests();
    }

    fn drop_malformed(&mut self, malformed: Malformed) {
        self.drop_datagram(Dropped::Malformed, &format_args!("{malformed}"));
    }

    fn drop_datagram(&mut self, kind: Dropped, why: &std::fmt::Arguments<'_>) {
        let count = &mut self.counters.dropped[kind as usize];
        *count += 1;
        if self.limiters.dropped[kind as usize].allows(self.started.elapsed()) {
            log::warn!("dropped a {kind} datagram: {why} ({count} so far)");
        }
    }

    /// Carries out the plan for an event, as the machine says.
    fn act(
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
    fn go_on(&mut self, deed: Deed<'_>) -> io::Result<()> {
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
        match deed.step() {
            None => {
                self.outlets.pass_on(deed.datagram, self.now());
                if self.is_tracked(deed.source, event) {
                    let (replayed, now) = (deed.source.is_none(), self.now());
                    self.recovery.finish(event, replayed, now);
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
        self.note_acted_on(deed.source, event);
        Ok(())
    }

    /// Whether an event from there tells which devices there are.
    fn is_tracked(&self, source: Option<usize>, event: &Uevent<'_>) -> bool {
        let Some(watched) = source.map(|source| &self.sources[source]) else { return true };
        // Two interfaces of different namespaces may have the same path.
        let may_be_elsewhere = || {
            let path = event.last(b"DEVPATH").unwrap_or_default().to_bytes();
            path.windows(5).any(|part| part == b"/net/")
        };
        watched.is_kernels && !(watched.from_everywhere && may_be_elsewhere())
    }

    /// Begins the step at hand.
    fn perform(&mut self, deed: &mut Deed<'_>) -> Input {
        let run = loop {
            let Some(step) = deed.step() else { return Input::PlanDone };
            let outcome = match &mut deed.hands {
                Some(hands) => hands.perform(deed.event, step),
                None => Outcome::of_program(step),
            };
            match outcome {
                Outcome::Start(run) => break run,
                Outcome::Done => {}
                Outcome::Failed(why) => {
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
    fn wait(&mut self, deed: &Deed<'_>) -> io::Result<Input> {
        loop {
            if let Some(input) = self.inbox.pop_front() {
                return Ok(input);
            }
            if !self.update_if_due(Some(deed)) {
                self.turn(None, Some(deed))?;
            }
        }
    }

    /// Waits, until the next deadline or for `at_most`, for something to
    /// happen, and fills the inbox: signals first, then the child. Then the
    /// control socket is served; `deed` is what is being done.
    fn turn(&mut self, at_most: Option<Duration>, deed: Option<&Deed<'_>>) -> io::Result<()> {
        self.reads_left = READS_PER_TURN;
        let timeout = self.timeout(at_most);
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.events.clear(),
            result => result?,
        }

        let (mut signalled, mut child_ended) = (false, self.unwatched || self.lingers);
        for event in &self.events {
            match Watch::of(event.token()) {
                Watch::Signals => signalled = true,
                Watch::Child => child_ended = true,
                Watch::Probe => self.update.ready = true,
                // It is tried in any case.
                Watch::Output => {}
                Watch::Source(index) => self.sources[index].ready = true,
                Watch::Control => {
                    if let Some(control) = &mut self.control {
                        control.ready(event);
                    }
                }
            }
        }
        if self.unwatched {
            self.mark_sources_ready();
        }
        if signalled {
            self.take_signals(deed);
        }
        if child_ended {
            self.reap_child();
        }
        if self.machine.deadline().is_some_and(|at| at <= self.now()) {
            self.inbox.push_back(Input::Tick);
        }
        self.check_probe();
        self.serve(deed);
        Ok(())
    }

    fn timeout(&self, at_most: Option<Duration>) -> Option<Duration> {
        let work = self.control.as_ref().is_some_and(Server::has_work).then_some(Duration::ZERO);
        let deadlines = [
            self.machine.deadline(),
            self.control.as_ref().and_then(Server::deadline),
            self.requests.deadline(),
            self.update.deadline(),
            self.outlets.deadline(),
            self.recovery.deadline().filter(|_| self.is_reading()),
        ];
        let deadline = deadlines.into_iter().flatten().min();
        let until_deadline = deadline.map(|at| at.saturating_sub(self.now()));
        let recheck = (self.unwatched || self.lingers).then_some(RECHECK_INTERVAL);
        [at_most, until_deadline, recheck, work].into_iter().flatten().min()
    }

    /// Whether no event is in hand, and the next one may be read.
    fn is_reading(&self) -> bool {
        self.machine.state() == State::Reading
            && !self.machine.is_paused()
            && self.outlets.awaited().is_none()
    }

    fn reap_child(&mut self) {
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
        // Closing the pidfd, of which there is no other copy, unregisters it (epoll(7)).
        self.child = None;
        self.inbox.push_back(Input::ChildGone);
    }

    fn watch_child(&mut self, child: &Child) {
        let result = register(self.poll.registry(), child, &Watch::Child);
        self.note_watch(result);
    }

    fn watch_sources(&mut self) {
        if self.watching {
            return;
        }
        self.watching = true;
        self.unwatched = false;
        for index in 0..self.sources.len() {
            if !self.sources[index].ended {
                let source = &self.sources[index].source;
                let result = register(self.poll.registry(), source, &Watch::Source(index));
                self.note_watch(result);
            }
        }
    }

    /// From here on, what happens on the sources is not known.
    fn unwatch_sources(&mut self) {
        if std::mem::take(&mut self.watching) {
            for watched in self.sources.iter().filter(|watched| !watched.ended) {
                // Fails only for what could not be registered.
                let _ = deregister(self.poll.registry(), &watched.source);
            }
        }
        self.unwatched = false;
        self.mark_sources_ready();
    }

    fn mark_sources_ready(&mut self) {
        for watched in &mut self.sources {
            watched.ready = !watched.ended;
        }
    }

    /// epoll_ctl(2) may fail for want of memory. Then we look by ourselves now
    /// and then, which is slow, but loses nothing.
    fn note_watch(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            self.unwatched = true;
            if self.limiters.watch.allows(self.started.elapsed()) {
                log::error!("cannot watch a file descriptor: {}", reason(&error));
            }
        }
    }

    fn now(&self) -> Time {
        self.started.elapsed()
    }
}

fn register(registry: &Registry, fd: &impl AsRawFd, watch: &Watch) -> io::Result<()> {
    registry.register(&mut SourceFd(&fd.as_raw_fd()), watch.token(), Interest::READABLE)
}

fn deregister(registry: &Registry, fd: &impl AsRawFd) -> io::Result<()> {
    registry.deregister(&mut SourceFd(&fd.as_raw_fd()))
}
