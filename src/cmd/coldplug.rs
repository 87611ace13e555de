//! `plugd coldplug`: has the kernel tell of devices that are there already, of
//! all or of some, and waits until they have been acted on if wanted.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lexopt::Arg::{Long, Short};

use crate::control::Address;
use crate::control::client::{Connection, Failure};
use crate::control::wire::{self, Outcome};
use crate::error::Fatal;
use crate::logging;
use crate::sysfs::{Scan, Sysfs};
use crate::uevent::{Header, Uevent};

use super::options::{self, SECONDS};
use super::rules::open_sysfs;
use super::trigger::Tally;
use super::{Command, EXIT_NO, Request, complain, print, quoted};

pub(super) const COMMAND: Command = Command {
    name: "coldplug",
    alias: None,
    peer: false,
    summary: "Has the kernel tell once more of the devices that are there already.",
    usage: "plugd coldplug [OPTIONS]",
    help: HELP,
    main,
};

const HELP: &str = "\
Every program that listens hears of it. For plugd alone plugd run --coldplug is
quicker, and needs no privilege. If plugd runs, the kernel is not asked for more
at once than fits into plugd's receive buffer.

Options:
      --subsystem NAME      only devices of this subsystem; may be repeated
      --property KEY=VALUE  only devices whose events have this variable; if it is
                            repeated, all of them
      --action ACTION       what they tell of: add, change, remove, ... [add]
  -n, --dry-run             print the devices, and do nothing
      --wait                wait until plugd has acted on all of it
      --timeout SECONDS     how long that may take [120]
      --sys DIR             where sysfs is [/sys]
      --control ADDRESS     where plugd's control socket is: @NAME in the abstract
                            namespace, the path of a file, or none [@plugd]
  -v, --verbose             tell of every device
  -h, --help                print this
  -V, --version             print the version

Exit codes: 0 done, 1 it took too long, 100 wrong usage, 111 a system call failed,
or with --wait, there is no plugd.

Examples:
  Have the rules for disks applied anew, and wait for that:
      plugd coldplug --subsystem block --action change --wait
  Have drivers loaded for what is on the PCI bus:
      plugd coldplug --subsystem pci
";

/// No event of the kernel's takes more of a receive buffer, in bytes.
const GREATEST_COST: u64 = 4608;

/// The actions that the kernel knows (lib/kobject_uevent.c).
const ACTIONS: [&str; 8] =
    ["add", "remove", "change", "move", "online", "offline", "bind", "unbind"];

#[derive(Debug)]
struct Options {
    sys: PathBuf,
    subsystems: Vec<OsString>,
    properties: Vec<Vec<u8>>,
    action: &'static str,
    dry_run: bool,
    wait: bool,
    timeout: Duration,
    control: Option<Address>,
}

fn main(mut parser: lexopt::Parser, log_name: &'static str) -> Result<Request, Fatal> {
    let mut verbosity = 0;
    let mut options = Options {
        sys: "/sys".into(),
        subsystems: Vec::new(),
        properties: Vec::new(),
        action: "add",
        dry_run: false,
        wait: false,
        timeout: wire::PATIENCE,
        control: Some(Address::default()),
    };
    while let Some(argument) = parser.next()? {
        match argument {
            Long("subsystem") => options.subsystems.push(parser.value()?),
            Long("property") => {
                let property = parser.value()?;
                if !property.as_bytes().contains(&b'=') {
                    let shown = quoted(&property);
                    return Err(Fatal::Usage(format!("--property {shown}: expected KEY=VALUE")));
                }
                options.properties.push(property.into_vec());
            }
            Long("action") => {
                let known = |text: &str| ACTIONS.into_iter().find(|action| *action == text);
                let expected = "add, remove, change, move, online, offline, bind or unbind";
                options.action = options::value(&mut parser, "--action", expected, known)?;
            }
            Short('n') | Long("dry-run") => options.dry_run = true,
            Long("wait") => options.wait = true,
            Long("timeout") => {
                options.timeout =
                    options::value(&mut parser, "--timeout", SECONDS, options::seconds)?;
            }
            Long("sys") => options.sys = parser.value()?.into(),
            Long("control") => options.control = options::control(&parser.value()?)?,
            Short('v') | Long("verbose") => verbosity += 1,
            Short('h') | Long("help") => return Ok(Request::Help),
            Short('V') | Long("version") => return Ok(Request::Version),
            argument => return Err(argument.unexpected().into()),
        }
    }
    if options.wait && options.control.is_none() {
        return Err(Fatal::Usage("--wait needs a --control".into()));
    }
    logging::start(log_name, verbosity);
    let sys = open_sysfs(&options.sys)?;
    let listing = sys.list()?;
    listing.failed.iter().for_each(|failed| log::warn!("{failed}"));
    let scan = Scan::new(sys.clone(), listing);
    if options.dry_run {
        each_wanted(&options, scan, print_path)?;
        return Ok(Request::Done);
    }
    match trigger_all(&options, &sys, scan)? {
        Ok(()) => Ok(Request::Done),
        Err(why) => {
            complain(&format!("{log_name}: coldplug: {}\n", why.trim_end()));
            Ok(Request::Exit(EXIT_NO))
        }
    }
}

fn print_path(path: &[u8]) -> Result<(), Fatal> {
    print(&format!("{}\n", path.escape_ascii()));
    Ok(())
}

/// Has the kernel tell of all that is wanted. The inner error is plugd's refusal.
fn trigger_all(options: &Options, sys: &Sysfs, scan: Scan) -> Result<Result<(), String>, Fatal> {
    let batch = batch(options)?;
    let mut tally = Tally::default();
    // Since the daemon has settled; and those that are not asked for any more.
    let (mut at_once, mut left_out) = (0, 0_u64);
    let mut outcome = Ok(());
    each_wanted(options, scan, |path| {
        if outcome.is_err() {
            left_out += 1;
            return Ok(());
        }
        at_once += u64::from(tally.trigger(sys, path, options.action.as_bytes()));
        if batch.is_some_and(|batch| at_once >= batch) {
            at_once = 0;
            outcome = settle(options)?;
        }
        Ok(())
    })?;
    let asked = tally.finish()?;
    log::info!("had the kernel tell of {asked} devices");
    if outcome.is_ok() && options.wait {
        outcome = settle(options)?;
    }
    Ok(outcome.map_err(|why| match left_out {
        0 => why,
        _ => format!("{}; {left_out} devices are left out", why.trim_end()),
    }))
}

/// How many events fit into the daemon's receive buffer for sure; `None` if there
/// is no daemon.
fn batch(options: &Options) -> Result<Option<u64>, Fatal> {
    let Some(address) = &options.control else { return Ok(None) };
    let metrics = Connection::open(address, Some(options.timeout)).and_then(|mut connection| {
        connection.send(&["status", "--openmetrics"])?;
        connection.receive()
    });
    match metrics {
        Ok(reply) => {
            let line = reply.text.lines().find_map(|l| l.strip_prefix("plugd_queue_limit_bytes "));
            let limit: u64 = line.and_then(|number| number.parse().ok()).unwrap_or(0);
            Ok(Some((limit / 2 / GREATEST_COST).max(1)))
        }
        Err(failure) if options.wait => Err(no_daemon(&failure)),
        Err(failure) => {
            log::info!("{failure}: nobody tells how much is too much at once");
            Ok(None)
        }
    }
}

fn no_daemon(failure: &Failure) -> Fatal {
    Fatal::system("wait for plugd", std::io::Error::other(failure.to_string()))
}

/// Waits until all was acted on.
fn settle(options: &Options) -> Result<Result<(), String>, Fatal> {
    let Some(address) = &options.control else { return Ok(Ok(())) };
    let timeout = options.timeout.as_millis();
    let (seconds, rest) = (timeout / 1000, timeout % 1000);
    let reply = Connection::open(address, Some(options.timeout)).and_then(|mut connection| {
        connection.send(&["settle", "--timeout", &format!("{seconds}.{rest:03}")])?;
        connection.receive()
    });
    match reply {
        Ok(reply) if reply.outcome == Outcome::Ok => Ok(Ok(())),
        Ok(reply) => Ok(Err(reply.text)),
        Err(Failure::TimedOut) => Ok(Err("timed out".into())),
        Err(failure) => Err(no_daemon(&failure)),
    }
}

/// Calls `act` with the path of each device that is wanted.
fn each_wanted(
    options: &Options,
    mut scan: Scan,
    mut act: impl FnMut(&[u8]) -> Result<(), Fatal>,
) -> Result<(), Fatal> {
    let listing = Arc::clone(scan.listing());
    let mut datagram = Vec::new();
    for index in 0..listing.len() {
        let subsystem = listing.subsystem(index);
        let listed = options.subsystems.iter().any(|name| name.as_bytes() == subsystem);
        if !listed && !options.subsystems.is_empty() {
            continue;
        }
        if !options.properties.is_empty() {
            match scan.read(index, options.action, &mut datagram) {
                Ok(Some(_)) => {}
                Ok(None) => continue,
                Err(failed) => {
                    log::warn!("{failed}");
                    continue;
                }
            }
            let event = Uevent::parse(&datagram, Header::Required);
            let has = |event: &Uevent<'_>, property: &Vec<u8>| {
                event.fields().any(|field| field.whole().to_bytes() == *property)
            };
            if !event.is_ok_and(|event| options.properties.iter().all(|p| has(&event, p))) {
                continue;
            }
        }
        log::debug!("{}", listing.path(index).escape_ascii());
        act(listing.path(index))?;
    }
    Ok(())
}
