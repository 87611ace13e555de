//! What command lines have in common.

use std::ffi::OsStr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Fatal;

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

/// What [`seconds`] reads.
pub(super) const SECONDS: &str = "a number of seconds, with up to 9 decimals";

/// Reads a time in seconds, up to a century.
pub(super) fn seconds(text: &str) -> Option<Duration> {
    const LONGEST: u64 = 100 * 366 * 24 * 60 * 60;
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    if decimals.len() > 9 {
        return None;
    }
    let nanoseconds = digits::<u32>(decimals)? * 10u32.pow(9 - u32::try_from(decimals.len()).ok()?);
    let seconds = digits::<u64>(whole).filter(|&seconds| seconds <= LONGEST)?;
    Some(Duration::new(seconds, nanoseconds))
}

/// What [`high_fd`] reads.
pub(super) const HIGH_FD: &str = "a file descriptor from 3 up";

/// Reads the number of a file descriptor that is no standard stream.
pub(super) fn high_fd(text: &str) -> Option<RawFd> {
    digits(text).filter(|&fd| fd >= 3)
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

/// Reads a number that is nothing but digits.
pub(super) fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn seconds_may_have_decimals() {
        assert_eq!(seconds("0"), Some(Duration::ZERO));
        assert_eq!(seconds("180"), Some(Duration::from_secs(180)));
        assert_eq!(seconds("0.5"), Some(Duration::from_millis(500)));
        assert_eq!(seconds("1.000000001"), Some(Duration::new(1, 1)));
        for wrong in [
            "",
            ".",
            ".5",
            "5.",
            "-1",
            "+1",
            "1e3",
            "inf",
            "nan",
            "1.0000000001",
            "1s",
            "9999999999999",
        ] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }
}
