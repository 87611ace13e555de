//! A thread that helps to read sysfs, on another processor: the kernel takes some 10 us
//! to tell of a device, about as long as it takes to act on one.

use std::thread::{Builder, JoinHandle};

use rustix::thread::sched_getaffinity;

use crate::sys;

/// Most of what such a thread has on its stack is a path.
const STACK_BYTES: usize = 64 * 1024;

/// Does `work` in a thread of its own. None if there is only one processor for this
/// process, or no thread to be had.
pub(super) fn start(work: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
    if sched_getaffinity(None).is_ok_and(|processors| processors.count() < 2) {
        return None;
    }
    let builder = Builder::new().name("scan".into()).stack_size(STACK_BYTES);
    // They are for the thread that waits for them: one that came to this one just before
    // an update in place would be lost.
    sys::with_signals_blocked(|| builder.spawn(work)).ok()
}
