//! The command line, exit codes, and which generation is meant.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Signal;

use super::{TELL, World, event, file, mdevd, stream};
use crate::harness::daemon::{Finished, Plugd};
use crate::harness::ns;
use crate::listen::have;

const FROM_STDIN: &str = "reading events from the standard input";
const FROM_KERNEL: &str = "listening to the kernel's uevents";

#[test]
fn wrong_usage_is_100() {
    for arguments in [
        &["-x"][..],
        &["operand"],
        &["-v"],
        &["-v", "x"],
        &["-v", "-1"],
        &["-D", "2"],
        &["-D", "77"],
        &["-D", "x"],
        &["-o", "0"],
        &["-o", "77"],
        &["-I", "x"],
        &["-O", "4294967296"],
        &["-b", "x"],
        &["-f", "mdev.conf"],
        &["-s", "sys"],
        &["-d", "./dev"],
        &["-F", ""],
        &["--input", "netlonk"],
        &["--input", "stdin", "-C"],
        &["--input", "stdin", "-I", "1"],
        &["--input", "stdin", "-b", "1"],
    ] {
        let Finished { code, stdout, stderr } = mdevd().args(arguments).finish();
        assert_eq!((code, &*stdout), (Some(100), ""), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("mdevd: fatal: "), "{stderr}");
        assert!(stderr.contains("\nusage: mdevd [--input "), "{stderr}");
    }
    let (_reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let same = mdevd().args(["-D", "5", "-o", "5"]).fd(writer, 5).finish();
    assert_eq!(same.code, Some(100), "{same:?}");
    for (name, arguments) in [
        ("mdevd-netlink", &["-s", "/sys"][..]),
        ("mdevd-netlink", &["-d", "1"]),
        ("mdevd-netlink", &["-d", "77"]),
        ("mdevd-coldplug", &["-d", "/dev"]),
        ("mdevd-coldplug", &["--output", "stdout", "-O", "4"]),
        ("mdevd-coldplug", &["--output", "file"]),
    ] {
        let finished = Plugd::new().arg0(name).args(arguments).finish();
        assert_eq!(finished.code, Some(100), "{name} {arguments:?}: {finished:?}");
    }
}

#[test]
fn what_is_not_there_is_111() {
    for option in ["-d", "-s"] {
        let finished = World::new("").mdevd().args([option, "/nowhere"]).finish();
        assert_eq!(finished.code, Some(111), "{finished:?}");
        assert_eq!(
            finished.stderr,
            "mdevd: fatal: cannot open /nowhere: No such file or directory\n"
        );
    }
    let finished = Plugd::new().arg0("mdevd-coldplug").args(["-s", "/nowhere"]).finish();
    assert_eq!(finished.code, Some(111), "{finished:?}");
}

#[test]
fn it_is_a_command_of_plugd_too() {
    for name in ["mdevd", "mdevd-netlink", "mdevd-coldplug"] {
        let own = Plugd::new().arg0(name).args(["--help"]).finish();
        let command = Plugd::new().args([name, "--help"]).finish();
        assert_eq!((own.code, &own.stdout), (Some(0), &command.stdout));
        assert!(own.stdout.contains(&format!("Usage: {name} [")), "{}", own.stdout);
    }
}

#[test]
fn rules_can_be_tested() {
    let check = |world: &World, options: &[&str]| world.mdevd().args(options).finish();
    let good = World::new("a 0:0 600\n");
    assert_eq!(check(&good, &["-N"]).code, Some(0));
    let bad = World::new("a 0:0 600\nb nobody-here:0 600\n(c 0:0 600\n");
    let finished = check(&bad, &["-N"]);
    assert_eq!((finished.code, &*finished.stdout), (Some(2), ""));
    for line in ["mdev.conf:2:3: ", "mdev.conf:3:1: "] {
        assert!(finished.stderr.contains(line), "{}", finished.stderr);
    }
    fs::remove_file(good.path("mdev.conf")).unwrap();
    let finished = check(&good, &["-N"]);
    assert_eq!(finished.code, Some(0));
    assert!(finished.stderr.contains("mdevd: warning: there is no "), "{}", finished.stderr);

    // Of -n and -N the last one counts.
    let world = World::new("");
    let events = || file(&stream([b"add@/x\0ACTION=add\0DEVPATH=/x\0MAJOR=1\0MINOR=3\0".to_vec()]));
    let both = |options: [&str; 2]| world.mdevd().args(options).stdin(events()).finish().stdout;
    assert_eq!(both(["-n", "-N"]), "");
    assert_eq!(
        both(["-N", "-n"]),
        "add /x (SEQNUM ?): make node x, character 1:3, owner 0:0, mode 0660\n"
    );
}

#[test]
fn a_mistake_in_the_rules_is_2() {
    let world = World::new("a 0:0 999\n");
    let finished = world.mdevd().stdin(file(&stream([event(1)]))).finish();
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stderr.contains("mdev.conf:1:7: "), "{finished:?}");
}

#[test]
fn the_end_of_input_is_0_and_an_invalid_event_is_1() {
    let good = stream([event(1), event(2)]);
    let cases: [(&[u8], i32, usize, &str); 6] = [
        (b"", 0, 0, ""),
        (b"\0\0", 1, 0, "it is empty"),
        (&good, 0, 2, ""),
        (&[&good[..], b"\0", &stream([event(3)])].concat(), 0, 3, ""),
        (&[&good[..], b"junk\0\0", &good].concat(), 1, 2, "its field 1 has no ="),
        (&[&good[..], b"add@/x\0ACTION=a"].concat(), 1, 2, "the input ends within it"),
    ];
    for (input, expected, count, why) in cases {
        let world = World::new(TELL);
        let Finished { code, stderr, .. } = world.mdevd().stdin(file(input)).finish();
        assert_eq!(code, Some(expected), "{}: {stderr}", input.escape_ascii());
        assert_eq!(world.lines("out").len(), count, "{stderr}");
        if expected == 0 {
            assert_eq!(stderr, "");
        } else {
            let at = if count == 0 { 0 } else { good.len() };
            let told = format!("mdevd: error: invalid event at byte {at}: {why}");
            assert!(stderr.starts_with(&told), "{stderr}");
            assert!(stderr.ends_with("\nmdevd: fatal: received an invalid event\n"), "{stderr}");
        }
    }
}

#[test]
fn verbosity_is_theirs() {
    let told = |verbosity: &str| {
        let world = World::new(".* 0:0 660 *exit 3");
        let mdevd = world.mdevd().args(["-v", verbosity]);
        let finished = mdevd.stdin(file(&stream([event(1)]))).finish();
        assert_eq!(finished.code, Some(0));
        finished.stderr
    };
    assert_eq!(told("0"), "");
    let one = told("1");
    assert!(one.lines().all(|line| line.starts_with("mdevd: warning: ")), "{one}");
    assert!(one.contains("exited with 3"), "{one}");
    let two = told("2");
    assert!(two.contains("mdevd: info: ") && !two.contains("mdevd: debug: "), "{two}");
    assert!(told("3").contains("mdevd: debug: add /devices/x1 "));
    // That ends it.
    let fatal = mdevd().args(["-v0", "-f", "/dev/null", "-d", "/nowhere"]).finish();
    assert!(fatal.stderr.starts_with("mdevd: fatal: "), "{fatal:?}");
}

/// Each kind of standard input, and what is taken for meant.
#[test]
fn the_standard_input_tells_which_generation_is_meant() {
    ns::inside(|| {
        let pipe = || {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            (Stdio::from(reader), Some(writer))
        };
        let socket = || {
            let (ours, theirs) = UnixStream::pair().unwrap();
            (Stdio::from(std::os::fd::OwnedFd::from(theirs)), Some(ours.into()))
        };
        let null = || (Stdio::null(), None);
        let zero = || (Stdio::from(File::open("/dev/zero").unwrap()), None);
        let (_keep, spare) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let cases: [(_, &[&str], &str); 14] = [
            (pipe(), &[], FROM_STDIN),
            (socket(), &[], FROM_STDIN),
            (null(), &[], FROM_KERNEL),
            (zero(), &[], FROM_KERNEL),
            (pipe(), &["-b", "65536"], FROM_KERNEL),
            (pipe(), &["-C"], FROM_KERNEL),
            (pipe(), &["-D", "5"], FROM_KERNEL),
            (pipe(), &["-I", "1"], FROM_KERNEL),
            (pipe(), &["-o", "5"], FROM_KERNEL),
            (pipe(), &["-O", "4"], FROM_KERNEL),
            (pipe(), &["-n"], FROM_STDIN),
            (pipe(), &["--input", "netlink"], FROM_KERNEL),
            (pipe(), &["--input=stdin", "-D", "5", "-o", "6"], FROM_STDIN),
            (pipe(), &["--input=stdin", "-O", "4"], FROM_STDIN),
        ];
        for ((stdin, kept), options, expected) in cases {
            let (spare, more) = (spare.try_clone().unwrap(), spare.try_clone().unwrap());
            let world = World::new("");
            let mdevd = world.mdevd().args(["-v2"]).args(options).fd(spare, 5).fd(more, 6);
            let mut daemon = mdevd.stdin(stdin).start();
            daemon.wait_for_log(expected);
            let other = if expected == FROM_STDIN { FROM_KERNEL } else { FROM_STDIN };
            assert_eq!(daemon.logged(other), [], "{options:?}");
            daemon.signal(Signal::TERM);
            assert_eq!(daemon.wait_exit().code(), Some(0), "{options:?}");
            drop(kept);
        }
        // A regular file needs no option either.
        let world = World::new(TELL);
        let finished = world.mdevd().args(["-v2"]).stdin(file(&stream([event(1)]))).finish();
        assert!(finished.stderr.contains(FROM_STDIN), "{finished:?}");
    });
}

#[test]
fn what_cannot_be_a_stream_is_refused() {
    let directory = File::open("/").unwrap();
    let finished = World::new("").mdevd().args(["--input", "stdin"]).stdin(directory).finish();
    assert_eq!(finished.code, Some(111));
    let why = "mdevd: fatal: cannot read events from the standard input: Is a directory\n";
    assert_eq!(finished.stderr, why);
}

/// The manual pages are clean, and tell of each option that the help has.
#[test]
fn the_manual_is_complete() {
    if !have("the manual pages", "mandoc") {
        return;
    }
    for name in ["mdevd", "mdevd-netlink", "mdevd-coldplug"] {
        let page = format!("{}/man/{name}.8", env!("CARGO_MANIFEST_DIR"));
        let lint = Command::new("mandoc").args(["-T", "lint", "-W", "warning", &page]).output();
        assert_eq!(String::from_utf8_lossy(&lint.unwrap().stdout), "");
        let page = fs::read_to_string(page).unwrap();
        let help = Plugd::new().args([name, "--help"]).finish().stdout;
        let options = help.lines().filter_map(|line| line.strip_prefix("  -")?.chars().next());
        let options: Vec<char> = options.collect();
        assert!(options.contains(&'v') && options.contains(&'b'), "{options:?}");
        for option in options {
            assert!(
                page.contains(&format!("\n.It Fl {option} "))
                    || page.contains(&format!("\n.It Fl {option}\n")),
                "{name} -{option}"
            );
        }
        let long = help.lines().filter_map(|line| line.trim().strip_prefix("--"));
        for option in long {
            let name = option.split(' ').next().unwrap();
            assert!(
                page.contains(&format!("\n.It Fl -{name} "))
                    || page.contains(&format!("\n.It Fl -{name}\n")),
                "--{name}"
            );
        }
    }
}
