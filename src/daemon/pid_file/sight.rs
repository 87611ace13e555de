//! What a PID file tells whoever looks at it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, flock, fstat, openat};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::daemon::place::Own;

/// The text before there is a process id; LibUCW's.
pub(super) const STARTING: &[u8] = b"(starting)\n";

/// Longer than any text that belongs there.
pub(super) const TEXT_MAX: usize = 16;

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
pub(in crate::daemon) struct Sight {
    pub(in crate::daemon) state: State,
    /// `None`: there is none.
    pub(in crate::daemon) file: Option<FileId>,
    /// The beginning, of at most `TEXT_MAX` bytes.
    pub(in crate::daemon) text: Vec<u8>,
}

/// Which file it is, and whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) struct FileId {
    pub(in crate::daemon) device: u64,
    pub(in crate::daemon) inode: u64,
    pub(in crate::daemon) owner: u32,
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
pub(in crate::daemon) fn examine(path: &Path) -> io::Result<Sight> {
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

pub(super) fn process_id(text: &[u8]) -> Option<Pid> {
    let number = crate::account::number(text.strip_suffix(b"\n")?)?;
    Pid::from_raw(number.try_into().ok()?)
}

/// The beginning of a file: at most `TEXT_MAX` bytes.
pub(super) fn text(file: &File) -> io::Result<Vec<u8>> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
            let starts = look(&path).is_ok_and(|state| state == State::Starting);
            assert_eq!(starts, expected, "{text:?}");
        }
    }
}
