//! `plugd run`: the daemon, with a handler program.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use lexopt::Arg::{Long, Short, Value};

use crate::child;
use crate::environment::{Base, DEFAULT_PATH};
use crate::error::Fatal;
use crate::handler::Handler;
use crate::listen_fds;
use crate::r#loop::{Daemon, Hangup};
use crate::machine::Limits;
use crate::netlink::Source;
use crate::plan::Program;
use crate::{logging, sys};

use super::daemon_options::{DaemonOption, DaemonOptions, Prepared};
use super::options::{self, BYTES, SECONDS};
use super::{Command, Request, quoted};

pub(super) const COMMAND: Command = Command {
    name: "run",
    alias: None,
    peer: false,
    summary: "Runs a program for every device event of the kernel, one at a time, in order.",
    usage: "plugd run [OPTIONS] [--] PROG [ARGS...]",
    help: HELP,
    main,
};

const HELP: &str = "\
PROG finds the event's variables (ACTION, DEVPATH, SUBSYSTEM, ...) in its
environment. While it runs nothing is read: events wait in the kernel. If it
fails, hangs or cannot be started, plugd says so and goes on with the next one.

Where events come from:
      --fd N                      read the datagram socket N, which plugd was
                                  started with, instead of opening one; may be
                                  repeated. So does LISTEN_FDS, if LISTEN_PID
                                  is plugd's own
      --receive-buffer-size SIZE  how much may wait in the kernel, in bytes, or
                                  with K, M or G [128M]. It is a limit and takes
                                  no memory by itself

How the program runs:
      --timeout SECONDS           how long it may take, 0 for as long as it
                                  wants; then SIGTERM to its process group [180]
      --kill-after SECONDS        how long after that SIGKILL follows [5]
      --hotplug-argument          append the event's SUBSYSTEM to ARGS, as the
                                  kernel does for its hotplug helper
      --clean-environment         pass on nothing of plugd's own environment:
                                  HOME and PATH are set, then the event's

As a daemon (without a supervisor; see also plugd daemon-control):
      --daemonize                 go into the background, with / as directory;
                                  the command exits when the daemon is up, with
                                  0, or has failed
      --pid-file PATH             write the process id there, and lock the file
                                  for as long as the daemon lives
      --user NAME|#UID            become this user, with its groups
      --group NAME|#GID           become this group, and be in no other
      --log-file PATH             once it is up, write to the end of this file
                                  instead of to stderr
      --syslog                    once it is up, log to syslog

What it tells:
  -v, --verbose                   every event; twice: everything
  -q, --quiet                     only warnings and errors; twice: errors
                                  (RUST_LOG, as env_logger has it, overrides both)
  -h, --help                      print this
  -V, --version                   print the version

Signals:
  TERM, INT   let the running program finish, then stop; again: end it
  HUP         reload (there is nothing to reload for a handler program)
  USR1        write the counters to the log

Examples:
  Print what comes; plug something in to see an event:
      plugd run -- sh -c 'echo \"$ACTION $DEVPATH\"'
  Run a script written for /proc/sys/kernel/hotplug, with a minute's patience:
      plugd run --timeout 60 --hotplug-argument /sbin/hotplug
  Start it from a boot script that has no supervisor:
      plugd run --daemonize --pid-file /run/plugd.pid --syslog /etc/hotplug
";

/// What the command line asks for.
#[derive(Debug)]
pub(super) struct Options {
    /// Take these sockets; if there are none, those of LISTEN_FDS.
    pub(super) fds: Vec<RawFd>,
    pub(super) receive_buffer_size: usize,
    pub(super) limits: Limits,
    pub(super) hotplug_argument: bool,
    pub(super) clean_environment: bool,
    pub(super) verbosity: i32,
    pub(super) hangup: Hangup,
    pub(super) daemon: DaemonOptions,
    pub(super) program: OsString,
    pub(super) arguments: Vec<OsString>,
}

impl Options {
    /// The defaults, for a program with its arguments.
    pub(super) fn new(program: OsString) -> Self {
        Self {
            fds: Vec::new(),
            receive_buffer_size: 128 << 20,
            limits: Limits {
                timeout: Some(Duration::from_secs(180)),
                kill_after: Duration::from_secs(5),
            },
            hotplug_argument: false,
            clean_environment: false,
            verbosity: 0,
            hangup: Hangup::Reload,
            daemon: DaemonOptions::default(),
            program,
            arguments: Vec::new(),
        }
    }
}

fn main(parser: lexopt::Parser, log_name: &'static str) -> Result<Request, Fatal> {
    match parse(parser)? {
        Ok(options) => {
            logging::start(log_name, options.verbosity);
            let prepared = options.daemon.prepare(log_name)?;
            let handler = handler(&options)?;
            let sources = match inherited_sources(&options.fds)? {
                None => vec![open_source(options.receive_buffer_size)?],
                Some(sources) => sources,
            };
            serve(&options, &handler, sources, prepared)
        }
        Err(other) => Ok(other),
    }
}

/// Reads the command line, up to the program, whose own options are left alone.
fn parse(mut parser: lexopt::Parser) -> Result<Result<Options, Request>, Fatal> {
    let mut options = Options::new(OsString::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Long("fd") => {
                let fd = options::value(&mut parser, "--fd", "a file descriptor", |text| {
                    options::digits::<RawFd>(text)
                })?;
                if options.fds.contains(&fd) {
                    return Err(Fatal::Usage(format!("--fd {fd} is given twice")));
                }
                options.fds.push(fd);
            }
            Long("receive-buffer-size") => {
                options.receive_buffer_size =
                    options::value(&mut parser, "--receive-buffer-size", BYTES, options::bytes)?;
            }
            Long("timeout") => {
                let timeout = options::value(&mut parser, "--timeout", SECONDS, options::seconds)?;
                options.limits.timeout = (timeout != Duration::ZERO).then_some(timeout);
            }
            Long("kill-after") => {
                options.limits.kill_after =
                    options::value(&mut parser, "--kill-after", SECONDS, options::seconds)?;
            }
            Long("hotplug-argument") => options.hotplug_argument = true,
            Long("clean-environment") => options.clean_environment = true,
            Short('v') | Long("verbose") => options.verbosity += 1,
            Short('q') | Long("quiet") => options.verbosity -= 1,
            Short('h') | Long("help") => return Ok(Err(Request::Help)),
            Short('V') | Long("version") => return Ok(Err(Request::Version)),
            Value(program) => {
                options.program = program;
                options.arguments = parser.raw_args()?.collect();
                return Ok(Ok(options));
            }
            argument => match DaemonOption::of(&argument) {
                Some(option) => options.daemon.take(option, &mut parser)?,
                None => return Err(argument.unexpected().into()),
            },
        }
    }
    Err(Fatal::Usage("PROG is missing: the program to run for every event".into()))
}

fn open_source(receive_buffer_size: usize) -> Result<Source, Fatal> {
    let (source, buffer) = Source::open_kernel(receive_buffer_size)?;
    log::info!("listening to the kernel's uevents; receive buffer: {buffer}");
    Ok(source)
}

/// The sockets that were named, or else handed over by LISTEN_FDS, if any.
pub(super) fn inherited_sources(named: &[RawFd]) -> Result<Option<Vec<Source>>, Fatal> {
    let fds = if named.is_empty() {
        match listen_fds::inherited(|name| std::env::var_os(name), std::process::id())
            .map_err(Fatal::Usage)?
        {
            None => return Ok(None),
            Some(range) => range.collect(),
        }
    } else {
        named.to_vec()
    };
    fds.into_iter().map(adopt_source).collect::<Result<_, _>>().map(Some)
}

/// Takes over an inherited socket.
pub(super) fn adopt_source(fd: RawFd) -> Result<Source, Fatal> {
    let source = sys::adopt(fd)
        .and_then(Source::from_inherited)
        .map_err(|e| Fatal::system(format_args!("receive from file descriptor {fd}"), e))?;
    log::info!("reading from file descriptor {fd}");
    Ok(source)
}

/// Runs the daemon until it is asked to stop.
pub(super) fn serve(
    options: &Options,
    handler: &Handler,
    sources: Vec<Source>,
    prepared: Prepared,
) -> Result<Request, Fatal> {
    if options.daemon.goes_to_background() {
        // Without /proc they stay open, which is a pity, and no more.
        let _ = sys::close_inherited();
    }
    sys::close_all_on_exec().map_err(|e| Fatal::system("set file descriptors close-on-exec", e))?;
    // The children's; plugd reads nothing there.
    File::open("/dev/null")
        .and_then(|null| Ok(rustix::stdio::dup2_stdin(null)?))
        .map_err(|e| Fatal::system("make /dev/null the standard input", e))?;
    let mut started = prepared.start()?;
    let daemon = Daemon::new(sources, options.limits, options.hangup)
        .map_err(|e| Fatal::system("set up the event loop", e))?;
    started.ready()?;
    let counters = daemon.run(handler).map_err(|e| Fatal::system("wait for what happens", e))?;
    log::info!("stopped: {counters}");
    Ok(Request::Done)
}

/// Finds the program.
pub(super) fn handler(options: &Options) -> Result<Handler, Fatal> {
    let cannot_run =
        |e: io::Error| Fatal::system(format_args!("run {}", quoted(&options.program)), e);
    let path = std::env::var_os("PATH");
    let path = path.as_deref().unwrap_or(OsStr::new(DEFAULT_PATH));
    let argv = std::iter::once(&options.program).chain(&options.arguments);
    Ok(Handler {
        program: Program {
            path: child::find_program(&options.program, path)
                .and_then(|path| match options.daemon.goes_to_background() {
                    true => child::absolute(&path),
                    false => Ok(path),
                })
                .map_err(cannot_run)?,
            argv: argv
                .map(|a| child::c_string(a))
                .collect::<io::Result<_>>()
                .map_err(cannot_run)?,
        },
        hotplug_argument: options.hotplug_argument,
        environment: if options.clean_environment {
            Base::new([])
        } else {
            Base::new(std::env::vars_os())
        },
    })
}
