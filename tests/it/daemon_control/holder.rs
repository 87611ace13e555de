//! Who holds the lock of the PID file, and who only seems to.

use super::*;

/// The process in the PID file is gone, or another one; somebody else has the lock.
#[test]
fn who_does_not_hold_the_lock_is_not_signalled() {
    let place = Place::new();
    let mut lock = place.lock();
    let mut bystander = Command::new("sleep").arg("100").spawn().unwrap();
    lock.write_all(format!("{}\n", bystander.id()).as_bytes()).unwrap();
    for action in ["--stop", "--reload"] {
        let finished = finish(&mut place.control(action));
        assert_eq!(finished.code, Some(102));
        assert!(finished.stderr.contains("does not hold the lock"), "{finished:?}");
    }
    assert!(bystander.try_wait().unwrap().is_none());
    // One that has ended needs no signal, nor does it have files, even if nobody
    // has waited for it.
    bystander.kill().unwrap();
    eventually("it is a zombie", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", bystander.id())).unwrap();
        stat.contains(") Z ").then_some(())
    });
    let finished = finish(place.control("--stop").args(["--timeout", "0.1"]));
    assert!(finished.stderr.contains("not within 100ms"), "{finished:?}");
    assert_eq!(place.act("--reload", &[]), 101);
    bystander.wait().unwrap();
    // LibUCW's waits as well, and for ever.
    assert_eq!(place.act("--stop", &["--timeout", "0.1"]), 102);
    assert_eq!(place.act("--reload", &[]), 101);
}

/// Somebody looks into the file, or has it open otherwise, and somebody else holds the lock.
#[test]
fn to_have_the_pid_file_open_is_not_to_hold_its_lock() {
    let place = Place::new();
    place.write("");
    let open = || File::open(place.pid_file()).unwrap();
    let lock_shared = || {
        let file = open();
        flock(&file, FlockOperation::LockShared).unwrap();
        file
    };
    // Everybody who can read it can lock it.
    let lock_unwritable = || {
        let file = open();
        flock(&file, FlockOperation::LockExclusive).unwrap();
        file
    };
    let write = || File::options().append(true).open(place.pid_file()).unwrap();
    type Make<'a> = &'a dyn Fn() -> File;
    let cases: [(Make<'_>, Make<'_>); 4] = [
        (&open, &lock_unwritable),
        (&write, &lock_unwritable),
        (&open, &lock_shared),
        (&lock_unwritable, &open),
    ];
    for (case, (theirs, ours)) in cases.into_iter().enumerate() {
        let theirs = theirs();
        let ours = ours();
        let mut bystander = bystander(&place, theirs, None);
        for action in ["--stop", "--reload"] {
            let finished = finish(place.control(action).args(["--timeout", "5"]));
            // A shared lock is nobody's who runs.
            let expected = match (case, action) {
                (2, "--stop") => 103,
                (2, _) => 101,
                _ => 102,
            };
            assert_eq!(finished.code, Some(expected), "{case} {action}: {finished:?}");
            let told = finished.stderr.contains("does not hold the lock of the PID file");
            assert_eq!(told, expected == 102, "{case} {action}: {finished:?}");
        }
        assert!(bystander.try_wait().unwrap().is_none(), "{case}: it was signalled");
        bystander.kill().unwrap();
        bystander.wait().unwrap();
        drop(ours);
    }
    let mut daemon = bystander(&place, place.lock(), None);
    assert_eq!(place.act("--reload", &["--signal", "CONT"]), 0);
    let mut stop = place.control("--stop").spawn().unwrap();
    daemon.wait().unwrap();
    assert_eq!(stop.wait().unwrap().code(), Some(0));
}

/// Another user may write any process id there, and even hand the lock to
/// somebody; but may signal his own processes only.
#[test]
fn the_pid_file_of_another_user_is_good_for_his_processes_only() {
    const OTHER: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        let test = "the_pid_file_of_another_user_is_good_for_his_processes_only";
        return skip("root", test, "this is not root");
    }
    let place = Place::new();
    place.write("");
    chown(place.pid_file(), Some(OTHER), Some(OTHER)).unwrap();
    let mut root = bystander(&place, place.lock(), None);
    assert_eq!(place.act("--check", &[]), 0);
    assert_eq!(place.start(&[]), 100);
    for action in ["--stop", "--reload"] {
        let finished = finish(place.control(action).args(["--timeout", "5"]));
        assert_eq!(finished.code, Some(102), "{action}: {finished:?}");
        assert!(finished.stderr.contains("the PID file belongs to another user"), "{finished:?}");
    }
    assert!(root.try_wait().unwrap().is_none(), "it was signalled");
    root.kill().unwrap();
    root.wait().unwrap();
    // The file of root is good for those of others.
    for owner in [0, OTHER] {
        chown(place.pid_file(), Some(owner), Some(owner)).unwrap();
        let mut daemon = bystander(&place, place.lock(), Some(OTHER));
        let mut stop = place.control("--stop").spawn().unwrap();
        let status = ns::wait(&mut daemon, PATIENCE).expect("it was not signalled");
        assert_eq!(status.signal(), Some(libc::SIGTERM));
        assert_eq!(stop.wait().unwrap().code(), Some(0));
    }
}

/// The file that others can write, too, and one that is also somewhere else.
#[test]
fn a_pid_file_that_others_have_is_refused() {
    let place = Place::new();
    assert_eq!(place.start(&[]), 0);
    let pid = place.pid();
    let refused = |why: &str| {
        for action in ["--stop", "--reload", "--check"] {
            let finished = finish(&mut place.control(action));
            assert_eq!(finished.code, Some(102), "{action}: {finished:?}");
            let told = format!("cannot use PID file {}: {why}\n", place.pid_file().display());
            assert!(finished.stderr.ends_with(&told), "{finished:?}");
        }
        assert_eq!(place.start(&[]), 102);
        assert_eq!(place.pid(), pid);
    };
    fs::hard_link(place.pid_file(), place.path("other")).unwrap();
    refused("it is a link, or has one");
    fs::remove_file(place.path("other")).unwrap();
    let mode = |mode| fs::set_permissions(place.pid_file(), fs::Permissions::from_mode(mode));
    mode(0o646).unwrap();
    refused("others can write it");
    mode(0o644).unwrap();
    assert_eq!(place.act("--stop", &[]), 0);
}
