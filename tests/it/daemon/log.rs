//! Where its log goes.

use rustix::fs::{CWD, Mode, OFlags, mkfifoat, open};

use super::*;
use crate::harness::PATIENCE;

/// It would have to wait until somebody reads there.
#[test]
fn a_log_that_nobody_reads_is_refused() {
    let place = Place::new();
    let log = place.path("log");
    mkfifoat(CWD, &log, Mode::RUSR | Mode::WUSR).unwrap();
    let daemon = place.daemon(&["--log-file", log.to_str().unwrap()]);
    let (code, stderr) = launch(&daemon);
    assert_eq!(code, Some(111), "{stderr}");
    let told = format!("plugd: fatal: cannot open {}: nobody reads from it\n", log.display());
    assert!(stderr.ends_with(&told), "{stderr}");
    assert_eq!(place.act("--check", &[]), 101);

    let reader = open(&log, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
    assert_eq!(launch(&daemon).0, Some(0));
    // It may be slow.
    let flags = fs::read_to_string(format!("/proc/{}/fdinfo/2", place.pid())).unwrap();
    let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
    let flags = OFlags::from_bits_retain(u32::from_str_radix(flags, 8).unwrap());
    assert!(!flags.contains(OFlags::NONBLOCK) && flags.contains(OFlags::APPEND), "{flags:?}");
    assert_eq!(place.act("--stop", &[]), 0);
    drop(reader);
}

/// A /dev with nothing but null in it.
fn own_dev(place: &Place) {
    let null = place.path("null");
    fs::write(&null, "").unwrap();
    ns::mount(&["--bind", "/dev/null", null.to_str().unwrap()]);
    ns::mount(&["-t", "tmpfs", "tmpfs", "/dev"]);
    fs::write("/dev/null", "").unwrap();
    ns::mount(&["--bind", null.to_str().unwrap(), "/dev/null"]);
}

fn receive(log: &UnixDatagram) -> String {
    let mut buffer = [0; 1024];
    log.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = log.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

/// Then stderr is given up already.
#[test]
fn syslog_is_told_that_nobody_learns_that_it_is_ready() {
    ns::inside_as_root_with_mounts(|| {
        let place = Place::new();
        own_dev(&place);
        if strace_is_missing("syslog_is_told_that_nobody_learns_that_it_is_ready") {
            return;
        }
        let log = UnixDatagram::bind("/dev/log").unwrap();
        // By the first one the daemon watches its parent, by the last it lets it go.
        let mut words = traced(&place, "prctl:error=EPERM:when=2+", true);
        words.extend(place.daemon(&["--syslog"]));
        assert_eq!(launch(&words).0, Some(111));
        let told = receive(&log);
        assert!(told.contains("plugd: fatal: cannot forget the parent: "), "{told}");
        assert_eq!(place.act("--check", &[]), 101);
    });
}

#[test]
fn syslog_takes_over() {
    ns::inside_as_root_with_mounts(|| {
        let place = Place::new();
        own_dev(&place);
        let (code, stderr) = launch(&place.daemon(&["--syslog"]));
        assert_eq!(code, Some(111));
        assert!(stderr.contains("cannot connect to /dev/log"), "{stderr}");

        let log = UnixDatagram::bind("/dev/log").unwrap();
        let (code, stderr) = launch(&place.daemon(&["--syslog"]));
        assert_eq!(code, Some(0), "{stderr}");
        assert!(!stderr.contains("is up"), "{stderr}");
        let pid = place.pid();
        assert_eq!(link(pid, "fd/2"), Path::new("/dev/null"));
        let receive = || receive(&log);
        assert_eq!(receive(), format!("<30>plugd[{pid}]: info: process {pid} is up"));
        assert_eq!(place.act("--stop", &[]), 0);
        assert!(receive().contains("info: SIGTERM from pid"));
        assert!(receive().contains("info: stopped: "));
    });
}
