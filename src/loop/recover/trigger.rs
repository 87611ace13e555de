//! Coldplug by the kernel: it is asked to tell of all devices, never of more at once
//! than fits into the receive buffer. What it does not tell of is found by reading.

use std::fs;

use rustix::io::Errno;

use crate::beneath::{Failed, Why};
use crate::machine::Time;
use crate::netlink::LEAST_COST;
use crate::recovery::Cause;
use crate::sys;
use crate::sysfs::{Listing, Sysfs};

use super::{AT_ONCE, Daemon, Phase};

/// No event of the kernel's takes more.
const GREATEST_COST: u64 = 4608;

/// The kernel is being asked to tell of all devices.
#[derive(Debug)]
pub(super) struct Triggering {
    sys: Sysfs,
    listing: Listing,
    next: usize,
    /// So many datagrams were queued when that was asked for.
    pub(super) left: u64,
    /// What its events are known by.
    pub(super) uuid: String,
    asked: u64,
    pub(super) came: u64,
    /// Those that were not there any more: they may be elsewhere.
    gone: u64,
    refused: u64,
    first_refusal: Option<Failed>,
    began: Time,
    number: u64,
}

impl Daemon {
    /// Has the kernel send an event for every device.
    pub(super) fn begin_triggering(&mut self, sys: Sysfs, listing: Listing, began: Time) {
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
        self.recovery.phase = Phase::Triggering(Box::new(Triggering {
            sys,
            listing,
            next: 0,
            left: 0,
            uuid: uuid.trim_end().to_owned(),
            asked: 0,
            came: 0,
            gone: 0,
            refused: 0,
            first_refusal: None,
            began,
            number: self.counters.scans,
        }));
    }

    /// Asks for as many events as fit for sure, now that those asked for before have come.
    pub(super) fn trigger(&mut self, mut triggering: Box<Triggering>) {
        let (queued, drops) = self.queue();
        if triggering.next == triggering.listing.len() || drops != self.recovery.baseline {
            return self.end_triggering(*triggering);
        }
        let memory = self.sources.iter().filter(|watched| watched.is_kernels);
        let memory = memory.filter_map(|watched| sys::socket_memory(&watched.source).ok());
        let free = memory.map(|it| it.limit.saturating_sub(it.queued)).min().unwrap_or(0);
        let free = u64::from(free);
        let fit = usize::try_from(free / 2 / GREATEST_COST).unwrap_or(0);
        // A single one fits into any buffer if that is empty.
        let one_fits = free >= GREATEST_COST || queued == 0;
        let batch = fit.max(usize::from(one_fits)).min(AT_ONCE);
        let end = (triggering.next + batch).min(triggering.listing.len());
        let Triggering { sys, listing, uuid, .. } = &*triggering;
        let trigger = format!("add {uuid}");
        let (mut asked, mut gone, mut refused, mut first) = (0, 0, 0, None);
        for index in triggering.next..end {
            match sys.trigger(listing.path(index), trigger.trim_end().as_bytes()) {
                Ok(()) => asked += 1,
                Err(Failed { why: Why::System(Errno::NOENT | Errno::NODEV), .. }) => gone += 1,
                Err(failed) => {
                    refused += 1;
                    first.get_or_insert(failed);
                }
            }
        }
        triggering.next = end;
        triggering.asked += asked;
        triggering.gone += gone;
        triggering.refused += refused;
        triggering.first_refusal = triggering.first_refusal.take().or(first);
        triggering.left = self.queue().0 / LEAST_COST + 1;
        self.recovery.phase = Phase::Triggering(triggering);
        self.mark_sources_ready();
    }

    fn end_triggering(&mut self, triggering: Triggering) {
        let Triggering { asked, came, gone, refused, first_refusal, began, number, .. } =
            triggering;
        let took = self.now().saturating_sub(began);
        self.counters.recovery = took;
        let text = format!(
            "coldplug: had the kernel tell of {asked} devices, {came} events came, in {} ms",
            took.as_millis()
        );
        log::info!("{text}");
        self.recovery.text = text;
        if let Some(first) = first_refusal {
            log::warn!("{refused} devices are not told of by the kernel; the first one: {first}");
        } else if came < asked && self.queue().1 == self.recovery.baseline {
            // In a network namespace of another user namespace it tells of interfaces only.
            log::warn!("the kernel does not tell of {} devices", asked - came);
        } else if gone > 0 && self.queue().1 == self.recovery.baseline {
            log::info!("{gone} devices are not where they were found any more");
        } else {
            self.end_recovery(number);
            // As after a comparison.
            let _ = sys::forget_code();
            return;
        }
        // Those are found by reading.
        self.find(Cause::Coldplug, false);
    }
}
