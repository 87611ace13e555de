//! The directories that this process made: those it removes when they are left empty.
//!
//! Nothing in a directory itself tells that on all file systems that may be a /dev, so it
//! is remembered, by its path and all that tells it from one that somebody makes there
//! later. The inode number alone does not: ext4 gives it again at once. A daemon that was
//! started anew, or updated, has forgotten it; then an empty directory stays, which harms
//! less than to remove one that an administrator made.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dev, Mode, Stat, StatxFlags, fstat, makedev, mkdirat, statat, statx, unlinkat,
};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::beneath::{Beneath, Directory, LOOK_UP, Why, open_here, split};

use super::Removed;
use super::special::{MODE_BITS, chmod};

/// The mode of directories that are made.
pub(super) const DIRECTORY_MODE: u32 = 0o755;

/// How many directories are remembered at most. Those that somebody else removes
/// are forgotten when there would be more.
pub(super) const DIRECTORIES_MAX: usize = 4096;

/// Those that were made.
#[derive(Debug, Default)]
pub(super) struct Directories {
    /// By their paths, with one `/` between two names.
    pub(super) by_path: BTreeMap<Box<[u8]>, Identity>,
}

impl Directories {
    /// Opens a directory, and makes it and those that it is in if need be.
    pub(super) fn open_or_make<'a>(
        &mut self,
        below: &'a Beneath,
        path: &[u8],
    ) -> Result<Directory<'a>, Why> {
        let made = &mut self.by_path;
        let path = plain(path);
        let ends = (0..path.len()).filter(|&at| path[at] == b'/').chain([path.len()]);
        let (mut directory, mut start) = (below.root(), 0);
        for end in ends {
            let next = open_or_make_one(directory.as_fd(), &path[start..end], |identity| {
                if made.len() >= DIRECTORIES_MAX {
                    made.retain(|path, ours| is_there(below, path, ours));
                }
                if made.len() < DIRECTORIES_MAX {
                    made.insert(path[..end].into(), identity);
                }
            })?;
            directory = Directory::Below(next);
            start = end + 1;
        }
        Ok(directory)
    }

    /// Removes the directories that `path` is in, from the innermost on, while
    /// they are ours and empty, or gone. That is all it is: an attempt.
    pub(super) fn remove_empty(&mut self, below: &Beneath, path: &[u8]) {
        if self.by_path.is_empty() {
            return;
        }
        let path = plain(path);
        let mut path = &*path;
        while let (Some(parent), _) = split(path) {
            let Some(ours) = self.by_path.get(parent) else { return };
            match remove_directory(below, parent, ours) {
                Ok(Removed::Removed | Removed::Absent) => {}
                Ok(Removed::NotOurs) => {
                    self.by_path.remove(parent);
                    return;
                }
                Err(_) => return,
            }
            self.by_path.remove(parent);
            path = parent;
        }
    }
}

/// What tells a directory from all others that have its path at other times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    file_system: Dev,
    pub(super) inode: u64,
    /// When it was made, in seconds and nanoseconds, where the file system and the
    /// kernel (Linux 4.11) tell, as ext4 does and newer tmpfs.
    pub(super) born: Option<(i64, u32)>,
    /// Who has taken it over has it as he likes.
    owner: u32,
    mode: u32,
}

impl Identity {
    /// Of a file in this directory, or with no name, of the directory.
    fn of(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Self, Errno> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::EMPTY_PATH;
        match statx(directory, name, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME) {
            Ok(found) => Ok(Self {
                file_system: makedev(found.stx_dev_major, found.stx_dev_minor),
                inode: found.stx_ino,
                born: (found.stx_mask & StatxFlags::BTIME.bits() != 0)
                    .then_some((found.stx_btime.tv_sec, found.stx_btime.tv_nsec)),
                owner: found.stx_uid,
                mode: found.stx_mode.into(),
            }),
            // A sandbox that does not know the call may say EPERM.
            Err(Errno::NOSYS | Errno::PERM) => {
                let found = statat(directory, name, flags)?;
                let Stat { st_dev, st_ino, st_uid, st_mode, .. } = found;
                let (file_system, inode, owner, mode) = (st_dev, st_ino, st_uid, st_mode);
                Ok(Self { file_system, inode, born: None, owner, mode })
            }
            Err(error) => Err(error),
        }
    }
}

/// The same path with one `/` between two names.
fn plain(path: &[u8]) -> Cow<'_, [u8]> {
    if !path.windows(2).any(|pair| pair == b"//") {
        return path.into();
    }
    let names: Vec<_> = path.split(|&b| b == b'/').filter(|name| !name.is_empty()).collect();
    names.join(&b'/').into()
}

fn remove_directory(below: &Beneath, path: &[u8], ours: &Identity) -> Result<Removed, Errno> {
    let remove = || {
        let (parent, name) = below.directory_of(path)?;
        if Identity::of(parent.as_fd(), name)? != *ours {
            return Ok(Removed::NotOurs);
        }
        unlinkat(&parent, name, AtFlags::REMOVEDIR).map(|()| Removed::Removed)
    };
    match remove() {
        Err(Errno::NOENT) => Ok(Removed::Absent),
        result => result,
    }
}

fn is_there(below: &Beneath, path: &[u8], ours: &Identity) -> bool {
    let found = below.directory_of(path);
    found.and_then(|(parent, name)| Identity::of(parent.as_fd(), name)) == Ok(*ours)
}

/// Opens a directory; one that it has to make is told to `remember`.
fn open_or_make_one(
    parent: BorrowedFd<'_>,
    name: &[u8],
    remember: impl FnOnce(Identity),
) -> Result<OwnedFd, Why> {
    match open_here(parent, name, LOOK_UP) {
        Err(Errno::NOENT) => {}
        result => return Ok(result?),
    }
    let made = mkdirat(parent, name, Mode::from_raw_mode(DIRECTORY_MODE));
    if !matches!(made, Err(Errno::EXIST)) {
        made?;
    }
    let directory = open_here(parent, name, LOOK_UP)?;
    let stat = fstat(&directory)?;
    // Else somebody else made it just now, or has put another there.
    if made.is_ok() && stat.st_uid == geteuid().as_raw() {
        // The file mode creation mask may have taken something away.
        if stat.st_mode & DIRECTORY_MODE != DIRECTORY_MODE {
            chmod(directory.as_fd(), stat.st_mode & MODE_BITS | DIRECTORY_MODE)?;
        }
        remember(Identity::of(directory.as_fd(), b"")?);
    }
    Ok(directory)
}
