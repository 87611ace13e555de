//! What the daemon is asked and told, by signals and on the control socket.

use std::fmt;
use std::time::Duration;

use crate::control::peer::Peer;
use crate::control::server::Id;
use crate::control::wire::{Command, Format, Outcome, Reply};
use crate::engine::Engine;
use crate::logging;
use crate::machine::{Input, State, Stop};
use crate::settle::{Answer, Device, Emitted, Want};
use crate::signals::{self, Order};
use crate::status::{Activity, InHand, Queue, Status};
use crate::sys::{self, SignalRecord};

use super::{Daemon, Deed};

/// How many mistakes in the configuration are told.
const MISTAKES_TOLD: usize = 100;
/// How many characters of a line that has one.
const LINE_TOLD: usize = 1000;

impl Daemon {
    /// `deed` is what is being done.
    pub(super) fn take_signals(&mut self, deed: Option<&Deed<'_>>) {
        while let Some(SignalRecord { signal, sender }) = self.signals.next() {
            let Some((_, order)) = self.manner.orders().find(|(known, _)| *known == signal) else {
                continue;
            };
            let name = signals::name(signal).unwrap_or("a signal");
            let by = match sender {
                None => name.to_owned(),
                Some((pid, uid)) => format!("{name} from pid {pid} of user {uid}"),
            };
            // Whoever sent a signal finds the reply in the log.
            let _ = self.obey(order, &by);
            if order == Order::Report {
                let status = self.status(deed).to_string();
                status.lines().for_each(|line| log::info!("{line}"));
            }
        }
    }

    /// Carries out an order, and logs what the reply says.
    fn obey(&mut self, order: Order, by: &dyn fmt::Display) -> Reply {
        let reply = match order {
            Order::Stop => self.stop(),
            Order::Reload => self.reload(),
            Order::Report => Reply::ok(self.counters.to_string()),
            Order::Rescan => match self.begin_rescan() {
                Ok(()) => Reply::ok("looking for all devices"),
                Err(why) => Reply::no(format!("nothing to rescan: {why}")),
            },
            Order::Update => match self.begin_update() {
                Ok(text) => Reply::ok(text),
                Err(text) => Reply::no(format!("not updated: {text}")),
            },
        };
        log::info!("{by}: {}", reply.text);
        reply
    }

    fn stop(&mut self) -> Reply {
        self.inbox.push_back(Input::Stop);
        self.notifier.stopping();
        match (&self.child, self.machine.state()) {
            (Some(child), State::Running { stop: Stop::No, .. }) => Reply::ok(format!(
                "stopping when pid {} has ended; asked once more, plugd ends it at once",
                child.pid()
            )),
            _ => Reply::ok("stopping"),
        }
    }

    fn reload(&mut self) -> Reply {
        self.reload = true;
        Reply::ok("reloading")
    }

    /// Reads the configuration again, now that no event is in hand, and tells
    /// who asked for it.
    pub(super) fn reload_now(&mut self, engine: &mut Engine) {
        self.notifier.reloading();
        let outcome = engine.reload();
        self.rules_of_files = engine.rules_of_files();
        let reply = match outcome {
            Ok(text) => {
                log::info!("{text}");
                Reply::ok(text)
            }
            Err(text) => {
                let text = first_mistakes(&text);
                text.lines().for_each(|line| log::error!("{line}"));
                log::error!("the rules in force stay in force");
                Reply::no(format!("the rules in force stay in force\n{text}"))
            }
        };
        // The descriptor, which may fail, was told at the start.
        let _ = self.notifier.ready(activity(self.machine.is_paused()));
        let now = self.now();
        let Some(control) = &mut self.control else { return };
        std::mem::take(&mut self.reloaders)
            .into_iter()
            .for_each(|id| control.reply(id, &reply, now));
    }

    fn pause(&mut self, paused: bool, by: &dyn fmt::Display) -> Reply {
        // Said at once: it changes nothing about what is being done.
        self.machine.step(self.now(), if paused { Input::Pause } else { Input::Resume });
        let text = activity(paused);
        self.notifier.status(text);
        log::info!("{by}: {text}");
        Reply::ok(text)
    }

    /// Deals with what the control socket's clients say; `deed` is what is
    /// being done.
    pub(super) fn serve(&mut self, deed: Option<&Deed<'_>>) {
        let now = self.now();
        // Before new requests come: each is tried once, however short its time.
        if self.requests.deadline().is_some_and(|at| at <= now) {
            self.answer_requests();
        }
        let Some(mut control) = self.control.take() else { return };
        control.remind(now);
        control.accept(self.poll.registry(), now);
        control.serve(now, |id, peer, command| self.answer(id, &peer, command, deed));
        for id in control.take_lost() {
            self.requests.remove(id);
            self.update.forget(id);
            self.recovery.forget(id);
            self.reloaders.retain(|reloader| *reloader != id);
        }
        if let Some(limit) = control.open_files() {
            self.spawner.limit_open_files(limit);
        }
        self.control = Some(control);
    }

    /// Answers those who wait, as far as it can be done now. Returns whether somebody waits
    /// anew for what is queued.
    pub(super) fn answer_requests(&mut self) -> bool {
        let mut renewed = false;
        while !self.requests.is_empty() {
            let now = self.now();
            let answers = self.requests.answer(now, |device| self.presence.is_there(device));
            let Some(control) = &mut self.control else { break };
            for (id, answer) in answers {
                let reply = match answer {
                    Answer::Yes => Reply::ok(""),
                    Answer::TimedOut => Reply::no("timed out"),
                };
                control.reply(id, &reply, now);
            }
            let mut requests = std::mem::take(&mut self.requests);
            let again = requests.renew(|| self.emitted());
            self.requests = requests;
            if !again {
                break;
            }
            renewed = true;
            self.hurry();
            self.mark_sources_ready();
        }
        renewed
    }

    /// `None`: the answer comes later.
    fn answer(
        &mut self,
        id: Id,
        peer: &Peer,
        command: Command,
        deed: Option<&Deed<'_>>,
    ) -> Option<Reply> {
        let by = |what: &str| format!("{what} from {peer}");
        if command.waits_for_event_in_hand()
            && self.child.as_ref().is_some_and(|c| c.started(peer.pid))
        {
            return Some(Reply::no(
                "plugd waits for the program that asks: it would wait for itself",
            ));
        }
        Some(match command {
            Command::Status(format) => {
                let status = self.status(deed);
                Reply::ok(match format {
                    Format::Text => status.to_string(),
                    Format::Json => status.json(),
                    Format::OpenMetrics => status.openmetrics(),
                })
            }
            Command::Await { want, timeout } => {
                self.begin_waiting(id, want, timeout);
                return None;
            }
            Command::Pause => self.pause(true, &by("pause")),
            Command::Resume => self.pause(false, &by("resume")),
            Command::Reload => {
                let _ = self.obey(Order::Reload, &by("reload"));
                self.reloaders.push(id);
                return None;
            }
            Command::Rescan => {
                let reply = self.obey(Order::Rescan, &by("rescan"));
                if reply.outcome == Outcome::Ok {
                    self.recovery.tell(id);
                    return None;
                }
                reply
            }
            Command::Stop => self.obey(Order::Stop, &by("stop")),
            Command::Update => {
                let reply = self.obey(Order::Update, &by("update"));
                if reply.outcome == Outcome::Ok {
                    self.update.tell(id);
                    return None;
                }
                reply
            }
            Command::LogLevel(None) => Reply::ok(logging::current().0),
            Command::LogLevel(Some(level)) => {
                logging::set_level(level);
                let name = logging::current().0;
                log::info!("{}: {name}", by("log-level"));
                Reply::ok(name)
            }
        })
    }

    fn begin_waiting(&mut self, id: Id, want: Want, timeout: Duration) {
        let deadline = self.now().saturating_add(timeout);
        let mut requests = std::mem::take(&mut self.requests);
        let is_there = |device: &Device| self.presence.is_there(device);
        requests.add(id, want, deadline, is_there, || self.emitted());
        self.requests = requests;
        self.hurry();
        // Something may be there that the poll has not reported yet.
        self.mark_sources_ready();
    }

    /// What may have been emitted by now and not been acted on.
    fn emitted(&self) -> Emitted {
        let last = std::fs::read_to_string("/sys/kernel/uevent_seqnum");
        let last = last.ok().and_then(|text| text.trim_end().parse().ok());
        let lossy = self.is_lossy();
        let open = self.sources.iter().enumerate().filter(|(_, watched)| !watched.ended);
        let sockets = open.map(|(index, watched)| (index, watched.source.queued())).collect();
        Emitted { last, sockets, lossy }
    }

    /// Looks which queues are empty, as nobody reads them for now and no event is in
    /// hand, and answers those who wait for that.
    pub(super) fn settle_paused(&mut self) {
        if self.recovery.held_back.is_some() {
            return;
        }
        loop {
            for (index, watched) in self.sources.iter().enumerate() {
                if self.requests.wait_for(index) && watched.source.queued() == Some(0) {
                    self.requests.found_empty(index);
                }
            }
            if !self.answer_requests() {
                return;
            }
        }
    }

    fn status<'a>(&'a self, deed: Option<&'a Deed<'a>>) -> Status<'a> {
        let now = self.now();
        let event =
            deed.map(|deed| InHand { event: deed.event, since: now.saturating_sub(deed.since) });
        let activity = match (event, self.machine.state(), &self.child) {
            (None, ..) if self.outlets.awaited().is_some() => Activity::Writing,
            (None, ..) => Activity::Idle,
            (Some(event), State::Retrying { until, .. }, _) => {
                Activity::Retrying { pause: until.saturating_sub(now), event }
            }
            (Some(event), _, Some(child)) => Activity::Running { pid: child.pid(), event },
            (Some(event), _, None) => Activity::Acting(event),
        };
        let memory = self.sources.iter().filter_map(|w| sys::socket_memory(&w.source).ok());
        let queue = memory.fold(Queue::default(), |sum, memory| Queue {
            bytes: sum.bytes + u64::from(memory.queued),
            limit: sum.limit + u64::from(memory.limit),
            drops: sum.drops + u64::from(memory.drops),
        });
        let stopping = match self.machine.state() {
            State::Acting { stop, .. } | State::Running { stop, .. } => stop != Stop::No,
            State::Done => true,
            State::Reading | State::Retrying { .. } => false,
        };
        Status {
            activity,
            paused: self.machine.is_paused(),
            stopping: stopping || self.inbox.contains(&Input::Stop),
            queue,
            counters: self.counters,
            recovering: !self.recovery.is_quiet(),
            devices: self.recovery.inventory.len(),
            engine: &self.engine,
            uptime: now,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION"),
            log_level: logging::current().0,
        }
    }
}

/// A text about mistakes, as much of it as somebody may want to read. What a client does
/// not take, it would take for no answer.
fn first_mistakes(text: &str) -> String {
    let (mut told, mut count) = (String::new(), 0_usize);
    for line in text.lines() {
        // What belongs to a mistake is indented.
        count += usize::from(!line.starts_with(' '));
        if count > MISTAKES_TOLD {
            // How many is not known: of very many, only the first are in the text.
            told.push_str("and more\n");
            break;
        }
        told.extend(line.chars().take(LINE_TOLD).chain(['\n']));
    }
    told
}

pub(super) fn activity(paused: bool) -> &'static str {
    if paused { "paused" } else { "reading events" }
}
