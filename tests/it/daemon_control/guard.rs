//! The guard, which lets one act at a time, and the files that it has to trust.

use std::os::unix::fs::{MetadataExt, lchown, symlink};

use super::*;

#[test]
fn the_guard_lets_one_act_at_a_time() {
    let place = Place::new();
    assert_eq!(place.act("--check", &[]), 101);
    let guard = place.path("x.lock");
    assert_eq!(fs::metadata(&guard).unwrap().permissions().mode() & 0o7777, 0o600);
    let held = File::open(&guard).unwrap();
    flock(&held, FlockOperation::LockExclusive).unwrap();
    for action in ["--check", "--stop", "--reload"] {
        assert_eq!(place.act(action, &["--timeout", "0.1"]), 102);
    }
    assert_eq!(place.start_program(&["--timeout", "0.1"], &place.daemon(&[])), 102);
    // Another one is another matter.
    let other = place.path("other");
    assert_eq!(place.act("--check", &["--guard-file", other.to_str().unwrap()]), 101);
    let mut check = place.control("--check").spawn().unwrap();
    drop(held);
    assert_eq!(check.wait().unwrap().code(), Some(101));
}

/// Who waits for it must not act beside the one who has locked its successor.
#[test]
fn a_guard_that_was_removed_guards_nothing() {
    for options in [&[][..], &["--timeout", "100"]] {
        let place = Place::new();
        let guard = place.path("x.lock");
        assert_eq!(place.act("--check", &[]), 101);
        let lock = || {
            let file =
                File::options().write(true).create(true).truncate(true).open(&guard).unwrap();
            flock(&file, FlockOperation::LockExclusive).unwrap();
            file
        };
        let first = lock();
        let mut check = place.control("--check").args(options).spawn().unwrap();
        let mut waits_for = |file: &File| {
            let inode = file.metadata().unwrap().ino();
            eventually("it waits for the guard", || {
                assert_eq!(check.try_wait().unwrap(), None, "it has not waited");
                let fds = fs::read_dir(format!("/proc/{}/fd", check.id())).unwrap();
                let mut open = fds.flatten().filter_map(|fd| fs::metadata(fd.path()).ok());
                open.any(|open| open.ino() == inode).then_some(())
            });
        };
        waits_for(&first);
        fs::remove_file(&guard).unwrap();
        let second = lock();
        drop(first);
        waits_for(&second);
        drop(second);
        assert_eq!(check.wait().unwrap().code(), Some(101));
    }
}

/// Its lock would be taken for the daemon's, and the action wait for itself.
#[test]
fn the_pid_file_is_no_guard() {
    let place = Place::new();
    symlink(".", place.path("here")).unwrap();
    let guard = place.path("here/x.pid");
    for action in ["--check", "--stop"] {
        let mut control = place.control(action);
        let finished = finish(control.arg("--guard-file").arg(&guard));
        assert_eq!(finished.code, Some(102), "{finished:?}");
        let told = format!("{}: it is the PID file\n", guard.display());
        assert!(finished.stderr.ends_with(&told), "{finished:?}");
    }
}

/// Whoever can write the guard can do so for others, and lock it for ever.
#[test]
fn a_guard_that_is_not_ours_is_refused() {
    let place = Place::new();
    let guard = place.path("x.lock");
    let refused = |why: &str| {
        let finished = finish(&mut place.control("--check"));
        assert_eq!(finished.code, Some(102), "{finished:?}");
        assert!(finished.stderr.ends_with(&format!("x.lock: {why}\n")), "{finished:?}");
    };
    fs::write(&guard, "").unwrap();
    fs::set_permissions(&guard, fs::Permissions::from_mode(0o622)).unwrap();
    refused("others can write it");
    fs::set_permissions(&guard, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(place.act("--check", &[]), 101);
    fs::hard_link(&guard, place.path("other")).unwrap();
    refused("it is a link, or has one");
    fs::remove_file(place.path("other")).unwrap();
    if !rustix::process::geteuid().is_root() {
        return skip("root", "a_guard_that_is_not_ours_is_refused", "this is not root");
    }
    chown(&guard, Some(65534), None).unwrap();
    refused("it belongs to another user");
}

#[test]
fn files_that_cannot_be_used() {
    ns::alone(|| {
        let place = Place::new();
        let target = place.path("target");
        fs::write(&target, "1\n").unwrap();
        symlink(&target, place.pid_file()).unwrap();
        assert_eq!(place.act("--check", &[]), 102);
        assert_eq!(place.start(&[]), 102);
        fs::remove_file(place.pid_file()).unwrap();
        fs::remove_file(place.path("x.lock")).unwrap();
        symlink(&target, place.path("x.lock")).unwrap();
        assert_eq!(place.act("--check", &[]), 102);
        fs::remove_file(place.path("x.lock")).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"1\n");

        // Without permission; root has it always.
        let root = rustix::process::geteuid().is_root();
        if root && program("setpriv").is_none() {
            return skip("tools", "files_that_cannot_be_used", "no setpriv");
        }
        // plugd itself may be where only root comes.
        let copy = place.path("plugd");
        fs::copy(PLUGD, &copy).unwrap();
        let unprivileged = |action: &str| {
            let control = place.control(action);
            let mut command = Command::new(if root { "setpriv" } else { "env" });
            if root {
                command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
            }
            finish(command.arg(&copy).args(control.get_args())).code.unwrap()
        };
        let mode = |file: &str, mode| {
            fs::set_permissions(place.path(file), fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(".", 0o755);
        assert_eq!(place.start(&[]), 0);
        assert_eq!(place.act("--check", &[]), 0);
        if root {
            // The guard is root's.
            assert_eq!(unprivileged("--check"), 102);
            chown(place.path("x.lock"), Some(0), Some(65534)).unwrap();
            mode("x.lock", 0o660);
            assert_eq!(unprivileged("--check"), 0);
            assert_eq!(unprivileged("--stop"), 102);
            assert_eq!(unprivileged("--reload"), 102);
        }
        mode("x.pid", 0o000);
        assert_eq!(unprivileged("--check"), 102);
        mode("x.pid", 0o644);
        assert_eq!(place.act("--stop", &[]), 0);
        fs::remove_file(place.path("x.lock")).unwrap();
        mode(".", 0o555);
        assert_eq!(unprivileged("--check"), 102);
        mode(".", 0o700);
    });
}

/// Where others could replace its files, or lead us to what is not ours.
#[test]
fn a_directory_that_is_not_ours_is_refused() {
    const OTHER: Option<u32> = Some(65534);
    const ROOT: Option<u32> = Some(0);
    if !rustix::process::geteuid().is_root() {
        let test = "a_directory_that_is_not_ours_is_refused";
        return skip("root", test, "this is not root");
    }
    let outside = Place::new();
    let place = Place::new();
    let (link, guard) = (outside.path("link"), outside.path("guard"));
    let both = |pid_file: &Path, expected: Option<&str>| {
        let daemon = place.daemon(&[]);
        let mut command = Command::new(&daemon[0]);
        let words = daemon.iter().skip(1).map(|word| match Path::new(word) {
            path if path == place.pid_file() => pid_file,
            word => word,
        });
        let launched = finish(command.args(words));
        let check = |options: &[&Path]| {
            let mut command = Command::new(PLUGD);
            command.args(["daemon-control", "--check", "--pid-file"]).arg(pid_file);
            finish(command.args(options))
        };
        let Some(why) = expected else {
            assert_eq!(launched.code, Some(0), "{launched:?}");
            assert_eq!(check(&[]).code, Some(0));
            assert_eq!(place.act("--stop", &[]), 0);
            return;
        };
        assert_eq!(launched.code, Some(111), "{launched:?}");
        assert!(launched.stderr.ends_with(&format!("x.pid: {why}\n")), "{launched:?}");
        assert!(!place.pid_file().exists());
        let checked = check(&[]);
        assert_eq!(checked.code, Some(102), "{checked:?}");
        assert!(checked.stderr.ends_with(&format!("x.lock: {why}\n")), "{checked:?}");
        assert!(!place.path("x.lock").exists());
        // The PID file is somebody's who may have a daemon.
        assert_eq!(check(&[Path::new("--guard-file"), &guard]).code, Some(101));
    };
    let directory = |user, group, mode| {
        for file in ["x.pid", "x.lock"] {
            let _ = fs::remove_file(place.path(file));
        }
        chown(place.path("."), user, group).unwrap();
        fs::set_permissions(place.path("."), fs::Permissions::from_mode(mode)).unwrap();
    };
    let group = "another group can write its directory, which is not sticky";
    for (user, gid, mode, expected) in [
        (OTHER, OTHER, 0o755, Some("its directory belongs to another user")),
        (OTHER, ROOT, 0o1777, Some("its directory belongs to another user")),
        (ROOT, OTHER, 0o775, Some(group)),
        (ROOT, OTHER, 0o1775, None),
        (ROOT, ROOT, 0o775, None),
        (ROOT, ROOT, 0o1777, None),
    ] {
        directory(user, gid, mode);
        both(&place.pid_file(), expected);
    }
    directory(ROOT, ROOT, 0o755);
    symlink(place.path("."), &link).unwrap();
    lchown(&link, OTHER, OTHER).unwrap();
    let why = "a symbolic link on the way there belongs to another user";
    both(&link.join("x.pid"), Some(why));
    lchown(&link, ROOT, ROOT).unwrap();
    both(&link.join("x.pid"), None);

    // Nor a file that another group can write.
    chown(place.pid_file(), ROOT, OTHER).unwrap();
    fs::set_permissions(place.pid_file(), fs::Permissions::from_mode(0o664)).unwrap();
    let started = finish(place.control("--start").arg("--").args(place.daemon(&[])));
    assert_eq!(started.code, Some(102), "{started:?}");
    assert!(started.stderr.ends_with("x.pid: another group can write it\n"), "{started:?}");
    chown(place.pid_file(), ROOT, ROOT).unwrap();
    assert_eq!(place.start(&[]), 0);
}
