//! The commands: one file each, from options to a struct to the job.
//!
//! Owns the table of commands, what they have in common on the command line,
//! and the exit codes: 0 done, 1 the answer is no or the input is wrong, 2 wrong
//! configuration, 100 wrong usage, 111 system call failed, and where a command
//! goes on as another program, 126 and 127 as env(1) has them.

mod check;
mod coldplug;
mod control;
mod daemon_control;
mod daemon_options;
mod explain;
mod mdevd;
mod mdevd_coldplug;
mod mdevd_netlink;
mod netlink_datagram_socket_listen;
mod options;
mod plug_and_play_event_handler;
mod recovery_options;
mod rules;
mod run;
mod trigger;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::{fstat, fstatfs};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::error::Fatal;
use crate::logging::{self, escaped};

/// The answer is no, or the input is wrong.
const EXIT_NO: u8 = 1;
/// Wrong usage.
const EXIT_USAGE: u8 = 100;
/// The configuration is wrong.
const EXIT_CONFIGURATION: u8 = 2;
/// A system call failed.
const EXIT_SYSTEM: u8 = 111;
/// The next program cannot be executed.
const EXIT_NOT_EXECUTABLE: u8 = 126;
/// There is no such program.
const EXIT_NOT_FOUND: u8 = 127;

/// A command of plugd.
struct Command {
    /// What asks for it: the first argument, or the program's own name if `peer`.
    name: &'static str,
    /// Another name for it.
    alias: Option<&'static str>,
    /// It stands in for the program of that name, and speaks in its name.
    peer: bool,
    /// What it does, in a line.
    summary: &'static str,
    /// How it is called, in a line.
    usage: &'static str,
    /// All that `--help` prints after that.
    help: &'static str,
    main: fn(lexopt::Parser, &'static str) -> Result<Request, Fatal>,
}

/// What a command's arguments ask for.
enum Request {
    /// It has done its job.
    Done,
    /// It has, and this exit code tells how that went.
    Exit(u8),
    /// Its help.
    Help,
    /// The version of plugd.
    Version,
}

const COMMANDS: [&Command; 20] = [
    &run::COMMAND,
    &check::COMMAND,
    &explain::COMMAND,
    &control::STATUS,
    &control::SETTLE,
    &control::WAIT,
    &control::PAUSE,
    &control::RESUME,
    &control::RELOAD,
    &control::RESCAN,
    &coldplug::COMMAND,
    &control::STOP,
    &control::UPDATE,
    &control::LOG_LEVEL,
    &mdevd::COMMAND,
    &mdevd_netlink::COMMAND,
    &mdevd_coldplug::COMMAND,
    &plug_and_play_event_handler::COMMAND,
    &netlink_datagram_socket_listen::COMMAND,
    &daemon_control::COMMAND,
];

/// Runs the program with these arguments, its own name first.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let own_name = arguments.next().unwrap_or_default();
    let own_name = Path::new(&own_name).file_name().unwrap_or_default();
    let called = |c: &Command, name: &OsStr| name == c.name || c.alias.is_some_and(|a| name == a);
    if let Some(command) = COMMANDS.into_iter().find(|c| c.peer && called(c, own_name)) {
        return run_command(command, arguments);
    }
    let Some(first) = arguments.next() else {
        return refuse("plugd", "a command is missing", SYNOPSIS);
    };
    if first == "--help" || first == "-h" || first == "help" {
        return print(&overview());
    }
    if first == "--version" || first == "-V" {
        return print(&version());
    }
    match COMMANDS.into_iter().find(|command| called(command, &first)) {
        Some(command) => run_command(command, arguments),
        None => refuse("plugd", &format!("there is no command {}", quoted(&first)), SYNOPSIS),
    }
}

fn run_command(command: &Command, arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let program = if command.peer { command.name } else { "plugd" };
    let arguments: Vec<OsString> = arguments.collect();
    match (command.main)(lexopt::Parser::from_args(arguments), program) {
        Ok(Request::Done) => ExitCode::SUCCESS,
        Ok(Request::Exit(code)) => ExitCode::from(code),
        Ok(Request::Help) => {
            print(&format!("{}\n\nUsage: {}\n\n{}", command.summary, command.usage, command.help))
        }
        Ok(Request::Version) => print(&version()),
        Err(Fatal::Usage(text)) => refuse(program, &text, command.usage),
        Err(fatal) => {
            let text = fatal.to_string();
            let lines: Vec<String> = text.lines().map(escaped).collect();
            complain(&format!("{program}: fatal: {}\n", lines.join("\n")));
            ExitCode::from(match &fatal {
                Fatal::Exec { error, .. } if error.kind() == io::ErrorKind::NotFound => {
                    EXIT_NOT_FOUND
                }
                Fatal::Exec { .. } => EXIT_NOT_EXECUTABLE,
                Fatal::Configuration(_) => EXIT_CONFIGURATION,
                Fatal::Input(_) => EXIT_NO,
                Fatal::Usage(_) | Fatal::System { .. } => EXIT_SYSTEM,
            })
        }
    }
}

const SYNOPSIS: &str = "plugd COMMAND [OPTIONS] [ARGUMENTS]";

fn overview() -> String {
    let mut text = format!(
        "plugd acts on the kernel's device events (uevents), one at a time.\n\n\
         Usage: {SYNOPSIS}\n\nCommands:\n"
    );
    for command in COMMANDS {
        let alias = command.alias.map_or_else(String::new, |alias| format!(", {alias}"));
        text += &format!("  {}{alias}\n      {}\n", command.name, command.summary);
    }
    text + "\nplugd COMMAND --help tells more. A command that is named after another program\n\
            is also found by that name, through a link to plugd.\n\n\
            Options:\n  \
            -h, --help     print this\n  \
            -V, --version  print the version\n"
}

fn version() -> String {
    format!("plugd {}\n", env!("CARGO_PKG_VERSION"))
}

/// Prints what was asked for.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(EXIT_SYSTEM),
    }
}

fn refuse(program: &str, text: &str, usage: &str) -> ExitCode {
    complain(&format!("{program}: fatal: {}\nusage: {usage}\n", escaped(text)));
    ExitCode::from(EXIT_USAGE)
}

/// In one write; if stderr does not take it, there is nobody to tell. A daemon
/// may have left stderr for syslog.
fn complain(text: &str) {
    if logging::sent_to_syslog(log::Level::Error, text.trim_end()) {
        return;
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// What the user gave, safe to print.
fn quoted(argument: &OsStr) -> String {
    format!("'{}'", argument.as_encoded_bytes().escape_ascii())
}

/// The inode of this process's pidfd: the process's id for as long as the
/// machine runs. `None` before Linux 6.9, where all pidfds have the same one.
fn own_pidfd_inode() -> Option<u64> {
    // PID_FS_MAGIC in linux/magic.h.
    const PIDFS: u64 = 0x5049_4446;
    let pidfd = pidfd_open(getpid(), PidfdFlags::empty()).ok()?;
    let is_own = fstatfs(&pidfd).is_ok_and(|status| u64::try_from(status.f_type) == Ok(PIDFS));
    if is_own { fstat(&pidfd).ok().map(|status| status.st_ino) } else { None }
}
