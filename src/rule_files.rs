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

use crate::account::Accounts;
use crate::error::{Fatal, reason};
use crate::rules::parse::{self, Rule, Source};

/// Where the rules are unless told otherwise.
pub const DEFAULT: &str = "/etc/mdev.conf";

/// A file of more bytes is taken for a mistake. The largest one known has 20 KiB.
const SIZE_MAX: usize = 16 << 20;

/// Why there are no rules.
#[derive(Debug)]
pub enum Error {
    /// A file could not be read.
    Read(PathBuf, io::Error),
    /// The files are read, and these mistakes are in them.
    Mistakes(Vec<parse::Error>),
}

/// As many lines as it takes, without a newline at the end.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(path, error) => {
                write!(f, "cannot read {}: {}", shown(path), reason(error))
            }
            Self::Mistakes(mistakes) => {
                let (first, more) = mistakes.split_first().ok_or(fmt::Error)?;
                write!(f, "{first}")?;
                more.iter().try_for_each(|mistake| write!(f, "\n{mistake}"))
            }
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for Fatal {
    fn from(error: Error) -> Self {
        match error {
            Error::Read(path, error) => Self::system(format_args!("read {}", shown(&path)), error),
            Error::Mistakes(_) => Self::Configuration(error.to_string()),
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
/// If one of them cannot be read, or is wrong: then with all that is wrong.
pub fn load(
    file: &Path,
    accounts: &Accounts,
    doubts: &mut Vec<parse::Error>,
) -> Result<Option<Vec<Rule>>, Error> {
    let mut files = Vec::new();
    match read(file) {
        Ok(text) => files.push((file.display().to_string(), text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::Read(file.to_owned(), error)),
    }
    for path in more_files(file)? {
        let text = read(&path).map_err(|error| Error::Read(path.clone(), error))?;
        files.push((path.display().to_string(), text));
    }
    if files.is_empty() {
        return Ok(None);
    }
    let sources: Vec<_> = files.iter().map(|(name, text)| Source { name, text }).collect();
    parse::parse_and_doubt(&sources, accounts, doubts).map(Some).map_err(Error::Mistakes)
}

/// Reads a file, without waiting for anybody as with a FIFO, and not for ever as
/// with /dev/zero.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty())?);
    let status = fstat(&file)?;
    match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory => return Err(Errno::ISDIR.into()),
        _ if is_null(&status) => {}
        _ => return Err(io::Error::other("not a regular file")),
    }
    let mut text = Vec::new();
    file.take(SIZE_MAX as u64 + 1).read_to_end(&mut text)?;
    if text.len() > SIZE_MAX { Err(Errno::FBIG.into()) } else { Ok(text) }
}

/// /dev/null, a link to which is how a file is masked.
fn is_null(status: &Stat) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice
        && status.st_rdev == makedev(1, 3)
}

/// The names of the files in the directory beside `file`, sorted.
fn more_files(file: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut directory = OsString::from(file);
    directory.push(".d");
    let directory = PathBuf::from(directory);
    let cannot_read = |error| Error::Read(directory.clone(), error);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
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

    #[test]
    fn a_file_may_be_large_but_not_too_large() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("mdev.conf");
        let comment = [&[b'#'; 1023][..], b"\n"].concat();
        fs::write(&file, comment.repeat(SIZE_MAX / 1024)).unwrap();
        assert_eq!(loaded(directory.path()), Ok(Some(Vec::new())));
        File::options().append(true).open(&file).unwrap().write_all(b"\n").unwrap();
        let text = loaded(directory.path()).unwrap_err();
        assert!(text.ends_with("mdev.conf: File too large"), "{text}");
    }
}
