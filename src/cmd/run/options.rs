//! The command line.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::Arg::{Long, Short, Value};
use rustix::fs::Mode;

use crate::cmd::daemon_options::{DaemonOption, DaemonOptions};
use crate::cmd::options::{self, BYTES, GROUPS, HIGH_FD, SECONDS};
use crate::cmd::recovery_options::{CHANGES, Coldplug, RecoveryOptions, State};
use crate::cmd::rules::Files;
use crate::cmd::{Request, quoted};
use crate::control::Address;
use crate::error::Fatal;
use crate::machine::Limits;
use crate::recovery::Changes;
use crate::signals::Manner;

/// What the command line asks for.
#[derive(Debug)]
pub(in crate::cmd) struct Options {
    /// Take these sockets; if there are none, those of LISTEN_FDS.
    pub(in crate::cmd) fds: Vec<RawFd>,
    pub(in crate::cmd) receive_buffer_size: Option<usize>,
    pub(in crate::cmd) require_credentials: bool,
    pub(in crate::cmd) limits: Limits,
    pub(in crate::cmd) hotplug_argument: bool,
    pub(in crate::cmd) clean_environment: bool,
    /// Write the events that were acted on there.
    pub(in crate::cmd) output_fd: Option<RawFd>,
    /// Send them to the groups of this mask.
    pub(in crate::cmd) rebroadcast: u32,
    pub(in crate::cmd) verbosity: i32,
    pub(in crate::cmd) manner: Manner,
    /// Where the control socket is, if there is one.
    pub(in crate::cmd) control: Option<Address>,
    pub(in crate::cmd) control_mode: Mode,
    /// Gets a newline when plugd is ready.
    pub(in crate::cmd) notify_fd: Option<RawFd>,
    /// The command line has paths that mean something else in another directory.
    pub(in crate::cmd) relative_paths: bool,
    pub(in crate::cmd) daemon: DaemonOptions,
    pub(in crate::cmd) recovery: RecoveryOptions,
    /// Where sysfs is.
    pub(in crate::cmd) sys: PathBuf,
    pub(in crate::cmd) work: Work,
}

/// What is done with an event.
#[derive(Debug)]
pub(in crate::cmd) enum Work {
    /// A program is run, with these arguments.
    Program(OsString, Vec<OsString>),
    /// Rules are applied, to these files, or only printed.
    Rules { files: Files, dry_run: bool },
}

impl Options {
    /// The defaults.
    pub(in crate::cmd) fn new(work: Work) -> Self {
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
    pub(in crate::cmd) fn make_dry(&mut self) {
        self.rebroadcast = 0;
        if self.recovery.coldplug == Some(Coldplug::Kernel) {
            self.recovery.coldplug = Some(Coldplug::Scan);
        }
        if self.recovery.state == State::Default {
            self.recovery.state = State::None;
        }
    }
}

/// Reads the command line, up to the program, whose own options are left alone.
pub(super) fn parse(mut parser: lexopt::Parser) -> Result<Result<Options, Request>, Fatal> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::run::{HELP, RECEIVE_BUFFER};

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
