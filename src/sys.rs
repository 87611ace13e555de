//! The few system calls that no safe crate offers, behind safe functions.
//!
//! This is the only module with `unsafe`. It owns nothing but the stack that a
//! new child runs on until it executes its program, and what it is told
//! ([`Spawner`]).
#![allow(unsafe_code, reason = "the one module where system calls are wrapped")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::FdFlags;
use rustix::process::Pid;

/// Takes over a file descriptor that this process was started with, and sets
/// it close-on-exec.
///
/// Only a descriptor without the close-on-exec flag can have come through an
/// exec, and all that this process opens itself has the flag. So one that has
/// it belongs to somebody else here, or was taken over before: it is refused.
/// Descriptors 0 to 2 stay with the standard streams, and a duplicate (3 or
/// above) is returned.
///
/// # Errors
/// `EBADF` if it is not open, [`io::ErrorKind::ResourceBusy`] if it is not an
/// inherited one, any error of fcntl(2).
pub fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(rustix::io::Errno::BADF.into());
    }
    // SAFETY: `borrowed` lives in this function only. If nothing is open at
    // this number, fcntl says EBADF, and no other thread could open it now:
    // the program has one thread.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    if rustix::io::fcntl_getfd(borrowed)?.contains(FdFlags::CLOEXEC) {
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "not an inherited file descriptor, or named twice",
        ));
    }
    if fd <= 2 {
        return Ok(rustix::io::fcntl_dupfd_cloexec(borrowed, 3)?);
    }
    rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and nothing else in this process owns it (see above).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets close-on-exec on every open file descriptor from 3 up, so that no
/// child inherits what this process was started with by accident.
///
/// # Errors
/// Those of close_range(2); where the kernel has no CLOSE_RANGE_CLOEXEC
/// (before Linux 5.11), those of reading /proc/self/fd.
pub fn close_all_on_exec() -> io::Result<()> {
    const FIRST: libc::c_uint = 3;
    // SAFETY: plain integers; with this flag the call closes nothing now.
    let result = unsafe {
        libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if result == 0 {
        return Ok(());
    }
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        if fd > 2 {
            // SAFETY: setting the flag on a descriptor of ours (or, if it was
            // closed meanwhile, on none) invalidates nobody's ownership.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

/// Closes the file descriptors from 3 up that this process was started with
/// and nobody has taken over ([`adopt`]): a daemon must not keep open what
/// whoever started it waits for to be closed.
///
/// # Errors
/// Those of reading /proc/self/fd.
pub fn close_inherited() -> io::Result<()> {
    let mut inherited = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let Some(fd) = name.to_str().and_then(|name| name.parse::<RawFd>().ok()) else {
            continue;
        };
        // SAFETY: plain integers; it only reads the flags.
        if fd > 2 && unsafe { libc::fcntl(fd, libc::F_GETFD) } == 0 {
            inherited.push(fd);
        }
    }
    for fd in inherited {
        // SAFETY: it is not close-on-exec, so nothing in this process owns it:
        // see `adopt`.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Which side of a [`fork`] this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The one that has called it; this is the new one's id, which the caller
    /// has to reap.
    Parent(Pid),
    /// The new one, a copy with its own copies of all file descriptors.
    Child,
}

/// Splits this process in two.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] if it has more than one thread: the others
/// would be missing in the child, with the locks that they hold. Those of
/// fork(2).
pub fn fork() -> io::Result<Fork> {
    // SAFETY: with this flag the call does nothing but to say EINVAL if there
    // is another thread (unshare(2)), and needs no /proc to know. Where a
    // sandbox forbids the call the caller has to know best.
    let result = unsafe { libc::unshare(libc::CLONE_THREAD) };
    if result != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
        let text = "a process with several threads cannot fork";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    // SAFETY: there is no other thread that could hold a lock which the child
    // would wait for.
    match unsafe { libc::fork() } {
        0 => Ok(Fork::Child),
        pid => match Pid::from_raw(pid).filter(|_| pid > 0) {
            Some(pid) => Ok(Fork::Parent(pid)),
            None => Err(io::Error::last_os_error()),
        },
    }
}

/// One delivery of a signal, as it travels through the self-pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalRecord {
    /// The signal's number.
    pub signal: c_int,
    /// Process id and user id of the sender, where a process sent it.
    pub sender: Option<(u32, u32)>,
}

impl SignalRecord {
    /// The size of a record in the pipe, in bytes; below PIPE_BUF, so each is
    /// written and read whole (pipe(7)).
    pub const SIZE: usize = 12;

    fn to_bytes(self) -> [u8; Self::SIZE] {
        let (pid, uid) = self.sender.unwrap_or((0, 0));
        let mut bytes = [0; Self::SIZE];
        bytes[..4].copy_from_slice(&self.signal.to_ne_bytes());
        bytes[4..8].copy_from_slice(&pid.to_ne_bytes());
        bytes[8..].copy_from_slice(&uid.to_ne_bytes());
        bytes
    }

    /// Reads a record back.
    pub fn from_bytes(bytes: [u8; Self::SIZE]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = bytes;
        let pid = u32::from_ne_bytes([e, f, g, h]);
        Self {
            signal: c_int::from_ne_bytes([a, b, c, d]),
            sender: (pid != 0).then_some((pid, u32::from_ne_bytes([i, j, k, l]))),
        }
    }
}

/// Has every delivery of `signal` written to `pipe` as a [`SignalRecord`].
///
/// Nothing else happens in the handler. `pipe` should be non-blocking; it is
/// never closed. If it is full the record is dropped: then thousands of
/// signals are waiting there already.
///
/// # Errors
/// Those of sigaction(2).
pub fn forward_signal(signal: c_int, pipe: &'static OwnedFd) -> io::Result<()> {
    let daemon = rustix::process::getpid();
    let action = move |info: &libc::siginfo_t| {
        // A child shares our memory and handlers until it has executed its
        // program. What reaches it before that was sent to our process group,
        // and we have our own copy.
        if rustix::process::getpid() != daemon {
            return;
        }
        let by_process = matches!(info.si_code, libc::SI_USER | libc::SI_QUEUE | libc::SI_TKILL);
        // SAFETY: for these codes the kernel fills in pid and uid (sigaction(2)).
        let sender = by_process.then(|| unsafe { (info.si_pid().cast_unsigned(), info.si_uid()) });
        let record = SignalRecord { signal: info.si_signo, sender };
        let _ = rustix::io::write(pipe, &record.to_bytes());
    };
    // SAFETY: the action allocates nothing, takes no lock and calls only
    // getpid(2) and write(2), which are async-signal-safe (signal-safety(7));
    // the registry saves and restores errno.
    unsafe { signal_hook_registry::register_sigaction(signal, action) }?;
    Ok(())
}

/// Undoes what a careless parent may have left: no signal is blocked any more
/// in this thread, the only one, and SIGCHLD has its default disposition (if
/// it were ignored, children would be reaped behind our back: waitpid(2)).
///
/// # Errors
/// Those of sigprocmask(2) and sigaction(2).
pub fn normalize_signals() -> io::Result<()> {
    // SAFETY: both types are plain data for which all zeros is a valid value;
    // no handler is installed.
    let result = unsafe {
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigaction(libc::SIGCHLD, &raw const default, ptr::null_mut())
            | libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Starts programs, at the cost of one clone(2) and one execve(2).
///
/// Child and parent share memory until the child executes its program, and the
/// parent waits for that (CLONE_VM, CLONE_VFORK): no page table is copied, and
/// an error of execve(2) is told at once, without a pipe. The child gets its
/// own process group, default signal dispositions and an empty signal mask.
///
/// To be made after all signal handlers are installed; the process that calls
/// [`Spawner::spawn`] must have no signals blocked.
#[derive(Debug)]
pub struct Spawner {
    stack: Vec<u128>,
    reset: Vec<c_int>,
    /// As execve(2) takes them, ended by NULL; dangling when nothing is being
    /// started. Kept for their memory.
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
}

/// What the child needs to know, and where it leaves its error.
struct Errand {
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    reset: *const c_int,
    reset_len: usize,
    error: c_int,
}

impl Default for Spawner {
    fn default() -> Self {
        Self::new()
    }
}

impl Spawner {
    /// The child calls one function deep; execve itself runs in the kernel.
    const STACK_BYTES: usize = 32 * 1024;

    /// Notes which signals are ignored now: these the children must reset.
    /// Those that are caught execve(2) resets.
    pub fn new() -> Self {
        let reset = (1..=libc::SIGRTMAX())
            .filter(|&signal| {
                // SAFETY: sigaction is plain data for which all zeros is a
                // valid value; with a null new action, the call only reads.
                let (result, old) = unsafe {
                    let mut old: libc::sigaction = std::mem::zeroed();
                    (libc::sigaction(signal, ptr::null(), &raw mut old), old)
                };
                result == 0 && old.sa_sigaction == libc::SIG_IGN
            })
            .collect();
        Self {
            stack: vec![0; Self::STACK_BYTES / size_of::<u128>()],
            reset,
            argv: Vec::new(),
            envp: Vec::new(),
        }
    }

    /// Starts the program at `path`, with these arguments, its name first,
    /// and this environment of `KEY=VALUE`.
    ///
    /// Returns a pidfd (close-on-exec; owned by the caller, who also has to
    /// reap the child) and the process id, which is also the id of the
    /// child's process group. There is no child if an error is returned.
    ///
    /// # Errors
    /// Those of clone(2) and execve(2).
    pub fn spawn<'a>(
        &mut self,
        path: &CStr,
        argv: impl IntoIterator<Item = &'a CStr>,
        envp: impl IntoIterator<Item = &'a CStr>,
    ) -> io::Result<(OwnedFd, Pid)> {
        let mut errand = Errand {
            path: path.as_ptr(),
            argv: fill(&mut self.argv, argv),
            envp: fill(&mut self.envp, envp),
            reset: self.reset.as_ptr(),
            reset_len: self.reset.len(),
            error: 0,
        };
        let mut pidfd: c_int = -1;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
        // SAFETY: the stack is aligned to 16 bytes, grows down from its end and
        // is used by one child at a time, as CLONE_VFORK keeps this thread, the
        // only one, from running until the child has left it by execve or
        // _exit. For as long `errand` lives, and what it points to: the strings
        // are borrowed for longer than this call, the arrays are ours.
        // CLONE_PIDFD puts the descriptor into the variable given as `parent_tid`.
        let pid = unsafe {
            libc::clone(
                in_child,
                self.stack.as_mut_ptr_range().end.cast(),
                flags,
                (&raw mut errand).cast(),
                &raw mut pidfd,
            )
        };
        // Not given to from_raw if negative, which it takes for a bug.
        let Some(pid) = (pid > 0).then(|| Pid::from_raw(pid)).flatten() else {
            return Err(io::Error::last_os_error());
        };
        // SAFETY: clone succeeded, so this is a new descriptor that nobody else has.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        // SAFETY: `errand` is alive; volatile, as the child wrote it behind the compiler's back.
        let error = unsafe { (&raw const errand.error).read_volatile() };
        if error == 0 {
            return Ok((pidfd, pid));
        }
        // It has exited, or is about to: this does not block for longer than that.
        reap(pidfd.as_fd())?;
        Err(io::Error::from_raw_os_error(error))
    }
}

/// Makes an array of C strings as execve(2) takes it.
fn fill<'a>(
    array: &mut Vec<*const c_char>,
    strings: impl IntoIterator<Item = &'a CStr>,
) -> *const *const c_char {
    array.clear();
    array.extend(strings.into_iter().map(CStr::as_ptr));
    array.push(ptr::null());
    array.as_ptr()
}

fn reap(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED))?;
    Ok(())
}

/// The child's way from clone to execve, in the parent's memory: no
/// allocation, no lock, no panic, no return.
extern "C" fn in_child(errand: *mut c_void) -> c_int {
    // SAFETY: `errand` is what spawn passed, alive until this process has left
    // its memory; every call is async-signal-safe, and the mutable access is
    // the only one, for the parent waits.
    unsafe {
        let errand = &mut *errand.cast::<Errand>();
        libc::setpgid(0, 0);
        for i in 0..errand.reset_len {
            let mut default: libc::sigaction = std::mem::zeroed();
            default.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(*errand.reset.add(i), &raw const default, ptr::null_mut());
        }
        libc::execve(errand.path, errand.argv, errand.envp);
        (&raw mut errand.error).write_volatile(*libc::__errno_location());
        libc::_exit(127)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_process_with_threads_does_not_fork() {
        // libtest runs each test in a thread of its own.
        let error = std::thread::spawn(fork).join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }

    #[test]
    fn a_signal_record_survives_the_pipe() {
        for sender in [None, Some((1, 0)), Some((u32::MAX, u32::MAX))] {
            let record = SignalRecord { signal: libc::SIGTERM, sender };
            assert_eq!(SignalRecord::from_bytes(record.to_bytes()), record);
        }
    }

    #[test]
    fn what_we_opened_ourselves_is_not_adopted() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(adopt(file.as_raw_fd()).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(adopt(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(adopt(1 << 20).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn an_error_of_execve_is_told_and_leaves_no_child() {
        let mut spawner = Spawner::new();
        let error = spawner.spawn(c"/nonexistent/program", [c"x"], []).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        let error = spawner.spawn(c"/etc/passwd", [c"x"], []).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }
}
