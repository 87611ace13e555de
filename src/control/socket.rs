//! The socket that the daemon listens on: bound, or found to be somebody else's.
//!
//! Of several daemons that want the same address at once, one gets it.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net as std_net;
use std::path::Path;
use std::time::{Duration, Instant};

use mio::net::UnixStream;
use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, chownat, fstat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, geteuid};

use crate::sys;

use super::Address;
use super::client::Connection;
use super::peer::Peer;

/// How long to wait for the lock of a directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// How many may wait to be accepted. Who comes then waits in connect(2); whoever it is, those
/// before are accepted first.
pub(super) const BACKLOG: i32 = 128;

/// How long to wait to be one of them.
const HOLDER_PATIENCE: Duration = Duration::from_secs(1);

/// How long to wait until nothing is left of who listened there and has gone.
const REMNANT_PATIENCE: Duration = Duration::from_secs(1);

/// Binds and listens; see [`super::server::Server::bind`].
pub(super) fn bind(
    address: &Address,
    mode: Mode,
    owner: (Option<Uid>, Option<Gid>),
) -> io::Result<std_net::UnixListener> {
    let is_taken = |result: &io::Result<_>| {
        result.as_ref().is_err_and(|error: &io::Error| error.kind() == io::ErrorKind::AddrInUse)
    };
    let mut result = try_to_bind(address, mode, owner);
    if is_taken(&result) && is_remnant(address) {
        let deadline = Instant::now() + REMNANT_PATIENCE;
        while is_taken(&result) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            result = try_to_bind(address, mode, owner);
        }
    }
    result
}

fn try_to_bind(
    address: &Address,
    mode: Mode,
    owner: (Option<Uid>, Option<Gid>),
) -> io::Result<std_net::UnixListener> {
    match address {
        Address::Abstract(_) => listen(address),
        Address::Path(path) => bind_file(address, path, mode, owner),
    }
}

fn listen(address: &Address) -> io::Result<std_net::UnixListener> {
    let listener = std_net::UnixListener::bind_addr(&address.to_socket_address()?)?;
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
}

/// Binds a file, replacing one that nobody listens on. With the directory
/// locked: of two that find such a file at the same time, the second must find
/// the first's instead.
fn bind_file(
    address: &Address,
    path: &Path,
    mode: Mode,
    owner: (Option<Uid>, Option<Gid>),
) -> io::Result<std_net::UnixListener> {
    let directory = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("/"),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let lock = rustix::fs::open(directory, flags, Mode::empty())?;
    // Anybody who may read the directory can lock it, for ever; that must keep nobody from
    // starting.
    let deadline = Instant::now() + LOCK_PATIENCE;
    while let Err(error) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        if error != Errno::WOULDBLOCK {
            return Err(error.into());
        }
        if Instant::now() >= deadline {
            log::warn!("somebody has locked the directory of control socket {address}");
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // Nobody must be able to connect before the mode is set.
    let umask = rustix::process::umask(Mode::RWXU | Mode::RWXG | Mode::RWXO);
    let listener = match listen(address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_stale(address, path) => {
            rustix::fs::unlink(path).map_err(io::Error::from).and_then(|()| listen(address))
        }
        result => result,
    };
    rustix::process::umask(umask);
    let listener = listener?;
    open_to(path, mode, owner)?;
    Ok(listener)
}

/// Gives the socket that was just bound there its user, group and mode; not what somebody
/// may have put in its place, who can write to the directory.
fn open_to(path: &Path, mode: Mode, owner: (Option<Uid>, Option<Gid>)) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    let status = fstat(&file)?;
    let is_socket = FileType::from_raw_mode(status.st_mode) == FileType::Socket;
    if !is_socket || status.st_nlink != 1 || status.st_uid != geteuid().as_raw() {
        return Err(io::Error::other("another file has taken its place"));
    }
    if owner != (None, None) {
        chownat(&file, c"", owner.0, owner.1, AtFlags::EMPTY_PATH)?;
    }
    sys::chmod(file.as_fd(), mode.as_raw_mode())
}

/// Device and inode of a file; `None` if there is none.
pub(super) fn identity(path: &Path) -> Option<(u64, u64)> {
    rustix::fs::lstat(path).ok().map(|status| (status.st_dev, status.st_ino))
}

/// Whether it is a socket that nobody listens on.
fn is_stale(address: &Address, path: &Path) -> bool {
    let is_socket = rustix::fs::lstat(path)
        .is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Socket);
    // Without waiting: whoever listens there may have stopped, with others waiting already.
    let connected = address.to_socket_address().and_then(|it| UnixStream::connect_addr(&it));
    let refused = connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    is_socket && refused
}

/// Whether a user listens there who is neither root nor our own, or one who does not
/// say.
pub fn is_strangers(address: &Address) -> bool {
    holder(address).is_none_or(|peer| ![0, geteuid().as_raw()].contains(&peer.uid))
}

/// Whether who listened there has gone: a child of a plugd that was killed has its
/// sockets open until it executes its program. Where nobody listens any more, it has
/// done so just now.
fn is_remnant(address: &Address) -> bool {
    match (holder(address), address) {
        (Some(peer), _) => peer.has_ended(),
        (None, Address::Abstract(_)) => true,
        (None, Address::Path(path)) => is_stale(address, path),
    }
}

/// Who listens there, as far as it can be told.
pub(super) fn holder(address: &Address) -> Option<Peer> {
    Connection::open(address, Some(HOLDER_PATIENCE)).ok()?.peer().ok()
}
