//! Which devices are there: by a path below /sys, or by a node below /dev.
//!
//! Owns the paths of the two directories, which may be mounted after plugd has
//! started. What is asked for is looked up without leaving the directory, and on file
//! systems of the kernel's own memory only: nobody can have plugd wait for a file
//! system of theirs.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2, readlink};
use rustix::io::Errno;

use crate::settle::Device;

/// File systems that answer at once, whoever mounted them. What is mounted on /dev, or
/// below it, is one of these on a usual machine.
const PROMPT: [&[u8]; 4] = [b"devtmpfs", b"tmpfs", b"ramfs", b"devpts"];

/// Where devices are looked for.
#[derive(Debug)]
pub struct Presence {
    sys: PathBuf,
    dev: PathBuf,
}

impl Presence {
    /// Looks below these directories, given by absolute paths; while one is missing,
    /// nothing is there.
    pub fn below(sys: &Path, dev: &Path) -> Self {
        Self { sys: sys.into(), dev: dev.into() }
    }

    /// Whether the device is there: its directory in /sys has `uevent`, or there
    /// is something of its name in /dev, a link included. By fields: never.
    /// `None`: that cannot be told, as it is on a file system that might not answer, or
    /// may not be looked at.
    pub fn is_there(&self, device: &Device) -> Option<bool> {
        match device {
            Device::Path(path) => {
                let path = path.strip_prefix(b"/").unwrap_or(path);
                exists(&self.sys, &[path, b"/uevent"].concat())
            }
            Device::Node(node) => exists(&self.dev, node),
            Device::Fields(_) => None,
        }
    }
}

fn exists(root: &Path, path: &[u8]) -> Option<bool> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(root, flags, Mode::empty()) {
        Ok(root) => exists_below(&root, path),
        Err(error) => is_missing(error),
    }
}

/// What an error of a look-up says.
fn is_missing(error: Errno) -> Option<bool> {
    matches!(error, Errno::NOENT | Errno::NOTDIR).then_some(false)
}

fn exists_below(root: &OwnedFd, path: &[u8]) -> Option<bool> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(_) => Some(true),
        Err(Errno::XDEV) => exists_beyond(root, path),
        // Before Linux 5.6; seccomp may know it as little.
        Err(Errno::NOSYS | Errno::PERM) => {
            let found = rustix::fs::statat(root, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
            found.map_or_else(is_missing, |_| Some(true))
        }
        Err(error) => is_missing(error),
    }
}

/// The same for a path that leads out of the file system: looked up from the mount
/// on, if it is one below the directory.
fn exists_beyond(root: &OwnedFd, path: &[u8]) -> Option<bool> {
    let root = readlink(format!("/proc/self/fd/{}", root.as_raw_fd()), Vec::new()).ok()?;
    let root = root.to_bytes();
    let path = [root.strip_suffix(b"/").unwrap_or(root), b"/", path].concat();
    let mounts = fs::read("/proc/self/mountinfo").ok()?;
    let mount = last_mount(&mounts, root, &path)?;
    let Some(rest) = path[mount.len()..].strip_prefix(b"/") else { return Some(true) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mount = OsStr::from_bytes(&mount);
    match openat2(CWD, mount, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        Ok(mount) => exists_below(&mount, rest),
        Err(error) => is_missing(error),
    }
}

/// Of the mounts below `root` that lead to `path`, or are there, the last one, by
/// /proc/PID/mountinfo (proc_pid_mountinfo(5)). `None` if there is none, or one on the
/// way might not answer.
fn last_mount(mountinfo: &[u8], root: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    let mut last = Vec::new();
    for line in mountinfo.split(|&b| b == b'\n') {
        let mut fields = line.split(|&b| b == b' ');
        let point = unescaped(fields.nth(4).unwrap_or_default());
        // Optional fields end with a dash.
        let kind = fields.skip_while(|field| *field != b"-").nth(1).unwrap_or_default();
        let rest = path.strip_prefix(&point[..]).filter(|_| point.len() > root.len());
        match rest {
            Some([]) => return Some(point),
            Some([b'/', ..]) if !PROMPT.contains(&kind) => return None,
            Some([b'/', ..]) if point.len() > last.len() => last = point,
            _ => {}
        }
    }
    (!last.is_empty()).then_some(last)
}

/// A path as it is, where a blank is written as a backslash and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        rest = match (first, after) {
            (b'\\', [high @ b'0'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7', after @ ..]) => {
                path.push((high - b'0') << 6 | (middle - b'0') << 3 | (low - b'0'));
                after
            }
            _ => {
                path.push(*first);
                after
            }
        };
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn a_directory_may_come_late() {
        let dir = tempfile::tempdir().unwrap();
        let presence = Presence::below(&dir.path().join("sys"), &dir.path().join("dev"));
        let node = Device::Node(b"x".into());
        assert_eq!(presence.is_there(&node), Some(false));
        fs::create_dir(dir.path().join("dev")).unwrap();
        fs::write(dir.path().join("dev/x"), "").unwrap();
        assert_eq!(presence.is_there(&node), Some(true));
        fs::rename(dir.path().join("dev"), dir.path().join("old")).unwrap();
        fs::create_dir(dir.path().join("dev")).unwrap();
        assert_eq!(presence.is_there(&node), Some(false));
    }

    #[test]
    fn only_prompt_mounts_are_looked_at() {
        const MOUNTS: &[u8] = b"22 1 0:5 / /dev rw,nosuid shared:2 - devtmpfs dev rw
23 22 0:21 / /dev/pts rw shared:3 master:1 - devpts devpts rw
24 22 0:22 / /dev/a\\040b rw - tmpfs none rw
25 24 0:23 / /dev/a\\040b/c rw - tmpfs none rw
26 22 0:24 / /dev/shm rw - tmpfs shm rw
27 26 0:25 / /dev/shm/theirs rw - fuse.sshfs them rw
28 27 0:26 / /dev/shm/theirs/x rw - tmpfs none rw
29 22 0:5 /null /dev/null rw - ext4 /dev/sda rw
30 1 0:5 / /developers rw - nfs x rw
";
        let last = |path: &str| {
            let mount = last_mount(MOUNTS, b"/dev", path.as_bytes());
            mount.map(|mount| String::from_utf8(mount).unwrap())
        };
        for (path, mount) in [
            ("/dev/x", None),
            ("/dev/pts/0", Some("/dev/pts")),
            ("/dev/ptsx/0", None),
            ("/dev/a b/c/d/e", Some("/dev/a b/c")),
            ("/dev/a b/x", Some("/dev/a b")),
            ("/dev/shm/x", Some("/dev/shm")),
            ("/dev/shm/theirs/y", None),
            ("/dev/shm/theirs/x/y", None),
            ("/dev/shm/theirs", Some("/dev/shm/theirs")),
            ("/dev/null", Some("/dev/null")),
            ("/dev/null/x", None),
        ] {
            assert_eq!(last(path).as_deref(), mount, "{path}");
        }
    }
}
