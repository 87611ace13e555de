//! What command lines have in common.

use std::ffi::OsStr;
use std::os::fd::RawFd;
use std::path::PathBuf;

use rustix::fs::Mode;

use crate::control::{ADDRESS, Address};
use crate::error::Fatal;
use crate::sys;
pub(super) use crate::units::{SECONDS, digits, seconds};

use super::quoted;

impl From<lexopt::Error> for Fatal {
    fn from(error: lexopt::Error) -> Self {
        Self::Usage(match error {
            lexopt::Error::UnexpectedOption(option) => format!("there is no option {option}"),
            lexopt::Error::UnexpectedArgument(argument) => {
                format!("unexpected argument {}", quoted(&argument))
            }
            error => error.to_string(),
        })
    }
}

/// The value of an option, read by `read`; if that says no, the error names
/// the option, the value, and what was `expected`.
pub(super) fn value<T>(
    parser: &mut lexopt::Parser,
    option: &str,
    expected: &str,
    read: impl FnOnce(&str) -> Option<T>,
) -> Result<T, Fatal> {
    let text = parser.value()?;
    text.to_str().and_then(read).ok_or_else(|| unacceptable(option, &text, expected))
}

fn unacceptable(option: &str, text: &OsStr, expected: &str) -> Fatal {
    Fatal::Usage(format!("{option} {}: expected {expected}", quoted(text)))
}

/// What [`bytes`] reads.
pub(super) const BYTES: &str = "a number of bytes up to 2147483647, with K, M or G for units";

/// Reads a number of bytes that fits setsockopt(2), with K, M or G after it
/// for binary units.
pub(super) fn bytes(text: &str) -> Option<usize> {
    let (number, unit) = match text.char_indices().last()? {
        (end, 'K' | 'k') => (&text[..end], 1 << 10),
        (end, 'M' | 'm') => (&text[..end], 1 << 20),
        (end, 'G' | 'g') => (&text[..end], 1 << 30),
        _ => (text, 1),
    };
    let bytes = digits::<u64>(number)?.checked_mul(unit)?;
    i32::try_from(bytes).ok()?.try_into().ok()
}

/// Reads where the control socket is; `none` is nowhere.
pub(super) fn control(text: &OsStr) -> Result<Option<Address>, Fatal> {
    if text == "none" {
        return Ok(None);
    }
    match Address::parse(text) {
        Some(address) => Ok(Some(address)),
        None => Err(unacceptable("--control", text, ADDRESS)),
    }
}

/// What [`mode`] reads.
pub(super) const MODE: &str = "an octal number up to 0777";

/// Reads a file's mode.
pub(super) fn mode(text: &str) -> Option<Mode> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777)?;
    text.bytes().all(|b| b.is_ascii_digit()).then(|| Mode::from_raw_mode(mode))
}

/// What [`high_fd`] reads.
pub(super) const HIGH_FD: &str = "a file descriptor from 3 up";

/// Reads the number of a file descriptor that is no standard stream.
pub(super) fn high_fd(text: &str) -> Option<RawFd> {
    digits(text).filter(|&fd| fd >= 3)
}

/// The value of an option of skarnet's programs: such a descriptor, which is open.
pub(super) fn open_fd(parser: &mut lexopt::Parser, option: &str) -> Result<RawFd, Fatal> {
    let read = |text: &str| high_fd(text).filter(|&fd| sys::is_open(fd));
    value(parser, option, "an open file descriptor from 3 up", read)
}

/// Reads the value of a path that has to be absolute.
pub(super) fn absolute_path(parser: &mut lexopt::Parser, option: &str) -> Result<PathBuf, Fatal> {
    let path = PathBuf::from(parser.value()?);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(unacceptable(option, path.as_os_str(), "an absolute path"))
    }
}

/// Reads the value of `-v` as skarnet's programs have it.
pub(super) fn skarnet_verbosity(parser: &mut lexopt::Parser) -> Result<i32, Fatal> {
    value(parser, "-v", "a number from 0 up", digits::<u32>).map(of_skarnet)
}

/// Their verbosity as ours: 0 tells nothing but what ends the program, 1 what
/// is wrong, 2 what is worth knowing, 3 every event.
pub(super) fn of_skarnet(verbosity: u32) -> i32 {
    match verbosity {
        0 => -3,
        1 => -1,
        2 => 0,
        3 => 1,
        4.. => 2,
    }
}

/// What is expected of a mask of netlink groups.
pub(super) const GROUPS: &str = "a mask of netlink groups: a number up to 4294967295";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_octal() {
        assert_eq!(mode("0600"), Some(Mode::RUSR | Mode::WUSR));
        assert_eq!(mode("0"), Some(Mode::empty()));
        for wrong in ["", "8", "-1", "+1", "1000", "rw"] {
            assert_eq!(mode(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(bytes("0"), Some(0));
        assert_eq!(bytes("4K"), Some(4096));
        assert_eq!(bytes("128M"), Some(128 << 20));
        assert_eq!(bytes("1g"), Some(1 << 30));
        assert_eq!(bytes("2147483647"), Some(0x7fff_ffff));
        for wrong in
            ["", "K", "-1", "+1", "1.5M", "2G", "2147483648", "1 K", "1KB", "99999999999G", "é"]
        {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }
}
