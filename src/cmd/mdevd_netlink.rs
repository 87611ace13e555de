//! `mdevd-netlink`: skarnet's program of that name, which writes the kernel's
//! events to its standard output.

use std::io::{self, stdout};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lexopt::Arg::{Long, Short};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, fcntl_dupfd_cloexec, retry_on_intr, write};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::error::Fatal;
use crate::netlink::{DATAGRAM_MAX, KERNEL_GROUP, Received, Source};
use crate::notify::Notifier;
use crate::signals::Signals;
use crate::sys;
use crate::uevent::Uevent;

use super::daemon_options::{DaemonOption, DaemonOptions, daemon_help, start_log};
use super::options::{self, BYTES};
use super::{Command, Request, run};

pub(super) const COMMAND: Command = Command {
    name: "mdevd-netlink",
    alias: None,
    peer: true,
    summary: "Writes the kernel's device events to the standard output, for mdevd to read.",
    usage: "mdevd-netlink [-d FD] [-v VERBOSITY] [-b SIZE]",
    help: HELP,
    main,
};

const HELP: &str = concat!(
    "\
Each event is written as the kernel sends it, fields with a NUL after each, and
with one more NUL at its end. While the reader does not read, events wait in the
kernel.

Options:
  -d FD          write a newline there when all is ready; then it is closed
  -b SIZE        how much may wait in the kernel, in bytes [128M]
  -v VERBOSITY   0: only what ends it; 1: what is wrong [1]; 2: what is worth
                 knowing; 3: what it drops
  -h, --help     print this
  -V, --version  print the version

",
    daemon_help!(),
    "
Signals:
  TERM, INT      stop, when what was read has been written; again:
                 at once

Exit codes: 0 stopped, or nobody reads any more; 100 wrong usage; 111 a system
call failed.

Example:
      mdevd-netlink | mdevd
"
);

/// How many events may be written before signals are looked at again.
const EVENTS_PER_TURN: u32 = 64;

fn main(mut parser: lexopt::Parser, log_name: &'static str) -> Result<Request, Fatal> {
    let (mut ready, mut size, mut verbosity) = (None, None, options::of_skarnet(1));
    let mut daemon = DaemonOptions::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Short('d') => {
                ready = Some(options::open_fd(&mut parser, "-d")?);
            }
            Short('b') => size = Some(options::value(&mut parser, "-b", BYTES, options::bytes)?),
            Short('v') => verbosity = options::skarnet_verbosity(&mut parser)?,
            Short('h') | Long("help") => return Ok(Request::Help),
            Short('V') | Long("version") => return Ok(Request::Version),
            argument => match DaemonOption::of(&argument) {
                Some(option) => daemon.take(option, &mut parser)?,
                None => return Err(argument.unexpected().into()),
            },
        }
    }
    start_log(log_name, verbosity)?;
    let prepared = daemon.prepare(log_name)?;
    // A daemon gives up the standard output, but not this one.
    let output = fcntl_dupfd_cloexec(stdout(), 3)
        .map_err(|e| Fatal::system("keep the standard output", e))?;
    let ready = ready.map(run::inherited).transpose()?;
    let mut notifier = Notifier::new(ready, std::env::var_os("NOTIFY_SOCKET").as_deref())?;
    let mut source = run::open_source(KERNEL_GROUP, size)?;
    if daemon.goes_to_background() {
        // Without /proc they stay open, which is a pity, and no more.
        let _ = sys::close_inherited();
    }
    let mut started = prepared.start()?;
    let signals = handle_signals().map_err(|e| Fatal::system("handle signals", e))?;
    notifier.ready("reading events").map_err(|e| Fatal::system("tell that all is ready", e))?;
    started.ready()?;
    copy(&mut source, &signals, &output)?;
    log::info!("stopped");
    Ok(Request::Done)
}

/// Has the first one noted, and the second one end the program at once: it may wait
/// for a reader, in write(2), which goes on after a signal.
fn handle_signals() -> io::Result<Signals> {
    let (stops, is_stopping) = ([SIGTERM, SIGINT], Arc::new(AtomicBool::new(false)));
    let signals = Signals::handle(stops.into_iter())?;
    for signal in stops {
        flag::register_conditional_shutdown(signal, 0, is_stopping.clone())?;
        flag::register(signal, is_stopping.clone())?;
    }
    Ok(signals)
}

/// Writes events until it shall stop or nobody reads them.
fn copy(source: &mut Source, signals: &Signals, output: &OwnedFd) -> Result<(), Fatal> {
    // With space for the NUL at the end.
    let mut buffer = vec![0; DATAGRAM_MAX + 1];
    loop {
        let mut polled = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(source, PollFlags::IN),
            // Tells of nothing but that nobody reads.
            PollFd::new(output, PollFlags::empty()),
        ];
        retry_on_intr(|| poll(&mut polled, None))
            .map_err(|e| Fatal::system("wait for what happens", e))?;
        let [_, _, unread] = polled;
        if signals.next().is_some() || !unread.revents().is_empty() {
            return Ok(());
        }
        for _ in 0..EVENTS_PER_TURN {
            match source.receive(&mut buffer[..DATAGRAM_MAX]) {
                Received::Datagram(length) => {
                    match Uevent::parse(&buffer[..length], source.header()) {
                        Ok(event) => log::trace!("{event}"),
                        Err(malformed) => {
                            log::debug!("dropped a malformed datagram: {malformed}");
                            continue;
                        }
                    }
                    buffer[length] = 0;
                    match write_all(output, &buffer[..=length]) {
                        Ok(()) => {}
                        Err(Errno::PIPE) => return Ok(()),
                        Err(error) => return Err(Fatal::system("write an event", error)),
                    }
                }
                Received::Empty => break,
                Received::Overrun => log::warn!(
                    "overrun: the receive buffer was full and the kernel dropped events; \
                     going on with those that are queued"
                ),
                Received::Foreign(sender) => log::debug!("dropped a datagram sent by {sender}"),
                Received::Truncated => log::warn!("dropped a datagram that is too large"),
                Received::EndOfInput | Received::Invalid(_) => return Ok(()),
                Received::Failed(error) => return Err(Fatal::system("receive an event", error)),
            }
        }
    }
}

/// In one write, if it is taken: a pipe takes what has up to PIPE_BUF (4096)
/// bytes as a whole, and the kernel's events have half of that. So whoever
/// reads the pipe next begins with a whole event.
fn write_all(output: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match retry_on_intr(|| write(output, bytes)) {
            Ok(written) => bytes = &bytes[written..],
            // Somebody made it non-blocking.
            Err(Errno::AGAIN) => {
                let mut polled = [PollFd::new(output, PollFlags::OUT)];
                retry_on_intr(|| poll(&mut polled, None))?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
