//! Which devices are there: by a path below /sys, or by a node below /dev.
//!
//! Owns the two directories, open. Paths come from whoever asks, and are looked
//! up without leaving the directory's file system: nobody can have plugd wait
//! for a file system of theirs.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use crate::settle::Device;

/// Where devices are looked for.
#[derive(Debug)]
pub struct Presence {
    sys: Option<OwnedFd>,
    dev: Option<OwnedFd>,
}

impl Presence {
    /// Looks below these directories; where one is missing, nothing is there.
    pub fn below(sys: &Path, dev: &Path) -> Self {
        let open = |path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).ok()
        };
        Self { sys: open(sys), dev: open(dev) }
    }

    /// Whether the device is there: its directory in /sys has `uevent`, or there
    /// is something of its name in /dev, a link included. By fields: never.
    /// `None`: that cannot be told, as it is on another file system or may not be
    /// looked at.
    pub fn is_there(&self, device: &Device) -> Option<bool> {
        match device {
            Device::Path(path) => {
                let path = path.strip_prefix(b"/").unwrap_or(path);
                exists(self.sys.as_ref(), &[path, b"/uevent"].concat())
            }
            Device::Node(node) => exists(self.dev.as_ref(), node),
            Device::Fields(_) => None,
        }
    }
}

fn exists(root: Option<&OwnedFd>, path: &[u8]) -> Option<bool> {
    let Some(root) = root else { return Some(false) };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    let found = match openat2(root, path, flags, Mode::empty(), resolve) {
        // Before Linux 5.6; seccomp may know it as little.
        Err(Errno::NOSYS | Errno::PERM) => {
            rustix::fs::statat(root, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).map(drop)
        }
        result => result.map(drop),
    };
    match found {
        Ok(()) => Some(true),
        Err(Errno::NOENT | Errno::NOTDIR) => Some(false),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let devices = dir.path().join("sys/devices/virtual/x");
        fs::create_dir_all(&devices).unwrap();
        fs::write(devices.join("uevent"), "MAJOR=7\nDEVNAME=x/y\n").unwrap();
        fs::create_dir_all(dir.path().join("sys/class/net")).unwrap();
        symlink("../../devices/virtual/x", dir.path().join("sys/class/net/x")).unwrap();
        fs::create_dir_all(dir.path().join("dev/x")).unwrap();
        fs::write(dir.path().join("dev/x/y"), "").unwrap();
        symlink("x/nowhere", dir.path().join("dev/link")).unwrap();
        symlink(dir.path(), dir.path().join("dev/out")).unwrap();
        dir
    }

    #[test]
    fn paths_and_nodes_are_found() {
        let dir = tree();
        let presence = Presence::below(&dir.path().join("sys"), &dir.path().join("dev"));
        let path = |path: &str| presence.is_there(&Device::Path(path.into())).unwrap();
        assert!(path("/devices/virtual/x"));
        assert!(path("/class/net/x"));
        assert!(!path("/devices/virtual"));
        assert!(!path("/devices/virtual/y"));
        let look = |node: &str| presence.is_there(&Device::Node(node.into()));
        let node = |node: &str| look(node).unwrap();
        assert!(node("x/y"));
        assert!(node("link"));
        assert!(!node("x/z"));
        assert_eq!(look("out/sys"), None, "led out of the directory");
        assert_eq!(look("../sys"), None, "led out of the directory");
        let nowhere = Presence::below(&dir.path().join("none"), &dir.path().join("none"));
        assert_eq!(nowhere.is_there(&Device::Path("/devices/virtual/x".into())), Some(false));
    }
}
