//! Other programs: in the place of this one, or as its children.
//!
//! Owns the stack that a new child runs on until it executes its program, and what it
//! is told ([`Spawner`]).

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions};

use super::signals::{KERNEL_MASK, KernelAction, is_ignored};

/// Whether SIGPIPE was ignored already when this process was started: Rust's
/// runtime ignores it always, before main.
static SIGPIPE_WAS_IGNORED: AtomicBool = AtomicBool::new(false);

/// Runs before that.
// SAFETY: this section holds the addresses of functions that the C library
// calls, in this thread, at start-up; this one makes one system call.
#[used]
#[unsafe(link_section = ".init_array")]
static NOTE_SIGPIPE: extern "C" fn() = {
    extern "C" fn note() {
        SIGPIPE_WAS_IGNORED.store(is_ignored(libc::SIGPIPE), Ordering::Relaxed);
    }
    note
};

/// Becomes the program at `path`, with the signal dispositions and the mask
/// that this process was started with. Returns only if that fails.
///
/// # Errors
/// Those of execve(2).
pub fn execute<'a>(
    path: &CStr,
    argv: impl IntoIterator<Item = &'a CStr>,
    envp: impl IntoIterator<Item = &'a CStr>,
) -> io::Error {
    let (mut arguments, mut environment) = (Vec::new(), Vec::new());
    let (argv, envp) = (fill(&mut arguments, argv), fill(&mut environment, envp));
    let as_it_was =
        if SIGPIPE_WAS_IGNORED.load(Ordering::Relaxed) { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: neither runs code of ours, and what was there before may go on; the
    // arrays end with a null pointer and borrow their strings.
    unsafe {
        let before = libc::signal(libc::SIGPIPE, as_it_was);
        libc::execve(path.as_ptr(), argv, envp);
        let error = io::Error::last_os_error();
        libc::signal(libc::SIGPIPE, before);
        error
    }
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
    open_files: Option<libc::rlimit>,
}

/// What the child needs to know, and where it leaves its error.
struct Errand {
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    reset: *const c_int,
    reset_len: usize,
    open_files: *const libc::rlimit,
    error: c_int,
}

impl Default for Spawner {
    fn default() -> Self {
        Self::new()
    }
}

impl Spawner {
    /// The child calls one function deep; execve itself runs in the kernel.
    /// But caught signals run on it too, and some may nest, with a frame of 3 to
    /// 11 KiB each, as large as the processor's registers are.
    const STACK_BYTES: usize = 64 * 1024;

    /// Notes which signals are ignored now: these the children must reset.
    /// Those that are caught execve(2) resets.
    pub fn new() -> Self {
        let reset = (1..=libc::SIGRTMAX()).filter(|&signal| is_ignored(signal)).collect();
        Self {
            stack: vec![0; Self::STACK_BYTES / size_of::<u128>()],
            reset,
            open_files: None,
            argv: Vec::new(),
            envp: Vec::new(),
        }
    }

    /// From now on the children get this limit of open files (soft, hard)
    /// instead of this process's.
    pub fn limit_open_files(&mut self, (soft, hard): (u64, u64)) {
        self.open_files = Some(libc::rlimit { rlim_cur: soft, rlim_max: hard });
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
            open_files: self.open_files.as_ref().map_or(ptr::null(), ptr::from_ref),
            error: 0,
        };
        let mut pidfd: c_int = -1;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
        // SAFETY: the stack is aligned as u128 is, which suffices wherever that is less
        // than 16, grows down from its end and is used by one child at a time, as
        // CLONE_VFORK keeps this thread from running until the child has left it by
        // execve or _exit, or died. For as long `errand` lives, and what it points to:
        // the strings are borrowed for longer than this call, the arrays are ours.
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
        if pidfd < 0 {
            // Linux before 5.2 takes no notice of CLONE_PIDFD.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
            return Err(Errno::NOSYS.into());
        }
        // SAFETY: clone succeeded and wrote a new descriptor that nobody else has.
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
    // the only one, for the thread that has called spawn waits.
    unsafe {
        let errand = &mut *errand.cast::<Errand>();
        libc::setpgid(0, 0);
        for i in 0..errand.reset_len {
            let mut default: libc::sigaction = std::mem::zeroed();
            default.sa_sigaction = libc::SIG_DFL;
            let signal = *errand.reset.add(i);
            if libc::sigaction(signal, &raw const default, ptr::null_mut()) != 0 {
                let (new, old): (KernelAction, _) = ([0; 8], ptr::null_mut::<KernelAction>());
                libc::syscall(libc::SYS_rt_sigaction, signal, &raw const new, old, KERNEL_MASK);
            }
        }
        if !errand.open_files.is_null() {
            libc::setrlimit(libc::RLIMIT_NOFILE, errand.open_files);
        }
        libc::execve(errand.path, errand.argv, errand.envp);
        (&raw mut errand.error).write_volatile(*libc::__errno_location());
        libc::_exit(127)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_execve_is_told_and_leaves_no_child() {
        let mut spawner = Spawner::new();
        let error = spawner.spawn(c"/nonexistent/program", [c"x"], []).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
        let error = spawner.spawn(c"/etc/passwd", [c"x"], []).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }
}
