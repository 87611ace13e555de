//! Where events come from: sockets that are opened here, or were handed to plugd.

use std::os::fd::{OwnedFd, RawFd};

use crate::cmd::own_pidfd_inode;
use crate::error::Fatal;
use crate::listen_fds;
use crate::netlink::{KERNEL_GROUP, Source};
use crate::sys;

use super::options::Options;

/// The size of the receive buffer to ask for, in bytes.
pub(in crate::cmd) const RECEIVE_BUFFER: usize = 128 << 20;

/// Those that the options name, or LISTEN_FDS; or else one for the kernel's events.
pub(super) fn chosen(options: &Options) -> Result<Vec<Source>, Fatal> {
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
pub(in crate::cmd) fn open_source(
    groups: u32,
    receive_buffer_size: Option<usize>,
) -> Result<Source, Fatal> {
    let size = receive_buffer_size.unwrap_or(RECEIVE_BUFFER);
    let (source, buffer) = Source::open_groups(groups, size)?;
    let whose = if groups == KERNEL_GROUP { "the kernel's" } else { "passed on" };
    log::info!("listening to {whose} uevents; receive buffer: {buffer}");
    Ok(source)
}

pub(super) fn require_credentials(sources: &mut [Source]) -> Result<(), Fatal> {
    sources
        .iter_mut()
        .try_for_each(Source::require_credentials)
        .map_err(|e| Fatal::system("have credentials passed", e))
}

/// The sockets that were named, or else handed over by LISTEN_FDS, if any.
pub(in crate::cmd) fn inherited_sources(named: &[RawFd]) -> Result<Option<Vec<Source>>, Fatal> {
    if !named.is_empty() {
        return named.iter().copied().map(adopt_source).collect::<Result<_, _>>().map(Some);
    }
    let variable = |name: &str| std::env::var_os(name);
    let range = listen_fds::inherited(variable, std::process::id(), own_pidfd_inode)
        .map_err(Fatal::Usage)?;
    range.map(|fds| fds.map(adopt_source).collect()).transpose()
}

/// Takes over an inherited socket.
pub(super) fn take_over(fd: RawFd) -> Result<Source, Fatal> {
    sys::adopt(fd)
        .and_then(Source::from_inherited)
        .map_err(|e| Fatal::system(format_args!("receive from file descriptor {fd}"), e))
}

/// The same, and says so.
pub(in crate::cmd) fn adopt_source(fd: RawFd) -> Result<Source, Fatal> {
    let source = take_over(fd)?;
    log::info!("reading from file descriptor {fd}");
    if source.is_in_vain() {
        log::warn!("file descriptor {fd}: not in the group that the kernel sends uevents to");
    }
    Ok(source)
}

/// A descriptor that the user says is there.
pub(in crate::cmd) fn inherited(fd: RawFd) -> Result<OwnedFd, Fatal> {
    sys::adopt(fd).map_err(|e| Fatal::system(format_args!("use file descriptor {fd}"), e))
}
