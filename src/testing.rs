//! For tests that need another world than the one they find.
//!
//! Such a test runs itself again, inside; one that cannot run here says so.

use std::any::type_name;
use std::io::Write;
use std::process::Command;

/// Tells the test that it is inside.
const MARKER: &str = "PLUGD_UNIT_TEST_INSIDE";

/// As root of the machine, with a tmpfs of its own on /mnt. User namespaces
/// may not make device nodes.
pub(crate) fn inside_with_tmpfs<F: FnOnce()>(test: F) {
    let name = test_name::<F>();
    if !rustix::process::geteuid().is_root() {
        return skip("root", name, "only root makes device nodes");
    }
    let mount = "mount -t tmpfs tmpfs /mnt && exec \"$0\" \"$@\"";
    again(&["unshare", "-m", "sh", "-c", mount], test);
}

/// As root of a user and network namespace, with a sysfs that shows it.
pub(crate) fn inside_with_sysfs<F: FnOnce()>(test: F) {
    let mount = "mount -t sysfs sysfs /sys && exec \"$0\" \"$@\"";
    again(&["unshare", "-Ur", "unshare", "-nm", "sh", "-c", mount], test);
}

/// As root of a user and network namespace.
pub(crate) fn inside_with_network<F: FnOnce()>(test: F) {
    again(&["unshare", "-Urn"], test);
}

/// As nobody in a user and network namespace.
pub(crate) fn inside_without_privileges<F: FnOnce()>(test: F) {
    again(&["unshare", "-Un"], test);
}

/// With the file mode creation mask 077.
pub(crate) fn inside_with_umask<F: FnOnce()>(test: F) {
    again(&["sh", "-c", "umask 077 && exec \"$0\" \"$@\""], test);
}

/// Tells that something cannot be tested here. That is a failure if the
/// variable REQUIRE has the word `need` in its comma-separated list.
pub(crate) fn skip(need: &str, what: &str, why: &str) {
    let required = std::env::var("REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|word| word == need), "{what} needs {need}: {why}");
    // Not eprintln!, which libtest captures.
    let _ = writeln!(std::io::stderr(), "SKIPPED {what}: {why}");
}

/// The name that libtest knows the test by, found from its closure.
pub(crate) fn test_name<F>() -> &'static str {
    let path = type_name::<F>().trim_end_matches("::{{closure}}");
    path.split_once("::").map_or(path, |(_crate, name)| name)
}

fn again<F: FnOnce()>(world: &[&str], test: F) {
    if std::env::var_os(MARKER).is_some() {
        return test();
    }
    let name = test_name::<F>();
    let enter = || {
        let mut command = Command::new(world[0]);
        command.args(&world[1..]);
        command
    };
    match enter().arg("true").output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => return skip("ns", name, String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => return skip("ns", name, &format!("{}: {error}", world[0])),
    }
    let output = enter()
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(MARKER, "1")
        .output()
        .unwrap();
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    for line in text.iter().flat_map(|text| text.lines()).filter(|line| line.starts_with("SKIPPED"))
    {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    let passed = output.status.success() && text[0].contains("1 passed");
    assert!(passed, "inside of {world:?}: {}\n{}\n{}", output.status, text[0], text[1]);
}
