//! `mdevd`: skarnet's program of that name, in both generations of its
//! interface: events come on the standard input, or from the kernel.

use std::io::stdin;
use std::os::fd::{AsFd, RawFd};

use lexopt::Arg::{Long, Short};
use rustix::fs::{FileType, fstat};

use crate::counters::Dropped;
use crate::error::Fatal;
use crate::netlink::{KERNEL_GROUP, Source};
use crate::signals::Manner;
use crate::sys;

use super::daemon_options::{DaemonOption, daemon_help, start_log};
use super::options::{self, BYTES, GROUPS};
use super::recovery_options::{Coldplug, State};
use super::rules::{self, Files};
use super::run::{self, Options, Work};
use super::{Command, Request};

pub(super) const COMMAND: Command = Command {
    name: "mdevd",
    alias: None,
    peer: true,
    summary: "Makes device nodes and runs commands as mdev.conf says, for every event.",
    usage: "mdevd [--input stdin|netlink] [-v VERBOSITY] [-D FD] [-I GROUPS] [-o FD] \
            [-O GROUPS] [-b SIZE] [-f CONF] [-n|-N] [-s SYS] [-d DEV] [-F FIRMWARE] [-C]",
    help: HELP,
    main,
};

const HELP: &str = concat!(
    "\
Where events come from:
      --input stdin      the standard input, as mdevd-netlink and mdevd-coldplug
                         write them, to its end (mdevd 0.0.1.0)
      --input netlink    the kernel (mdevd 0.1)
                         Without, it is the standard input if that is a pipe, a
                         socket or a regular file, and none of -b -C -D -I -o -O
                         is given; else the kernel
  -I GROUPS              read these netlink groups [1, the kernel's]
  -b SIZE                how much may wait in the kernel, in bytes [128M]
  -C                     have the kernel tell of all devices first

Where the rules are and what they act on, all absolute paths:
  -f CONF                the rules; CONF.d/*.conf come after them [/etc/mdev.conf]
  -d DEV                 where device nodes go [/dev]
  -s SYS                 where sysfs is [/sys]
  -F FIRMWARE            where firmware comes from [/lib/firmware]
  -n                     print what would be done, and do nothing: -o and -O get
                         nothing, and for -C /sys is read
  -N                     only tell what is wrong with the rules

What it tells:
  -D FD                  a newline there when all is ready; then it is closed
  -o FD                  there each event that was acted on, as --input takes it.
                         While its reader makes no room for them nothing is read;
                         after 180 s it is closed
  -O GROUPS              each event that was acted on to these netlink groups
  -v VERBOSITY           0: only what ends it; 1: what is wrong [1]; 2: what is
                         worth knowing; 3: every event; 4: everything
  -h, --help             print this
  -V, --version          print the version

",
    daemon_help!(),
    "
Signals:
  TERM, INT   let the running command finish, then stop; again: end it
  HUP         read the rules anew; if there is a mistake in them, it is told and
              the old ones stay
  USR1        write the status to the log, with -v 2 or more

Exit codes: 0 stopped, or at the end of the standard input; 1 an invalid event
there; 2 a mistake in the rules; 100 wrong usage; 111 a system call failed.

Examples:
  Have the devices that are there acted on, once, without a daemon:
      mdevd-coldplug | mdevd
  A daemon, with everything that is there already, in place of mdev -df:
      mdevd -C
"
);

/// Where events come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Input {
    Stdin,
    Netlink,
}

/// What the command line asks for, beside what is common to all daemons.
#[derive(Debug)]
struct Asked {
    input: Input,
    intake: u32,
    coldplug: bool,
    /// Only look at the rules.
    check: bool,
    files: Files,
    dry_run: bool,
}

fn main(parser: lexopt::Parser, log_name: &'static str) -> Result<Request, Fatal> {
    let (mut options, asked) = match parse(parser)? {
        Ok(parsed) => parsed,
        Err(other) => return Ok(other),
    };
    start_log(log_name, options.verbosity)?;
    if asked.check {
        rules::read(&asked.files, false)?;
        return Ok(Request::Done);
    }
    let prepared = options.daemon.prepare(log_name)?;
    let sys_root = asked.files.sys.clone();
    options.work = Work::Rules { files: asked.files, dry_run: asked.dry_run };
    let mut engine = run::engine(&options, None)?;
    let source = match asked.input {
        Input::Stdin => open_stdin()?,
        Input::Netlink => run::open_source(asked.intake, options.receive_buffer_size)?,
    };
    options.sys = sys_root;
    if asked.coldplug {
        options.recovery.coldplug = Some(Coldplug::Kernel);
        options.recovery.state = State::None;
    }
    if asked.dry_run {
        options.make_dry();
        // Its reader takes all of them for acted on.
        options.output_fd = None;
    }
    let counters = run::serve(&options, &mut engine, vec![source], prepared, None)?;
    if asked.input == Input::Stdin && counters.dropped[Dropped::Malformed as usize] > 0 {
        return Err(Fatal::Input("received an invalid event".into()));
    }
    Ok(Request::Done)
}

fn parse(mut parser: lexopt::Parser) -> Result<Result<(Options, Asked), Request>, Fatal> {
    let (mut files, mut dry_run, mut check) = (Files::default(), false, false);
    let (mut input, mut intake, mut coldplug) = (None, None, false);
    let mut options = Options::new(Work::Rules { files: files.clone(), dry_run });
    options.verbosity = options::of_skarnet(1);
    options.manner = Manner::Mdevd;
    // There may be a plugd beside it that has the socket.
    options.control = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("input") => {
                input =
                    Some(options::value(&mut parser, "--input", "stdin or netlink", read_input)?);
            }
            Short('v') => options.verbosity = options::skarnet_verbosity(&mut parser)?,
            Short('D') => {
                options.notify_fd = Some(options::open_fd(&mut parser, "-D")?);
            }
            Short('I') => {
                intake = Some(options::value(&mut parser, "-I", GROUPS, options::digits)?);
            }
            Short('o') => {
                options.output_fd = Some(options::open_fd(&mut parser, "-o")?);
            }
            Short('O') => {
                options.rebroadcast = options::value(&mut parser, "-O", GROUPS, options::digits)?;
            }
            Short('b') => {
                options.receive_buffer_size =
                    Some(options::value(&mut parser, "-b", BYTES, options::bytes)?);
            }
            Short('C') => coldplug = true,
            Short('n') => (dry_run, check) = (true, false),
            Short('N') => (dry_run, check) = (false, true),
            Short('f') => files.conf = options::absolute_path(&mut parser, "-f")?,
            Short('s') => files.sys = options::absolute_path(&mut parser, "-s")?,
            Short('d') => files.dev = options::absolute_path(&mut parser, "-d")?,
            Short('F') => files.firmware = options::absolute_path(&mut parser, "-F")?,
            Short('h') | Long("help") => return Ok(Err(Request::Help)),
            Short('V') | Long("version") => return Ok(Err(Request::Version)),
            argument => match DaemonOption::of(&argument) {
                Some(option) => options.daemon.take(option, &mut parser)?,
                None => return Err(argument.unexpected().into()),
            },
        }
    }
    if options.output_fd.is_some() && options.output_fd == options.notify_fd {
        return Err(Fatal::Usage("-o and -D need a file descriptor each".into()));
    }
    let of_kernel = intake.is_some() || coldplug || options.receive_buffer_size.is_some();
    if input == Some(Input::Stdin) && of_kernel {
        return Err(Fatal::Usage("-b -C -I are for events from the kernel".into()));
    }
    let is_new = of_kernel
        || options.notify_fd.is_some()
        || options.output_fd.is_some()
        || options.rebroadcast != 0;
    let input = input.unwrap_or_else(|| {
        if !is_new && carries_stream(stdin()) { Input::Stdin } else { Input::Netlink }
    });
    let intake = intake.unwrap_or(KERNEL_GROUP);
    Ok(Ok((options, Asked { input, intake, coldplug, check, files, dry_run })))
}

fn read_input(text: &str) -> Option<Input> {
    match text {
        "stdin" => Some(Input::Stdin),
        "netlink" => Some(Input::Netlink),
        _ => None,
    }
}

/// Whether this is something that a stream of events may be read from or
/// written to, and not a terminal, /dev/null or the like.
pub(super) fn carries_stream(fd: impl AsFd) -> bool {
    fstat(fd).is_ok_and(|status| {
        let kind = FileType::from_raw_mode(status.st_mode);
        matches!(kind, FileType::Fifo | FileType::Socket | FileType::RegularFile)
    })
}

fn open_stdin() -> Result<Source, Fatal> {
    const STDIN: RawFd = 0;
    let source = sys::adopt(STDIN)
        .and_then(Source::from_stream)
        .map_err(|e| Fatal::system("read events from the standard input", e))?;
    log::info!("reading events from the standard input");
    Ok(source)
}
