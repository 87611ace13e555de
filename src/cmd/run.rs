//! `plugd run`: the daemon, with a handler program or with rules.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lexopt::Arg::{Long, Short, Value};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, open, statx};
use rustix::process::{Gid, Uid, fchdir};

use crate::child;
use crate::control::Address;
use crate::control::server::Server;
use crate::control::socket;
use crate::counters::Counters;
use crate::daemon;
use crate::engine::Engine;
use crate::environment::DEFAULT_PATH;
use crate::error::Fatal;
use crate::handler::Handler;
use crate::handover::{self, Handover};
use crate::listen_fds;
use crate::r#loop::{self, Daemon, Setup};
use crate::machine::Limits;
use crate::netlink::{KERNEL_GROUP, Source};
use crate::notify::Notifier;
use crate::plan::Program;
use crate::presence::Presence;
use crate::rebroadcast::{Multicast, Outlets, Output};
use crate::recovery::Changes;
use crate::signals::Manner;
use crate::status;
use crate::{logging, sys};

use super::daemon_options::{DaemonOption, DaemonOptions, Prepared};
use super::options::{self, BYTES, GROUPS, HIGH_FD, SECONDS};
use super::recovery_options::{CHANGES, Coldplug, RecoveryOptions, State};
use super::rules::{self, Files};
use super::{Command, Request, own_pidfd_inode, print, quoted};

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
                                  /sys, for programs beside plugd that listen
      --state FILE                keep there what is known of devices, for the next
                                  start; or none [/run/plugd/NAME.state with
                                  --coldplug, NAME as in --control]
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

/// The size of the receive buffer to ask for, in bytes.
pub(super) const RECEIVE_BUFFER: usize = 128 << 20;

/// How long the reader of --output-fd may keep plugd waiting if programs may for ever.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(30);

/// What the command line asks for.
#[derive(Debug)]
pub(super) struct Options {
    /// Take these sockets; if there are none, those of LISTEN_FDS.
    pub(super) fds: Vec<RawFd>,
    pub(super) receive_buffer_size: Option<usize>,
    pub(super) require_credentials: bool,
    pub(super) limits: Limits,
    pub(super) hotplug_argument: bool,
    pub(super) clean_environment: bool,
    /// Write the events that were acted on there.
    pub(super) output_fd: Option<RawFd>,
    /// Send them to the groups of this mask.
    pub(super) rebroadcast: u32,
    pub(super) verbosity: i32,
    pub(super) manner: Manner,
    /// Where the control socket is, if there is one.
    pub(super) control: Option<Address>,
    pub(super) control_mode: Mode,
    /// Gets a newline when plugd is ready.
    pub(super) notify_fd: Option<RawFd>,
    /// The command line has paths that mean something else in another directory.
    pub(super) relative_paths: bool,
    pub(super) daemon: DaemonOptions,
    pub(super) recovery: RecoveryOptions,
    /// Where sysfs is.
    pub(super) sys: PathBuf,
    pub(super) work: Work,
}

/// What is done with an event.
#[derive(Debug)]
pub(super) enum Work {
    /// A program is run, with these arguments.
    Program(OsString, Vec<OsString>),
    /// Rules are applied, to these files, or only printed.
    Rules { files: Files, dry_run: bool },
}

impl Options {
    /// The defaults.
    pub(super) fn new(work: Work) -> Self {
        Self {
            fds: Vec::new(),
            receive_buffer_size: None,
            require_credentials: false,
            limits: Limits {
                timeout: Some(Duration::from_secs(180)),
                kill_after: Duration::from_secs(5),
            },
            hotplug_argument: false,
            clean_environment: false,
            output_fd: None,
            rebroadcast: 0,
            verbosity: 0,
            manner: Manner::Plugd,
            control: Some(Address::default()),
            control_mode: Mode::RUSR | Mode::WUSR,
            notify_fd: None,
            relative_paths: false,
            daemon: DaemonOptions::default(),
            recovery: RecoveryOptions::default(),
            sys: "/sys".into(),
            work,
        }
    }

    /// For a dry run: no device is made to send an event, nobody is told of one who
    /// would take it for acted on, and none is remembered.
    pub(super) fn make_dry(&mut self) {
        self.rebroadcast = 0;
        if self.recovery.coldplug == Some(Coldplug::Kernel) {
            self.recovery.coldplug = Some(Coldplug::Scan);
        }
        if self.recovery.state == State::Default {
            self.recovery.state = State::None;
        }
    }
}

fn main(parser: lexopt::Parser, log_name: &'static str) -> Result<Request, Fatal> {
    match parse(parser)? {
        Ok(options) => {
            logging::start(log_name, options.verbosity);
            let handover = r#loop::inherited()?;
            let prepared = options.daemon.prepare(log_name)?;
            let had_files = handover.as_ref().is_some_and(|handover| handover.has_rule_files);
            let mut engine = engine(&options, had_files)?;
            let mut sources = match &handover {
                Some(handover) => handover.sources.iter().copied().map(take_over).collect(),
                None if r#loop::is_rehearsal() => Ok(Vec::new()),
                None => sources(&options),
            }?;
            if r#loop::is_rehearsal() {
                print(&format!("{}\n", handover::REHEARSED));
                return Ok(Request::Done);
            }
            if options.require_credentials {
                require_credentials(&mut sources)?;
            }
            serve(&options, &mut engine, sources, prepared, handover)?;
            Ok(Request::Done)
        }
        Err(other) => Ok(other),
    }
}

/// Reads the command line, up to the program, whose own options are left alone.
fn parse(mut parser: lexopt::Parser) -> Result<Result<Options, Request>, Fatal> {
    let (mut files, mut dry_run, mut program) = (Files::default(), false, None);
    let mut options = Options::new(Work::Rules { files: files.clone(), dry_run });
    loop {
        if parser.try_raw_args().is_some_and(|rest| rest.as_slice() == ["--"]) {
            return Err(Fatal::Usage("PROG is missing after --".into()));
        }
        let Some(argument) = parser.next()? else { break };
        match argument {
            Long("fd") => {
                let fd = options::value(&mut parser, "--fd", "a file descriptor", |text| {
                    options::digits::<RawFd>(text)
                })?;
                if (1..=2).contains(&fd) {
                    let text = format!("--fd {fd}: that is where programs and the log write to");
                    return Err(Fatal::Usage(text));
                }
                if options.fds.contains(&fd) {
                    return Err(Fatal::Usage(format!("--fd {fd} is given twice")));
                }
                options.fds.push(fd);
            }
            Long("receive-buffer-size") => {
                let option = "--receive-buffer-size";
                options.receive_buffer_size =
                    Some(options::value(&mut parser, option, BYTES, options::bytes)?);
            }
            Long("require-credentials") => options.require_credentials = true,
            Long("timeout") => {
                let timeout = options::value(&mut parser, "--timeout", SECONDS, options::seconds)?;
                options.limits.timeout = (timeout != Duration::ZERO).then_some(timeout);
            }
            Long("kill-after") => {
                options.limits.kill_after =
                    options::value(&mut parser, "--kill-after", SECONDS, options::seconds)?;
            }
            Long("coldplug") => {
                options.recovery.coldplug = Some(match parser.optional_value() {
                    None => Coldplug::Scan,
                    Some(how) if how == "kernel" => Coldplug::Kernel,
                    Some(how) => {
                        let how = quoted(&how);
                        return Err(Fatal::Usage(format!("--coldplug={how}: expected kernel")));
                    }
                });
            }
            Long("state") => {
                let file = parser.value()?;
                options.recovery.state =
                    if file == "none" { State::None } else { State::File(file.into()) };
            }
            Long("replay-change") => {
                let option = "--replay-change";
                options.recovery.changes =
                    options::value(&mut parser, option, CHANGES, Changes::parse)?;
            }
            Long("conf") => files.conf = parser.value()?.into(),
            Long("dev") => files.dev = parser.value()?.into(),
            Long("sys") => files.sys = parser.value()?.into(),
            Long("firmware") => files.firmware = parser.value()?.into(),
            Short('n') | Long("dry-run") => dry_run = true,
            Long("control") => {
                let address = parser.value()?;
                options.control = options::control(&address)?;
            }
            Long("control-mode") => {
                options.control_mode =
                    options::value(&mut parser, "--control-mode", options::MODE, options::mode)?;
            }
            Long("notify-fd") => {
                let fd = options::value(&mut parser, "--notify-fd", "a file descriptor", |text| {
                    options::digits::<RawFd>(text)
                })?;
                options.notify_fd = Some(fd);
            }
            Long("hotplug-argument") => options.hotplug_argument = true,
            Long("clean-environment") => options.clean_environment = true,
            Long("output-fd") => {
                let option = "--output-fd";
                options.output_fd =
                    Some(options::value(&mut parser, option, HIGH_FD, options::high_fd)?);
            }
            Long("rebroadcast") => {
                options.rebroadcast =
                    options::value(&mut parser, "--rebroadcast", GROUPS, options::digits)?;
            }
            Short('v') | Long("verbose") => options.verbosity += 1,
            Short('q') | Long("quiet") => options.verbosity -= 1,
            Short('h') | Long("help") => return Ok(Err(Request::Help)),
            Short('V') | Long("version") => return Ok(Err(Request::Version)),
            Value(operand) => {
                program = Some(Work::Program(operand, parser.raw_args()?.collect()));
                break;
            }
            argument => match DaemonOption::of(&argument) {
                Some(option) => options.daemon.take(option, &mut parser)?,
                None => return Err(argument.unexpected().into()),
            },
        }
    }
    // Once for all, as a daemon goes to another directory.
    let given = (files.are_absolute(), options.control.clone());
    let cannot_find = |e| Fatal::system("find the working directory", e);
    files = files.absolute().map_err(cannot_find)?;
    let control = options.control.as_ref().map(Address::absolute);
    options.control = control.transpose().map_err(cannot_find)?;
    options.relative_paths = given != (true, options.control.clone());
    options.sys = files.sys.clone();
    if dry_run && program.is_some() {
        return Err(Fatal::Usage("--dry-run is for rules, not for PROG".into()));
    }
    options.work = program.unwrap_or(Work::Rules { files, dry_run });
    if matches!(options.work, Work::Rules { dry_run: true, .. }) {
        options.make_dry();
    }
    Ok(Ok(options))
}

fn sources(options: &Options) -> Result<Vec<Source>, Fatal> {
    match inherited_sources(&options.fds)? {
        None => Ok(vec![open_source(KERNEL_GROUP, options.receive_buffer_size)?]),
        Some(_) if options.receive_buffer_size.is_some() => Err(Fatal::Usage(
            "--receive-buffer-size is for a socket that plugd opens itself, \
             but it was handed one"
                .into(),
        )),
        Some(sources) => Ok(sources),
    }
}

/// Opens a socket for the events of the groups of a mask.
pub(super) fn open_source(
    groups: u32,
    receive_buffer_size: Option<usize>,
) -> Result<Source, Fatal> {
    let size = receive_buffer_size.unwrap_or(RECEIVE_BUFFER);
    let (source, buffer) = Source::open_groups(groups, size)?;
    let whose = if groups == KERNEL_GROUP { "the kernel's" } else { "passed on" };
    log::info!("listening to {whose} uevents; receive buffer: {buffer}");
    Ok(source)
}

fn require_credentials(sources: &mut [Source]) -> Result<(), Fatal> {
    sources
        .iter_mut()
        .try_for_each(Source::require_credentials)
        .map_err(|e| Fatal::system("have credentials passed", e))
}

/// The sockets that were named, or else handed over by LISTEN_FDS, if any.
pub(super) fn inherited_sources(named: &[RawFd]) -> Result<Option<Vec<Source>>, Fatal> {
    if !named.is_empty() {
        return named.iter().copied().map(adopt_source).collect::<Result<_, _>>().map(Some);
    }
    let variable = |name: &str| std::env::var_os(name);
    let range = listen_fds::inherited(variable, std::process::id(), own_pidfd_inode)
        .map_err(Fatal::Usage)?;
    range.map(|fds| fds.map(adopt_source).collect()).transpose()
}

/// Takes over an inherited socket, and says so.
pub(super) fn adopt_source(fd: RawFd) -> Result<Source, Fatal> {
    let source = take_over(fd)?;
    log::info!("reading from file descriptor {fd}");
    if source.is_in_vain() {
        log::warn!("file descriptor {fd}: not in the group that the kernel sends uevents to");
    }
    Ok(source)
}

fn take_over(fd: RawFd) -> Result<Source, Fatal> {
    sys::adopt(fd)
        .and_then(Source::from_inherited)
        .map_err(|e| Fatal::system(format_args!("receive from file descriptor {fd}"), e))
}

/// What a plugd that goes on cannot have it does without, and says so: it may have an
/// event and a program in hand. One that starts must not be less than it seems.
fn or_without<T>(resumed: bool, result: Result<T, Fatal>) -> Result<Option<T>, Fatal> {
    match result {
        Err(error) if resumed => {
            log::error!("{error}; plugd goes on without");
            Ok(None)
        }
        result => result.map(Some),
    }
}

/// Where events go that were acted on. `output` is the descriptor to write them to,
/// and what has to be written before.
fn outlets(
    options: &Options,
    output: Option<(RawFd, Vec<u8>)>,
    sources: &[Source],
    resumed: bool,
) -> Result<Outlets, Fatal> {
    let output = output.map(|(fd, rest)| {
        let file = inherited(fd)?;
        Output::new(file, rest).map_err(|e| Fatal::system(format_args!("write to {fd}"), e))
    });
    let loops = sources.iter().fold(KERNEL_GROUP, |groups, source| groups | source.groups());
    let ignored = options.rebroadcast & loops;
    if ignored != 0 {
        log::warn!(
            "events are not rebroadcast to the netlink groups of the mask {ignored}: they would \
             come back for ever"
        );
    }
    let groups = options.rebroadcast & !ignored;
    let multicast = (groups != 0).then(|| Multicast::open(groups));
    let output = output.map(|output| or_without(resumed, output)).transpose()?.flatten();
    let multicast = multicast.map(|open| or_without(resumed, open)).transpose()?.flatten();
    // Its reader may take as long as a program.
    let patience = options.limits.timeout.unwrap_or(OUTPUT_PATIENCE);
    Ok(Outlets::new(output, multicast, patience))
}

/// A descriptor that the user says is there.
pub(super) fn inherited(fd: RawFd) -> Result<OwnedFd, Fatal> {
    sys::adopt(fd).map_err(|e| Fatal::system(format_args!("use file descriptor {fd}"), e))
}

/// Runs the daemon until it is asked to stop, and returns what it has counted;
/// `handover` is what the plugd before this one left, whose sockets for events
/// `sources` are.
pub(super) fn serve(
    options: &Options,
    engine: &mut Engine,
    sources: Vec<Source>,
    prepared: Prepared,
    handover: Option<Handover>,
) -> Result<Counters, Fatal> {
    let output = match &handover {
        Some(handover) => handover.output.clone(),
        None => options.output_fd.map(|fd| (fd, Vec::new())),
    };
    let resumed = handover.is_some();
    let outlets = outlets(options, output, &sources, resumed)?;
    // The children's; plugd reads nothing there.
    let nothing = daemon::open_null()
        .and_then(|nothing| Ok(rustix::stdio::dup2_stdin(nothing)?))
        .map_err(|e| Fatal::system("make /dev/null the standard input", e));
    or_without(resumed, nothing)?;
    let control = match &options.control {
        Some(address) => control(options, address, handover.as_ref(), prepared.ids())?,
        None => None,
    };
    let notifier = or_without(resumed, notifier(options, resumed))?.unwrap_or_default();
    if options.daemon.goes_to_background() {
        // Without /proc they stay open, which is a pity, and no more.
        let _ = sys::close_inherited();
    }
    let dev = match &options.work {
        // Commands of rules rely on it: chmod $MDEV.
        Work::Rules { files, dry_run: false } => or_without(resumed, open_directory(&files.dev))?,
        Work::Rules { .. } | Work::Program(..) => None,
    };
    let engine_status = engine_status(options, engine);
    let judges = options.manner != Manner::Nosh;
    let (address, sys_root) = (options.control.as_ref(), &options.sys);
    let recovery = &options.recovery;
    let dry_run = matches!(options.work, Work::Rules { dry_run: true, .. });
    // A dry run has acted on nothing.
    let acts = if dry_run { &b"dry"[..] } else { b"" };
    let mut actor = vec![engine_status.kind.as_bytes(), acts, &engine_status.file];
    match &options.work {
        Work::Program(_, arguments) => actor.extend(arguments.iter().map(|a| a.as_encoded_bytes())),
        Work::Rules { files, .. } => actor.push(files.dev.as_os_str().as_encoded_bytes()),
    }
    // Another one at the same path has none of the nodes.
    let place = dev.as_ref().and_then(place_of).unwrap_or_default();
    actor.push(place.as_bytes());
    actor.push(sys_root.as_os_str().as_encoded_bytes());
    let actor = actor.join(&0);
    let recovery =
        recovery.settings(sys_root, address, &actor, judges, dry_run, handover.as_ref())?;
    let listen_again = || match control.as_ref().filter(|_| options.daemon.goes_to_background()) {
        Some(control) => control.listen_again(),
        None => Ok(()),
    };
    let mut started = prepared.start_with(listen_again)?;
    if let Some(dev) = dev {
        let gone = fchdir(dev).map_err(|e| Fatal::system("go to the directory of nodes", e));
        or_without(resumed, gone)?;
    }
    let mut daemon = Daemon::new(Setup {
        sources,
        limits: options.limits,
        manner: options.manner,
        control,
        notifier,
        presence: match &options.work {
            Work::Rules { files, .. } => Presence::below(&files.sys, &files.dev),
            Work::Program(..) => Presence::below(&options.sys, Path::new("/dev")),
        },
        engine: engine_status,
        may_update: may_update(options),
        outlets,
        recovery,
    })
    .map_err(|e| Fatal::system("set up the event loop", e))?;
    if let Some(handover) = handover {
        daemon.resume(handover)?;
    }
    // Now that all that was inherited on purpose has been taken over.
    let closed = sys::close_all_on_exec();
    let closed = closed.map_err(|e| Fatal::system("set file descriptors close-on-exec", e));
    or_without(resumed, closed)?;
    daemon.announce().map_err(|e| Fatal::system("tell that plugd is ready", e))?;
    started.ready()?;
    // The start is most of the program. That this is so much better is no promise.
    let _ = sys::forget_code();
    let counters = daemon.run(engine).map_err(|e| Fatal::system("wait for what happens", e))?;
    log::info!("stopped: {counters}");
    Ok(counters)
}

fn open_directory(path: &Path) -> Result<OwnedFd, Fatal> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let shown = path.as_os_str().as_encoded_bytes().escape_ascii();
    open(path, flags, Mode::empty()).map_err(|e| Fatal::system(format_args!("open {shown}"), e))
}

/// What tells a directory from others that had its path before.
fn place_of(directory: &OwnedFd) -> Option<String> {
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let found = statx(directory, c"", AtFlags::EMPTY_PATH, wanted).ok()?;
    let since = (found.stx_mask & StatxFlags::BTIME.bits() != 0).then_some(found.stx_btime);
    let since = since.map(|since| (since.tv_sec, since.tv_nsec));
    let (device, number) = ((found.stx_dev_major, found.stx_dev_minor), found.stx_ino);
    Some(format!("{device:?} {number} {since:?}"))
}

/// Whether the command line means the same when it is executed once more.
fn may_update(options: &Options) -> bool {
    let same_directory = matches!(options.work, Work::Program(..));
    (same_directory || !options.relative_paths) && options.daemon.may_be_executed_again()
}

fn control(
    options: &Options,
    address: &Address,
    handover: Option<&Handover>,
    owner: (Option<Uid>, Option<Gid>),
) -> Result<Option<Server>, Fatal> {
    let (address, mode) = (address.clone(), options.control_mode);
    let Some(listener) = handover.and_then(|handover| handover.listener) else {
        log::info!("listening on control socket {address}");
        // Whoever comes first has it. Nobody who chose none is to be kept from
        // starting by that, nor is who went on without it before.
        let is_taken = || {
            let is_default = address == Address::default();
            handover.is_some() || is_default && socket::is_strangers(&address)
        };
        return match Server::bind(address.clone(), mode, owner) {
            Err(error) if is_taken() => {
                log::warn!("{error}; plugd goes on without a control socket");
                Ok(None)
            }
            result => result.map(Some),
        };
    };
    let server = sys::adopt(listener.fd)
        .and_then(|fd| Server::from_listener(fd.into(), listener.file, address, mode))
        .map_err(|e| Fatal::system("go on with the control socket", e));
    or_without(true, server)
}

fn notifier(options: &Options, resumed: bool) -> Result<Notifier, Fatal> {
    // A plugd that goes on has told its descriptor long ago.
    let descriptor = options.notify_fd.filter(|_| !resumed).map(|fd| {
        sys::adopt(fd).map_err(|e| Fatal::system(format_args!("notify file descriptor {fd}"), e))
    });
    Notifier::new(descriptor.transpose()?, std::env::var_os("NOTIFY_SOCKET").as_deref())
}

/// What the status says of the engine.
fn engine_status(options: &Options, engine: &Engine) -> status::Engine {
    let (kind, file) = match (engine, &options.work) {
        (Engine::Handler(handler), _) => ("handler", handler.program.path.to_bytes()),
        (Engine::Rules(_), Work::Rules { files, .. }) => {
            ("rules", files.conf.as_os_str().as_encoded_bytes())
        }
        (Engine::Rules(_), Work::Program(..)) => ("rules", &b""[..]),
    };
    status::Engine { kind, file: file.to_vec() }
}

/// Finds the program, or reads the rules; `had_files` if they came from files in the
/// plugd before this one.
pub(super) fn engine(options: &Options, had_files: bool) -> Result<Engine, Fatal> {
    match &options.work {
        Work::Program(program, arguments) => {
            handler(options, program, arguments).map(Engine::Handler)
        }
        Work::Rules { files, dry_run } => {
            rules::engine(files, *dry_run, options.clean_environment, had_files)
        }
    }
}

fn handler(
    options: &Options,
    program: &OsString,
    arguments: &[OsString],
) -> Result<Handler, Fatal> {
    let cannot_run = |e: io::Error| Fatal::system(format_args!("run {}", quoted(program)), e);
    let path = std::env::var_os("PATH");
    let path = path.as_deref().unwrap_or(OsStr::new(DEFAULT_PATH));
    let argv = std::iter::once(program).chain(arguments);
    Ok(Handler {
        program: Program {
            path: child::find_program(program, path)
                .and_then(|path| match options.daemon.goes_to_background() {
                    true => child::absolute(&path),
                    false => Ok(path),
                })
                .map_err(cannot_run)?,
            argv: argv
                .map(|a| child::c_string(a))
                .collect::<io::Result<_>>()
                .map_err(cannot_run)?,
            was_found: true,
        },
        hotplug_argument: options.hotplug_argument,
        environment: rules::environment(options.clean_environment),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_as_the_help_says() {
        let limits = Options::new(Work::Program("x".into(), Vec::new())).limits;
        assert_eq!(limits.timeout, Some(Duration::from_secs(180)));
        assert_eq!(limits.kill_after, Duration::from_secs(5));
        assert!(HELP.contains("SIGTERM to its process group [180]"));
        assert!(HELP.contains("how long after that SIGKILL follows [5]"));
        assert_eq!(RECEIVE_BUFFER, 128 << 20);
    }
}
