//! Device nodes: what they are, and who may use them.
//!
//! Somebody may tamper with the tree meanwhile. Therefore the owner and the
//! mode are set on a node that is held by a descriptor (with O_PATH, which
//! does not open the device) and was looked at through it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dev, FileType, Mode, OFlags, Stat, chownat, fstat, makedev, mknodat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::beneath::{Why, open_here};
use crate::plan::{Access, Kind, Node};
use crate::sys;

/// All bits of a mode that chmod(2) sets.
pub(super) const MODE_BITS: u32 = 0o7777;

/// What a node is, apart from who may use it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Special {
    pub(super) file_type: FileType,
    pub(super) device: Dev,
}

impl Special {
    pub(super) fn of(node: &Node<'_>) -> Self {
        let file_type = match node.kind {
            Kind::Block => FileType::BlockDevice,
            Kind::Character => FileType::CharacterDevice,
        };
        Self { file_type, device: makedev(node.device.major, node.device.minor) }
    }

    /// Whether that is what was found.
    pub(super) fn is(&self, stat: &Stat) -> bool {
        FileType::from_raw_mode(stat.st_mode) == self.file_type && stat.st_rdev == self.device
    }
}

pub(super) fn has_access(stat: &Stat, access: Access) -> bool {
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

pub(super) fn chmod(node: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    sys::chmod(node, mode).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// Makes a node that nobody may use yet, and then gives it to its owner.
/// `None` if the name is taken, or was taken by another file meanwhile.
pub(super) fn create_node(
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
pub(super) fn give(
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
