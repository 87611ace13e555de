//! What all test crates that drive the real binary stand on.

use std::env::consts::ARCH;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long to wait for what must happen. Nothing takes that long on a machine
/// that works, however busy it is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The binary that is tested.
pub(crate) const PLUGD: &str = env!("CARGO_BIN_EXE_plugd");

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

/// The directory that cargo builds into.
pub(crate) fn target_directory() -> &'static Path {
    Path::new(PLUGD).parent().unwrap().parent().unwrap()
}

/// The static binary for this machine: named in PLUGD_STATIC, or where cargo puts it;
/// or why there is none.
pub(crate) fn static_binary() -> Result<PathBuf, &'static str> {
    if let Some(file) = std::env::var_os("PLUGD_STATIC") {
        return Ok(file.into());
    }
    let target = target_directory().join(format!("{ARCH}-unknown-linux-musl"));
    let builds = ["release", "debug"].map(|profile| target.join(profile).join("plugd"));
    let mut builds = builds.into_iter().filter(|file| file.exists()).peekable();
    if builds.peek().is_none() {
        return Err("no static binary: build it, or name it in PLUGD_STATIC");
    }
    builds
        .find(|file| is_up_to_date(file).unwrap_or(false))
        .ok_or("the static binary is older than its sources: build it anew")
}

/// Whether no source of a binary that cargo has built is newer. Cargo lists them
/// beside it: `BINARY: SOURCE SOURCE...`
fn is_up_to_date(binary: &Path) -> std::io::Result<bool> {
    let list = std::fs::read_to_string(binary.with_extension("d"))?;
    let built = binary.metadata()?.modified()?;
    // Blanks in names are escaped.
    let list = list.trim().replace("\\ ", "\0");
    for source in list.split(' ').skip(1) {
        if Path::new(&source.replace('\0', " ")).metadata()?.modified()? > built {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether there is a program of this name.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.exists());
    found.or_else(|| Some(Path::new("/sbin").join(name)).filter(|file| file.exists()))
}
