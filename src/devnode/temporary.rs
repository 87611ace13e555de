//! Temporary names, which what replaces something else has at first.
//!
//! What a kill leaves of it is looked for at the next start, apart from what is mounted
//! below, where nobody else can have put it.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, fstat, openat2, unlinkat};
use rustix::io::Errno;
use rustix::process::{geteuid, getpid};

use crate::beneath::{Beneath, open_here};

/// What a temporary name begins with. A process id follows, and a number.
const TEMPORARY: &str = ".plugd.";

/// Where a directory has these bits, others can make files in it.
const OTHERS_WRITE: u32 = 0o022;

/// One of this process's.
pub(super) fn name(number: u32) -> String {
    format!("{TEMPORARY}{}.{number}", getpid().as_raw_nonzero())
}

/// Removes what has a temporary name and is what may get one. What is mounted below is
/// not even opened: there may be nobody who answers. (Nor is any directory below on Linux
/// before 5.6, which has no openat2.)
pub(super) fn remove_leftovers(below: &Beneath) -> Result<(), Errno> {
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
