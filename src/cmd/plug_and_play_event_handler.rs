//! `plug-and-play-event-handler`: nosh's program of that name, which takes its
//! sockets from whoever started it.

use lexopt::Arg::{Long, Short, Value};

use crate::error::Fatal;
use crate::listen_fds;
use crate::signals::Manner;

use super::daemon_options::{DaemonOption, DaemonOptions, daemon_help, start_log};
use super::run::{self, Options, Work};
use super::{Command, Request};

pub(super) const COMMAND: Command = Command {
    name: "plug-and-play-event-handler",
    alias: None,
    peer: true,
    summary: "Runs a program for every datagram of the sockets that it was handed, one at a time.",
    usage: "plug-and-play-event-handler [-v|--verbose] PROG [ARGS...]",
    help: HELP,
    main,
};

const HELP: &str = concat!(
    "\
Takes the sockets that LISTEN_FDS tells of, if LISTEN_PID is its own process id,
else file descriptor 3; netlink-datagram-socket-listen opens and hands over such
a socket. PROG finds the event's variables in its environment. While it runs no
socket is read.

Options:
  -v, --verbose  tell of every event; twice: of everything
  -h, --help     print this
  -V, --version  print the version

",
    daemon_help!(),
    "
Signals:
  TERM, INT, HUP   let the running program finish, then stop; again: end it
  USR1             write the status to the log

Examples:
  Run a script for every event of the kernel, as a user without privileges:
      netlink-datagram-socket-listen kobject-uevent 1 \\
          setpriv --reuid daemon --regid daemon --clear-groups \\
          plug-and-play-event-handler /usr/local/bin/on-device-event
  The same with a time limit and other options; plugd run has them all:
      netlink-datagram-socket-listen kobject-uevent 1 \\
          plugd run --fd 3 --timeout 60 /usr/local/bin/on-device-event
"
);

fn main(mut parser: lexopt::Parser, log_name: &'static str) -> Result<Request, Fatal> {
    let (mut verbosity, mut daemon) = (0, DaemonOptions::default());
    while let Some(argument) = parser.next()? {
        match argument {
            Short('v') | Long("verbose") => verbosity += 1,
            Short('h') | Long("help") => return Ok(Request::Help),
            Short('V') | Long("version") => return Ok(Request::Version),
            Value(program) => {
                let work = Work::Program(program, parser.raw_args()?.collect());
                let mut options = Options::new(work);
                options.verbosity = verbosity;
                options.daemon = daemon;
                // A handler written for nosh may take as long as it wants.
                options.limits.timeout = None;
                options.manner = Manner::Nosh;
                options.control = None;
                return start(&options, log_name);
            }
            argument => match DaemonOption::of(&argument) {
                Some(option) => daemon.take(option, &mut parser)?,
                None => return Err(argument.unexpected().into()),
            },
        }
    }
    Err(Fatal::Usage("PROG is missing: the program to run for every event".into()))
}

fn start(options: &Options, log_name: &'static str) -> Result<Request, Fatal> {
    start_log(log_name, options.verbosity)?;
    let prepared = options.daemon.prepare(log_name)?;
    let mut engine = run::engine(options, None)?;
    let sources = match run::inherited_sources(&[])? {
        Some(sources) => sources,
        None => vec![run::adopt_source(listen_fds::FIRST)?],
    };
    run::serve(options, &mut engine, sources, prepared, None)?;
    Ok(Request::Done)
}
