//! A thread that helps to read sysfs, on another processor: the kernel takes some 10 us
//! to tell of a device, about as long as it takes to act on one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};

use crate::sys;

/// Most of what such a thread has on its stack is a path.
const STACK_BYTES: usize = 64 * 1024;

/// The thread.
#[derive(Debug)]
pub(super) struct Helper {
    thread: JoinHandle<()>,
    /// Where this process may run.
    processors: CpuSet,
    /// It runs, or has run.
    has_begun: Arc<AtomicBool>,
    /// As long as this is locked, it does not end.
    exit: Arc<Mutex<()>>,
}

impl Helper {
    /// Does `work` in a thread of its own. None if no other processor is known of, or there
    /// is no thread to be had.
    pub(super) fn start(work: impl FnOnce() + Send + 'static) -> Option<Self> {
        let processors = sched_getaffinity(None).ok()?;
        let mut others = processors;
        others.unset(sched_getcpu());
        if others.count() == 0 {
            return None;
        }
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock();
        let has_begun = Arc::<AtomicBool>::default();
        let exit = Arc::<Mutex<()>>::default();
        let work = {
            let (is_placed, begun, may_end) =
                (Arc::clone(&gate), Arc::clone(&has_begun), Arc::clone(&exit));
            move || {
                // Until it was placed; it must not have ended by then.
                drop(is_placed.lock());
                // It is there: from now on the scheduler may know better.
                let _ = sched_setaffinity(None, &processors);
                begun.store(true, Ordering::Release);
                work();
                drop(may_end.lock());
            }
        };
        let builder = Builder::new().name("scan".into()).stack_size(STACK_BYTES);
        // They are for the thread that waits for them: one that came to this one just
        // before an update in place would be lost.
        let thread = sys::with_signals_blocked(|| builder.spawn(work)).ok()?;
        // A scheduler that saves processors, as in virtual machines, may leave both on one
        // for longer than all this takes. If this fails, it does its best.
        let _ = sys::set_affinity(&thread, &others);
        drop(closed);
        Some(Self { thread, processors, has_begun, exit })
    }

    /// Waits for its end.
    pub(super) fn end(self) {
        let stays = self.exit.lock();
        // Let it begin where there is time, now that it is waited for.
        if !self.has_begun.load(Ordering::Acquire) {
            let _ = sys::set_affinity(&self.thread, &self.processors);
        }
        drop(stays);
        // It cannot have panicked: that aborts.
        let _ = self.thread.join();
    }

    /// Whether it has come to its end.
    #[cfg(test)]
    pub(super) fn has_ended(&self) -> bool {
        self.thread.is_finished()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::testing;

    /// Where this thread may run.
    fn processors() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap();
        (0..CpuSet::MAX_CPU).filter(|&number| set.is_set(number)).collect()
    }

    #[test]
    fn it_may_run_wherever_this_process_may() {
        let found = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&found);
        match Helper::start(move || *tell.lock().unwrap() = processors()) {
            None => testing::skip("processors", "who helps", "there is only one processor"),
            Some(helper) => {
                helper.end();
                assert_eq!(*found.lock().unwrap(), processors());
            }
        }
    }

    /// Whoever has a thread placed that has ended is placed itself.
    #[test]
    fn who_is_helped_stays_where_it_is() {
        let before = processors();
        if before.len() < 2 {
            return testing::skip("processors", "who is helped", "there is only one processor");
        }
        for _ in 0..200 {
            Helper::start(|| ()).unwrap().end();
            assert_eq!(processors(), before);
        }
    }

    /// As taskset(1) does meanwhile.
    #[test]
    fn where_this_thread_may_run_is_left_alone() {
        let before = sched_getaffinity(None).unwrap();
        if before.count() < 2 {
            return testing::skip("processors", "who is helped", "there is only one processor");
        }
        for _ in 0..100 {
            let helper = Helper::start(|| ()).unwrap();
            let mut one = CpuSet::new();
            one.set(processors()[0]);
            sched_setaffinity(None, &one).unwrap();
            helper.end();
            assert_eq!(sched_getaffinity(None).unwrap(), one);
            sched_setaffinity(None, &before).unwrap();
        }
    }
}
