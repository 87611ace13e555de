//! The files that rules are in: mdev.conf, and *.conf in mdev.conf.d beside it.
//!
//! Reads them anew each time; owns nothing.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, makedev, open};
use rustix::io::Errno;
use rustix::system::sysinfo;

use crate::account::Accounts;
use crate::error::{Fatal, reason};
use crate::rules::parse::{self, Source};
use crate::rules::rule::Rule;

/// Where the rules are unless told otherwise.
pub const DEFAULT: &str = "/etc/mdev.conf";

/// What rules and mistakes take, in as many times the size of their text at most.
const MEMORY_OF_TEXT: u64 = 250;

/// Why there are no rules; at least one of both.
#[derive(Debug, Default)]
pub struct Error {
    /// What could not be read, and why.
    pub unread: Vec<(PathBuf, io::Error)>,
    /// What is wrong in the rest.
    pub mistakes: Vec<parse::Error>,
}

/// As many lines as it takes, without a newline at the end.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut newline = "";
        for (path, error) in &self.unread {
            write!(f, "{newline}cannot read {}: {}", shown(path), reason(error))?;
            newline = "\n";
        }
        for mistake in &self.mistakes {
            write!(f, "{newline}{mistake}")?;
            newline = "\n";
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// A mistake weighs more than a file that cannot be read.
impl From<Error> for Fatal {
    fn from(mut error: Error) -> Self {
        match (error.mistakes.is_empty(), error.unread.pop()) {
            (true, Some((path, why))) => {
                let before = if error.unread.is_empty() { "" } else { "\n" };
                let what = format!("{error}{before}cannot read {}", shown(&path));
                Self::System { what, error: why }
            }
            (_, last) => {
                error.unread.extend(last);
                Self::Configuration(error.to_string())
            }
        }
    }
}

fn shown(path: &Path) -> impl fmt::Display {
    path.as_os_str().as_encoded_bytes().escape_ascii()
}

/// Reads `file`, then those of its directory of more: the same path with `.d`
/// after it, each file that ends in `.conf`, in the order of their names.
/// `None`: there is neither. Without a directory, `file` is all there is. What is
/// right, but likely not meant so, is added to `doubts`.
///
/// # Errors
/// If one of them cannot be read, or is wrong: then with all that is wrong in all
/// of them.
pub fn load(
    file: &Path,
    accounts: &Accounts,
    doubts: &mut Vec<parse::Error>,
) -> Result<Option<Vec<Rule>>, Error> {
    let (mut files, mut unread) = (Vec::new(), Vec::new());
    let mut room = memory() / MEMORY_OF_TEXT;
    let mut add = |path: PathBuf, text| match text {
        Ok(text) => files.push((path.display().to_string(), text)),
        Err(error) => unread.push((path, error)),
    };
    match read(file, &mut room) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        text => add(file.to_owned(), text),
    }
    match more_files(file) {
        Ok(paths) => paths.into_iter().for_each(|path| {
            let text = read(&path, &mut room);
            add(path, text);
        }),
        Err(unreadable) => unread.push(unreadable),
    }
    if files.is_empty() && unread.is_empty() {
        return Ok(None);
    }
    let sources: Vec<_> = files.iter().map(|(name, text)| Source { name, text }).collect();
    match parse::parse_and_doubt(&sources, accounts, doubts) {
        Ok(rules) if unread.is_empty() => Ok(Some(rules)),
        rules => Err(Error { unread, mistakes: rules.err().unwrap_or_default() }),
    }
}

/// The memory of this machine, in bytes.
fn memory() -> u64 {
    let all = sysinfo();
    u64::try_from(u128::from(all.totalram) * u128::from(all.mem_unit)).unwrap_or(u64::MAX)
}

/// Reads a file, without waiting for anybody as with a FIFO, and of no more bytes
/// than there is `room` for, which it takes.
fn read(path: &Path, room: &mut u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match open(path, flags, Mode::empty()) {
        // It was put there on purpose, so it is not as if there were no file.
        Err(Errno::NOENT) if path.is_symlink() => return Err(leads_nowhere()),
        file => File::from(file?),
    };
    let status = fstat(&file)?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR.into()),
        _ if is_null(&status) => {}
        _ => return Err(io::Error::other("not a regular file")),
    }
    let too_large = || io::Error::other("too large for the memory of this machine");
    let size = u64::try_from(status.st_size).unwrap_or(0);
    if size > *room {
        return Err(too_large());
    }
    // With room for its end to be seen at once.
    let mut text = Vec::new();
    text.try_reserve_exact(usize::try_from(size).unwrap_or(usize::MAX).saturating_add(32))?;
    // It may grow, or not tell its size.
    file.take(*room + 1).read_to_end(&mut text)?;
    *room = room.checked_sub(text.len() as u64).ok_or_else(too_large)?;
    Ok(text)
}

fn leads_nowhere() -> io::Error {
    io::Error::other("a link that leads nowhere")
}

/// /dev/null, a link to which is how a file is masked.
fn is_null(status: &Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice
        && status.st_rdev == makedev(1, 3)
}

/// The names of the files in the directory beside `file`, sorted; or the name of
/// that directory, and why it cannot be read.
fn more_files(file: &Path) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let mut directory = OsString::from(file);
    directory.push(".d");
    let directory = PathBuf::from(directory);
    let cannot_read = |error| (directory.clone(), error);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound && directory.is_symlink() => {
            return Err(cannot_read(leads_nowhere()));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        // A plain file of that name is none of ours.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(Vec::new()),
        Err(error) => return Err(cannot_read(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(cannot_read)?.path();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if name.ends_with(b".conf") && !name.starts_with(b".") {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, mkfifoat};

    fn loaded(directory: &Path) -> Result<Option<Vec<String>>, String> {
        let rules = load(&directory.join("mdev.conf"), &Accounts::default(), &mut Vec::new());
        let name = |rule: Rule| {
            let file = Path::new(&*rule.origin.file).file_name().unwrap_or_default();
            format!("{}:{}", file.display(), rule.origin.line)
        };
        match rules {
            Ok(rules) => Ok(rules.map(|rules| rules.into_iter().map(name).collect())),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn files_are_read_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(loaded(path), Ok(None));

        let more = path.join("mdev.conf.d");
        fs::create_dir(&more).unwrap();
        assert_eq!(loaded(path), Ok(None));
        for (name, text) in [
            ("20-b.conf", "b 0:0 600"),
            ("10-a.conf", "# a comment\na 0:0 600\n"),
            ("README", "no rule"),
            ("10-a.conf~", "no rule"),
            (".10-a.conf", "no rule"),
        ] {
            fs::write(more.join(name), text).unwrap();
        }
        assert_eq!(loaded(path), Ok(Some(vec!["10-a.conf:2".into(), "20-b.conf:1".into()])));
        fs::write(path.join("mdev.conf"), "c 0:0 600\n").unwrap();
        assert_eq!(
            loaded(path),
            Ok(Some(vec!["mdev.conf:1".into(), "10-a.conf:2".into(), "20-b.conf:1".into()]))
        );
    }

    #[test]
    fn all_mistakes_of_all_files_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::write(path.join("mdev.conf"), "a 0:0 600\nb nobody-here:0 600\n").unwrap();
        fs::create_dir(path.join("mdev.conf.d")).unwrap();
        fs::write(path.join("mdev.conf.d/x.conf"), "( 0:0 600\n").unwrap();
        let text = loaded(path).unwrap_err();
        assert!(text.contains("mdev.conf:2:3: "), "{text}");
        assert!(text.contains("x.conf:1:"), "{text}");
        assert_eq!(text.lines().filter(|line| line.trim_start() == "^").count(), 2, "{text}");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("mdev.conf")).unwrap();
        let text = loaded(directory.path()).unwrap_err();
        assert!(text.starts_with("cannot read ") && text.contains("mdev.conf: Is a dir"), "{text}");
    }

    /// It would be waited for a writer, or read for ever.
    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let (file, more) =
            (directory.path().join("mdev.conf"), directory.path().join("mdev.conf.d"));
        fs::create_dir(&more).unwrap();
        for file in [&file, &more.join("x.conf")] {
            for target in [None, Some("/dev/zero")] {
                match target {
                    None => mkfifoat(CWD, file, Mode::RUSR | Mode::WUSR).unwrap(),
                    Some(target) => symlink(target, file).unwrap(),
                }
                let text = loaded(directory.path()).unwrap_err();
                assert!(text.ends_with(".conf: not a regular file"), "{text}");
                fs::remove_file(file).unwrap();
            }
            // But so a file is masked.
            symlink("/dev/null", file).unwrap();
            assert_eq!(loaded(directory.path()), Ok(Some(Vec::new())));
        }
    }

    /// It would be as if there were none, with nodes for root alone.
    #[test]
    fn a_link_that_leads_nowhere_is_no_absent_file() {
        let directory = tempfile::tempdir().unwrap();
        let (file, more) =
            (directory.path().join("mdev.conf"), directory.path().join("mdev.conf.d"));
        for link in [&file, &more] {
            symlink("absent", link).unwrap();
            let text = loaded(directory.path()).unwrap_err();
            assert_eq!(text, format!("cannot read {}: a link that leads nowhere", link.display()));
            fs::remove_file(link).unwrap();
        }
        fs::create_dir(&more).unwrap();
        symlink("absent", more.join("x.conf")).unwrap();
        let text = loaded(directory.path()).unwrap_err();
        assert!(text.ends_with("x.conf: a link that leads nowhere"), "{text}");
    }

    /// Nothing of what is wrong is left for another attempt.
    #[test]
    fn what_cannot_be_read_hides_no_mistakes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::write(path.join("mdev.conf"), "a 0:0 600\nb nobody-here:0 600\n").unwrap();
        for name in ["10.conf", "30.conf"] {
            fs::create_dir_all(path.join("mdev.conf.d").join(name)).unwrap();
        }
        fs::write(path.join("mdev.conf.d/20.conf"), "( 0:0 600\n").unwrap();
        let load = || load(&path.join("mdev.conf"), &Accounts::default(), &mut Vec::new());
        let text = load().unwrap_err().to_string();
        let parts = ["10.conf: Is a dir", "30.conf: Is a dir", "mdev.conf:2:3: ", "20.conf:1:1: "];
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        let fatal = Fatal::from(load().unwrap_err());
        assert!(matches!(&fatal, Fatal::Configuration(told) if *told == text), "{fatal:?}");

        fs::write(path.join("mdev.conf"), "").unwrap();
        fs::write(path.join("mdev.conf.d/20.conf"), "").unwrap();
        let text = load().unwrap_err().to_string();
        let fatal = Fatal::from(load().unwrap_err());
        assert!(matches!(fatal, Fatal::System { .. }), "{fatal:?}");
        assert_eq!(fatal.to_string(), text);
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn a_file_may_be_as_large_as_there_is_memory_for() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mdev.conf");
        let comment = [&[b'#'; 1023][..], b"\n"].concat();
        fs::write(&file, comment.repeat(17 << 10)).unwrap();
        let mut writer = File::options().append(true).open(&file).unwrap();
        writer.write_all(b"a 0:0 600\n").unwrap();
        let last = format!("mdev.conf:{}", (17 << 10) + 1);
        assert_eq!(loaded(directory.path()), Ok(Some(vec![last])));
        // Nothing of it is on the disk.
        writer.set_len(1 << 43).unwrap();
        let text = loaded(directory.path()).unwrap_err();
        assert!(text.ends_with("mdev.conf: too large for the memory of this machine"), "{text}");
        // What one takes is not there for the next.
        writer.set_len(1 << 20).unwrap();
        let mut room = (1 << 21) - 1;
        assert_eq!(read(&file, &mut room).unwrap().len(), 1 << 20);
        assert!(read(&file, &mut room).is_err());
    }
}
