//! A child process: found, started, watched, ended, reaped.
//!
//! Owns the child's pidfd. Each child leads a process group of its own, so
//! that it can be ended with all that it started.

use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process;

use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, WaitOptions, child_subreaper, getpgid, kill_process_group,
    pidfd_send_signal, wait, waitid,
};

use crate::environment::Environment;
use crate::error::reason;
use crate::machine::Refusal;
use crate::plan::{Program, Run};
use crate::sys::{self, Spawner};

/// A child that has not been reaped.
#[derive(Debug)]
pub struct Child {
    pidfd: OwnedFd,
    pid: Pid,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this exit status.
    Exited(i32),
    /// By this signal.
    Killed {
        /// Its number.
        signal: i32,
        /// A core was dumped.
        core: bool,
    },
}

impl Ended {
    /// Whether all went well, as far as the child tells.
    pub fn success(self) -> bool {
        self == Self::Exited(0)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Exited(status) => write!(f, "exited with {status}"),
            Self::Killed { signal, core } => {
                f.write_str("was killed by ")?;
                match crate::signals::name(signal) {
                    Some(name) => f.write_str(name)?,
                    None => write!(f, "signal {signal}")?,
                }
                f.write_str(if core { " (core dumped)" } else { "" })
            }
        }
    }
}

impl Child {
    /// Starts the program. As execvp(3) does, runs it with /bin/sh if the
    /// kernel does not know its format.
    ///
    /// # Errors
    /// Those of clone(2) and execve(2); then there is no child.
    pub fn spawn(
        spawner: &mut Spawner,
        run: &Run<'_>,
        environment: &Environment<'_>,
    ) -> io::Result<Self> {
        let environment = || environment.variables.iter().copied();
        let path = run.program.path.as_c_str();
        let mut result = spawner.spawn(path, run.argv(), environment());
        if matches!(&result, Err(e) if Errno::from_io_error(e) == Some(Errno::NOEXEC)) {
            let shell = [c"/bin/sh", path].into_iter().chain(run.argv().skip(1));
            result = spawner.spawn(c"/bin/sh", shell, environment());
        }
        result.map(|(pidfd, pid)| Self { pidfd, pid })
    }

    /// Goes on with a child that this process had started before it executed
    /// its present program: the child's pidfd and process id.
    ///
    /// # Errors
    /// If that is no process id.
    pub fn resume(pidfd: OwnedFd, pid: i32) -> io::Result<Self> {
        match (pid > 0).then(|| Pid::from_raw(pid)).flatten() {
            Some(pid) => Ok(Self { pidfd, pid }),
            None => Err(Errno::SRCH.into()),
        }
    }

    /// Its process id, and that of its group.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// Whether this process is of its group.
    pub fn started(&self, pid: i32) -> bool {
        // 0 would be this process itself.
        pid > 0 && sys::process_group(pid).is_ok_and(|group| group == self.pid())
    }

    /// Asks the whole group to end; continues what is stopped, so that it can.
    pub fn terminate_group(&self) {
        self.signal_group(Signal::TERM);
        self.signal_group(Signal::CONT);
    }

    /// Kills the whole group.
    pub fn kill_group(&self) {
        self.signal_group(Signal::KILL);
    }

    /// The group's id cannot have been recycled: its leader is not yet reaped.
    /// A child that left its group is still signalled itself.
    fn signal_group(&self, signal: Signal) {
        let mut result = kill_process_group(self.pid, signal);
        if getpgid(Some(self.pid)) != Ok(self.pid) {
            result = pidfd_send_signal(&self.pidfd, signal);
        }
        if let Err(error) = result {
            log::warn!("cannot signal process group {}: {}", self.pid(), reason(&error.into()));
        }
    }

    /// Whether it has ended, and others of its group have not. As long as it is not
    /// reaped, the group's id cannot be recycled. Without /proc they are not seen.
    pub fn has_left_others(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let ended =
            rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options));
        matches!(ended, Ok(Some(_))) && self.has_others()
    }

    fn has_others(&self) -> bool {
        let Ok(processes) = fs::read_dir("/proc") else { return false };
        processes.flatten().any(|process| {
            let stat = fs::read(process.path().join("stat")).unwrap_or_default();
            let group = stat_group(&stat);
            group.is_some_and(|(state, group)| group == self.pid() && !b"ZX".contains(&state))
        })
    }

    /// Reaps it if it has ended; then it must not be used any more. Before
    /// that, kills what is left of its group if `with_group`: nobody would
    /// ever end it otherwise.
    ///
    /// # Errors
    /// Those of waitid(2); none is to be expected.
    pub fn try_reap(&self, with_group: bool) -> io::Result<Option<Ended>> {
        let wait = |options| {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | options;
            rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.pidfd.as_fd()), options))
        };
        if with_group {
            if wait(WaitIdOptions::NOWAIT)?.is_none() {
                return Ok(None);
            }
            self.kill_group();
        }
        let status = wait(WaitIdOptions::empty())?;
        Ok(status.map(|status| match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ended::Exited(code),
            (None, signal) => Ended::Killed { signal: signal.unwrap_or(0), core: status.dumped() },
        }))
    }
}

impl AsRawFd for Child {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

/// Whether processes that have lost their parent become children of this one: it is
/// the first of its PID namespace, or has asked for them (PR_SET_CHILD_SUBREAPER(2const)).
pub fn adopts_orphans() -> bool {
    process::id() == 1 || child_subreaper().is_ok_and(|it| it.is_some())
}

/// Reaps children that have ended, whoever started them: to be called while there
/// is none whose end is of interest.
pub fn reap_orphans() {
    while matches!(wait(WaitOptions::NOHANG), Ok(Some(_))) {}
}

/// The state and the process group in /proc/PID/stat (proc_pid_stat(5)).
fn stat_group(stat: &[u8]) -> Option<(u8, i32)> {
    // The name before may have any bytes.
    let end = stat.iter().rposition(|&b| b == b')')?;
    let mut fields = stat[end + 1..].split(|&b| b == b' ').skip(1);
    let (state, _parent, group) = (fields.next()?, fields.next()?, fields.next()?);
    Some((*state.first()?, std::str::from_utf8(group).ok()?.parse().ok()?))
}

/// What an error of [`Child::spawn`] means for the event.
pub fn refusal(error: &io::Error, program: &Program) -> Refusal {
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::TXTBSY) => {
            Refusal::Transient
        }
        Some(Errno::NOENT | Errno::ACCESS) if program.was_found => Refusal::Missing,
        _ => Refusal::Final,
    }
}

/// Finds a program as execvp(3) does: by `path`, a list of directories with
/// `:` between them, unless its name has a `/`.
///
/// # Errors
/// `EACCES` if there is such a file, but it may not be executed; else `ENOENT`.
pub fn find_program(name: &OsStr, path: &OsStr) -> io::Result<CString> {
    if name.as_bytes().contains(&b'/') {
        return check_executable(Path::new(name));
    }
    let mut found = Err(Errno::NOENT.into());
    if name.is_empty() {
        return found;
    }
    for directory in std::env::split_paths(path) {
        // An empty element is the working directory.
        let directory =
            if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
        match check_executable(&directory.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => found = Err(error),
            Err(_) => {}
            executable => return executable,
        }
    }
    found
}

fn check_executable(file: &Path) -> io::Result<CString> {
    let status = stat(file)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS.into());
    }
    accessat(CWD, file, Access::EXEC_OK, AtFlags::EACCESS)?;
    Ok(CString::new(file.as_os_str().as_bytes())?)
}

/// The same program, for another working directory.
///
/// # Errors
/// Those of getcwd(2).
pub fn absolute(program: &CStr) -> io::Result<CString> {
    let path = std::path::absolute(OsStr::from_bytes(program.to_bytes()))?;
    Ok(CString::new(path.into_os_string().into_vec())?)
}

/// The arguments of a program as execve(2) takes them.
///
/// # Errors
/// If one contains a NUL, which no command line can.
pub fn c_string(argument: &OsStr) -> io::Result<CString> {
    Ok(CString::new(argument.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn what_may_get_better_is_tried_again() {
        let program = |was_found| Program { path: c"/p".into(), argv: Vec::new(), was_found };
        let refusal = |errno: Errno, found| refusal(&errno.into(), &program(found));
        for errno in [Errno::AGAIN, Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::TXTBSY] {
            assert_eq!(refusal(errno, true), Refusal::Transient, "{errno}");
        }
        for errno in [Errno::NOENT, Errno::ACCESS] {
            assert_eq!(refusal(errno, true), Refusal::Missing, "{errno}");
            assert_eq!(refusal(errno, false), Refusal::Final, "{errno}");
        }
        assert_eq!(refusal(Errno::TOOBIG, true), Refusal::Final);
    }

    #[test]
    fn the_group_is_found_behind_any_name() {
        assert_eq!(stat_group(b"12 (sh) S 1 34 5 0"), Some((b'S', 34)));
        assert_eq!(stat_group(b"12 (a) b) Z 1 2 \n\xff) Z 7 12 5"), Some((b'Z', 12)));
        assert_eq!(stat_group(b""), None);
        assert_eq!(stat_group(b"12 (sh) S"), None);
    }

    #[test]
    fn programs_are_found_as_execvp_does() {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| dir.path().join(name));
        for (directory, mode) in [(&first, 0o644), (&second, 0o755)] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("prog"), "").unwrap();
            fs::set_permissions(directory.join("prog"), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::create_dir(first.join("dir")).unwrap();
        fs::write(first.join("data"), "").unwrap();
        let path = std::env::join_paths([&first, &second]).unwrap();
        let find = |name: &OsStr| find_program(name, &path).map_err(|e| e.raw_os_error().unwrap());

        let prog = second.join("prog");
        assert_eq!(find("prog".as_ref()).unwrap().to_bytes(), prog.as_os_str().as_bytes());
        assert_eq!(find(prog.as_ref()).unwrap().to_bytes(), prog.as_os_str().as_bytes());
        assert_eq!(find("data".as_ref()), Err(libc::EACCES));
        assert_eq!(find("dir".as_ref()), Err(libc::EACCES));
        assert_eq!(find("none".as_ref()), Err(libc::ENOENT));
        assert_eq!(find(first.join("none").as_ref()), Err(libc::ENOENT));
        assert_eq!(find("".as_ref()), Err(libc::ENOENT));
    }
}
