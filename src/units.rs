//! Numbers and times as users write them.
//!
//! Pure.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

/// What [`seconds`] reads.
pub const SECONDS: &str = "a number of seconds up to 3162240000, with up to 9 decimals";

/// Reads a time in seconds, up to a century.
pub fn seconds(text: &str) -> Option<Duration> {
    const LONGEST: u64 = 100 * 366 * 24 * 60 * 60;
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    if decimals.len() > 9 {
        return None;
    }
    let nanoseconds = digits::<u32>(decimals)? * 10u32.pow(9 - u32::try_from(decimals.len()).ok()?);
    let seconds = digits::<u64>(whole).filter(|&seconds| seconds <= LONGEST)?;
    Some(Duration::new(seconds, nanoseconds))
}

/// Reads a number that is nothing but digits.
pub fn digits<T: std::str::FromStr>(text: &str) -> Option<T> {
    if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// A time in seconds, to the millisecond. Not as a floating-point number, whose
/// formatting would be a sixtieth of the program.
#[derive(Debug, Clone, Copy)]
pub struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0.as_secs(), self.0.subsec_millis())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn the_longest_time_is_told() {
        let longest = SECONDS.split([' ', ',']).find_map(digits::<u64>).unwrap();
        assert_eq!(seconds(&longest.to_string()), Some(Duration::from_secs(longest)));
        assert_eq!(seconds(&(longest + 1).to_string()), None);
    }
}
