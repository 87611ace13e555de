//! Whether a process is the daemon of a PID file: by the lock that it holds, and whose it
//! is, as /proc tells.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use rustix::process::Pid;

use crate::daemon::pid_file::FileId;
use crate::daemon::place::Own;

/// Why this process may be another one than the daemon of this PID file.
pub(super) fn why_another(pid: Pid, file: FileId) -> Option<&'static str> {
    let trusted = Own::now().trusts_user(file.owner);
    match holds_lock(pid, file) {
        Some(false) => Some("it does not hold the lock of the PID file"),
        // Whose file it is could have written anything, and handed the lock to
        // anybody.
        Some(true) if !trusted && real_user(pid) != Some(file.owner) => {
            Some("the PID file belongs to another user, and the process does not")
        }
        None if !trusted => Some("the PID file belongs to another user"),
        _ => None,
    }
}

/// Whether that process has this file open for writing, with an exclusive lock.
/// `None` if that cannot be known.
fn holds_lock(pid: Pid, file: FileId) -> Option<bool> {
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).ok()? {
        let Ok(fd) = fd else { return None };
        let is_it = |other: fs::Metadata| (other.dev(), other.ino()) == (file.device, file.inode);
        let name = fd.file_name();
        match fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", name.display())) {
            // Nothing else is looked at: stat(2) of whatever a process has open may
            // wait for a server that does not answer.
            Ok(info) if is_written_and_locked(&info) => {
                if fs::metadata(fd.path()).is_ok_and(is_it) {
                    return Some(true);
                }
            }
            Ok(_) => {}
            // Closed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return None,
        }
    }
    Some(false)
}

/// What /proc/PID/fdinfo/FD tells (proc_pid_fdinfo(5)). Anybody can lock a file
/// that he can only read.
fn is_written_and_locked(info: &str) -> bool {
    let field = |name| info.lines().filter_map(move |line: &str| line.strip_prefix(name));
    let writable = |flags: &str| {
        // O_RDONLY, O_WRONLY, O_RDWR.
        u32::from_str_radix(flags.trim(), 8).is_ok_and(|flags| matches!(flags & 3, 1 | 2))
    };
    let locked = |lock: &str| {
        let mut words = lock.split_whitespace().skip(1);
        words.next() == Some("FLOCK") && words.nth(1) == Some("WRITE")
    };
    field("flags:").any(writable) && field("lock:").any(locked)
}

/// The user who has started that process, and may signal it (kill(2)).
fn real_user(pid: Pid) -> Option<u32> {
    let status = fs::read(format!("/proc/{pid}/status")).ok()?;
    let ids = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
    std::str::from_utf8(ids).ok()?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FlockOperation, flock};

    #[test]
    fn who_holds_a_lock_is_told_by_the_kernel() {
        for (info, expected) in [
            ("flags:\t0100002\nlock:\t1: FLOCK  ADVISORY  WRITE 9 fe:00:1 0 EOF\n", true),
            ("flags:\t0102001\nlock:\t1: FLOCK  ADVISORY  WRITE 0 fe:00:1 0 EOF\n", true),
            ("flags:\t0100000\nlock:\t1: FLOCK  ADVISORY  WRITE 9 fe:00:1 0 EOF\n", false),
            ("flags:\t0100002\nlock:\t1: FLOCK  ADVISORY  READ  9 fe:00:1 0 EOF\n", false),
            ("flags:\t0100002\nlock:\t1: POSIX  ADVISORY  WRITE 9 fe:00:1 0 EOF\n", false),
            ("flags:\t0100002\n", false),
            ("", false),
        ] {
            assert_eq!(is_written_and_locked(info), expected, "{info}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let own = rustix::process::getpid();
        let status = file.as_file().metadata().unwrap();
        let id = FileId { device: status.dev(), inode: status.ino(), owner: status.uid() };
        assert_eq!(holds_lock(own, id), Some(false));
        flock(file.as_file(), FlockOperation::LockShared).unwrap();
        assert_eq!(holds_lock(own, id), Some(false));
        flock(file.as_file(), FlockOperation::LockExclusive).unwrap();
        assert_eq!(holds_lock(own, id), Some(true));
        assert_eq!(real_user(own), Some(rustix::process::getuid().as_raw()));
    }
}
