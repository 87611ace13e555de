//! What the tests stand on.

pub(crate) mod background;
pub(crate) mod daemon;
pub(crate) mod inject;
pub(crate) mod ns;
mod os;
pub(crate) mod unix;

use std::io::Write;
use std::time::{Duration, Instant};

/// How long to wait for what must happen. Nothing takes that long on a machine
/// that works, however busy it is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `probe` finds something, and returns that.
pub(crate) fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Tells that something cannot be tested here. That is a failure if the
/// variable REQUIRE has the word `need` in its comma-separated list.
pub(crate) fn skip(need: &str, what: &str, why: &str) {
    let required = std::env::var("REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|word| word == need), "{what} needs {need}: {why}");
    // Not eprintln!, which libtest captures.
    let _ = writeln!(std::io::stderr(), "SKIPPED {what}: {why}");
}
