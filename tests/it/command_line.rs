//! The command line: help, version, and what is wrong with it.

use crate::harness::daemon::{Finished, Plugd};

const NOSH: &str = "plug-and-play-event-handler";

fn finish(args: &[&str]) -> Finished {
    Plugd::new().args(args).finish()
}

#[test]
fn help_is_what_was_asked_for() {
    for (args, words) in [
        (&["--help"][..], &["run", NOSH, "--version"][..]),
        (&["-h"], &["Usage: plugd COMMAND"]),
        (
            &["run", "--help"],
            &[
                "Usage: plugd run [OPTIONS] [--] [PROG [ARGS...]]",
                "--conf FILE",
                "--dry-run",
                "--fd",
                "--receive-buffer-size",
                "[128M]",
                "--timeout",
                "[180]",
                "--kill-after",
                "[5]",
                "--hotplug-argument",
                "--clean-environment",
                "-v, --verbose",
                "-q, --quiet",
                "Examples:",
            ],
        ),
        (&["run", "-h"], &["Usage: plugd run"]),
        (&["run", "--timeout", "3", "--help", "true"], &["Usage: plugd run"]),
        (&["daemon-control", "--help"], &["Usage: daemon-control ACTION", "--guard-file"]),
        (&[NOSH, "--help"], &["Usage: plug-and-play-event-handler [-v|--verbose] PROG [ARGS...]"]),
        (
            &["listen", "--help"],
            &[
                "Usage: netlink-datagram-socket-listen [OPTIONS] [--] PROTOCOL GROUP NEXT-PROG",
                "--raw",
                "--receive-buffer-size",
                "--pass-credentials",
                "--pass-security",
                "--packet-info",
                "--listen-all-nsid",
                "--systemd-compatibility",
                "--name NAME",
                "--upstart-compatibility",
                "Examples:",
            ],
        ),
    ] {
        let finished = finish(args);
        assert_eq!((finished.code, &*finished.stderr), (Some(0), ""), "{args:?}");
        for word in words {
            assert!(finished.stdout.contains(word), "{args:?}: no {word} in {}", finished.stdout);
        }
        let widest = finished.stdout.lines().map(|line| line.chars().count()).max();
        assert!(widest <= Some(90), "{args:?}: a line of {widest:?}");
    }
}

#[test]
fn the_version_is_told() {
    let version = format!("plugd {}\n", env!("CARGO_PKG_VERSION"));
    for args in [&["--version"][..], &["-V"], &["run", "--version"], &[NOSH, "-V"]] {
        let finished = finish(args);
        assert_eq!((finished.code, &finished.stdout), (Some(0), &version), "{args:?}");
    }
}

#[test]
fn wrong_usage_is_told_with_the_right_one() {
    let cases: [(&[&str], &str); 20] = [
        (&[], "a command is missing"),
        (&["nonsense"], "there is no command 'nonsense'"),
        (&["--nonsense"], "there is no command '--nonsense'"),
        (&["\u{1b}[1m"], "there is no command '\\x1b[1m'"),
        (&["run", "--nonsense", "true"], "there is no option --nonsense"),
        (&["run", "-x", "true"], "there is no option -x"),
        (&["run", "--fd"], "--fd"),
        (&["run", "--fd", "x", "true"], "--fd 'x': expected a file descriptor"),
        (&["run", "--fd", "-1", "true"], "--fd"),
        (&["run", "--fd", "3", "--fd", "3", "true"], "--fd 3 is given twice"),
        (&["run", "--a\u{1b}b", "true"], "there is no option --a\\u{1b}b"),
        (&["run", "--timeout", "x", "true"], "--timeout 'x': expected a number of seconds"),
        (&["run", "--kill-after=-1", "true"], "--kill-after '-1': expected a number of seconds"),
        (&["run", "--receive-buffer-size", "2G", "true"], "--receive-buffer-size '2G': expected"),
        (&["run", "--hotplug-argument=yes", "true"], "--hotplug-argument"),
        (&["run", "--"], "PROG is missing after --"),
        (&["run", "--timeout", "3", "--"], "PROG is missing after --"),
        (&["run", "-n", "true"], "--dry-run is for rules, not for PROG"),
        (&[NOSH], "PROG is missing"),
        (&[NOSH, "--timeout", "3", "true"], "there is no option --timeout"),
    ];
    for (args, why) in cases {
        let Finished { code, stdout, stderr } = finish(args);
        assert_eq!((code, &*stdout), (Some(100), ""), "{args:?}: {stderr}");
        let (first, usage) = stderr.split_once('\n').unwrap();
        let name = if args.first() == Some(&NOSH) { NOSH } else { "plugd" };
        assert!(first.starts_with(&format!("{name}: fatal: ")), "{args:?}: {stderr}");
        assert!(first.contains(why), "{args:?}: {stderr}");
        assert!(usage.starts_with(&format!("usage: {name} ")), "{args:?}: {stderr}");
    }
}

#[test]
fn a_program_that_cannot_run_is_found_at_the_start() {
    for (args, why) in [
        (&["run", "/nonexistent"][..], "cannot run '/nonexistent': No such file or directory"),
        (&["run", "no-such-program"], "cannot run 'no-such-program': No such file or directory"),
        (&["run", ""], "cannot run '': No such file or directory"),
        (&["run", "/etc/passwd"], "cannot run '/etc/passwd': Permission denied"),
        (&["run", "/etc"], "cannot run '/etc': Permission denied"),
        // What comes after PROG is PROG's.
        (&["run", "/nonexistent", "--help"], "cannot run '/nonexistent'"),
        (&["run", "--", "--help"], "cannot run '--help'"),
        (&["run", "/nonexistent/\n"], "cannot run '/nonexistent/\\n'"),
    ] {
        // A directory of PATH that may not be searched would be an error of its own.
        let plugd = Plugd::new().args(args).env("PATH", "/bin:/usr/bin");
        let Finished { code, stdout, stderr } = plugd.finish();
        assert_eq!((code, &*stdout), (Some(111), ""), "{args:?}: {stderr}");
        assert!(stderr.starts_with(&format!("plugd: fatal: {why}")), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn help_that_cannot_be_printed_is_an_error() {
    let finished = Plugd::new().args(["--help"]).prelude("exec >/dev/full").finish();
    assert_eq!(finished.code, Some(111));
}
