//! From what was asked for to a daemon that runs: what it needs is opened, by one that
//! goes on also taken over, before privileges are dropped and it says that it is ready.

use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, open, statx};
use rustix::process::{Gid, Uid, fchdir};

use crate::cmd::daemon_options::Prepared;
use crate::control::Address;
use crate::control::server::Server;
use crate::control::socket;
use crate::counters::Counters;
use crate::daemon;
use crate::engine::Engine;
use crate::error::Fatal;
use crate::handover::Handover;
use crate::r#loop::{Daemon, Setup};
use crate::netlink::{KERNEL_GROUP, Source};
use crate::notify::Notifier;
use crate::presence::Presence;
use crate::rebroadcast::{Multicast, Outlets, Output};
use crate::signals::Manner;
use crate::{status, sys};

use super::engine::status_of;
use super::options::{Options, Work};
use super::sources::inherited;

/// How long the reader of --output-fd may keep plugd waiting if programs may for ever.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(30);

/// Runs the daemon until it is asked to stop, and returns what it has counted;
/// `handover` is what the plugd before this one left, whose sockets for events
/// `sources` are.
pub(in crate::cmd) fn serve(
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
    let engine_status = status_of(engine, options);
    let recovery = options.recovery.settings(
        &options.sys,
        options.control.as_ref(),
        &actor(options, &engine_status, dev.as_ref()),
        options.manner != Manner::Nosh,
        matches!(options.work, Work::Rules { dry_run: true, .. }),
        handover.as_ref(),
    )?;
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
    // The start is most of the program. That this is so much better is no promise. (After
    // a comparison it is done anyway.)
    if !daemon.begins_by_comparing() {
        let _ = sys::forget_code();
    }
    let counters = daemon.run(engine).map_err(|e| Fatal::system("wait for what happens", e))?;
    log::info!("stopped: {counters}");
    Ok(counters)
}

/// What acts, and where: what another one has acted on is not done.
fn actor(options: &Options, engine: &status::Engine, dev: Option<&OwnedFd>) -> Vec<u8> {
    let mut actor = vec![engine.kind.as_bytes()];
    // Another directory at the same path has none of the nodes.
    let place = dev.and_then(place_of).unwrap_or_default();
    match &options.work {
        Work::Program(_, arguments) => {
            actor.extend([&b""[..], &engine.file]);
            actor.extend(arguments.iter().map(|a| a.as_encoded_bytes()));
        }
        Work::Rules { files, dry_run } => {
            // A dry run has acted on nothing.
            let acts = if *dry_run { &b"dry"[..] } else { b"" };
            actor.extend([acts, &engine.file, files.dev.as_os_str().as_encoded_bytes()]);
        }
    }
    actor.extend([place.as_bytes(), options.sys.as_os_str().as_encoded_bytes()]);
    actor.join(&0)
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
            result => {
                let server = result?;
                log::info!("listening on control socket {address}");
                Ok(Some(server))
            }
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
