//! Its PID file: one daemon has it, and nothing else is written.

use super::*;

#[test]
fn there_is_only_one() {
    let place = Place::new();
    assert_eq!(launch(&place.daemon(&[])).0, Some(0));
    let text = place.text("x.pid");
    let (code, stderr) = launch(&place.daemon(&[]));
    assert_eq!(code, Some(111));
    let told = format!("already running with process id {}", text.trim());
    assert!(stderr.contains(&told), "{stderr}");
    assert_eq!(place.text("x.pid"), text);
    assert_eq!(place.act("--check", &[]), 0);
}

#[test]
fn pid_files_that_are_traps() {
    let place = Place::new();
    let target = place.path("target");
    fs::write(&target, "precious").unwrap();
    symlink(&target, place.pid_file()).unwrap();
    assert_eq!(launch(&place.daemon(&[])).0, Some(111));
    fs::remove_file(place.pid_file()).unwrap();
    fs::hard_link(&target, place.pid_file()).unwrap();
    assert_eq!(launch(&place.daemon(&[])).0, Some(111));
    fs::remove_file(place.pid_file()).unwrap();
    fs::create_dir(place.pid_file()).unwrap();
    assert_eq!(launch(&place.daemon(&[])).0, Some(111));
    fs::remove_dir(place.pid_file()).unwrap();
    assert_eq!(fs::read(&target).unwrap(), b"precious");
    // What a daemon that died has left is none, whatever is in it.
    for text in [&b"rubbish\n"[..], b"1\n", &[b'1'; 1 << 20]] {
        place.write(text);
        assert_eq!(launch(&place.daemon(&[])).0, Some(0));
        assert_eq!(place.text("x.pid"), format!("{}\n", place.pid()));
        assert_eq!(place.act("--stop", &[]), 0);
    }
}

/// The limit of file sizes comes with a signal that ends who does not expect it.
#[test]
fn a_pid_file_that_must_not_grow_is_told() {
    let place = Place::new();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 0; exec \"$@\"", "sh"]).args(place.daemon(&[]));
    // To a pipe, as files have the limit.
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(111), "{output:?}");
    let stderr = String::from_utf8(output.stderr).unwrap();
    let file = place.pid_file();
    let told = format!("plugd: fatal: cannot write PID file {}: File too large\n", file.display());
    assert!(stderr.ends_with(&told), "{stderr}");
    assert_eq!(place.act("--check", &[]), 101);
}

/// Without --daemonize the rest holds as well, for example under a supervisor.
#[test]
fn a_pid_file_in_the_foreground() {
    let place = Place::new();
    let mut words = place.daemon(&[]);
    words.retain(|word| word != "--daemonize");
    let mut daemon =
        Command::new(&words[0]).args(&words[1..]).stderr(Stdio::null()).spawn().unwrap();
    let text = format!("{}\n", daemon.id());
    eventually("its id is in the file", || (place.text("x.pid") == text).then_some(()));
    eventually("it handles SIGTERM", || {
        let caught = u64::from_str_radix(&status(place.pid(), "SigCgt"), 16).unwrap();
        (caught & (1 << (libc::SIGTERM - 1)) != 0).then_some(())
    });
    let stopping = place.control("--stop").spawn().unwrap();
    assert!(daemon.wait().unwrap().success());
    assert_eq!(stopping.wait_with_output().unwrap().status.code(), Some(0));
    assert_eq!(place.text("x.pid"), "");
}
