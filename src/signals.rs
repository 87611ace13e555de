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
    pub fn handle(signals: &[i32]) -> io::Result<Self> {
        let (pipe, write_end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let write_end = Box::leak(Box::new(write_end));
        for &signal in signals {
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
