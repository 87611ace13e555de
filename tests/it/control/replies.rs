//! How one asks, and what one is told.

use super::*;

#[test]
fn a_line_from_a_shell_is_answered_in_text() {
    let host = Host::start(&[], HOLD);
    assert!(host.ask("status\n").starts_with("state    idle\n"));
    assert!(host.ask("status").starts_with("state    idle\n"), "without a newline");
    assert!(host.ask("status --openmetrics\r\n").ends_with("# EOF\n"));
    assert_eq!(host.ask("settle\n"), "ok\n");
    assert_eq!(host.ask("settle --timeout 0 x\n"), "error: usage: unexpected 'x'\n");
    assert_eq!(host.ask("\x1b[1mstatus\0\n").lines().count(), 1);
    assert!(host.ask("garbage\n").starts_with("error: usage: there is no command 'garbage'"));
    assert_eq!(host.ask("\n"), "error: usage: the command is missing\n");
    assert_eq!(host.ask(""), "");
}

#[test]
fn a_program_may_ask_again_and_again_on_one_connection() {
    let host = Host::start(&[], HOLD);
    let mut stream = host.connect();
    let rounds = 1000;
    let asking = {
        let mut stream = stream.try_clone().unwrap();
        std::thread::spawn(move || {
            for _ in 0..rounds {
                stream.write_all(b"plugd/1 log-level\nplugd/1 nonsense\nplugd/1 settle\n").unwrap();
            }
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        })
    };
    let text = read_all(&mut stream);
    asking.join().unwrap();
    let usage = "there is no command 'nonsense'\n";
    let expected =
        format!("plugd/1 ok 5\ninfo\nplugd/1 usage {}\n{usage}plugd/1 ok 0\n", usage.len());
    assert_eq!(text, expected.repeat(rounds));
    let mut stream = host.connect();
    stream.write_all(b"plugd/2 status\n").unwrap();
    let text = "the version of this protocol is plugd/1\n";
    let mut answer = vec![0; format!("plugd/1 usage 40\n{text}").len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), format!("plugd/1 usage {}\n{text}", text.len()));
}

#[test]
fn replies_are_json_where_that_is_wanted() {
    let host = Host::start(&[], HOLD);
    host.event(1);
    host.daemon.wait_for_lines("out", 1);
    for (args, code, outcome, text) in [
        (&["log-level"][..], 0, "ok", "info"),
        (&["pause"], 0, "ok", "paused"),
        (&["settle", "--timeout", "0"], 1, "no", "timed out"),
        (&["wait", "--timeout", "0", "A=1"], 1, "no", "timed out"),
    ] {
        let said = host.say(&[args, &["--json"]].concat());
        assert_eq!((said.code, &*said.stderr), (Some(code), ""), "{said:?}");
        let value: Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!((&value["outcome"], &value["text"]), (&outcome.into(), &text.into()));
        assert_eq!(host.ask(&format!("{} --json\n", args.join(" "))), said.stdout);
        let quiet = host.say(&[args, &["--json", "--quiet"]].concat());
        assert_eq!((quiet.code, &*quiet.stdout, &*quiet.stderr), (Some(code), "", ""));
    }
}

#[test]
fn who_says_something_and_goes_is_obeyed() {
    let host = Host::start(&[], HOLD);
    let mut stream = host.connect();
    stream.write_all(b"pause\n").unwrap();
    drop(stream);
    eventually("it is paused", || (host.status()["paused"] == true).then_some(()));
    // One who waits and goes is forgotten: nothing wakes the daemon any more.
    let mut stream = host.connect();
    stream.write_all(b"settle --timeout 1\n").unwrap();
    drop(stream);
    assert_eq!(host.say(&["resume"]).code, Some(0));
    host.daemon.sleeps();
}

/// To a script, the end of the daemon must not look like success.
#[test]
fn who_waits_for_a_daemon_that_ends_is_told_nothing() {
    let host = Host::start(&[], HOLD);
    host.event(1);
    host.daemon.wait_for_lines("out", 1);
    let mut stream = host.connect();
    stream.write_all(b"settle\n").unwrap();
    assert!(host.ask("status\n").starts_with("state    running"));
    host.daemon.signal(Signal::KILL);
    assert_eq!(read_all(&mut stream), "");
}

#[test]
fn a_daemon_that_does_not_answer_is_not_waited_for() {
    let host = Host::start(&[], HOLD);
    host.daemon.signal(Signal::STOP);
    let said = host.say(&["status", "--timeout", "0.2"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("timed out"), "{said:?}");
    host.daemon.signal(Signal::CONT);
    assert_eq!(host.status()["state"], "idle");
}

/// Metrics that are cut off must not be taken for all.
#[test]
fn a_reply_that_cannot_be_printed_is_an_error() {
    let host = Host::start(&[], HOLD);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let status = ["status", "--openmetrics", "--control", &host.address];
    let said = Plugd::new().args(status).stdout(full).finish();
    assert_eq!(said.code, Some(111), "{said:?}");
    assert!(said.stderr.contains("cannot print the reply: No space left"), "{said:?}");
}

#[test]
fn wrong_usage_is_told_without_a_daemon() {
    // Escaped, it is too long for a request.
    let long = format!("A={}", "é".repeat(600));
    for args in [
        &["wait", &long][..],
        &["settle", "x"],
        &["status", "--removed"],
        &["wait"],
        &["wait", "x"],
        &["log-level", "loud"],
        &["pause", "--timeout", "x"],
        &["stop", "--control", "none"],
        &["stop", "--control", "@"],
        &["run", "--control-mode", "8", "true"],
        &["run", "--notify-fd", "x", "true"],
    ] {
        let said = Plugd::new().args(args).finish();
        assert_eq!(said.code, Some(100), "{args:?}: {said:?}");
    }
    for name in [
        "status",
        "settle",
        "wait",
        "pause",
        "resume",
        "reload",
        "rescan",
        "stop",
        "update",
        "log-level",
    ] {
        let said = Plugd::new().args([name, "--help"]).finish();
        assert_eq!(said.code, Some(0), "{name}");
        assert!(said.stdout.contains(&format!("Usage: plugd {name} ")), "{name}: {}", said.stdout);
        let said = say("@plugd-test-nobody", &[name, "/dev/x"][..1 + usize::from(name == "wait")]);
        assert_eq!(said.code, Some(111), "{name}: {said:?}");
    }
}

/// The parser of Prometheus itself.
#[test]
fn prometheus_reads_the_metrics() {
    const READ: &str = "
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    for sample in family.samples:
        print(family.type, sample.name, sample.labels, float(sample.value))
";
    let what = "prometheus_reads_the_metrics";
    // The system's, which has the package's modules, may not be the first in PATH.
    let has_it = |python: &&str| {
        let module = ["-c", "import prometheus_client.openmetrics.parser"];
        let output = Command::new(python).args(module).output();
        output.is_ok_and(|output| output.status.success())
    };
    let Some(python) = ["python3", "/usr/bin/python3"].into_iter().find(has_it) else {
        return skip("tools", what, "there is no python3 with prometheus_client");
    };
    let host = Host::start(&[], HOLD);
    host.event(1);
    host.daemon.wait_for_lines("out", 1);
    let said = host.say(&["status", "--openmetrics"]);
    let mut python = Command::new(python)
        .args(["-c", READ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(said.stdout.as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{}", said.stdout);
    let read = String::from_utf8(output.stdout).unwrap();
    for sample in [
        "counter plugd_events_received_total {} 1.0",
        "stateset plugd_state {'plugd_state': 'running'} 1.0",
        "stateset plugd_state {'plugd_state': 'idle'} 0.0",
        "counter plugd_datagrams_dropped_total {'kind': 'foreign'} 0.0",
    ] {
        assert!(read.lines().any(|line| line == sample), "{sample}: {read}");
    }
    host.daemon.release("gate");
}
