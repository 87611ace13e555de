//! Device nodes and symbolic links below a /dev root.
//!
//! Owns the root, and knows which directories below it this process made:
//! those it removes when they are left empty. Nothing in a directory itself
//! tells that on all file systems that may be a /dev, so it is remembered, by
//! its path and all that tells it from one that somebody makes there later. The
//! inode number alone does not: ext4 gives it again at once. A daemon that was
//! started anew, or updated, has forgotten it; then an empty directory stays,
//! which harms less than to remove one that an administrator made.
//!
//! What replaces something else is made under a temporary name in the same directory,
//! as that may be there to hide it. What a kill leaves of it is looked for at the next
//! start, apart from what is mounted below, where nobody else can have put it.
//!
//! Somebody may tamper with the tree meanwhile. Therefore the owner and the
//! mode are set on a node that is held by a descriptor (with O_PATH, which
//! does not open the device) and was looked at through it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dev, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, StatxFlags, chownat, fstat,
    major, makedev, minor, mkdirat, mknodat, openat2, readlinkat_raw, renameat, stat, statat,
    statx, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, geteuid, getpid};

use crate::beneath::{Beneath, Directory, Failed, LOOK_UP, Why, check, open_here, split};
use crate::plan::{Access, Device, Kind, Link, MakeNode, Node};
use crate::sys;

/// The mode of directories that are made.
const DIRECTORY_MODE: u32 = 0o755;

/// All bits of a mode that chmod(2) sets.
const MODE_BITS: u32 = 0o7777;

/// How often to begin again when somebody else changes the same name.
const ATTEMPTS: u32 = 32;

/// Where a directory has these bits, others can make files in it.
const OTHERS_WRITE: u32 = 0o022;

/// What a temporary name begins with. A process id follows, and a number.
const TEMPORARY: &str = ".plugd.";

/// How many directories are remembered at most. Those that somebody else removes
/// are forgotten when there would be more.
const DIRECTORIES_MAX: usize = 4096;

/// How a node or link came to be as asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// There was none.
    Created,
    /// Something else was there, and is gone.
    Replaced,
    /// It was there, with another owner or mode.
    Adjusted,
    /// It was there, just so.
    Unchanged,
}

/// What became of something to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// It was there, and is gone.
    Removed,
    /// It was gone already.
    Absent,
    /// There is something else by that name, which was left alone.
    NotOurs,
}

/// The device that a file system is on, if it is on just one that has a name:
/// of btrfs, overlayfs or NFS the numbers belong to no device (major 0).
///
/// # Errors
/// Those of stat(2).
pub fn device_of(mount_point: &Path) -> Result<Option<Device>, Errno> {
    let device = stat(mount_point)?.st_dev;
    let device = Device { major: major(device), minor: minor(device) };
    Ok((device.major != 0).then_some(device))
}

/// What a node is, apart from who may use it.
#[derive(Debug, Clone, Copy)]
struct Special {
    file_type: FileType,
    device: Dev,
}

impl Special {
    fn of(node: &Node<'_>) -> Self {
        let file_type = match node.kind {
            Kind::Block => FileType::BlockDevice,
            Kind::Character => FileType::CharacterDevice,
        };
        Self { file_type, device: makedev(node.device.major, node.device.minor) }
    }

    fn is(&self, stat: &Stat) -> bool {
        FileType::from_raw_mode(stat.st_mode) == self.file_type && stat.st_rdev == self.device
    }
}

fn has_access(stat: &Stat, access: Access) -> bool {
    stat.st_mode & MODE_BITS == access.mode
        && (stat.st_uid, stat.st_gid) == (access.owner, access.group)
}

/// Sets owner and mode of an open node. Between, it has neither a permission
/// that is not asked for nor one that its last owner alone should have had.
fn set_access(node: BorrowedFd<'_>, stat: &Stat, access: Access) -> Result<(), Why> {
    // -1 means no change to chown(2).
    if access.owner == u32::MAX || access.group == u32::MAX {
        return Err(Errno::INVAL.into());
    }
    let mut mode = stat.st_mode & MODE_BITS;
    if (stat.st_uid, stat.st_gid) != (access.owner, access.group) {
        if mode & access.mode != mode {
            mode &= access.mode;
            chmod(node, mode)?;
        }
        let (owner, group) = (Uid::from_raw(access.owner), Gid::from_raw(access.group));
        chownat(node, c"", Some(owner), Some(group), AtFlags::EMPTY_PATH)?;
        // These chown(2) takes away, or may.
        mode &= 0o1777;
    }
    if mode != access.mode {
        chmod(node, access.mode)?;
    }
    Ok(())
}

fn chmod(node: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    sys::chmod(node, mode).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Makes a node that nobody may use yet, and then gives it to its owner.
/// `None` if the name is taken, or was taken by another file meanwhile.
fn create_node(
    directory: BorrowedFd<'_>,
    name: &[u8],
    special: Special,
    access: Access,
) -> Result<Option<()>, Why> {
    match mknodat(directory, name, special.file_type, Mode::empty(), special.device) {
        Err(Errno::EXIST) => return Ok(None),
        result => result?,
    }
    give(directory, name, special, access)
}

/// Gives a node to its owner. `None` if there is another file by now.
fn give(
    directory: BorrowedFd<'_>,
    name: &[u8],
    special: Special,
    access: Access,
) -> Result<Option<()>, Why> {
    let Some((node, stat)) = hold(directory, name, special)? else { return Ok(None) };
    set_access(node.as_fd(), &stat, access).map(Some)
}

/// Holds a node, if it is that one.
fn hold(
    directory: BorrowedFd<'_>,
    name: &[u8],
    special: Special,
) -> Result<Option<(OwnedFd, Stat)>, Errno> {
    let node = match open_here(directory, name, OFlags::PATH) {
        Err(Errno::NOENT) => return Ok(None),
        node => node?,
    };
    let stat = fstat(&node)?;
    Ok(special.is(&stat).then_some((node, stat)))
}

/// What is in a symbolic link; `INVAL` if it is none, as readlink(2) has it.
fn leads_to(directory: BorrowedFd<'_>, name: &[u8], target: &[u8]) -> Result<bool, Errno> {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let (found, _) = readlinkat_raw(directory, name, &mut buffer)?;
    Ok(found == target)
}

/// What tells a directory from all others that have its path at other times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    file_system: Dev,
    inode: u64,
    /// When it was made, in seconds and nanoseconds, where the file system and the
    /// kernel (Linux 4.11) tell, as ext4 does and newer tmpfs.
    born: Option<(i64, u32)>,
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

/// A /dev root.
#[derive(Debug)]
pub struct DevRoot {
    below: Beneath,
    /// The directories made, by their paths, with one `/` between two names.
    made: BTreeMap<Box<[u8]>, Identity>,
}

impl DevRoot {
    /// The directory `root`, which may be open with O_PATH.
    pub fn new(root: OwnedFd) -> Self {
        Self::with(Beneath::new(root))
    }

    /// The directory at `path`, which is trusted: links are followed on the way.
    /// Removes what a process left there that was killed while it was replacing
    /// something; a living one that this happens to makes it anew.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> Result<Self, Errno> {
        let root = Self::with(Beneath::open_root(path)?);
        // They are there for nobody; that some stay is no reason not to go on.
        let _ = remove_leftovers(&root.below);
        Ok(root)
    }

    fn with(below: Beneath) -> Self {
        Self { below, made: BTreeMap::new() }
    }

    /// Sees to it that a device node exists, with this owner and mode, and
    /// that the directories on the way to it do. Whatever else has its name,
    /// and is no directory, is replaced, so that the name is never free.
    ///
    /// # Errors
    /// If the name is refused, or a system call fails; then the node may be
    /// there with fewer permissions than asked for.
    pub fn make_node(&mut self, make: &MakeNode<'_>) -> Result<Made, Failed> {
        let path = make.node.path.to_bytes();
        self.make_special(path, Special::of(&make.node), make.access)
            .map_err(|why| Failed::new("make device node", path, why))
    }

    /// Sees to it that a symbolic link exists; else as [`DevRoot::make_node`].
    ///
    /// # Errors
    /// If the name is refused, or a system call fails.
    pub fn make_link(&mut self, link: &Link<'_>) -> Result<Made, Failed> {
        let (path, target) = (link.path.to_bytes(), link.target.to_bytes());
        self.make_link_to(path, target).map_err(|why| Failed::new("make link", path, why))
    }

    /// Removes a device node, if there is one of this kind and number, and the
    /// directories that it leaves empty, as far as this process made them.
    ///
    /// # Errors
    /// If the name is refused, or a system call fails.
    pub fn remove_node(&mut self, node: &Node<'_>) -> Result<Removed, Failed> {
        let path = node.path.to_bytes();
        self.remove_special(path, Special::of(node))
            .map_err(|why| Failed::new("remove device node", path, why))
    }

    /// Removes a symbolic link, if it holds this target; else as
    /// [`DevRoot::remove_node`].
    ///
    /// # Errors
    /// If the name is refused, or a system call fails.
    pub fn remove_link(&mut self, link: &Link<'_>) -> Result<Removed, Failed> {
        let (path, target) = (link.path.to_bytes(), link.target.to_bytes());
        let is_ours =
            |directory: BorrowedFd<'_>, name: &[u8]| match leads_to(directory, name, target) {
                Err(Errno::INVAL) => Ok(false),
                result => result,
            };
        self.remove(path, is_ours).map_err(|why| Failed::new("remove link", path, why))
    }

    fn make_special(&mut self, path: &[u8], special: Special, access: Access) -> Result<Made, Why> {
        check(path)?;
        until_settled(|| {
            let place = self.place(path)?;
            let (directory, name) = (place.directory.as_fd(), place.name);
            match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if special.is(&stat) => {
                    if has_access(&stat, access) {
                        return Ok(Some(Made::Unchanged));
                    }
                    let given = give(directory, name, special, access)?;
                    Ok(given.map(|()| Made::Adjusted))
                }
                Ok(_) => {
                    place.replace(|temporary| create_node(directory, temporary, special, access))
                }
                Err(Errno::NOENT) => create_node(directory, name, special, access)
                    .map(|made| made.map(|()| Made::Created)),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn make_link_to(&mut self, path: &[u8], target: &[u8]) -> Result<Made, Why> {
        check(path)?;
        until_settled(|| {
            let place = self.place(path)?;
            let (directory, name) = (place.directory.as_fd(), place.name);
            match leads_to(directory, name, target) {
                Ok(true) => Ok(Some(Made::Unchanged)),
                Ok(false) | Err(Errno::INVAL) => {
                    place.replace(|temporary| create_link(directory, temporary, target))
                }
                Err(Errno::NOENT) => {
                    create_link(directory, name, target).map(|made| made.map(|()| Made::Created))
                }
                Err(error) => Err(error.into()),
            }
        })
    }

    fn remove_special(&mut self, path: &[u8], special: Special) -> Result<Removed, Why> {
        self.remove(path, |directory, name| {
            Ok(special.is(&statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?))
        })
    }

    fn remove(
        &mut self,
        path: &[u8],
        is_ours: impl FnOnce(BorrowedFd<'_>, &[u8]) -> Result<bool, Errno>,
    ) -> Result<Removed, Why> {
        check(path)?;
        let remove = || {
            let (directory, name) = self.below.directory_of(path)?;
            if !is_ours(directory.as_fd(), name)? {
                return Ok(Removed::NotOurs);
            }
            unlinkat(&directory, name, AtFlags::empty()).map(|()| Removed::Removed)
        };
        let removed = match remove() {
            Err(Errno::NOENT) => Removed::Absent,
            result => result?,
        };
        if removed != Removed::NotOurs {
            self.remove_directories(path);
        }
        Ok(removed)
    }

    /// Removes the directories that `path` is in, from the innermost on, while
    /// they are ours and empty, or gone. That is all it is: an attempt.
    fn remove_directories(&mut self, path: &[u8]) {
        if self.made.is_empty() {
            return;
        }
        let path = plain(path);
        let mut path = &*path;
        while let (Some(parent), _) = split(path) {
            let Some(ours) = self.made.get(parent) else { return };
            match remove_directory(&self.below, parent, ours) {
                Ok(Removed::Removed | Removed::Absent) => {}
                Ok(Removed::NotOurs) => {
                    self.made.remove(parent);
                    return;
                }
                Err(_) => return,
            }
            self.made.remove(parent);
            path = parent;
        }
    }

    /// The place of a file, whose directory is made if need be.
    fn place<'n>(&mut self, path: &'n [u8]) -> Result<Place<'_, 'n>, Why> {
        let (parent, name) = split(path);
        let Self { below, made } = self;
        let directory = match parent.map(|parent| (parent, below.open(parent, LOOK_UP))) {
            None => below.root(),
            Some((_, Ok(directory))) => Directory::Below(directory),
            Some((parent, Err(Errno::NOENT))) => make_directories(below, made, parent)?,
            Some((_, Err(error))) => return Err(error.into()),
        };
        Ok(Place { directory, name })
    }
}

/// Where a node or link is, or is to be made.
struct Place<'a, 'n> {
    directory: Directory<'a>,
    /// In that directory.
    name: &'n [u8],
}

impl Place<'_, '_> {
    /// Makes something under a temporary name, and renames it. `make` says `None`
    /// if the name is taken.
    fn replace(
        &self,
        make: impl Fn(&[u8]) -> Result<Option<()>, Why>,
    ) -> Result<Option<Made>, Why> {
        let directory = &self.directory;
        for number in 0..ATTEMPTS {
            let temporary = format!("{TEMPORARY}{}.{number}", getpid().as_raw_nonzero());
            let temporary = temporary.as_bytes();
            let made = match make(temporary) {
                Ok(None) => continue,
                Ok(Some(())) => {
                    renameat(directory, temporary, directory, self.name).map_err(Why::from)
                }
                Err(error) => Err(error),
            };
            if made.is_err() {
                let _ = unlinkat(directory, temporary, AtFlags::empty());
            }
            return made.map(|()| Some(Made::Replaced));
        }
        Ok(None)
    }
}

/// Removes what has a temporary name and is what may get one. What is mounted below is
/// not even opened: there may be nobody who answers. (Nor is any directory below on Linux
/// before 5.6, which has no openat2.)
fn remove_leftovers(below: &Beneath) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let open = |parent: BorrowedFd<'_>, name: &[u8]| {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat2(parent, name, flags, Mode::empty(), ResolveFlags::NO_XDEV)
    };
    let mut left = vec![open_here(below.root().as_fd(), b".", flags)?];
    while let Some(directory) = left.pop() {
        let found = fstat(&directory)?;
        if found.st_uid != geteuid().as_raw() || found.st_mode & OTHERS_WRITE != 0 {
            continue;
        }
        let mut buffer = Vec::with_capacity(4096);
        let mut entries = RawDir::new(&directory, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            match entry.file_type() {
                FileType::Directory if !matches!(name, b"." | b"..") => {
                    // It may be gone by now.
                    left.extend(open(directory.as_fd(), name));
                }
                FileType::Symlink | FileType::CharacterDevice | FileType::BlockDevice
                    if is_temporary(name) =>
                {
                    let _ = unlinkat(&directory, name, AtFlags::empty());
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn is_temporary(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(TEMPORARY.as_bytes()) else { return false };
    rest.iter().all(|&b| b.is_ascii_digit() || b == b'.')
}

fn make_directories<'a>(
    below: &'a Beneath,
    made: &mut BTreeMap<Box<[u8]>, Identity>,
    path: &[u8],
) -> Result<Directory<'a>, Why> {
    let path = plain(path);
    let ends = (0..path.len()).filter(|&at| path[at] == b'/').chain([path.len()]);
    let (mut directory, mut start) = (below.root(), 0);
    for end in ends {
        let next = open_or_make_directory(directory.as_fd(), &path[start..end], |identity| {
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
fn open_or_make_directory(
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

/// Makes a link. `None` if the name is taken.
fn create_link(directory: BorrowedFd<'_>, name: &[u8], target: &[u8]) -> Result<Option<()>, Why> {
    match symlinkat(target, directory, name) {
        Err(Errno::EXIST) => Ok(None),
        result => Ok(Some(result?)),
    }
}

/// Begins again as long as `make` finds that somebody else is changing the
/// same names: it says `None`, or that something is gone that was there.
fn until_settled<T>(mut make: impl FnMut() -> Result<Option<T>, Why>) -> Result<T, Why> {
    let mut why = Why::KeepsChanging;
    for _ in 0..ATTEMPTS {
        match make() {
            Ok(Some(made)) => return Ok(made),
            Ok(None) => why = Why::KeepsChanging,
            Err(gone @ Why::System(Errno::NOENT)) => why = gone,
            Err(error) => return Err(error),
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests;
