//! Finds files below a directory by names that came from outside.
//!
//! No name leads out of the directory, whatever is done to the tree meanwhile:
//! symbolic links are not followed, and `..` is refused. Owns the directory.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat, openat2};
use rustix::io::Errno;

use crate::error::{Fatal, reason};

/// What is wrong with a name that nothing is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadName {
    /// It has no bytes at all.
    Empty,
    /// It begins with a `/`.
    Absolute,
    /// It ends in a `/`.
    Directory,
    /// It has a component `.`.
    Dot,
    /// It has a component `..`.
    DotDot,
    /// It has a NUL in it.
    Nul,
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "its name is empty",
            Self::Absolute => "its name begins with /",
            Self::Directory => "its name ends in /",
            Self::Dot => "its name has a component .",
            Self::DotDot => "its name has a component ..",
            Self::Nul => "its name has a NUL in it",
        })
    }
}

/// Why something could not be done with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// What was being done, as in "cannot make device node".
    pub doing: &'static str,
    /// To which file, relative to the directory, as it was named.
    pub path: Box<[u8]>,
    /// Why it could not be.
    pub why: Why,
}

/// The cause of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Nothing was tried.
    Name(BadName),
    /// The kernel said this.
    System(Errno),
    /// Somebody else was changing it all the time.
    KeepsChanging,
}

impl Failed {
    /// An error with the file named.
    pub fn new(doing: &'static str, path: &[u8], why: impl Into<Why>) -> Self {
        Self { doing, path: path.into(), why: why.into() }
    }

    /// Whether there were too few descriptors, or too little memory: the next time there
    /// may be enough.
    pub fn is_shortage(&self) -> bool {
        matches!(self.why, Why::System(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
    }
}

impl From<BadName> for Why {
    fn from(name: BadName) -> Self {
        Self::Name(name)
    }
}

impl From<Errno> for Why {
    fn from(error: Errno) -> Self {
        Self::System(error)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Name(name) => name.fmt(f),
            Self::System(error) => f.write_str(&reason(&error.into())),
            Self::KeepsChanging => f.write_str("somebody else is changing it all the time"),
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.doing, self.path.escape_ascii(), self.why)
    }
}

impl std::error::Error for Failed {}

impl From<Failed> for Fatal {
    fn from(failed: Failed) -> Self {
        let Failed { doing, path, why } = failed;
        let error = match why {
            Why::System(error) => error.into(),
            Why::Name(_) | Why::KeepsChanging => std::io::Error::other(why.to_string()),
        };
        Self::system(format_args!("{doing} {}", path.escape_ascii()), error)
    }
}

/// Refuses names that could mean something else than a file below a directory.
///
/// # Errors
/// Says what is wrong with the name.
pub fn check(name: &[u8]) -> Result<(), BadName> {
    match (name.first(), name.last()) {
        (None, _) => return Err(BadName::Empty),
        (Some(b'/'), _) => return Err(BadName::Absolute),
        (_, Some(b'/')) => return Err(BadName::Directory),
        _ => {}
    }
    if name.contains(&0) {
        return Err(BadName::Nul);
    }
    name.split(|&b| b == b'/').try_for_each(|component| match component {
        b"." => Err(BadName::Dot),
        b".." => Err(BadName::DotDot),
        _ => Ok(()),
    })
}

/// The name of what a path leads to from a root of its own, as DEVPATHs lead
/// from that of sysfs, relative to that root.
///
/// # Errors
/// Says what is wrong with the name.
pub fn strip_root(path: &[u8]) -> Result<&[u8], BadName> {
    let name = path.strip_prefix(b"/").unwrap_or(path);
    check(name).map(|()| name)
}

/// The directory that a name is in, if it names one, and the last component.
pub fn split(name: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let Some(slash) = name.iter().rposition(|&b| b == b'/') else { return (None, name) };
    let parent = name[..slash].iter().rposition(|&b| b != b'/').map(|end| &name[..=end]);
    (parent, &name[slash + 1..])
}

/// A directory, and what is below it.
#[derive(Debug)]
pub struct Beneath {
    root: OwnedFd,
    /// The kernel can look up a whole path at once (openat2, Linux 5.6), and
    /// nobody forbids it.
    has_openat2: bool,
}

/// A directory that was looked up.
#[derive(Debug)]
pub enum Directory<'a> {
    /// The topmost one.
    Root(BorrowedFd<'a>),
    /// One below it.
    Below(OwnedFd),
}

impl AsFd for Directory<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Below(fd) => fd.as_fd(),
        }
    }
}

/// For a directory that files are looked up in, but that is not read.
pub const LOOK_UP: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

impl Beneath {
    /// Everything below `root`, a directory, which may be open with O_PATH.
    pub fn new(root: OwnedFd) -> Self {
        let has_openat2 = look_up(&root, c".", LOOK_UP).is_ok();
        Self { root, has_openat2 }
    }

    /// Everything below the directory at `path`, which is trusted: links are
    /// followed on the way to it.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open_root(path: &Path) -> Result<Self, Errno> {
        Ok(Self::new(open(path, LOOK_UP | OFlags::CLOEXEC, Mode::empty())?))
    }

    /// As on a kernel without openat2.
    #[cfg(test)]
    pub(crate) fn walking(root: OwnedFd) -> Self {
        Self { root, has_openat2: false }
    }

    /// The topmost directory.
    pub fn root(&self) -> Directory<'_> {
        Directory::Root(self.root.as_fd())
    }

    /// Opens a file whose name has passed [`check`]. Where the last component
    /// is a symbolic link, that is an error, or with O_PATH the link is opened.
    ///
    /// # Errors
    /// Those of openat2(2): `ELOOP` or `ENOTDIR` where there is a link on the way.
    pub fn open(&self, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        if self.has_openat2 {
            return look_up(&self.root, name, flags);
        }
        let (parent, last) = split(name);
        let mut directory = self.root();
        for component in parent.unwrap_or_default().split(|&b| b == b'/') {
            if !component.is_empty() {
                directory = Directory::Below(open_here(directory.as_fd(), component, LOOK_UP)?);
            }
        }
        open_here(directory.as_fd(), last, flags)
    }

    /// Everything below a directory whose name has passed [`check`].
    ///
    /// # Errors
    /// Those of [`Beneath::open`].
    pub fn directory(&self, name: &[u8]) -> Result<Self, Errno> {
        Ok(Self { root: self.open(name, LOOK_UP)?, has_openat2: self.has_openat2 })
    }

    /// The directory that a file is in whose name has passed [`check`], for
    /// looking it up there, and the last component of that name.
    ///
    /// # Errors
    /// Those of [`Beneath::open`].
    pub fn directory_of<'n>(&self, name: &'n [u8]) -> Result<(Directory<'_>, &'n [u8]), Errno> {
        let (parent, last) = split(name);
        let directory = match parent {
            None => self.root(),
            Some(parent) => Directory::Below(self.open(parent, LOOK_UP)?),
        };
        Ok((directory, last))
    }
}

fn look_up(root: &OwnedFd, path: impl rustix::path::Arg, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Opens a file right in this directory; `name` is a single component.
///
/// # Errors
/// Those of openat(2).
pub fn open_here(directory: BorrowedFd<'_>, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    openat(directory, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_bad_name_is_told_from_a_good_one() {
        let bad: [(&[u8], BadName); 14] = [
            (b"", BadName::Empty),
            (b"/", BadName::Absolute),
            (b"/dev/null", BadName::Absolute),
            (b"//x", BadName::Absolute),
            (b"a/", BadName::Directory),
            (b".", BadName::Dot),
            (b"./a", BadName::Dot),
            (b"a/./b", BadName::Dot),
            (b"a/.", BadName::Dot),
            (b"..", BadName::DotDot),
            (b"../a", BadName::DotDot),
            (b"a/../b", BadName::DotDot),
            (b"a//..", BadName::DotDot),
            (b"a\0/b", BadName::Nul),
        ];
        for (name, expected) in bad {
            assert_eq!(check(name), Err(expected), "{}", name.escape_ascii());
        }
        for name in [&b"a"[..], b"a/b", b"a//b", b"...", b"..a/.b", b"a\n", b"\xff/ ", b"-"] {
            assert_eq!(check(name), Ok(()), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn one_slash_is_stripped() {
        assert_eq!(strip_root(b"/devices/x"), Ok(&b"devices/x"[..]));
        assert_eq!(strip_root(b"devices/x"), Ok(&b"devices/x"[..]));
        assert_eq!(strip_root(b"//devices/x"), Err(BadName::Absolute));
        assert_eq!(strip_root(b"/"), Err(BadName::Empty));
        assert_eq!(strip_root(b"/.."), Err(BadName::DotDot));
    }

    #[test]
    fn names_are_split_at_the_last_slash() {
        assert_eq!(split(b"a"), (None, &b"a"[..]));
        assert_eq!(split(b"a/b/c"), (Some(&b"a/b"[..]), &b"c"[..]));
        assert_eq!(split(b"a//b"), (Some(&b"a"[..]), &b"b"[..]));
    }

    #[test]
    fn an_error_names_what_was_done_and_to_what() {
        let failed = Failed::new("make device node", b"a\n/..", BadName::DotDot);
        assert_eq!(
            failed.to_string(),
            "cannot make device node a\\n/..: its name has a component .."
        );
        let failed = Failed::new("remove link", b"x", Errno::NOTDIR);
        assert_eq!(failed.to_string(), "cannot remove link x: Not a directory");
    }

    fn both_ways(root: &Path) -> [Beneath; 2] {
        let open = || open(root, LOOK_UP, Mode::empty()).unwrap();
        let walking = Beneath::walking(open());
        assert!(!walking.has_openat2);
        [Beneath::new(open()), walking]
    }

    #[test]
    fn files_below_are_opened_and_links_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("file"), "outside").unwrap();
        let root = tempfile::tempdir().unwrap();
        let below = |name: &str| root.path().join(name);
        fs::create_dir_all(below("a/b")).unwrap();
        fs::write(below("a/b/file"), "inside").unwrap();
        symlink("file", below("a/b/link")).unwrap();
        symlink("b", below("a/inner")).unwrap();
        symlink(outside.path(), below("a/outer")).unwrap();
        symlink("..", below("a/up")).unwrap();
        for beneath in both_ways(root.path()) {
            for name in ["a/b/file", "a//b///file"] {
                let mut text = String::new();
                let file = beneath.open(name.as_bytes(), OFlags::RDONLY).unwrap();
                fs::File::from(file).read_to_string(&mut text).unwrap();
                assert_eq!(text, "inside");
            }
            for name in ["a/inner/file", "a/outer/file", "a/up/a/b/file", "a/b/link"] {
                let error = beneath.open(name.as_bytes(), OFlags::RDONLY).unwrap_err();
                assert!(matches!(error, Errno::LOOP | Errno::NOTDIR), "{name}: {error}");
            }
            for name in ["a/inner/x", "a/outer/x"] {
                let error = beneath.directory_of(name.as_bytes()).unwrap_err();
                assert!(matches!(error, Errno::LOOP | Errno::NOTDIR), "{name}: {error}");
            }
            assert_eq!(beneath.open(b"a/none", OFlags::RDONLY).unwrap_err(), Errno::NOENT);
            assert!(beneath.open(b"a/b/link", OFlags::PATH).is_ok());
        }
    }
}
