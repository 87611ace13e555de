//! `daemon-control`: LibUCW's program of that name, which starts, stops and
//! checks a daemon by its PID file.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process;

use lexopt::Arg::{Long, Short, Value};

use crate::daemon::control::{Control, Outcome, Signal};
use crate::error::Fatal;
use crate::logging::escaped;

use super::options::{self, SECONDS};
use super::{Command, Request, complain};

/// Wrong usage, as LibUCW's has it.
const EXIT_USAGE: u8 = 1;
/// The action has failed.
const EXIT_FAILED: u8 = 102;

const NAME: &str = "daemon-control";

pub(super) const COMMAND: Command = Command {
    name: NAME,
    alias: Some("ucw-daemon-control"),
    peer: true,
    summary: "Starts, stops and checks a daemon by its locked PID file, without races.",
    usage: "daemon-control ACTION --pid-file PATH [OPTIONS] [-- DAEMON ARGS...]",
    help: HELP,
    main,
};

const HELP: &str = "\
Works with plugd run as a daemon with a PID file, with daemons made with LibUCW,
and with all others that keep their PID file locked (flock) while they live.

Actions:
      --start               run DAEMON, which goes into the background by itself,
                            unless one runs already, or is about to end
      --stop                send a signal and wait until it has ended
      --reload              send a signal
      --check               tell by the exit code whether it runs

Options:
      --pid-file PATH       the daemon's PID file
      --guard-file PATH     what to lock during the action, so that there is one
                            at a time [PATH of the PID file, .pid turned to .lock]
      --signal SIGNAL       by name or number, also RTMIN+n and RTMAX-n (34 to 64)
                            [TERM to stop, HUP to reload]
      --timeout SECONDS     give up after that; a start is ended then [never]
      --kill-after SECONDS  stop: SIGKILL that long after the signal [never];
                            a start given up: after SIGTERM [5]
  -h, --help                print this
  -V, --version             print the version

Exit codes:
  0    done
  1    wrong arguments
  100  there was nothing to do: it runs, or does not run, already
  101  it does not run (--reload, --check)
  102  failed; a message is on stderr
  103  undefined: it died and has left its PID file. --start starts it anew

Examples:
  The heart of an init script, where 100 and 103 are no failure:
      daemon-control --start --pid-file /run/plugd.pid -- \\
          plugd run --daemonize --pid-file /run/plugd.pid --syslog /etc/hotplug
      daemon-control --stop --pid-file /run/plugd.pid --timeout 30 --kill-after 20
      case $? in 0|100|103) true ;; *) false ;; esac
";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Start,
    Stop,
    Reload,
    Check,
}

#[derive(Debug)]
struct Options {
    action: Action,
    control: Control,
    signal: Option<Signal>,
    daemon: Vec<OsString>,
}

fn main(parser: lexopt::Parser, _log_name: &'static str) -> Result<Request, Fatal> {
    let options = match parse(parser) {
        Ok(Ok(options)) => options,
        Ok(Err(other)) => return Ok(other),
        Err(error) => {
            let text = escaped(&error.to_string());
            complain(&format!("{NAME}: fatal: {text}\nusage: {}\n", COMMAND.usage));
            return Ok(Request::Exit(EXIT_USAGE));
        }
    };
    Ok(Request::Exit(match act(options) {
        Ok(outcome) => outcome.exit_code(),
        Err(error) => {
            complain(&format!("{NAME}: error: {}\n", escaped(&error.to_string())));
            EXIT_FAILED
        }
    }))
}

fn act(options: Options) -> Result<Outcome, Fatal> {
    let Options { action, control, signal, daemon } = options;
    match action {
        Action::Start => {
            let mut daemon = daemon.into_iter();
            let mut command = process::Command::new(daemon.next().unwrap_or_default());
            control.start(command.args(daemon))
        }
        Action::Stop => control.stop(signal.unwrap_or(Signal::TERM)),
        Action::Reload => control.reload(signal.unwrap_or(Signal::HUP)),
        Action::Check => control.check(),
    }
}

fn parse(mut parser: lexopt::Parser) -> Result<Result<Options, Request>, Fatal> {
    let usage = |text: &str| Fatal::Usage(text.into());
    let mut action = None;
    let mut choose = |chosen| match action.replace(chosen) {
        Some(other) if other != chosen => Err(usage("there can be only one action")),
        _ => Ok(()),
    };
    let (mut pid_file, mut guard_file) = (None, None);
    let (mut signal, mut timeout, mut kill_after) = (None, None, None);
    let mut daemon = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("start") => choose(Action::Start)?,
            Long("stop") => choose(Action::Stop)?,
            Long("reload") => choose(Action::Reload)?,
            Long("check") => choose(Action::Check)?,
            Long("pid-file") => pid_file = Some(PathBuf::from(parser.value()?)),
            Long("guard-file") => guard_file = Some(PathBuf::from(parser.value()?)),
            Long("signal") => {
                let expected = "the name or number of a signal";
                signal = Some(options::value(&mut parser, "--signal", expected, read_signal)?);
            }
            Long("timeout") => {
                let value = options::value(&mut parser, "--timeout", SECONDS, options::seconds)?;
                timeout = Some(value);
            }
            Long("kill-after") => {
                let value = options::value(&mut parser, "--kill-after", SECONDS, options::seconds)?;
                kill_after = Some(value);
            }
            Short('h') | Long("help") => return Ok(Err(Request::Help)),
            Short('V') | Long("version") => return Ok(Err(Request::Version)),
            Value(program) => {
                daemon.push(program);
                daemon.extend(parser.raw_args()?);
            }
            argument => return Err(argument.unexpected().into()),
        }
    }

    let Some(action) = action else {
        return Err(usage("one of --start, --stop, --reload and --check is missing"));
    };
    match (action, daemon.is_empty()) {
        (Action::Start, true) => return Err(usage("DAEMON is missing: the program to start")),
        (Action::Stop | Action::Reload | Action::Check, false) => {
            return Err(usage("only --start takes a program"));
        }
        _ => {}
    }
    let Some(pid_file) = pid_file else { return Err(usage("--pid-file is missing")) };
    let control = match guard_file {
        Some(guard_file) if guard_file == pid_file => {
            return Err(usage("the guard file cannot be the PID file"));
        }
        Some(guard_file) => Some(Control::with_guard(pid_file, guard_file)),
        None => Control::new(pid_file),
    };
    let Some(mut control) = control else {
        return Err(usage("--guard-file is missing, and the PID file does not end in .pid"));
    };
    control.timeout = timeout;
    control.kill_after = kill_after;
    Ok(Ok(Options { action, control, signal, daemon }))
}

fn read_signal(text: &str) -> Option<Signal> {
    Signal::from_name(text).or_else(|| options::digits(text).and_then(Signal::from_number))
}
