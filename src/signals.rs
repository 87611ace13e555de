//! Signals, through a self-pipe.
//!
//! Owns the pipe. Each delivery is a record in it, in order of arrival and
//! with its sender, so that none is merged with another, and nothing
//! is done inside a handler but writing the record.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use signal_hook::consts;

use crate::sys::{self, SignalRecord};

/// What can be asked of the daemon by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// End when the event in hand has been acted on; the second time, at once.
    Stop,
    /// Read the configuration again.
    Reload,
    /// Write the status to the log.
    Report,
    /// Compare the devices that are there with those that are known.
    Rescan,
    /// Go on as the program that is in plugd's file now.
    Update,
}

/// Whose signals the daemon understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// plugd's own.
    Plugd,
    /// plug-and-play-event-handler's, which has nothing to reload.
    Nosh,
    /// mdevd's.
    Mdevd,
}

/// The signals that are handled, and what they mean, in plugd's manner, in
/// nosh's and in mdevd's. A signal that is not here does what signal(7) says; SIGCONT must do
/// nothing at all, as supervisors send it after SIGTERM.
const TABLE: [(i32, Order, Option<Order>, Option<Order>); 6] = [
    (consts::SIGTERM, Order::Stop, Some(Order::Stop), Some(Order::Stop)),
    (consts::SIGINT, Order::Stop, Some(Order::Stop), Some(Order::Stop)),
    (consts::SIGHUP, Order::Reload, Some(Order::Stop), Some(Order::Reload)),
    (consts::SIGUSR1, Order::Report, Some(Order::Report), Some(Order::Report)),
    (consts::SIGALRM, Order::Rescan, None, None),
    (consts::SIGUSR2, Order::Update, None, None),
];

impl Manner {
    /// The signals that are handled, and what they mean.
    pub fn orders(self) -> impl Iterator<Item = (i32, Order)> {
        TABLE.into_iter().filter_map(move |(signal, plugd, nosh, mdevd)| match self {
            Self::Plugd => Some((signal, plugd)),
            Self::Nosh => Some((signal, nosh?)),
            Self::Mdevd => Some((signal, mdevd?)),
        })
    }
}

/// The reading end of the self-pipe.
#[derive(Debug)]
pub struct Signals {
    pipe: OwnedFd,
}

impl Signals {
    /// Handles these signals from now on, for as long as the process lives;
    /// blocks none, whatever mask the process was started with.
    ///
    /// # Errors
    /// Those of pipe2(2) and sigaction(2).
    pub fn handle(signals: impl Iterator<Item = i32>) -> io::Result<Self> {
        // None must arrive while some are handled and others not yet.
        sys::block_signals()?;
        let (pipe, write_end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let write_end = Box::leak(Box::new(write_end));
        for signal in signals {
            sys::forward_signal(signal, write_end)?;
        }
        sys::normalize_signals()?;
        Ok(Self { pipe })
    }

    /// The next delivery, if there is one. Of those that found the pipe full, each
    /// kind counts once, and comes last.
    pub fn next(&self) -> Option<SignalRecord> {
        let mut bytes = [0; SignalRecord::SIZE];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.pipe, &mut bytes)) {
            Ok(SignalRecord::SIZE) => Some(SignalRecord::from_bytes(bytes)),
            Ok(_) | Err(Errno::AGAIN) => {
                let missed = TABLE.iter().map(|row| row.0).find(|&s| sys::take_missed_signal(s));
                missed.map(|signal| SignalRecord { signal, sender: None })
            }
            Err(error) => {
                log::error!("cannot read the signal pipe: {error}");
                None
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.pipe.as_raw_fd()
    }
}

/// The names of signals, where POSIX or Linux has one.
const NAMES: [(i32, &str); 30] = [
    (consts::SIGABRT, "SIGABRT"),
    (consts::SIGALRM, "SIGALRM"),
    (consts::SIGBUS, "SIGBUS"),
    (consts::SIGCHLD, "SIGCHLD"),
    (consts::SIGCONT, "SIGCONT"),
    (consts::SIGFPE, "SIGFPE"),
    (consts::SIGHUP, "SIGHUP"),
    (consts::SIGILL, "SIGILL"),
    (consts::SIGINT, "SIGINT"),
    (consts::SIGIO, "SIGIO"),
    (consts::SIGKILL, "SIGKILL"),
    (consts::SIGPIPE, "SIGPIPE"),
    (consts::SIGPROF, "SIGPROF"),
    (libc::SIGPWR, "SIGPWR"),
    (consts::SIGQUIT, "SIGQUIT"),
    (consts::SIGSEGV, "SIGSEGV"),
    (consts::SIGSTOP, "SIGSTOP"),
    (consts::SIGSYS, "SIGSYS"),
    (consts::SIGTERM, "SIGTERM"),
    (consts::SIGTRAP, "SIGTRAP"),
    (consts::SIGTSTP, "SIGTSTP"),
    (consts::SIGTTIN, "SIGTTIN"),
    (consts::SIGTTOU, "SIGTTOU"),
    (consts::SIGURG, "SIGURG"),
    (consts::SIGUSR1, "SIGUSR1"),
    (consts::SIGUSR2, "SIGUSR2"),
    (consts::SIGVTALRM, "SIGVTALRM"),
    (consts::SIGWINCH, "SIGWINCH"),
    (consts::SIGXCPU, "SIGXCPU"),
    (consts::SIGXFSZ, "SIGXFSZ"),
];

/// The name of a signal, if it has one.
pub fn name(signal: i32) -> Option<&'static str> {
    NAMES.iter().find_map(|&(number, name)| (number == signal).then_some(name))
}

/// The real-time signals that programs may use, by their numbers in the kernel
/// (signal(7)): from 32, of which glibc and musl keep two to themselves, musl 34
/// as well. Their own SIGRTMIN differs, but that of kill(1) is this everywhere.
pub const REAL_TIME: RangeInclusive<i32> = 34..=64;

/// The number of the signal of this name, with or without SIG before it.
/// Real-time signals are RTMIN, RTMIN+n, RTMAX and RTMAX-n.
pub fn number(text: &str) -> Option<i32> {
    let short = text.strip_prefix("SIG").unwrap_or(text);
    let named = NAMES.iter().find_map(|&(number, name)| (&name[3..] == short).then_some(number));
    named.or_else(|| real_time(short))
}

fn real_time(text: &str) -> Option<i32> {
    let (first, last) = (*REAL_TIME.start(), *REAL_TIME.end());
    let distance = |text: &str, sign| match text.strip_prefix(sign) {
        Some(digits) => crate::account::number(digits.as_bytes())?.try_into().ok(),
        None => text.is_empty().then_some(0_i32),
    };
    let number = match (text.strip_prefix("RTMIN"), text.strip_prefix("RTMAX")) {
        (Some(rest), _) => first.checked_add(distance(rest, '+')?)?,
        (_, Some(rest)) => last.checked_sub(distance(rest, '-')?)?,
        (None, None) => return None,
    };
    REAL_TIME.contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_one_name() {
        for (signal, text) in NAMES {
            assert_eq!(name(signal), Some(text));
            assert_eq!(number(text), Some(signal));
            assert_eq!(number(&text[3..]), Some(signal));
        }
        for (text, expected) in [
            ("RTMIN", 34),
            ("SIGRTMIN", 34),
            ("RTMIN+0", 34),
            ("SIGRTMIN+1", 35),
            ("RTMIN+30", 64),
            ("RTMAX", 64),
            ("SIGRTMAX-1", 63),
            ("RTMAX-30", 34),
        ] {
            assert_eq!(number(text), Some(expected), "{text}");
        }
        for none in [
            "",
            "SIG",
            "term",
            "SIGSIGTERM",
            "15",
            "TERM ",
            "RTMIN+31",
            "RTMIN-1",
            "RTMAX-31",
            "RTMAX+1",
            "RTMIN+",
            "RTMIN+x",
            "RTMIN+-1",
            "RTMIN1",
            "RTMIN+4294967295",
            "RT",
        ] {
            assert_eq!(number(none), None, "{none}");
        }
        assert_eq!(name(0), None);
    }
}
