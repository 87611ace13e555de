//! Sockets that another program opened and handed over.
//!
//! Pure: says which file descriptors they are; taking them over is
//! [`crate::sys::adopt`]'s business.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::ops::Range;

/// The first file descriptor handed over (sd_listen_fds(3); UCSPI).
pub const FIRST: i32 = 3;

/// The file descriptors that LISTEN_FDS tells of, if LISTEN_PID says that it
/// is meant for the process `pid`; else it was meant for an ancestor.
/// `variable` looks up a variable of the environment.
///
/// # Errors
/// If LISTEN_FDS is meant for this process but makes no sense; the text names it.
pub fn inherited(
    variable: impl Fn(&str) -> Option<OsString>,
    pid: u32,
) -> Result<Option<Range<i32>>, String> {
    let number = |text: &OsStr| text.to_str().and_then(|text| text.parse::<i32>().ok());
    if variable("LISTEN_PID").is_none_or(|value| value.to_str() != Some(&pid.to_string())) {
        return Ok(None);
    }
    let Some(value) = variable("LISTEN_FDS") else { return Ok(None) };
    match number(&value).and_then(|count| FIRST.checked_add(count)) {
        Some(FIRST) => Ok(None),
        Some(end) if end > FIRST => Ok(Some(FIRST..end)),
        _ => Err(format!("LISTEN_FDS is not a number of file descriptors: {}", value.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(fds: Option<&str>, pid: Option<&str>) -> Result<Option<Range<i32>>, String> {
        inherited(
            |name| match name {
                "LISTEN_FDS" => fds.map(OsString::from),
                "LISTEN_PID" => pid.map(OsString::from),
                _ => None,
            },
            42,
        )
    }

    #[test]
    fn only_what_is_meant_for_us_counts() {
        assert_eq!(with(Some("2"), Some("42")), Ok(Some(3..5)));
        assert_eq!(with(Some("0"), Some("42")), Ok(None));
        assert_eq!(with(None, Some("42")), Ok(None));
        for pid in [None, Some("41"), Some("42 "), Some("+42"), Some("042"), Some("x"), Some("")] {
            assert_eq!(with(Some("1"), pid), Ok(None), "{pid:?}");
        }
    }

    #[test]
    fn nonsense_meant_for_us_is_an_error() {
        for fds in ["-1", "x", "", "1 ", "2147483647", "99999999999"] {
            let error = with(Some(fds), Some("42")).unwrap_err();
            assert!(error.contains("LISTEN_FDS"), "{error}");
        }
    }
}
