//! Locking the file, clearing it, and what is refused.

use super::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

fn state(path: &Path) -> Result<State, String> {
    look(path).map_err(|error| error.to_string())
}

#[test]
fn the_life_of_a_pid_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pid");
    assert_eq!(state(&path), Ok(State::NotRunning));

    let mut file = PidFile::lock(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!(state(&path), Ok(State::Starting));
    let pid = Pid::from_raw(42).unwrap();
    file.write(pid).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"42\n");
    assert_eq!(state(&path), Ok(State::Running(Some(pid))));

    let error = PidFile::lock(&path).unwrap_err();
    assert!(error.to_string().ends_with("already running with process id 42"), "{error}");
    let Fatal::System { error, .. } = error else { panic!("{error}") };
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    assert_eq!(fs::read(&path).unwrap(), b"42\n");

    file.clear().unwrap();
    assert_eq!(state(&path), Ok(State::Running(None)));
    drop(file);
    assert_eq!(state(&path), Ok(State::NotRunning));
    assert!(path.exists());
}

#[test]
fn whoever_looks_or_cleans_up_does_not_keep_a_daemon_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pid");
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let nobody = format!("{}\n", child.id());
    child.wait().unwrap();
    for (text, operation) in [
        ("", FlockOperation::LockShared),
        ("", FlockOperation::LockExclusive),
        (&nobody, FlockOperation::LockExclusive),
    ] {
        fs::write(&path, text).unwrap();
        let other = File::open(&path).unwrap();
        flock(&other, operation).unwrap();
        let (mut other, mut pauses) = (Some(other), 0);
        let locked = lock(&path, || {
            pauses += 1;
            other = other.take().filter(|_| pauses < 3);
        });
        locked.unwrap();
        assert_eq!(pauses, 3);
    }
}

#[test]
fn a_lock_that_stays_is_a_daemons() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pid");
    for (text, told) in [
        (format!("{}\n", std::process::id()), "already running with process id "),
        (String::new(), "already running"),
        ("(starting)\n".to_owned(), "already being started"),
    ] {
        fs::write(&path, text).unwrap();
        let other = File::open(&path).unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        let error = PidFile::lock(&path).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}

#[test]
fn only_a_stale_file_is_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pid");
    fs::write(&path, "43\n").unwrap();
    clear(&path, b"42\n").unwrap();
    assert_eq!(state(&path), Ok(State::Stale));
    clear(&path, b"4").unwrap();
    assert_eq!(state(&path), Ok(State::Stale));
    for text in ["42\n", "(starting)\n"] {
        fs::write(&path, text).unwrap();
        clear(&path, text.as_bytes()).unwrap();
        assert_eq!(state(&path), Ok(State::NotRunning));
    }
    let mut file = PidFile::lock(&path).unwrap();
    file.write(Pid::from_raw(42).unwrap()).unwrap();
    clear(&path, b"42\n").unwrap_err();
    drop(file);

    fs::write(&path, "42\n").unwrap();
    symlink(&path, dir.path().join("link")).unwrap();
    clear(&dir.path().join("link"), b"42\n").unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), b"42\n");
    fs::hard_link(&path, dir.path().join("other")).unwrap();
    clear(&path, b"42\n").unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), b"42\n");
}

#[test]
fn traps_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let [target, path] = ["target", "x.pid"].map(|name| dir.path().join(name));
    fs::write(&target, "precious").unwrap();
    let refused = |why: &str| {
        let error = PidFile::lock(&path).unwrap_err().to_string();
        assert!(error.ends_with(why), "{error}");
        assert_eq!(fs::read(&target).unwrap(), b"precious");
    };

    symlink(&target, &path).unwrap();
    refused("it is a symbolic link");
    assert_eq!(state(&path), Err("it is a symbolic link".into()));
    fs::remove_file(&path).unwrap();
    symlink(dir.path().join("none"), &path).unwrap();
    refused("it is a symbolic link");
    fs::remove_file(&path).unwrap();

    fs::hard_link(&target, &path).unwrap();
    refused("it is a link, or has one");
    fs::remove_file(&path).unwrap();

    let fifo_mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mkfifoat(CWD, &path, fifo_mode).unwrap();
    refused("it is no regular file");
    assert_eq!(state(&path), Err("it is no regular file".into()));
    fs::remove_file(&path).unwrap();

    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    refused("others can write it");
    fs::remove_file(&path).unwrap();

    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    refused("others can write its directory, which is not sticky");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    drop(PidFile::lock(&path).unwrap());
}
