//! The loop: watches signals, the child and the sockets, tells the state
//! machine what happened, and does what it says.
//!
//! Owns the poll and all that is watched. mio reports edges: a socket is read
//! until it is empty, and while an event is in hand it is not watched at all,
//! so that it causes no wake-ups and its events wait in the kernel.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use crate::child::{self, Child, Ended};
use crate::counters::{Counters, Dropped, Limiter};
use crate::engine::{Engine, Hands, Outcome};
use crate::environment::Environment;
use crate::error::reason;
use crate::machine::{Action, Input, Limits, Machine, Reason, State, Stop, Time};
use crate::netlink::{DATAGRAM_MAX, Received, Source};
use crate::plan::{Plan, Step, Steps};
use crate::rebroadcast::Outlets;
use crate::signals::{self, Signals};
use crate::sys::{SignalRecord, Spawner};
use crate::uevent::{Header, Malformed, Uevent, short};

/// How many datagrams may be read before signals are looked at again. A flood
/// of datagrams that are dropped must not keep a stop request waiting.
const READS_PER_TURN: u32 = 64;

/// How often to look at what could not be watched for want of kernel memory.
const UNWATCHED_INTERVAL: Duration = Duration::from_millis(100);

/// How many keys a log line names.
const KEYS_TOLD: usize = 16;

/// What SIGHUP means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hangup {
    /// Stop, as SIGTERM.
    Stop,
    /// Read the configuration again.
    Reload,
}

/// The daemon at work.
#[derive(Debug)]
pub struct Daemon {
    poll: Poll,
    events: Events,
    signals: Signals,
    hangup: Hangup,
    /// The configuration shall be read again, when no event is in hand.
    reload: bool,
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
    /// How the last child ended, until it is reported.
    ended: Option<Ended>,
    machine: Machine,
    /// What has happened and was not yet told to the machine.
    inbox: VecDeque<Input>,
    outlets: Outlets,
    counters: Counters,
    limiters: Limiters,
    started: Instant,
}

#[derive(Debug)]
struct Watched {
    source: Source,
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
    withheld: Limiter,
}

/// What is watched, as mio's tokens tell it.
enum Watch {
    Signals,
    Child,
    Source(usize),
}

impl Watch {
    fn token(&self) -> Token {
        match *self {
            Self::Signals => Token(0),
            Self::Child => Token(1),
            Self::Source(index) => Token(index + 2),
        }
    }

    fn of(token: Token) -> Self {
        match token {
            Token(0) => Self::Signals,
            Token(1) => Self::Child,
            Token(n) => Self::Source(n - 2),
        }
    }
}

/// What is to be done when no event is in hand.
enum Next {
    /// Act on a datagram of that many bytes.
    Datagram(usize, Header),
    /// Read the configuration again.
    Reload,
    /// End.
    End,
}

/// An event being acted on.
struct Deed<'e> {
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
    /// Prepares to read `sources`. Handles SIGTERM, SIGINT, SIGHUP and SIGUSR1
    /// from now on.
    ///
    /// # Errors
    /// Those of epoll_create1(2), epoll_ctl(2), pipe2(2) and sigaction(2).
    pub fn new(sources: Vec<Source>, limits: Limits, hangup: Hangup) -> io::Result<Self> {
        let poll = Poll::new()?;
        let signals = Signals::handle(&[SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
        register(poll.registry(), &signals, &Watch::Signals)?;
        let watched = |source| Watched { source, ready: true, failed: false, ended: false };
        Ok(Self {
            poll,
            events: Events::with_capacity(16),
            signals,
            hangup,
            reload: false,
            sources: sources.into_iter().map(watched).collect(),
            watching: false,
            unwatched: false,
            turn_of: 0,
            reads_left: READS_PER_TURN,
            // After the signal handlers, which it notes.
            spawner: Spawner::new(),
            child: None,
            ended: None,
            machine: Machine::new(limits),
            inbox: VecDeque::new(),
            outlets: Outlets::default(),
            counters: Counters::default(),
            limiters: Limiters::default(),
            started: Instant::now(),
        })
    }

    /// Passes on each event that was acted on.
    pub fn pass_on(&mut self, outlets: Outlets) {
        self.outlets = outlets;
    }

    /// Acts on one event after the other, as `engine` says, until it is asked
    /// to stop or nothing can come any more. Returns what it has counted.
    ///
    /// # Errors
    /// Those of epoll_wait(2) that mean that the poll itself is broken.
    pub fn run(mut self, engine: &mut Engine) -> io::Result<Counters> {
        let mut buffer = vec![0; DATAGRAM_MAX];
        loop {
            match self.read(&mut buffer)? {
                Next::Datagram(length, header) => match Uevent::parse(&buffer[..length], header) {
                    Ok(event) => {
                        self.counters.received += 1;
                        let (plan, hands) = engine.plan(&event);
                        if self.act(&event, &plan, hands)? {
                            self.outlets.pass_on(&buffer[..length], self.started.elapsed());
                        }
                    }
                    Err(malformed) => self.drop_malformed(malformed),
                },
                Next::Reload => engine.reload(),
                Next::End => return Ok(self.counters),
            }
        }
    }

    /// Reads the next datagram, from each socket in turn, or finds something
    /// else to do; waits for it if need be.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<Next> {
        loop {
            while let Some(input) = self.inbox.pop_front() {
                self.machine.step(self.now(), input);
            }
            if self.machine.state() != State::Reading {
                return Ok(Next::End);
            }
            if std::mem::take(&mut self.reload) {
                return Ok(Next::Reload);
            }
            let Some(index) = self.next_ready() else {
                self.watch_sources();
                self.turn(None)?;
                continue;
            };
            if self.reads_left == 0 {
                self.turn(Some(Duration::ZERO))?;
                continue;
            }
            self.reads_left -= 1;
            self.turn_of = index + 1;
            if let Some((length, header)) = self.receive(index, buffer) {
                return Ok(Next::Datagram(length, header));
            }
        }
    }

    fn next_ready(&self) -> Option<usize> {
        let count = self.sources.len();
        (0..count).map(|i| (self.turn_of + i) % count).find(|&i| self.sources[i].ready)
    }

    fn receive(&mut self, index: usize, buffer: &mut [u8]) -> Option<(usize, Header)> {
        let now = self.now();
        let watched = &mut self.sources[index];
        let failed_before = std::mem::take(&mut watched.failed);
        match watched.source.receive(buffer) {
            Received::Datagram(length) => return Some((length, watched.source.header())),
            Received::Empty => watched.ready = false,
            Received::Overrun => {
                self.counters.overruns += 1;
                log::warn!(
                    "overrun: the receive buffer was full and the kernel dropped events \
                     ({} so far); going on with those that are queued",
                    self.counters.overruns
                );
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
                if self.limiters.receive.allows(now) {
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

    /// Carries out the plan for an event, as the machine says. Returns whether
    /// it came to the end of it.
    fn act(
        &mut self,
        event: &Uevent<'_>,
        plan: &Plan<'_>,
        hands: Option<&mut Hands>,
    ) -> io::Result<bool> {
        self.unwatch_sources();
        let mut deed = Deed { event, steps: plan.steps(), failed: false, refused: None, hands };
        let mut input = Input::Event;
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
                    self.wait()?
                }
                Action::Kill => {
                    self.kill(&deed);
                    self.wait()?
                }
                Action::Continue => self.wait()?,
                Action::Read | Action::Exit => break,
            };
        }
        let rest = deed.step();
        if let Some(step) = rest {
            deed.failed = true;
            log::error!("{event}: not completed, from here on: {step}");
        }
        if deed.failed {
            self.counters.failed += 1;
        } else {
            self.counters.handled += 1;
        }
        Ok(rest.is_none())
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
                let refusal = child::refusal(&error);
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
        let withheld = &environment.withheld;
        if !withheld.is_empty() && self.limiters.withheld.allows(self.now()) {
            let keys: Vec<String> =
                withheld.iter().take(KEYS_TOLD).map(|&key| short(key).to_string()).collect();
            let (keys, more) = (keys.join(" "), withheld.len().saturating_sub(KEYS_TOLD));
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            log::warn!("{event}: not passed on to its program: {keys}{more}");
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
        log::warn!(
            "pid {} does not end: SIGKILL to its process group; {}",
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
    fn wait(&mut self) -> io::Result<Input> {
        loop {
            if let Some(input) = self.inbox.pop_front() {
                return Ok(input);
            }
            self.turn(None)?;
        }
    }

    /// Waits, until the machine's deadline or for `at_most`, for something to
    /// happen, and fills the inbox: signals first, then the child.
    fn turn(&mut self, at_most: Option<Duration>) -> io::Result<()> {
        self.reads_left = READS_PER_TURN;
        let until_deadline = self.machine.deadline().map(|at| at.saturating_sub(self.now()));
        let recheck = self.unwatched.then_some(UNWATCHED_INTERVAL);
        let timeout = [at_most, until_deadline, recheck].into_iter().flatten().min();
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => self.events.clear(),
            result => result?,
        }

        let (mut signalled, mut child_ended) = (false, self.unwatched);
        for event in &self.events {
            match Watch::of(event.token()) {
                Watch::Signals => signalled = true,
                Watch::Child => child_ended = true,
                Watch::Source(index) => self.sources[index].ready = true,
            }
        }
        if self.unwatched {
            self.mark_sources_ready();
        }
        if signalled {
            while let Some(record) = self.signals.next() {
                self.take_signal(record);
            }
        }
        if child_ended {
            self.reap_child();
        }
        if self.machine.deadline().is_some_and(|at| at <= self.now()) {
            self.inbox.push_back(Input::Tick);
        }
        Ok(())
    }

    fn take_signal(&mut self, record: SignalRecord) {
        let SignalRecord { signal, sender } = record;
        let name = signals::name(signal).unwrap_or("a signal");
        let from =
            sender.map_or_else(String::new, |(pid, uid)| format!(" from pid {pid} of user {uid}"));
        match (signal, self.hangup) {
            (SIGTERM | SIGINT, _) | (SIGHUP, Hangup::Stop) => {
                match (&self.child, self.machine.state()) {
                    (Some(child), State::Running { stop: Stop::No, .. }) => log::info!(
                        "{name}{from}: stopping when pid {} has ended; \
                         another signal ends it at once",
                        child.pid()
                    ),
                    _ => log::info!("{name}{from}: stopping"),
                }
                self.inbox.push_back(Input::Stop);
            }
            (SIGHUP, Hangup::Reload) => {
                log::info!("{name}{from}: reloading");
                self.reload = true;
            }
            (SIGUSR1, _) => log::info!("{name}{from}: {}", self.counters),
            _ => {}
        }
    }

    fn reap_child(&mut self) {
        let Some(child) = &self.child else { return };
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
