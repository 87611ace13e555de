//! The commands that speak with a running plugd: one request each, and its
//! reply.
//!
//! Owns their exit codes: 0 done, 1 plugd said no or did not in time, 100 wrong
//! usage, 111 there is no plugd.

use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::Duration;

use lexopt::Arg::{Long, Short, Value};

use crate::control::Address;
use crate::control::client::{self, Connection, Failure, Ready};
use crate::control::wire::{self, Outcome, REQUEST_MAX, Reply};
use crate::error::Fatal;
use crate::settle::{Device, Traits, Want};
use crate::sysfs::Sysfs;
use crate::uevent::{Header, Uevent};

use super::options::{self, SECONDS};
use super::{Command, Request, complain};

/// How long to wait for a reply that needs no waiting.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much longer than the daemon to wait for what it waits for.
const GRACE: Duration = Duration::from_secs(5);
/// When to look again whether the daemon has room for one more client.
const ROOM_PAUSE: Duration = Duration::from_secs(1);

/// A command, and what follows its help.
macro_rules! command {
    ($constant:ident, $name:literal, $summary:literal, $arguments:literal, $help:expr) => {
        pub(super) const $constant: Command = Command {
            name: $name,
            alias: None,
            peer: false,
            summary: $summary,
            usage: concat!("plugd ", $name, " [OPTIONS]", $arguments),
            help: $help,
            main: |parser, program| speak($name, parser, program),
        };
    };
}

/// What the help of all these commands has in common.
macro_rules! help {
    ($text:literal, $options:literal, $timeout:literal) => {
        concat!(
            $text,
            "\nOptions:\n",
            $options,
            "      --control ADDRESS  where plugd's control socket is: @NAME in the abstract\n",
            "                         namespace, or the path of a file [@plugd]\n",
            "      --timeout SECONDS  how long that may take [",
            $timeout,
            "]\n",
            "      --json             print a JSON object\n",
            "  -q, --quiet            print nothing: the exit code tells\n",
            "  -h, --help             print this\n",
            "  -V, --version          print the version\n\n",
            "Exit codes: 0 done, 1 plugd said no or took too long, 100 wrong usage, 111 there\n",
            "is no plugd.\n"
        )
    };
}

command!(
    STATUS,
    "status",
    "Tells what plugd is doing, what waits in the kernel, and what it has counted.",
    "",
    help!(
        "With --quiet it tells only whether plugd is there and answers: that is what\n\
         runit's ./check and s6-notifyoncheck want to know.\n",
        "      --openmetrics      print OpenMetrics text, for Prometheus\n",
        "10"
    )
);
command!(
    SETTLE,
    "settle",
    "Waits until every event that was emitted before has been acted on.",
    "",
    help!(
        "Events that are emitted later are not waited for, however many come. Failed\n\
         ones count as acted on. With --timeout 0 it tells whether it is so now.\n",
        "",
        "120"
    )
);
command!(
    WAIT,
    "wait",
    "Waits until a device has been acted on, or is there already.",
    " DEVPATH | /dev/NODE | KEY=VALUE...",
    help!(
        "The device is told by its path in /sys (with or without /sys), by its node or a\n\
         link in /dev, or by variables of its events, all of which must be as given. If\n\
         it is there already, but its event still waits, that is waited for. With ACTION,\n\
         SEQNUM, DEVPATH_OLD or SYNTH_..., only an event is.\n\n\
         Examples:\n      \
         plugd wait /dev/disk/by-label/data && mount LABEL=data /data\n      \
         plugd wait --timeout 10 SUBSYSTEM=net INTERFACE=wlan0\n",
        "      --removed          wait until it is gone\n",
        "120"
    )
);
command!(
    PAUSE,
    "pause",
    "Has plugd read no further events: they wait in the kernel.",
    "",
    help!("A program that runs is left alone; plugd answers as always.\n", "", "10")
);
command!(
    RESUME,
    "resume",
    "Has plugd read events again.",
    "",
    help!("Those that have waited in the kernel come first.\n", "", "10")
);
command!(
    RELOAD,
    "reload",
    "Has plugd read its configuration again, as SIGHUP does.",
    "",
    help!(
        "That is done when no event is in hand. If there is a mistake in it, it is told,\n\
         and plugd goes on with what it has. A handler program has no configuration.\n",
        "",
        "120"
    )
);
command!(
    RESCAN,
    "rescan",
    "Has plugd compare the devices that are there with those it knows, as SIGALRM does.",
    "",
    help!(
        "Devices that are gone are removed, new ones added, and the others changed, unless\n\
         plugd was told not to. It waits until that is done.\n",
        "",
        "120"
    )
);
command!(
    STOP,
    "stop",
    "Has plugd end when the program that runs has ended, as SIGTERM does.",
    "",
    help!("Said once more, the program is ended at once.\n", "", "10")
);
command!(
    UPDATE,
    "update",
    "Has plugd go on as the program that is in its file now, as SIGUSR2 does.",
    "",
    help!(
        "No event and no child is lost, and plugd's process remains. If the file does not\n\
         start, or is no plugd, the old one goes on.\n",
        "",
        "10"
    )
);
command!(
    LOG_LEVEL,
    "log-level",
    "Tells up to which level plugd logs, or changes that.",
    " [error|warning|info|debug|trace]",
    help!("debug tells of every event.\n", "", "10")
);

/// What the command line asks for.
struct Options {
    /// Where plugd is, if that was said.
    address: Option<Address>,
    timeout: Option<Duration>,
    quiet: bool,
    /// The reply is to be printed as JSON.
    json: bool,
    /// The request, the command's name first.
    words: Vec<Vec<u8>>,
}

fn speak(
    name: &'static str,
    parser: lexopt::Parser,
    program: &'static str,
) -> Result<Request, Fatal> {
    let options = match parse(name, parser)? {
        Ok(options) => options,
        Err(other) => return Ok(other),
    };
    let command = wire::Command::parse(&options.words).map_err(Fatal::Usage)?;
    if wire::request(&options.words).len() > REQUEST_MAX {
        let bytes = "bytes, and 4 for each that has to be escaped";
        return Err(Fatal::Usage(format!("a request has at most {REQUEST_MAX} {bytes}")));
    }
    let reply = ask(&options, &command);
    let reply = reply.map(|reply| if options.json { reply.into_json() } else { reply });
    let is_answer = reply.is_ok();
    let (code, text) = match reply {
        Ok(Reply { outcome: Outcome::Ok, text }) => (0, text),
        Ok(Reply { outcome: Outcome::Usage, text }) => (super::EXIT_USAGE, text),
        Ok(Reply { outcome: Outcome::No | Outcome::Denied, text }) => (super::EXIT_NO, text),
        Err(failure) => {
            let code = match failure {
                Failure::NoDaemon(_) | Failure::Garbled => super::EXIT_SYSTEM,
                Failure::Denied(_) | Failure::TimedOut => super::EXIT_NO,
            };
            (code, failure.to_string())
        }
    };
    if options.quiet {
        return Ok(Request::Exit(code));
    }
    if code == 0 || options.json && is_answer {
        match io::stdout().write_all(harmless(&text).as_bytes()) {
            // Who reads no more has read enough.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                return Err(Fatal::system("print the reply", error));
            }
            _ => {}
        }
    } else {
        complain(&format!("{program}: {name}: {}\n", harmless(text.trim_end())));
    }
    Ok(Request::Exit(code))
}

fn parse(
    name: &'static str,
    mut parser: lexopt::Parser,
) -> Result<Result<Options, Request>, Fatal> {
    let mut options = Options {
        address: None,
        timeout: None,
        quiet: false,
        json: false,
        words: vec![name.into()],
    };
    while let Some(argument) = parser.next()? {
        match argument {
            Long("control") => {
                let address = parser.value()?;
                let none = || Fatal::Usage("--control none: there is nobody to ask".into());
                options.address = Some(options::control(&address)?.ok_or_else(none)?);
            }
            Long("timeout") => {
                let timeout = options::value(&mut parser, "--timeout", SECONDS, options::seconds)?;
                options.timeout = Some(timeout);
            }
            Short('q') | Long("quiet") => options.quiet = true,
            Short('h') | Long("help") => return Ok(Err(Request::Help)),
            Short('V') | Long("version") => return Ok(Err(Request::Version)),
            // Whether this command has it, the protocol knows.
            Long(flag @ ("json" | "openmetrics" | "removed")) => {
                options.words.push(format!("--{flag}").into());
            }
            Value(word) => options.words.push(word.into_vec()),
            argument => return Err(argument.unexpected().into()),
        }
    }
    options.json = wire::take_json(&mut options.words);
    if let (Some(timeout), "settle" | "wait") = (options.timeout, name) {
        options.words.extend([b"--timeout".to_vec(), decimal(timeout).into()]);
    }
    Ok(Ok(options))
}

fn ask(options: &Options, command: &wire::Command) -> Result<Reply, Failure> {
    let patience = match command {
        wire::Command::Await { timeout, .. } => timeout.saturating_add(GRACE),
        // It waits until no event is in hand.
        wire::Command::Reload | wire::Command::Rescan => options.timeout.unwrap_or(wire::PATIENCE),
        _ => options.timeout.unwrap_or(PATIENCE),
    };
    let mut connection = connect(options, patience)?;
    connection.send(&options.words)?;
    match command {
        wire::Command::Await {
            want: want @ (Want::Present(Device::Fields(_)) | Want::Gone(Device::Fields(_))),
            timeout,
        } => look_too(connection, options, want, *timeout),
        _ => connection.receive(),
    }
}

fn connect(options: &Options, patience: Duration) -> Result<Connection, Failure> {
    if let Some(address) = &options.address {
        return Connection::open(address, Some(patience));
    }
    let address = Address::default();
    let connection = Connection::open(&address, Some(patience))?;
    connection.refuse_strangers(&address)?;
    Ok(connection)
}

/// Waits for an event on `waiting`, and once everything is settled, looks in
/// /sys whether the device is there already, or gone: the daemon has no time
/// for that.
fn look_too(
    mut waiting: Connection,
    options: &Options,
    want: &Want,
    timeout: Duration,
) -> Result<Reply, Failure> {
    let found = || {
        let found = match want {
            Want::Settled => None,
            Want::Present(device) => is_there(device),
            Want::Gone(device) => is_there(device).map(|there| !there),
        };
        found == Some(true)
    };
    let settle = |connection: &mut Connection, timeout| {
        connection.send(&["settle", "--timeout", &decimal(timeout)])
    };
    let settling = || {
        let mut settling = connect(options, timeout.saturating_add(GRACE))?;
        settle(&mut settling, timeout).map(|()| settling)
    };
    let mut second = None;
    // What comes later has an event that is waited for.
    if found() {
        second = settling().ok();
        loop {
            let at_most = second.is_none().then_some(ROOM_PAUSE);
            match client::either(&waiting, second.as_ref(), at_most)? {
                Ready::First => break,
                Ready::Neither => second = settling().ok(),
                Ready::Second => match second.take().map(|mut second| second.receive()) {
                    Some(Ok(Reply { outcome: Outcome::Ok, .. })) if found() => {
                        return Ok(Reply::ok(""));
                    }
                    Some(Ok(Reply { outcome: Outcome::Ok, .. })) => break,
                    // There are too many clients, or its time is over, and so is the first's.
                    _ => {}
                },
            }
        }
    }
    let reply = waiting.receive()?;
    if reply.outcome == Outcome::No {
        // That event may have been acted on before plugd came to hear of us.
        let is_ok = |reply: Result<Reply, Failure>| reply.is_ok_and(|r| r.outcome == Outcome::Ok);
        // Either may have been sent away.
        let settled = second.is_some_and(|mut second| is_ok(second.receive()))
            || is_ok(settle(&mut waiting, Duration::ZERO).and_then(|()| waiting.receive()));
        if settled && found() {
            return Ok(Reply::ok(""));
        }
    }
    Ok(reply)
}

/// Whether /sys has such a device; `None` if that cannot be told.
fn is_there(device: &Device) -> Option<bool> {
    if let Device::Fields(fields) = device
        && fields.iter().any(|field| is_of_event(field))
    {
        return None;
    }
    let sysfs = Sysfs::open(Path::new("/sys")).ok()?;
    let mut devices = sysfs.scan().ok()?;
    while let Some(event) = devices.next() {
        // One that cannot be read is going or coming: then there is an event.
        let event = event.ok().and_then(|event| Uevent::parse(event, Header::Required).ok());
        if event.is_some_and(|event| device.matches(&Traits::of(&event))) {
            return Some(true);
        }
    }
    Some(false)
}

/// Whether a field tells of an event, and not of the device (lib/kobject_uevent.c).
fn is_of_event(field: &[u8]) -> bool {
    let key = field.split(|&b| b == b'=').next().unwrap_or_default();
    matches!(key, b"ACTION" | b"SEQNUM" | b"DEVPATH_OLD") || key.starts_with(b"SYNTH_")
}

/// What is said by whoever listens there, without what a terminal would obey.
fn harmless(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() && !matches!(char, '\n' | '\t') {
            // As in JSON, which this may be.
            safe.push_str(&format!("\\u{:04x}", u32::from(char)));
        } else {
            safe.push(char);
        }
    }
    safe
}

fn decimal(time: Duration) -> String {
    format!("{}.{:09}", time.as_secs(), time.subsec_nanos())
}
