//! The sources: watched while no program runs, and read from in turn.

use std::os::fd::AsRawFd;

use crate::counters::Dropped;
use crate::error::reason;
use crate::machine::Input;
use crate::netlink::{Received, Source};
use crate::uevent::Malformed;

use super::{Daemon, Watch, deregister, register};

#[derive(Debug)]
pub(super) struct Watched {
    pub(super) source: Source,
    /// The kernel's uevents come from it.
    pub(super) is_kernels: bool,
    /// Among them those of interfaces that are in no /sys here.
    pub(super) from_everywhere: bool,
    /// It may have something to read.
    pub(super) ready: bool,
    /// The last attempt to receive failed.
    failed: bool,
    pub(super) ended: bool,
}

impl Watched {
    pub(super) fn new(source: Source) -> Self {
        Self {
            is_kernels: source.is_kernels(),
            from_everywhere: source.listens_to_all_namespaces(),
            source,
            ready: true,
            failed: false,
            ended: false,
        }
    }
}

impl Daemon {
    pub(super) fn next_ready(&self) -> Option<usize> {
        let count = self.sources.len();
        (0..count).map(|i| (self.turn_of + i) % count).find(|&i| self.sources[i].ready)
    }

    pub(super) fn receive(&mut self, index: usize, buffer: &mut [u8]) -> Option<usize> {
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

    pub(super) fn drop_malformed(&mut self, malformed: Malformed) {
        self.drop_datagram(Dropped::Malformed, &format_args!("{malformed}"));
    }

    fn drop_datagram(&mut self, kind: Dropped, why: &std::fmt::Arguments<'_>) {
        let count = &mut self.counters.dropped[kind as usize];
        *count += 1;
        if self.limiters.dropped[kind as usize].allows(self.started.elapsed()) {
            log::warn!("dropped a {kind} datagram: {why} ({count} so far)");
        }
    }

    pub(super) fn watch_sources(&mut self) {
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
    pub(super) fn unwatch_sources(&mut self) {
        if std::mem::take(&mut self.watching) {
            for watched in self.sources.iter().filter(|watched| !watched.ended) {
                // Fails only for what could not be registered.
                let _ = deregister(self.poll.registry(), &watched.source);
            }
        }
        self.unwatched = false;
        self.mark_sources_ready();
    }

    pub(super) fn mark_sources_ready(&mut self) {
        for watched in &mut self.sources {
            watched.ready = !watched.ended;
        }
    }
}
