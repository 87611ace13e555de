//! `mdevd-coldplug`: skarnet's program of that name, in both generations of
//! its interface: events for all devices are written to the standard output,
//! or the kernel is told to send them.

use std::io::{self, BufWriter, Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lexopt::Arg::{Long, Short};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;
use rustix::io::retry_on_intr;

use crate::error::{Fatal, reason};
use crate::logging;
use crate::netlink::{DATAGRAM_MAX, KERNEL_GROUP, Received, Source};
use crate::sysfs::Sysfs;
use crate::uevent::{Header, Uevent, stream};
use crate::units::Seconds;

use super::mdevd::carries_stream;
use super::options::{self, BYTES, GROUPS, SECONDS};
use super::rules::open_sysfs;
use super::trigger::Tally;
use super::{Command, Request, run};

pub(super) const COMMAND: Command = Command {
    name: "mdevd-coldplug",
    alias: None,
    peer: true,
    summary: "Makes events for the devices that are there already.",
    usage: "mdevd-coldplug [--output stdout|kernel] [-v VERBOSITY] [-s SYS] [-O GROUPS] [-b SIZE] \
            [--timeout SECONDS]",
    help: HELP,
    main,
};

const HELP: &str = "\
Where the events go:
      --output stdout  to the standard output, for mdevd to read (mdevd 0.0.1.0)
      --output kernel  the kernel is told to send them to all that listen
                       (mdevd 0.1)
                       Without, it is the standard output if that is a pipe, a
                       socket or a regular file, but not the one that errors go
                       to as well, and none of -b -O -v is given; else the kernel

Options:
  -s SYS               where sysfs is [/sys]
  -O GROUPS            end when the last event has come back by one of these
                       netlink groups, to which mdevd -O sends what it has
                       acted on
  -b SIZE              how much may wait there in the kernel, in bytes [128M]
      --timeout SECONDS  how long nothing may come back by them, 0 for as long
                       as it takes [200]
  -v VERBOSITY         0: only what ends it; 1: what is wrong [1]; 2: what is
                       worth knowing; 3: every device
  -h, --help           print this
  -V, --version        print the version

Exit codes: 0 done, 100 wrong usage, 111 a system call failed, or nothing came
back.

Examples:
  Have the devices that are there acted on, once, without a daemon:
      mdevd-coldplug | mdevd
  Wait until a daemon started as mdevd -O 4 has acted on them all:
      mdevd-coldplug -O 4
";

/// How long nothing may come back: longer than a manager's command may take by
/// default, which is 180 s and 5 s more to end.
const TIMEOUT: Duration = Duration::from_secs(200);

/// How long nothing may come back before the last event is made again; that doubles.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// Where the events go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Stdout,
    Kernel,
}

fn main(mut parser: lexopt::Parser, log_name: &'static str) -> Result<Request, Fatal> {
    let (mut output, mut verbosity, mut groups, mut size) = (None, None, None, None);
    let mut sys = PathBuf::from("/sys");
    let mut timeout = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("output") => {
                let read = |text: &str| match text {
                    "stdout" => Some(Output::Stdout),
                    "kernel" => Some(Output::Kernel),
                    _ => None,
                };
                output = Some(options::value(&mut parser, "--output", "stdout or kernel", read)?);
            }
            Short('v') => verbosity = Some(options::skarnet_verbosity(&mut parser)?),
            Short('s') => sys = parser.value()?.into(),
            Short('O') => {
                groups = Some(options::value(&mut parser, "-O", GROUPS, options::digits::<u32>)?);
            }
            Short('b') => size = Some(options::value(&mut parser, "-b", BYTES, options::bytes)?),
            Long("timeout") => {
                timeout =
                    Some(options::value(&mut parser, "--timeout", SECONDS, options::seconds)?);
            }
            Short('h') | Long("help") => return Ok(Request::Help),
            Short('V') | Long("version") => return Ok(Request::Version),
            argument => return Err(argument.unexpected().into()),
        }
    }
    let of_kernel = groups.is_some() || size.is_some() || timeout.is_some();
    let is_new = of_kernel || verbosity.is_some();
    if output == Some(Output::Stdout) && of_kernel {
        return Err(Fatal::Usage("-O, -b and --timeout are for events from the kernel".into()));
    }
    logging::start(log_name, verbosity.unwrap_or(options::of_skarnet(1)));
    match output {
        Some(Output::Stdout) => write_all(&sys)?,
        None if !is_new && carries_stream(stdout()) && !is_log() => write_all(&sys)?,
        Some(Output::Kernel) | None => match groups.unwrap_or_default() & !KERNEL_GROUP {
            0 => trigger_all(&sys, |_| {})?,
            groups => {
                let timeout = timeout.unwrap_or(TIMEOUT);
                trigger_and_wait(
                    &sys,
                    groups,
                    size,
                    Some(timeout).filter(|time| *time != Duration::ZERO),
                )?;
            }
        },
    }
    Ok(Request::Done)
}

/// Whether the standard output is where errors go, too: that is a log, where a
/// supervisor or a boot script has made it a pipe or a file, and nobody reads
/// events there.
fn is_log() -> bool {
    match (fstat(stdout()), fstat(stderr())) {
        (Ok(out), Ok(err)) => (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino),
        _ => false,
    }
}

/// Writes an event for each device to the standard output.
fn write_all(sys: &Path) -> Result<(), Fatal> {
    let cannot_write = |e| Fatal::system("write an event", e);
    let mut output = BufWriter::with_capacity(DATAGRAM_MAX, stdout());
    let mut count = 0;
    each_device(&open_sysfs(sys)?, |event, _| {
        count += 1;
        stream::write(&mut output, event).map_err(cannot_write)
    })?;
    output.flush().map_err(cannot_write)?;
    log::info!("wrote events for {count} devices to the standard output");
    Ok(())
}

/// Has the kernel send an event for each device, and tells `after` its path
/// after each.
fn trigger_all(sys: &Path, mut after: impl FnMut(&[u8])) -> Result<(), Fatal> {
    let sys = open_sysfs(sys)?;
    let mut tally = Tally::default();
    each_device(&sys, |_, devpath| {
        if tally.trigger(&sys, devpath, b"add") {
            after(devpath);
        }
        Ok(())
    })?;
    let count = tally.finish()?;
    log::info!("had the kernel send events for {count} devices");
    Ok(())
}

/// Calls `act` with the `add` event of each device, and its path.
fn each_device(
    sys: &Sysfs,
    mut act: impl FnMut(&[u8], &[u8]) -> Result<(), Fatal>,
) -> Result<(), Fatal> {
    let mut scan = sys.scan()?;
    while let Some(device) = scan.next() {
        match device {
            Ok(bytes) => {
                let event = Uevent::parse(bytes, Header::Required).ok();
                let devpath = event.and_then(|event| event.last(b"DEVPATH")).unwrap_or_default();
                log::debug!("{}", devpath.to_bytes().escape_ascii());
                act(bytes, devpath.to_bytes())?;
            }
            Err(failed) => log::warn!("{failed}"),
        }
    }
    Ok(())
}

/// The same as [`trigger_all`]; then waits until the last event was acted on, but
/// no longer than `timeout` while nothing at all comes back.
fn trigger_and_wait(
    sys: &Path,
    groups: u32,
    size: Option<usize>,
    timeout: Option<Duration>,
) -> Result<(), Fatal> {
    let size = size.unwrap_or(run::RECEIVE_BUFFER);
    let (kernel, _) = Source::open_kernel(size)?;
    let (manager, _) = Source::open_groups(groups, size)?;
    let buffer = vec![0; DATAGRAM_MAX];
    let mut watch =
        Watch { kernel, manager, buffer, last: Vec::new(), awaited: None, missed: false };
    trigger_all(sys, |devpath| watch.triggered(devpath))?;
    let root = open_sysfs(sys)?;
    let (mut silent_since, mut pause) = (Instant::now(), FIRST_PAUSE);
    loop {
        // What was missed may have been what is awaited: ask again.
        if std::mem::take(&mut watch.missed) {
            watch.trigger_again(&root, |_, now| now);
        }
        if watch.awaited.is_none() {
            return Ok(());
        }
        let silent_for = silent_since.elapsed();
        if let Some(timeout) = timeout.filter(|timeout| silent_for >= *timeout) {
            let seconds = Seconds(timeout);
            return Err(Fatal::System {
                what: "the last event has not come back".into(),
                error: io::Error::other(format!(
                    "nothing has, for {seconds} s; does a device manager send there what it has \
                     acted on?"
                )),
            });
        }
        // The manager may have missed it, or not have been there.
        if silent_for >= pause {
            log::info!("nothing has come back for {} s: asking again", pause.as_secs());
            // Then, the first time will do.
            watch.trigger_again(&root, |before, _| before);
            pause = pause * 2 + FIRST_PAUSE;
        }
        let until = timeout.map_or(pause, |timeout| timeout.min(pause));
        let time = Timespec::try_from(until.saturating_sub(silent_for)).unwrap_or_default();
        let mut polled = [PollFd::new(&watch.manager, PollFlags::IN)];
        let count = retry_on_intr(|| poll(&mut polled, Some(&time)))
            .map_err(|e| Fatal::system("wait for an event", e))?;
        if count > 0 {
            (silent_since, pause) = (Instant::now(), FIRST_PAUSE);
            watch.take_answers();
        }
    }
}

/// Watches the events on their way through the device manager.
struct Watch {
    kernel: Source,
    manager: Source,
    buffer: Vec<u8>,
    /// The device whose event came here last.
    last: Vec<u8>,
    /// The SEQNUM of that event; what was sent before it is acted on before it.
    awaited: Option<u64>,
    /// Something was lost.
    missed: bool,
}

impl Watch {
    /// To be called after each trigger. Answers must not pile up.
    fn triggered(&mut self, devpath: &[u8]) {
        let number = self.number_of(devpath);
        if number.is_some() || self.missed {
            self.last = devpath.to_vec();
            self.awaited = number.or(self.awaited);
        }
        self.take_answers();
    }

    /// The SEQNUM of the event that the kernel has just sent for this device. For
    /// those of other network namespaces, and in user namespaces also for devices
    /// that are in none, it sends none here.
    fn number_of(&mut self, devpath: &[u8]) -> Option<u64> {
        let Self { kernel, buffer, missed, .. } = self;
        let mut found = None;
        receive_all(kernel, buffer, missed, |event| {
            let value = |key: &[u8]| event.last(key).map(|value| value.to_bytes());
            if value(b"DEVPATH") == Some(devpath) && value(b"ACTION") == Some(b"add") {
                found = number(event);
            }
        });
        found
    }

    /// Has the last event made once more. `which` is awaited then: the one before, or
    /// this one.
    fn trigger_again(&mut self, sys: &Sysfs, which: impl Fn(u64, u64) -> u64) {
        let last = self.last.clone();
        if let Err(failed) = sys.trigger(&last, b"add") {
            log::warn!("{failed}");
            return;
        }
        self.awaited = match (self.awaited, self.number_of(&last)) {
            (Some(before), Some(now)) => Some(which(before, now)),
            (before, now) => before.or(now),
        };
        self.take_answers();
    }

    /// The manager acts on one event after the other: a later one will do as well,
    /// for it may have missed the one that is awaited.
    fn take_answers(&mut self) {
        let Self { manager, buffer, awaited, missed, .. } = self;
        receive_all(manager, buffer, missed, |event| {
            if number(event) >= *awaited {
                *awaited = None;
            }
        });
    }
}

fn number(event: &Uevent<'_>) -> Option<u64> {
    std::str::from_utf8(event.last(b"SEQNUM")?.to_bytes()).ok()?.parse().ok()
}

/// Shows `see` all events that are there.
fn receive_all(
    source: &mut Source,
    buffer: &mut [u8],
    missed: &mut bool,
    mut see: impl FnMut(&Uevent<'_>),
) {
    loop {
        match source.receive(buffer) {
            Received::Datagram(length) => {
                if let Ok(event) = Uevent::parse(&buffer[..length], Header::Optional) {
                    see(&event);
                }
            }
            Received::Overrun => *missed = true,
            Received::Truncated | Received::Foreign(_) => {}
            Received::Failed(error) => {
                log::warn!("cannot receive: {}", reason(&error));
                return;
            }
            Received::Empty | Received::EndOfInput | Received::Invalid(_) => return,
        }
    }
}
