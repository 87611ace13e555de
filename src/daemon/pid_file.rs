//! The PID file: locked and written by the daemon, read by who controls it.
//!
//! [`PidFile`] owns the file descriptor with the lock (flock(2)). The lock
//! belongs to the open file, so a process keeps it that was forked from the one
//! that took it; it is gone with the last descriptor.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, fstat, openat};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use crate::error::Fatal;

use super::place::{self, Own};

/// The text before there is a process id; LibUCW's.
const STARTING: &[u8] = b"(starting)\n";

/// Longer than any text that belongs there.
const TEXT_MAX: usize = 16;

/// What a PID file tells about its daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There is no file, or it is empty: the daemon was stopped, or never started.
    NotRunning,
    /// Nobody holds the lock, but there is a text: the daemon died.
    Stale,
    /// It is locked, and has no process id yet: the daemon is being started.
    Starting,
    /// It is locked, and this is the daemon; `None`: the file is empty, the
    /// daemon is about to end.
    Running(Option<Pid>),
}

/// What was seen of a PID file at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sight {
    pub(super) state: State,
    /// `None`: there is none.
    pub(super) file: Option<FileId>,
    /// The beginning, of at most `TEXT_MAX` bytes.
    pub(super) text: Vec<u8>,
}

/// Which file it is, and whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) owner: u32,
}

/// Looks at a PID file. For a moment this may take a shared lock.
///
/// # Errors
/// If the file cannot be read; if others could have their text in it: through a
/// link, something that is no regular file, or one that others can write, or a
/// group that is neither root's nor the own one; if it is locked and the text is no
/// process id and a newline, or longer than any.
pub fn look(path: &Path) -> io::Result<State> {
    Ok(examine(path)?.state)
}

/// The same, and which file it was.
pub(super) fn examine(path: &Path) -> io::Result<Sight> {
    let flags =
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = match openat(CWD, path, flags, Mode::empty()) {
        Err(Errno::NOENT) => {
            return Ok(Sight { state: State::NotRunning, file: None, text: Vec::new() });
        }
        Err(Errno::LOOP) => return Err(io::Error::other("it is a symbolic link")),
        result => File::from(result?),
    };
    if let Some(why) = Own::now().why_shared(&fstat(&file)?) {
        return Err(io::Error::other(why));
    }
    let status = file.metadata()?;
    let id = FileId { device: status.dev(), inode: status.ino(), owner: status.uid() };
    let locked =
        match rustix::io::retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockShared)) {
            Ok(()) => false,
            Err(Errno::WOULDBLOCK) => true,
            Err(error) => return Err(error.into()),
        };
    let text = text(&file)?;
    Ok(Sight { state: state(&text, locked)?, file: Some(id), text })
}

fn state(text: &[u8], locked: bool) -> io::Result<State> {
    match (text, locked) {
        (text, true) if is_starting(text) => Ok(State::Starting),
        ([], false) => Ok(State::NotRunning),
        (_, false) => Ok(State::Stale),
        (text, true) if text.len() == TEXT_MAX => {
            Err(io::Error::other("it is too long to be a PID file"))
        }
        ([], true) => Ok(State::Running(None)),
        (text, true) => match process_id(text) {
            Some(pid) => Ok(State::Running(Some(pid))),
            None => Err(io::Error::other("there is no process id in it")),
        },
    }
}

/// Whether a daemon that is being started has written this. It writes over what
/// was there, and cuts off the rest after that: first the remains of a daemon
/// that died, then its own.
fn is_starting(text: &[u8]) -> bool {
    let by_id = |(now, before): (&u8, &u8)| now == before || matches!(now, b'0'..=b'9' | b'\n');
    text.starts_with(STARTING)
        || text.len() == STARTING.len() && text.iter().zip(STARTING).all(by_id)
}

/// Empties a stale PID file, if this is still in it and it is not a trap.
pub(super) fn clear(path: &Path, stale: &[u8]) -> io::Result<()> {
    let file = File::from(openat(CWD, path, open_flags() - OFlags::CREATE, Mode::empty())?);
    if let Some(why) = Own::now().why_no_pid_file(&fstat(&file)?) {
        return Err(io::Error::other(why));
    }
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    if text(&file)? == stale { file.set_len(0) } else { Ok(()) }
}

/// Whether it has the process id of a process that there is.
fn is_of_living(file: &File) -> io::Result<bool> {
    Ok(process_id(&text(file)?).is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH)))
}

fn process_id(text: &[u8]) -> Option<Pid> {
    let number = crate::account::number(text.strip_suffix(b"\n")?)?;
    Pid::from_raw(number.try_into().ok()?)
}

/// The beginning of a file: at most `TEXT_MAX` bytes.
fn text(file: &File) -> io::Result<Vec<u8>> {
    let mut buffer = [0; TEXT_MAX];
    let mut length = 0;
    while length < buffer.len() {
        match file.read_at(&mut buffer[length..], length as u64) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(buffer[..length].to_vec())
}

fn open_flags() -> OFlags {
    // The last two, as somebody may have put something there that is no file.
    OFlags::RDWR
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOFOLLOW
        | OFlags::NOCTTY
        | OFlags::NONBLOCK
}

/// A PID file, locked. Dropped, it is emptied and, unless a forked process has
/// it too, unlocked.
#[derive(Debug)]
#[must_use = "dropped, it is emptied and unlocked"]
pub struct PidFile {
    file: File,
    path: PathBuf,
}

impl PidFile {
    /// Opens the file, or makes it with mode 0644, and locks it.
    ///
    /// # Errors
    /// If another process has locked it: of the kind
    /// [`io::ErrorKind::ResourceBusy`], with its id in the text. If writing
    /// there could be turned against us: through a link, to something that is
    /// no regular file, that belongs to another user (except root) or can be
    /// written by others; in a directory that belongs to another user, or that
    /// others can write, without the sticky bit; by way of another user's
    /// symbolic link. Others are also all groups but root's and the own one.
    /// Those of the system calls.
    pub fn lock(path: &Path) -> Result<Self, Fatal> {
        let file = lock(path)
            .map_err(|e| Fatal::system(format_args!("lock PID file {}", path.display()), e))?;
        let pid_file = Self { file, path: path.to_owned() };
        // A daemon that is controlled by LibUCW's tools says this.
        pid_file.replace(STARTING)?;
        Ok(pid_file)
    }

    /// Writes the id of the daemon.
    ///
    /// # Errors
    /// Those of pwrite(2) and ftruncate(2).
    pub fn write(&mut self, pid: Pid) -> Result<(), Fatal> {
        self.replace(format!("{pid}\n").as_bytes())
    }

    /// Makes it the file of a daemon that does not run.
    ///
    /// # Errors
    /// Those of ftruncate(2).
    pub fn clear(&mut self) -> Result<(), Fatal> {
        self.replace(b"")
    }

    fn replace(&self, text: &[u8]) -> Result<(), Fatal> {
        // In this order the file is never empty, if it is not meant to be.
        self.file
            .write_all_at(text, 0)
            .and_then(|()| self.file.set_len(text.len() as u64))
            .map_err(|e| Fatal::system(format_args!("write PID file {}", self.path.display()), e))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            log::error!("{error}");
        }
    }
}

fn lock(path: &Path) -> io::Result<File> {
    loop {
        let (directory, name) = place::directory_of(path)?;
        let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
        let file = match openat(&directory, name, open_flags(), mode) {
            Err(Errno::LOOP) => return Err(io::Error::other("it is a symbolic link")),
            result => File::from(result?),
        };
        let status = fstat(&file)?;
        if let Some(why) = Own::now().why_no_pid_file(&status) {
            return Err(io::Error::other(why));
        }
        lock_exclusive(&file, path)?;
        if place::is_still_there(path, &status)? {
            return Ok(file);
        }
    }
}

fn lock_exclusive(file: &File, path: &Path) -> io::Result<()> {
    use FlockOperation::{NonBlockingLockExclusive, NonBlockingLockShared, Unlock};
    const ATTEMPTS: u32 = 100;
    const PAUSE: Duration = Duration::from_millis(1);

    let lock = |operation| rustix::io::retry_on_intr(|| flock(file.as_fd(), operation));
    for _ in 0..ATTEMPTS {
        match lock(NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {}
            result => return Ok(result?),
        }
        // A daemon has an exclusive lock; whoever looks has a shared one for a
        // moment, and whoever empties a stale file, an exclusive one.
        match lock(NonBlockingLockShared) {
            Err(Errno::WOULDBLOCK) if is_of_living(file)? => break,
            Err(Errno::WOULDBLOCK) => {}
            result => {
                result?;
                lock(Unlock)?;
            }
        }
        thread::sleep(PAUSE);
    }
    let text = match look(path) {
        Ok(State::Running(Some(pid))) => format!("already running with process id {pid}"),
        Ok(State::Starting) => "already being started".to_owned(),
        _ => "already running".to_owned(),
    };
    Err(io::Error::new(io::ErrorKind::ResourceBusy, text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn state(path: &Path) -> Result<State, String> {
        look(path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_process_id_is_digits_and_a_newline() {
        let pid = |text: &str| process_id(text.as_bytes()).map(|pid| pid.as_raw_nonzero().get());
        assert_eq!(pid("1\n"), Some(1));
        assert_eq!(pid("4194304\n"), Some(4_194_304));
        for none in
            ["", "\n", "12", "12\n\n", "0\n", "-1\n", "+1\n", " 1\n", "1 \n", "2147483648\n", "x\n"]
        {
            assert_eq!(pid(none), None, "{none:?}");
        }
    }

    #[test]
    fn the_life_of_a_pid_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        assert_eq!(state(&path), Ok(State::NotRunning));

        let mut file = PidFile::lock(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        assert_eq!(state(&path), Ok(State::Starting));
        let pid = Pid::from_raw(42).unwrap();
        file.write(pid).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"42\n");
        assert_eq!(state(&path), Ok(State::Running(Some(pid))));

        let error = PidFile::lock(&path).unwrap_err();
        assert!(error.to_string().ends_with("already running with process id 42"), "{error}");
        let Fatal::System { error, .. } = error else { panic!("{error}") };
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(fs::read(&path).unwrap(), b"42\n");

        file.clear().unwrap();
        assert_eq!(state(&path), Ok(State::Running(None)));
        drop(file);
        assert_eq!(state(&path), Ok(State::NotRunning));
        assert!(path.exists());
    }

    #[test]
    fn between_two_texts_it_is_being_started() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        let file = File::create(&path).unwrap();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        for (text, expected) in [
            ("(starting)\n", true),
            // Over what a daemon has left that died.
            ("(starting)\nish\n", true),
            ("(starting)\nrubbish, and not little\n", true),
            // The process id over that.
            ("4\ntarting)\n", true),
            ("4194304\ng)\n", true),
            // Read while it was written.
            ("41tarting)\n", true),
            ("rubbish\n", false),
            ("4\nrubbish)\n", false),
            ("(start", false),
        ] {
            file.set_len(0).unwrap();
            file.write_all_at(text.as_bytes(), 0).unwrap();
            assert_eq!(state(&path) == Ok(State::Starting), expected, "{text:?}");
        }
    }

    #[test]
    fn whoever_looks_or_cleans_up_does_not_keep_a_daemon_from_starting() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let nobody = format!("{}\n", child.id());
        child.wait().unwrap();
        for (text, operation) in [
            ("", FlockOperation::LockShared),
            ("", FlockOperation::LockExclusive),
            (&nobody, FlockOperation::LockExclusive),
        ] {
            fs::write(&path, text).unwrap();
            let other = File::open(&path).unwrap();
            flock(&other, operation).unwrap();
            let opener = thread::spawn({
                let path = path.clone();
                move || PidFile::lock(&path)
            });
            thread::sleep(Duration::from_millis(3));
            drop(other);
            drop(opener.join().unwrap().unwrap());
        }
    }

    #[test]
    fn a_lock_that_stays_is_a_daemons() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        for (text, told) in [
            (format!("{}\n", std::process::id()), "already running with process id "),
            (String::new(), "already running"),
            ("(starting)\n".to_owned(), "already being started"),
        ] {
            fs::write(&path, text).unwrap();
            let other = File::open(&path).unwrap();
            flock(&other, FlockOperation::LockExclusive).unwrap();
            let error = PidFile::lock(&path).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn only_a_stale_file_is_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        fs::write(&path, "43\n").unwrap();
        clear(&path, b"42\n").unwrap();
        assert_eq!(state(&path), Ok(State::Stale));
        clear(&path, b"4").unwrap();
        assert_eq!(state(&path), Ok(State::Stale));
        for text in ["42\n", "(starting)\n"] {
            fs::write(&path, text).unwrap();
            clear(&path, text.as_bytes()).unwrap();
            assert_eq!(state(&path), Ok(State::NotRunning));
        }
        let mut file = PidFile::lock(&path).unwrap();
        file.write(Pid::from_raw(42).unwrap()).unwrap();
        clear(&path, b"42\n").unwrap_err();
        drop(file);

        fs::write(&path, "42\n").unwrap();
        symlink(&path, dir.path().join("link")).unwrap();
        clear(&dir.path().join("link"), b"42\n").unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"42\n");
        fs::hard_link(&path, dir.path().join("other")).unwrap();
        clear(&path, b"42\n").unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"42\n");
    }

    #[test]
    fn traps_are_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let [target, path] = ["target", "x.pid"].map(|name| dir.path().join(name));
        fs::write(&target, "precious").unwrap();
        let refused = |why: &str| {
            let error = PidFile::lock(&path).unwrap_err().to_string();
            assert!(error.ends_with(why), "{error}");
            assert_eq!(fs::read(&target).unwrap(), b"precious");
        };

        symlink(&target, &path).unwrap();
        refused("it is a symbolic link");
        assert_eq!(state(&path), Err("it is a symbolic link".into()));
        fs::remove_file(&path).unwrap();
        symlink(dir.path().join("none"), &path).unwrap();
        refused("it is a symbolic link");
        fs::remove_file(&path).unwrap();

        fs::hard_link(&target, &path).unwrap();
        refused("it is a link, or has one");
        fs::remove_file(&path).unwrap();

        let fifo_mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mkfifoat(CWD, &path, fifo_mode).unwrap();
        refused("it is no regular file");
        assert_eq!(state(&path), Err("it is no regular file".into()));
        fs::remove_file(&path).unwrap();

        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        refused("others can write it");
        fs::remove_file(&path).unwrap();

        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        refused("others can write its directory, which is not sticky");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        drop(PidFile::lock(&path).unwrap());
    }
}
