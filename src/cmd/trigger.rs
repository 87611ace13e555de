//! Having the kernel tell of devices, one after the other.

use rustix::io::Errno;

use crate::beneath::{Failed, Why};
use crate::error::Fatal;
use crate::sysfs::Sysfs;

/// How often the kernel was asked, and refused.
#[derive(Debug, Default)]
pub(super) struct Tally {
    asked: u64,
    refused: u64,
    first: Option<Failed>,
}

impl Tally {
    /// Has the kernel send an event for a device, and tells whether it does. One that has
    /// gone meanwhile is passed over.
    pub(super) fn trigger(&mut self, sys: &Sysfs, devpath: &[u8], action: &[u8]) -> bool {
        match sys.trigger(devpath, action) {
            Ok(()) => {
                self.asked += 1;
                return true;
            }
            Err(Failed { why: Why::System(Errno::NOENT | Errno::NODEV), .. }) => {}
            Err(failed) => {
                log::debug!("{failed}");
                self.refused += 1;
                self.first.get_or_insert(failed);
            }
        }
        false
    }

    /// Tells what was refused, and returns how many events there are.
    ///
    /// # Errors
    /// If there is none, as all were refused.
    pub(super) fn finish(self) -> Result<u64, Fatal> {
        match self.first {
            Some(failed) if self.asked == 0 => return Err(failed.into()),
            Some(failed) => {
                log::warn!("{} devices are left out; the first one: {failed}", self.refused);
            }
            None => {}
        }
        Ok(self.asked)
    }
}
