//! The loop: watches signals, the child and the sockets, tells the state
//! machine what happened, and does what it says.
//!
//! Owns the poll and all that is watched. mio reports edges: a socket is read
//! until it is empty, and while a program runs it is not watched at all, so
//! that it causes no wake-ups and its events wait in the kernel.
//!
//! How it reads from the sockets is in `sources`; how it acts on an event in `deeds`;
//! what it is asked, by signals and on the control socket, in `orders`; how it makes up
//! for what it missed in `recover`; how it becomes another version of itself in `update`.

mod deeds;
mod orders;
mod recover;
mod sources;
mod update;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};

use crate::child::{self, Child, Ended};
use crate::control::server::{self, Server};
use crate::counters::{Counters, Dropped, Limiter};
use crate::engine::Engine;
use crate::error::reason;
use crate::handover::InHand;
use crate::inventory::{Trust, Verdict};
use crate::machine::{Input, Limits, Machine, State, Time};
use crate::netlink::{DATAGRAM_MAX, Source};
use crate::notify::Notifier;
use crate::presence::Presence;
use crate::rebroadcast::Outlets;
use crate::recovery::Cause;
use crate::rules::rule::Rule;
use crate::settle::Requests;
use crate::signals::{Manner, Signals};
use crate::status;
use crate::sys::Spawner;
use crate::uevent::{self, Header, Uevent};

use self::deeds::Deed;
use self::recover::{Recovered, Recovery};
pub use self::recover::{Settings, Start};
use self::sources::Watched;
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
    /// The one before it, until the next turn.
    reaped: Option<Child>,
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
    /// The rules in force, if they come from files.
    rules_of_files: Option<Rc<[Rule]>>,
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
        Ok(Self {
            poll,
            events: Events::with_capacity(64),
            signals,
            manner,
            reload: false,
            reloaders: Vec::new(),
            sources: sources.into_iter().map(Watched::new).collect(),
            watching: false,
            unwatched: false,
            turn_of: 0,
            reads_left: READS_PER_TURN,
            // After the signal handlers, which it notes.
            spawner: Spawner::new(),
            child: None,
            reaped: None,
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
            rules_of_files: None,
        })
    }

    /// Whether it begins by finding out what is there.
    pub fn begins_by_comparing(&self) -> bool {
        self.recovery.unfinished().is_some()
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
        self.rules_of_files = engine.rules_of_files();
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
            let (source, mut length) = match self.read(&mut buffer)? {
                Next::Datagram(source, length) => (Some(source), length),
                Next::Replay(length) => (None, length),
                Next::Reload => {
                    self.reload_now(engine);
                    continue;
                }
                Next::End => break,
            };
            let header =
                source.map_or(Header::Required, |source| self.sources[source].source.header());
            let event = match Uevent::parse(&buffer[..length], header) {
                Ok(event) if source.is_some() && event.replay().is_some() => {
                    self.warn_of_replay(&event);
                    length = uevent::remove(&mut buffer[..length], uevent::REPLAY);
                    Uevent::parse(&buffer[..length], header)
                }
                result => result,
            };
            let datagram = &buffer[..length];
            let event = match event {
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

    /// Leaves out an event that a scan has overtaken.
    fn pass_over(&mut self, source: Option<usize>, event: &Uevent<'_>) {
        log::debug!("{event}: passed over, as it was acted on already or is over");
        self.counters.received += 1;
        self.counters.stale += 1;
        self.note_acted_on(source, event, self.now());
    }

    /// Tells those who wait for it.
    fn note_acted_on(&mut self, source: Option<usize>, event: &Uevent<'_>, now: Time) {
        if source.is_some_and(|source| self.sources[source].is_kernels) {
            self.recovery.note_progress(event);
        }
        self.requests.acted_on(source, event, now);
        self.answer_requests();
    }

    /// Whether an event from there tells which devices there are.
    fn is_tracked(&self, source: Option<usize>, event: &Uevent<'_>) -> bool {
        let Some(watched) = source.map(|source| &self.sources[source]) else { return true };
        // Two interfaces of different namespaces may have the same path.
        let may_be_elsewhere = || {
            let path = event.path().unwrap_or_default();
            path.windows(5).any(|part| part == b"/net/")
        };
        watched.is_kernels && !(watched.from_everywhere && may_be_elsewhere())
    }

    /// Waits, until the next deadline or for `at_most`, for something to
    /// happen, and fills the inbox: signals first, then the child. Then the
    /// control socket is served; `deed` is what is being done.
    fn turn(&mut self, at_most: Option<Duration>, deed: Option<&Deed<'_>>) -> io::Result<()> {
        self.reads_left = READS_PER_TURN;
        // Closing the pidfd, of which there is no other copy, unregisters it (epoll(7)).
        // Not before, as there is time now: the next program runs.
        self.reaped = None;
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
