//! Where a PID file and a guard file may be: in no place where somebody else
//! could have us write to what is not ours, or put another file instead.
//!
//! Nobody else is to have a hand in it but root. Of groups, that is root's and
//! the own one: a user's files are often writable by the group of that user
//! alone.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

/// As many as the kernel follows (MAXSYMLINKS).
const LINKS_MAX: u32 = 40;

/// For whom a place has to be safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Own {
    user: u32,
    group: u32,
}

impl Own {
    /// Who this process is (its effective ids).
    pub(super) fn now() -> Self {
        Self { user: geteuid().as_raw(), group: getegid().as_raw() }
    }

    pub(super) fn trusts_user(self, user: u32) -> bool {
        user == 0 || user == self.user
    }

    fn trusts_group(self, group: u32) -> bool {
        group == 0 || group == self.group
    }

    /// Why a file of this kind is no PID file of ours.
    pub(super) fn why_no_pid_file(self, status: &Stat) -> Option<&'static str> {
        self.why_shared(status).or_else(|| self.why_foreign(status))
    }

    /// Why what is in a PID file may be not only its owner's doing.
    pub(super) fn why_shared(self, status: &Stat) -> Option<&'static str> {
        why_open_to_all(status)
            .or_else(|| self.is_group_writable(status).then_some("another group can write it"))
    }

    /// Why a file of this kind is no guard of ours. That a group can write it is
    /// how its members are given leave to act.
    pub(super) fn why_no_guard(self, status: &Stat) -> Option<&'static str> {
        why_open_to_all(status).or_else(|| self.why_foreign(status))
    }

    fn why_foreign(self, status: &Stat) -> Option<&'static str> {
        (!self.trusts_user(status.st_uid)).then_some("it belongs to another user")
    }

    fn is_group_writable(self, status: &Stat) -> bool {
        mode(status).contains(Mode::WGRP) && !self.trusts_group(status.st_gid)
    }

    /// Why somebody else could replace what is in such a directory.
    fn why_no_directory(self, status: &Stat) -> Option<&'static str> {
        if !self.trusts_user(status.st_uid) {
            Some("its directory belongs to another user")
        } else if mode(status).contains(Mode::SVTX) {
            None
        } else if mode(status).contains(Mode::WOTH) {
            Some("others can write its directory, which is not sticky")
        } else if self.is_group_writable(status) {
            Some("another group can write its directory, which is not sticky")
        } else {
            None
        }
    }
}

fn why_open_to_all(status: &Stat) -> Option<&'static str> {
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        Some("it is no regular file")
    } else if status.st_nlink > 1 {
        Some("it is a link, or has one")
    } else if mode(status).contains(Mode::WOTH) {
        Some("others can write it")
    } else {
        None
    }
}

fn mode(status: &Stat) -> Mode {
    Mode::from_raw_mode(status.st_mode)
}

/// The directory that a file is in, opened (O_PATH), and its name there.
///
/// # Errors
/// If somebody else could replace the file there, or has made a symbolic link
/// that leads there; those of openat(2).
pub(super) fn directory_of(path: &Path) -> io::Result<(OwnedFd, &OsStr)> {
    let name = path.file_name().ok_or(Errno::ISDIR)?;
    let own = Own::now();
    let directory = walk(path.parent().unwrap_or(Path::new("")), own)?;
    match own.why_no_directory(&fstat(&directory)?) {
        None => Ok((directory, name)),
        Some(why) => Err(io::Error::other(why)),
    }
}

/// Whether this is still the file that others find there: a lock on one that was
/// removed or replaced is of no use.
///
/// # Errors
/// Those of [`directory_of`] and of fstatat(2).
pub(super) fn is_still_there(path: &Path, file: &Stat) -> io::Result<bool> {
    let (directory, name) = directory_of(path)?;
    match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(now) => Ok(is_same(&now, file)),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// Opens a directory; symbolic links on the way have to be root's or our own.
/// (The kernel sees to that in sticky directories only, and only if it is told
/// to: fs.protected_symlinks in proc_sys_fs(5).)
fn walk(path: &Path, own: Own) -> io::Result<OwnedFd> {
    let directory_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let link_flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut directory = openat(CWD, ".", directory_flags, Mode::empty())?;
    let mut left = parts(path);
    let mut links = 0;
    while let Some(part) = left.pop_front() {
        match openat(&directory, &part, directory_flags, Mode::empty()) {
            Ok(next) => {
                directory = next;
                continue;
            }
            Err(Errno::NOTDIR) => {}
            Err(error) => return Err(error.into()),
        }
        let link = openat(&directory, &part, link_flags, Mode::empty())?;
        let status = fstat(&link)?;
        if FileType::from_raw_mode(status.st_mode) != FileType::Symlink {
            return Err(Errno::NOTDIR.into());
        }
        if !own.trusts_user(status.st_uid) {
            let text = "a symbolic link on the way there belongs to another user";
            return Err(io::Error::other(text));
        }
        links += 1;
        if links > LINKS_MAX {
            return Err(Errno::LOOP.into());
        }
        let target = OsString::from_vec(readlinkat(&link, "", Vec::new())?.into_bytes());
        for part in parts(Path::new(&target)).into_iter().rev() {
            left.push_front(part);
        }
    }
    Ok(directory)
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components().map(Component::as_os_str).map(ToOwned::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::stat;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    const ANN: Own = Own { user: 7, group: 8 };

    fn status(path: &Path, user: u32, group: u32, permissions: u32) -> Stat {
        fs::set_permissions(path, fs::Permissions::from_mode(permissions)).unwrap();
        let mut status = stat(path).unwrap();
        (status.st_uid, status.st_gid) = (user, group);
        status
    }

    #[test]
    fn whose_files_are_safe() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let (foreign, all) = (Some("it belongs to another user"), Some("others can write it"));
        let group = Some("another group can write it");
        for (user, gid, permissions, pid_file, guard) in [
            (7, 8, 0o644, None, None),
            (0, 0, 0o644, None, None),
            (7, 9, 0o644, None, None),
            (7, 8, 0o664, None, None),
            (7, 0, 0o664, None, None),
            (0, 9, 0o664, group, None),
            (0, 9, 0o660, group, None),
            (7, 8, 0o646, all, all),
            (9, 8, 0o644, foreign, foreign),
            (9, 9, 0o664, group, foreign),
        ] {
            let status = status(file.path(), user, gid, permissions);
            assert_eq!(ANN.why_no_pid_file(&status), pid_file, "{user} {gid} {permissions:o}");
            assert_eq!(ANN.why_no_guard(&status), guard, "{user} {gid} {permissions:o}");
        }
    }

    #[test]
    fn whose_directories_are_safe() {
        let dir = tempfile::tempdir().unwrap();
        let foreign = Some("its directory belongs to another user");
        let all = Some("others can write its directory, which is not sticky");
        let group = Some("another group can write its directory, which is not sticky");
        for (user, gid, permissions, expected) in [
            // /run, /run/user/7, /tmp and Debian's /run/lock.
            (0, 0, 0o755, None),
            (7, 8, 0o700, None),
            (0, 0, 0o1777, None),
            (0, 0, 0o775, None),
            (7, 8, 0o775, None),
            (7, 9, 0o755, None),
            // /run/lock of OpenRC.
            (0, 9, 0o775, group),
            (0, 9, 0o1775, None),
            (7, 8, 0o777, all),
            (9, 8, 0o755, foreign),
            (9, 9, 0o1777, foreign),
        ] {
            let status = status(dir.path(), user, gid, permissions);
            assert_eq!(ANN.why_no_directory(&status), expected, "{user} {gid} {permissions:o}");
        }
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn the_way_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink("a/b", root.join("relative")).unwrap();
        symlink(root.join("a"), root.join("absolute")).unwrap();
        symlink("../../absolute/./b/", root.join("a/b/back")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        for (path, expected) in [
            ("a/b/x.pid", "a/b"),
            ("relative/x.pid", "a/b"),
            ("absolute/b/x.pid", "a/b"),
            ("a//b/../../relative/x.pid", "a/b"),
            ("relative/../x.pid", "a"),
            ("a/b/back/x.pid", "a/b"),
            ("x.pid", "."),
        ] {
            let path = root.join(path);
            let (directory, name) = directory_of(&path).unwrap();
            assert_eq!(name, "x.pid");
            assert_eq!(fstat(&directory).unwrap().st_ino, inode(&root.join(expected)), "{path:?}");
        }
        let (directory, _) = directory_of(Path::new("x.pid")).unwrap();
        assert_eq!(fstat(&directory).unwrap().st_ino, inode(Path::new(".")));
        let directory = walk(Path::new("/"), Own::now()).unwrap();
        assert_eq!(fstat(&directory).unwrap().st_ino, inode(Path::new("/")));

        let error = |path: &Path| directory_of(path).unwrap_err().raw_os_error();
        for (path, errno) in [
            ("loop/x.pid", Errno::LOOP),
            ("file/x.pid", Errno::NOTDIR),
            ("none/x.pid", Errno::NOENT),
            ("a/..", Errno::ISDIR),
        ] {
            assert_eq!(error(&root.join(path)), Some(errno.raw_os_error()), "{path}");
        }
        // Another user's.
        if Own::now().user != 0 {
            let ann = Own { user: Own::now().user + 1, group: 0 };
            walk(&root.join("a/b"), ann).unwrap();
            walk(&root.join("relative"), ann).unwrap_err();
        }
    }
}
