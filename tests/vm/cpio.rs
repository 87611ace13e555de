//! The archive that a kernel unpacks as its first file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst, "newc").

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive being written. Everything in it is root's.
pub(crate) struct Archive<W> {
    to: W,
    entries: u32,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(to: W) -> Self {
        Self { to, entries: 0 }
    }

    /// A directory. Those above it have to be there already; it may be itself.
    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path, DIRECTORY | 0o755, &[])
    }

    /// A regular file with this mode.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path, FILE | mode, content)
    }

    /// A symbolic link.
    pub(crate) fn link(&mut self, path: &str, to: &str) -> io::Result<()> {
        self.entry(path, LINK | 0o777, to.as_bytes())
    }

    /// All that is in the directory `tree`, with `at` before its names.
    pub(crate) fn tree(&mut self, at: &str, tree: &Path) -> io::Result<()> {
        for entry in fs::read_dir(tree)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let name = format!("{at}{}", name.ok_or(io::ErrorKind::InvalidData)?);
            let metadata = path.symlink_metadata()?;
            if metadata.is_dir() {
                self.directory(&name)?;
                self.tree(&format!("{name}/"), &path)?;
            } else if metadata.is_symlink() {
                let to = fs::read_link(&path)?;
                self.link(&name, to.to_str().ok_or(io::ErrorKind::InvalidData)?)?;
            } else {
                self.file(&name, metadata.mode() & 0o7777, &fs::read(&path)?)?;
            }
        }
        Ok(())
    }

    /// Writes its end.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, &[])?;
        self.to.flush()
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let number = |n: usize| u32::try_from(n).map_err(|_| io::ErrorKind::FileTooLarge);
        let (size, name_size) = (number(content.len())?, number(path.len() + 1)?);
        self.entries += 1;
        // Inode number, mode, user, group, links, time, size, four device
        // numbers, size of the name with its NUL, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = b"070701".to_vec();
        for field in fields {
            write!(header, "{field:08x}")?;
        }
        header.extend_from_slice(path.as_bytes());
        header.push(0);
        for part in [&header, content] {
            let padding = part.len().next_multiple_of(4) - part.len();
            self.to.write_all(part)?;
            self.to.write_all(&[0; 3][..padding])?;
        }
        Ok(())
    }
}
