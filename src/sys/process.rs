//! This process: its copy, its threads, its users, its environment; and a signal to another one.

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::JoinHandle;

use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::CpuSet;

use super::last_errno;

/// Which side of a [`fork`] this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The one that has called it; this is the new one's id, which the caller
    /// has to reap.
    Parent(Pid),
    /// The new one, a copy with its own copies of all file descriptors.
    Child,
}

/// Whether this process has another thread. Where a sandbox forbids to ask, the
/// answer is no: the caller has to know best.
pub fn has_other_threads() -> bool {
    // SAFETY: with this flag the call does nothing but to say EINVAL if there
    // is another thread (unshare(2)), and needs no /proc to know.
    let result = unsafe { libc::unshare(libc::CLONE_THREAD) };
    result != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}

/// Has a thread run on these processors only. It must not have ended: in its place the
/// calling one would be moved, as the C libraries have 0 for its number then.
///
/// # Errors
/// Those of pthread_setaffinity_np(3).
pub(crate) fn set_affinity<T>(
    thread: &JoinHandle<T>,
    processors: &CpuSet,
) -> rustix::io::Result<()> {
    // A pointer with musl.
    let id = thread.as_pthread_t() as libc::pthread_t;
    // SAFETY: plain data, for which all zeros is a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for number in (0..CpuSet::MAX_CPU).filter(|&number| processors.is_set(number)) {
        // SAFETY: it is in range: both sets are of the same size.
        unsafe { libc::CPU_SET(number, &mut set) };
    }
    // SAFETY: the handle keeps the thread's id valid, and the set is of that size.
    let error = unsafe { libc::pthread_setaffinity_np(id, size_of_val(&set), &raw const set) };
    if error == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(error)) }
}

/// Splits this process in two.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] if it has more than one thread: the others
/// would be missing in the child, with the locks that they hold. Those of
/// fork(2).
pub fn fork() -> io::Result<Fork> {
    if has_other_threads() {
        let text = "a process with several threads cannot fork";
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    // SAFETY: there is no other thread that could hold a lock which the child
    // would wait for.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid).map_or(Fork::Child, Fork::Parent)),
    }
}

/// Sends a signal of any number to a process. (rustix sends only those that have
/// names.)
///
/// # Errors
/// Those of pidfd_send_signal(2).
pub(crate) fn pidfd_send_signal(process: BorrowedFd<'_>, signal: c_int) -> rustix::io::Result<()> {
    let no_info: *const libc::siginfo_t = ptr::null();
    // SAFETY: a descriptor that is open, plain integers; without information about
    // it, the signal is that of kill(2).
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, no_info, 0_u32)
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// The real, effective and saved ids of this process: of the user, and of the group.
///
/// # Errors
/// Those of getresuid(2) and getresgid(2).
pub(crate) fn all_ids() -> io::Result<([u32; 3], [u32; 3])> {
    let ([mut ruid, mut euid, mut suid], [mut rgid, mut egid, mut sgid]) = ([0; 3], [0; 3]);
    // SAFETY: the kernel writes an integer to each of these variables.
    let result = unsafe {
        match libc::getresuid(&raw mut ruid, &raw mut euid, &raw mut suid) {
            0 => libc::getresgid(&raw mut rgid, &raw mut egid, &raw mut sgid),
            failed => failed,
        }
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(([ruid, euid, suid], [rgid, egid, sgid]))
}

/// The process group of a process, 0 if that is in a PID namespace that is not visible
/// here (which is why rustix's function of that kind must not be used).
///
/// # Errors
/// Those of getpgid(2).
pub fn process_group(pid: i32) -> io::Result<i32> {
    // SAFETY: a plain integer.
    let group = unsafe { libc::getpgid(pid) };
    if group < 0 { Err(io::Error::last_os_error()) } else { Ok(group) }
}

/// The environment of this process, string by string: also those without `=`, and all
/// of several for one variable, which the standard library would not hand on.
///
/// Not to be called while a thread may change it, for which nothing here is made.
pub(crate) fn environment() -> Vec<CString> {
    unsafe extern "C" {
        // Not a constant: the C library writes there.
        static mut environ: *const *const c_char;
    }
    let mut strings = Vec::new();
    // SAFETY: an array of strings, ended by NULL (environ(7)); a null pointer after
    // clearenv(3). Changing it is unsafe (std::env::set_var), and done nowhere.
    unsafe {
        let mut next = environ;
        while !next.is_null() && !(*next).is_null() {
            strings.push(CStr::from_ptr(*next).to_owned());
            next = next.add(1);
        }
    }
    strings
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    use rustix::thread::{gettid, sched_getaffinity};

    #[test]
    fn a_thread_is_placed() {
        let (tell, told) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            tell.send(gettid()).unwrap();
            let _ = ends.recv();
        });
        let thread_id = told.recv().unwrap();
        let all = sched_getaffinity(None).unwrap();
        for number in (0..CpuSet::MAX_CPU).filter(|&number| all.is_set(number)) {
            let mut one = CpuSet::new();
            one.set(number);
            set_affinity(&thread, &one).unwrap();
            assert_eq!(sched_getaffinity(Some(thread_id)).unwrap(), one);
        }
        assert_eq!(set_affinity(&thread, &CpuSet::new()), Err(Errno::INVAL));
        assert_eq!(sched_getaffinity(None).unwrap(), all);
        drop(end);
        thread.join().unwrap();
    }

    #[test]
    fn a_process_with_threads_does_not_fork() {
        // libtest runs each test in a thread of its own.
        let error = std::thread::spawn(fork).join().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }
}
