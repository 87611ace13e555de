//! What this process has in memory: a file, and its own code.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

/// A file in memory: what is written here is in the file, and stays there when
/// the process ends in whatever way.
#[derive(Debug, Default)]
pub struct Mapping {
    /// Page-aligned; dangling if there are no bytes.
    start: Option<NonNull<u8>>,
    length: usize,
}

impl Mapping {
    /// Maps the first `length` bytes of a file that is open for reading and
    /// writing, and has as many. The caller sees to it that no other process
    /// writes or truncates it, by permissions and by locking it: whoever can do
    /// that all the same can as well write to the memory of this process.
    ///
    /// # Errors
    /// Those of mmap(2).
    pub(crate) fn of(file: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        if length == 0 {
            return Ok(Self::default());
        }
        // SAFETY: the kernel chooses an address range that nothing else uses.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: NonNull::new(start.cast()), length })
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        let Some(start) = self.start else { return &[] };
        // SAFETY: that many bytes are mapped there for as long as this lives,
        // and changed by nobody but through a mutable borrow of it.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.length) }
    }

    /// The bytes, to be changed.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let Some(start) = self.start else { return &mut [] };
        // SAFETY: as above, and this is the only borrow.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some(start) = self.start {
            // SAFETY: it was mapped by `of`, and no borrow of it is left.
            unsafe { libc::munmap(start.as_ptr().cast(), self.length) };
        }
    }
}

/// Gives back the memory that this program's code takes. What is still needed comes
/// back from its file, or the page cache, when it is: most of it is needed at the
/// start only. Does nothing where /proc is not mounted.
///
/// # Errors
/// Those of open(2) and madvise(2).
pub fn forget_code() -> io::Result<()> {
    let here = forget_code as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let Some((start, end)) = maps.lines().find_map(|line| code_around(line, here)) else {
        return Ok(());
    };
    // SAFETY: these whole pages are mapped privately from a file, and cannot be
    // written: they were never changed, so what is read from the file again is the same.
    let result = unsafe {
        libc::madvise(ptr::with_exposed_provenance_mut(start), end - start, libc::MADV_DONTNEED)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The range of a mapping, if a line of /proc/PID/maps (proc_pid_maps(5)) tells of one
/// that has the address `here` in it, of a file, and private, executable and not
/// writable.
fn code_around(line: &str, here: usize) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (range, access, _offset) = (fields.next()?, fields.next()?, fields.next()?);
    let (_device, inode) = (fields.next()?, fields.next()?);
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let (start, end) = (number(start)?, number(end)?);
    let is_code = access == "r-xp" && inode != "0" && (start..end).contains(&here);
    is_code.then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_forgotten_and_comes_back() {
        forget_code().unwrap();
        let line = "1000-3000 r-xp 00001000 fe:00 42 /sbin/plugd";
        assert_eq!(code_around(line, 0x2fff), Some((0x1000, 0x3000)));
        assert_eq!(code_around(line, 0x3000), None);
        for other in ["rwxp", "r-xs", "r--p", "rw-p"] {
            assert_eq!(code_around(&line.replace("r-xp", other), 0x2000), None);
        }
        assert_eq!(code_around("1000-3000 r-xp 00000000 00:00 0", 0x2000), None);
    }
}
