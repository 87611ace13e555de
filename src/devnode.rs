//! Device nodes and symbolic links below a /dev root.
//!
//! Owns the root, and knows which directories below it this process made. What a node
//! is, and how it gets its owner and mode, is in `special`; what becomes of directories
//! in `directories`.
//!
//! What replaces something else is made under a temporary name in the same directory
//! (`temporary`), as that may be there to hide it.

mod directories;
mod special;
mod temporary;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, major, minor, readlinkat_raw, renameat, stat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::beneath::{Beneath, Directory, Failed, LOOK_UP, Why, check, split};
use crate::plan::{Access, Device, Link, MakeNode, Node};

use self::directories::Directories;
use self::special::{Special, create_node, give, has_access};

/// How often to begin again when somebody else changes the same name.
const ATTEMPTS: u32 = 32;

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

/// What is in a symbolic link; `INVAL` if it is none, as readlink(2) has it.
fn leads_to(directory: BorrowedFd<'_>, name: &[u8], target: &[u8]) -> Result<bool, Errno> {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let (found, _) = readlinkat_raw(directory, name, &mut buffer)?;
    Ok(found == target)
}

/// A /dev root.
#[derive(Debug)]
pub struct DevRoot {
    below: Beneath,
    made: Directories,
    /// There was none by the name of the last node: likely there is none by that of the
    /// next one, so to look for it first takes time for nothing. With devtmpfs there
    /// mostly is.
    expects_none: bool,
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
        let _ = temporary::remove_leftovers(&root.below);
        Ok(root)
    }

    fn with(below: Beneath) -> Self {
        Self { below, made: Directories::default(), expects_none: false }
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
        let mut expects_none = self.expects_none;
        let made = until_settled(|| {
            let place = self.place(path)?;
            let (directory, name) = (place.directory.as_fd(), place.name);
            // If it fails, what is there tells whether that is an error.
            if expects_none && matches!(create_node(directory, name, special, access), Ok(Some(())))
            {
                return Ok(Some(Made::Created));
            }
            let found = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
            expects_none = matches!(found, Err(Errno::NOENT));
            match found {
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
        });
        self.expects_none = expects_none;
        made
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
            self.made.remove_empty(&self.below, path);
        }
        Ok(removed)
    }

    /// The place of a file, whose directory is made if need be.
    fn place<'n>(&mut self, path: &'n [u8]) -> Result<Place<'_, 'n>, Why> {
        let (parent, name) = split(path);
        let Self { below, made, .. } = self;
        let directory = match parent.map(|parent| (parent, below.open(parent, LOOK_UP))) {
            None => below.root(),
            Some((_, Ok(directory))) => Directory::Below(directory),
            Some((parent, Err(Errno::NOENT))) => made.open_or_make(below, parent)?,
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
            let temporary = temporary::name(number);
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
