//! Signals, through a self-pipe.
//!
//! Owns the pipe. Each delivery is a record in it, in order of arrival and
//! with its sender, so that none is merged with another, and nothing
//! is done inside a handler but writing the record.

use std::io;
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
    /// Write the counters to the log.
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
        let (pipe, write_end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let write_end = Box::leak(Box::new(write_end));
        for signal in signals {
            sys::forward_signal(signal, write_end)?;
        }
        sys::normalize_signals()?;
        Ok(Self { pipe })
    }

    /// The next delivery, if there is one.
    pub fn next(&self) -> Option<SignalRecord> {
        let mut bytes = [0; SignalRecord::SIZE];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.pipe, &mut bytes)) {
            Ok(SignalRecord::SIZE) => Some(SignalRecord::from_bytes(bytes)),
            Ok(_) | Err(Errno::AGAIN) => None,
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

/// The name of a signal, where it has one that is the same everywhere.
pub fn name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        consts::SIGABRT => "SIGABRT",
        consts::SIGALRM => "SIGALRM",
        consts::SIGBUS => "SIGBUS",
        consts::SIGFPE => "SIGFPE",
        consts::SIGHUP => "SIGHUP",
        consts::SIGILL => "SIGILL",
        consts::SIGINT => "SIGINT",
        consts::SIGKILL => "SIGKILL",
        consts::SIGPIPE => "SIGPIPE",
        consts::SIGQUIT => "SIGQUIT",
        consts::SIGSEGV => "SIGSEGV",
        consts::SIGSYS => "SIGSYS",
        consts::SIGTERM => "SIGTERM",
        consts::SIGTRAP => "SIGTRAP",
        consts::SIGUSR1 => "SIGUSR1",
        consts::SIGUSR2 => "SIGUSR2",
        consts::SIGXCPU => "SIGXCPU",
        consts::SIGXFSZ => "SIGXFSZ",
        _ => return None,
    })
}
