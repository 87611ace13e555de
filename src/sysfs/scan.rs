//! Reads the devices of a listing back as events. Owns the listing.

use std::sync::Arc;
use std::vec;

use crate::beneath::Failed;

use super::ahead::Ahead;
use super::device::Reader;
use super::{Listing, Sysfs};

/// All devices that were found, to be read back.
#[derive(Debug)]
pub struct Scan {
    sys: Sysfs,
    listing: Arc<Listing>,
    pub(super) ahead: Option<Ahead>,
    reader: Reader,
    /// For [`Scan::next`]: which device, what could not be listed, and the event.
    next: usize,
    failed: vec::IntoIter<Failed>,
    event: Vec<u8>,
}

impl Scan {
    /// Of these devices.
    pub fn new(sys: Sysfs, mut listing: Listing) -> Self {
        let failed = std::mem::take(&mut listing.failed).into_iter();
        let (listing, reader, event) =
            (Arc::new(listing), Reader::default(), Vec::with_capacity(4096));
        Self { sys, listing, ahead: None, reader, next: 0, failed, event }
    }

    /// Where they are.
    pub fn sys(&self) -> &Sysfs {
        &self.sys
    }

    /// What was found.
    pub fn listing(&self) -> &Arc<Listing> {
        &self.listing
    }

    /// Most of the devices are about to be read, from the first one on: for their
    /// `add` events. Some are read before they are asked for, if there is another
    /// processor to do so.
    pub fn read_ahead(&mut self) {
        self.ahead = Ahead::new(&self.sys, &self.listing);
    }

    /// From now on each is read when it is asked for. Returns whether there was a thread or
    /// a descriptor that was kept for this.
    pub fn read_no_more_ahead(&mut self) -> bool {
        let kept = self.forget_directory();
        self.ahead.take().is_some() || kept
    }

    /// An event was taken that may tell that directories have other names now. Returns
    /// whether one was kept.
    pub fn forget_directory(&mut self) -> bool {
        self.reader.forget_directory()
    }

    /// Reads the device with this index in the listing. What `event` becomes is the
    /// datagram of the event that the kernel would send for it now, with this action,
    /// but for its SEQNUM. Returns the inode number of its file `uevent`, or nothing if
    /// it has gone.
    ///
    /// # Errors
    /// If its file cannot be read. That is no reason not to go on.
    pub fn read(
        &mut self,
        index: usize,
        action: &str,
        event: &mut Vec<u8>,
    ) -> Result<Option<u64>, Failed> {
        event.clear();
        let ahead = self.ahead.as_mut().filter(|_| action == "add");
        if let Some(read) = ahead.and_then(|ahead| ahead.take(index, event)) {
            return read;
        }
        let device = (self.listing.path(index), self.listing.subsystem(index));
        self.reader.read(&self.sys, device, action.as_bytes(), event)
    }

    /// The `add` event of the next device. One that has gone meanwhile is passed over.
    ///
    /// # Errors
    /// If a directory or a file cannot be read. That is no reason not to go on.
    #[allow(clippy::should_implement_trait, reason = "it lends what it returns")]
    pub fn next(&mut self) -> Option<Result<&[u8], Failed>> {
        if let Some(failed) = self.failed.next() {
            return Some(Err(failed));
        }
        let mut event = std::mem::take(&mut self.event);
        while self.next < self.listing.len() {
            self.next += 1;
            match self.read(self.next - 1, "add", &mut event) {
                Ok(None) => {}
                read => {
                    self.event = event;
                    return Some(read.map(|_| &*self.event));
                }
            }
        }
        None
    }
}
