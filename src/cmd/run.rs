//! `plugd run`: the daemon, with a handler program or with rules.

mod engine;
mod options;
mod sources;
mod start;

use crate::error::Fatal;
use crate::handover;
use crate::r#loop;

use super::daemon_options::start_log;
use super::{Command, Request, print};
pub(super) use engine::engine;
pub(super) use options::{Options, Work};
pub(super) use sources::{RECEIVE_BUFFER, adopt_source, inherited, inherited_sources, open_source};
pub(super) use start::serve;

pub(super) const COMMAND: Command = Command {
    name: "run",
    alias: None,
    peer: false,
    summary: "Acts on every device event of the kernel, one by one: by a program or by rules.",
    usage: "plugd run [OPTIONS] [--] [PROG [ARGS...]]",
    help: HELP,
    main,
};

const HELP: &str = "\
With PROG, that is run for every event, and finds the event's variables (ACTION,
DEVPATH, SUBSYSTEM, ...) in its environment. Without, the rules of mdev.conf are
applied: they make device nodes and links, and run commands. While a program
runs nothing is read: events wait in the kernel. If it fails, hangs or cannot be
started, plugd says so and goes on with the next one.

Where events come from:
      --fd N                      read the datagram socket N, which plugd was
                                  started with, instead of opening one; may be
                                  repeated. So does LISTEN_FDS, if LISTEN_PID
                                  is plugd's own
      --receive-buffer-size SIZE  how much may wait in the kernel, in bytes, or
                                  with K, M or G [128M]. It is a limit and takes
                                  no memory by itself. Not for sockets that plugd
                                  was started with
      --require-credentials       take from netlink sockets only what the kernel
                                  vouches for as its own (process 0, user 0).
                                  Without, this is checked where the socket has
                                  SO_PASSCRED and the user namespace has a root

What about devices that are there already, or that were missed:
      --coldplug                  at the start, act on all devices that are there;
                                  after a restart, on those that are not the same
      --coldplug=kernel           have the kernel tell of them instead of reading
                                  /sys, for programs beside plugd that listen; not
                                  after a restart, unless with --state none
      --state FILE                keep there what is known of devices, for the next
                                  start; or none [/run/plugd/NAME.state with
                                  --coldplug, NAME as in --control, ! for /]
      --replay-change WHICH       after events were lost, act also on the devices
                                  that were there before and are still: yes, no,
                                  or only those of these SUBSYSTEMs, with commas
                                  between them [yes]
      --sys DIR                   where sysfs is [/sys]

Where the rules are and what they act on (without PROG):
      --conf FILE                 the rules; FILE.d/*.conf come after them
                                  [/etc/mdev.conf]. If there are none, nodes are
                                  made as root's with mode 0660, nothing else
      --dev DIR                   where device nodes go [/dev]
      --firmware DIR              where firmware comes from [/lib/firmware]
  -n, --dry-run                   print what would be done, and do nothing: nothing
                                  is rebroadcast, and the kernel not asked to tell
                                  of devices; --output-fd gets what was printed for

How programs run:
      --timeout SECONDS           how long it may take, 0 for as long as it
                                  wants; then SIGTERM to its process group [180]
      --kill-after SECONDS        how long after that SIGKILL follows [5]
      --hotplug-argument          append the event's SUBSYSTEM to ARGS, as the
                                  kernel does for its hotplug helper
      --clean-environment         pass on nothing of plugd's own environment:
                                  HOME and PATH are set, then the event's

Where events go to that were acted on, in the kernel's format:
      --output-fd N               to this file descriptor, with a NUL more after
                                  each. Nothing is read while it is full; it is closed
                                  if that lasts as long as --timeout
      --rebroadcast GROUPS        to the netlink groups of this mask, of which 4 is
                                  what libudev-zero listens to
How to talk to it:
      --control ADDRESS           where its control socket is: @NAME in the
                                  abstract namespace, the path of a file, or
                                  none [@plugd]
      --control-mode MODE         a file's mode, and who may ask for its status:
                                  anybody if others may write [0600]
      --notify-fd N               when all is set up, write a newline to the
                                  file descriptor N and close it. NOTIFY_SOCKET,
                                  if set, is told too

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
  -q, --quiet                     only warnings and errors; twice: errors; three
                                  times: only what ends plugd (RUST_LOG, as
                                  env_logger has it, overrides both)
  -h, --help                      print this
  -V, --version                   print the version

Signals:
  TERM, INT   let the running program finish, then stop; again: end it
  HUP         read the rules anew; if there is a mistake in them, it is told and
              the old ones stay (there is nothing to reload for a PROG)
  USR1        write the status to the log
  ALRM        rescan: compare the devices that are there with those that are
              known, and act on the difference; on the others with change
              (see --replay-change)
  USR2        update: go on as the program that is in plugd's file now

Examples:
  Print what comes; plug something in to see an event:
      plugd run -- sh -c 'echo \"$ACTION $DEVPATH\"'
  Make device nodes as /etc/mdev.conf says, in place of mdev -d:
      plugd run
  Run a script written for /proc/sys/kernel/hotplug, with a minute's patience:
      plugd run --timeout 60 --hotplug-argument /sbin/hotplug
  Start it from a boot script that has no supervisor:
      plugd run --daemonize --pid-file /run/plugd.pid --syslog /etc/hotplug
";

fn main(parser: lexopt::Parser, log_name: &'static str) -> Result<Request, Fatal> {
    let options = match options::parse(parser)? {
        Ok(options) => options,
        Err(other) => return Ok(other),
    };
    start_log(log_name, options.verbosity)?;
    let handover = r#loop::inherited()?;
    let prepared = options.daemon.prepare(log_name)?;
    let mut engine = engine(&options, handover.as_ref())?;
    let mut sources = match &handover {
        Some(handover) => handover.sources.iter().copied().map(sources::take_over).collect(),
        None if r#loop::is_rehearsal() => Ok(Vec::new()),
        None => sources::chosen(&options),
    }?;
    if r#loop::is_rehearsal() {
        print(&format!("{}\n", handover::REHEARSED));
        return Ok(Request::Done);
    }
    if options.require_credentials {
        sources::require_credentials(&mut sources)?;
    }
    serve(&options, &mut engine, sources, prepared, handover)?;
    Ok(Request::Done)
}
