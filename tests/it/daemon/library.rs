//! Daemons that others make with the library.

use super::*;

fn example(name: &str, test: &str) -> Option<PathBuf> {
    let example = Path::new(PLUGD).with_file_name("examples").join(name);
    if !example.exists() {
        skip("examples", test, "it was not built");
        return None;
    }
    Some(example)
}

/// It has no logger. What it aborts at comes between the fork and the moment when
/// it is ready.
#[test]
fn a_daemon_of_the_library_that_aborts_is_told_of() {
    const TEST: &str = "a_daemon_of_the_library_that_aborts_is_told_of";
    ns::alone(|| {
        let Some(example) = example("daemon", TEST) else { return };
        if strace_is_missing(TEST) {
            return;
        }
        let place = Place::new();
        let mut words = traced(&place, "prctl:signal=ABRT", true);
        words.extend([&example, &place.pid_file()].map(|path| path.to_str().unwrap().to_owned()));
        let (code, stderr) = launch(&words);
        assert_eq!(code, Some(111), "{stderr}");
        assert_eq!(stderr, "daemon: error: the daemon was killed by SIGABRT before it was ready\n");
        assert_eq!(place.act("--check", &[]), 101);
    });
}

#[test]
fn the_example_is_a_daemon() {
    let Some(example) = example("daemon", "the_example_is_a_daemon") else { return };
    let place = Place::new();
    let pid_file = place.pid_file();
    let daemon = [example.to_str().unwrap(), pid_file.to_str().unwrap()];
    assert_eq!(place.start_program(&[], &daemon), 0);
    assert_eq!(place.start_program(&[], &daemon), 100);
    assert_eq!(place.act("--stop", &[]), 0);
    assert_eq!(place.start_program(&[], &daemon), 0);
    kill(place.pid());
    assert_eq!(place.act("--check", &[]), 103);
    let finished = finish(Command::new(daemon[0]).arg("/nonexistent/x.pid"));
    assert_eq!(finished.code, Some(1));
    assert!(finished.stderr.contains("cannot lock PID file /nonexistent/x.pid"), "{finished:?}");
}

#[test]
fn the_example_of_control_needs_no_other_crate() {
    const TEST: &str = "the_example_of_control_needs_no_other_crate";
    let source = include_str!("../../../examples/control.rs");
    for line in source.lines().filter(|line| line.starts_with("use ")) {
        assert!(line.starts_with("use std::") || line.starts_with("use plugd::"), "{line}");
    }
    let (Some(control), Some(daemon)) = (example("control", TEST), example("daemon", TEST)) else {
        return;
    };
    let place = Place::new();
    let act = |words: &[&str]| {
        finish(Command::new(&control).arg(place.pid_file()).args(words)).code.unwrap()
    };
    let start = [daemon.as_path(), &place.pid_file()].map(|path| path.to_str().unwrap().to_owned());
    let start = ["start", &start[0], &start[1]];
    assert_eq!(act(&["check"]), 101);
    assert_eq!(act(&start), 0);
    assert_eq!(act(&start), 100);
    assert_eq!(act(&["check"]), 0);
    assert_eq!(act(&["stop"]), 0);
    assert_eq!(act(&["stop"]), 100);
    assert_eq!(act(&["start", "true"]), 102);
    assert_eq!(act(&[]), 102);
}
