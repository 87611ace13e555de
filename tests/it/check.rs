//! `plugd check`.

use std::fs;
use std::os::unix::fs::symlink;

use crate::harness::daemon::{Finished, Plugd};
use crate::harness::skip;

fn check(rules: &str) -> Finished {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mdev.conf");
    fs::write(&file, rules).unwrap();
    Plugd::new().args(["check".as_ref(), file.as_os_str()]).finish()
}

#[test]
fn what_is_right_is_passed_over_in_silence() {
    let Finished { code, stdout, stderr } = check("null 0:0 666\n.* 0:0 660 @true\n");
    assert_eq!((code, &*stdout, &*stderr), (Some(0), "", ""));
}

#[test]
fn all_mistakes_are_told() {
    let Finished { code, stderr, .. } = check("null 0:0 999\nzero 0:0 666\n( 0:0 660\n");
    assert_eq!(code, Some(2));
    assert!(stderr.contains("mdev.conf:1:10: ") && stderr.contains("mdev.conf:3:1: "), "{stderr}");
    assert_eq!(stderr.matches("expected ").count(), 2, "{stderr}");
}

#[test]
fn what_can_never_work_is_no_mistake() {
    let Finished { code, stderr, .. } = check("null 0:0 666\nzero 0:0 666 =../up\n");
    assert_eq!(code, Some(0), "{stderr}");
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(
        lines[0].starts_with("plugd: warning: ") && lines[0].contains("mdev.conf:2:15: a path")
    );
    assert_eq!(lines[2], "plugd: warning:                   ^");
    assert_eq!(lines.len(), 3, "{lines:?}");
}

/// Each by itself is small enough, but all together are more than the daemon takes.
#[test]
fn what_is_too_large_all_together_is_told() {
    let rules = "a{9000} 0:0 660\n".repeat(250);
    let Finished { code, stderr, .. } = check(&format!("{rules}a{{9001}} 0:0 600\n{rules}"));
    assert_eq!(code, Some(2));
    let lines: Vec<&str> = stderr.lines().collect();
    assert!(lines[0].contains("mdev.conf:251:1: ") && lines[0].contains("too large"), "{stderr}");
    assert_eq!(lines[1], "    a{9001} 0:0 600");
    assert_eq!(lines[2], "    ^");
}

/// What cannot be read in one file is told beside what is wrong in another, by all
/// that read them.
#[test]
fn a_file_that_cannot_be_read_hides_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mdev.conf");
    let more = directory.path().join("mdev.conf.d/50.conf");
    fs::create_dir(more.parent().unwrap()).unwrap();
    symlink("absent", &more).unwrap();
    // If they did start, they should not do it in the machine's /dev.
    let dev = directory.path().as_os_str();
    let with = |program: Plugd, conf: &str| program.args([conf.as_ref(), file.as_os_str()]);
    let programs = || {
        [
            Plugd::new().args(["check".as_ref(), file.as_os_str()]),
            with(Plugd::run(&[]), "--conf").args(["--dev".as_ref(), dev]),
            with(Plugd::new().arg0("mdevd"), "-f").args(["-d".as_ref(), dev]),
        ]
    };
    for (rules, code) in [("null 0:0 999\n", 2), ("null 0:0 666\n", 111)] {
        fs::write(&file, rules).unwrap();
        for program in programs() {
            let Finished { code: found, stderr, .. } = program.finish();
            assert_eq!(found, Some(code), "{stderr}");
            assert!(stderr.contains("50.conf: a link that leads nowhere"), "{stderr}");
            assert_eq!(stderr.contains("mdev.conf:1:10: "), code == 2, "{stderr}");
        }
    }
}

/// It is told, and does not end a daemon that reads its rules anew.
#[test]
fn a_file_that_there_is_no_memory_for_is_told() {
    let memory = rustix::system::sysinfo();
    let most = memory.totalram as u64 * u64::from(memory.mem_unit) / 250;
    if most < 64 << 20 {
        return skip("memory", "rules as large as may be", "they would fit into any process");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mdev.conf");
    fs::File::create(&file).unwrap().set_len(most - 4096).unwrap();
    let limit = format!("ulimit -v {}", most / 2048 + 40_000);
    let told = Plugd::new().args(["check"]).args([&file]).prelude(&limit).finish();
    let expected = format!("plugd: fatal: cannot read {}: out of memory\n", file.display());
    assert_eq!((told.code, &*told.stderr), (Some(111), &*expected));
}
