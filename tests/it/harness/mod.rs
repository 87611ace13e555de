//! What the tests stand on.

pub(crate) mod background;
pub(crate) mod daemon;
pub(crate) mod inject;
pub(crate) mod ns;
pub(crate) mod os;
pub(crate) mod stranger;
pub(crate) mod unix;

#[path = "../../common/mod.rs"]
mod common;

pub(crate) use common::*;

use std::os::unix::fs::symlink;

use tempfile::TempDir;

/// The names that plugd is called by, its own first.
pub(crate) const NAMES: [&str; 8] = [
    "plugd",
    "plug-and-play-event-handler",
    "netlink-datagram-socket-listen",
    "daemon-control",
    "ucw-daemon-control",
    "mdevd",
    "mdevd-netlink",
    "mdevd-coldplug",
];

/// A directory with plugd under all of its names.
pub(crate) fn programs() -> TempDir {
    let programs = tempfile::tempdir().unwrap();
    for name in NAMES {
        symlink(PLUGD, programs.path().join(name)).unwrap();
    }
    programs
}
