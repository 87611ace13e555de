//! Requests are read, replies are written, and nonsense is told.

use std::time::Duration;

use log::LevelFilter;
use proptest::prelude::*;

use super::*;
use crate::settle::{Device, Want};

const PROGRAM: Reader = Reader { is_program: true, ..Reader::PERSON };

fn read(line: &str) -> Result<Command, String> {
    let (reader, command) = parse(line.as_bytes());
    assert!(!reader.is_program);
    let (reader, framed) = parse(format!("plugd/1 {line}").as_bytes());
    assert_eq!((reader.is_program, &framed), (true, &command));
    command
}

fn wait(want: Want, seconds: u64) -> Command {
    Command::Await { want, timeout: Duration::from_secs(seconds) }
}

#[test]
fn every_command_is_read() {
    let net = || Device::Fields(vec![b"A=x y\\".into(), b"SUBSYSTEM=net".into()]);
    for (line, expected) in [
        ("status", Command::Status(Format::Text)),
        ("  status\t--json \r", Command::Status(Format::Json)),
        ("status --openmetrics", Command::Status(Format::OpenMetrics)),
        ("settle", wait(Want::Settled, 120)),
        ("settle --timeout 5", wait(Want::Settled, 5)),
        ("settle --timeout=0", wait(Want::Settled, 0)),
        ("pause", Command::Pause),
        ("resume", Command::Resume),
        ("reload", Command::Reload),
        ("rescan", Command::Rescan),
        ("stop", Command::Stop),
        ("update", Command::Update),
        ("log-level", Command::LogLevel(None)),
        ("log-level warning", Command::LogLevel(Some(LevelFilter::Warn))),
        (r"wait SUBSYSTEM=net A=x\x20y\x5C", wait(Want::Present(net()), 120)),
        ("wait /dev/sda", wait(Want::Present(Device::Node(b"sda".into())), 120)),
        (
            "wait --removed --timeout 7 /dev//bus/usb/",
            wait(Want::Gone(Device::Node(b"bus/usb".into())), 7),
        ),
        ("wait /devices/x", wait(Want::Present(Device::Path(b"/devices/x".into())), 120)),
        ("wait /sys/block/x/", wait(Want::Present(Device::Path(b"/block/x".into())), 120)),
        ("wait /system/x", wait(Want::Present(Device::Path(b"/system/x".into())), 120)),
        ("wait /devices/x=1", wait(Want::Present(Device::Path(b"/devices/x=1".into())), 120)),
    ] {
        assert_eq!(read(line), Ok(expected), "{line}");
    }
}

#[test]
fn what_cannot_be_read_is_told_in_json_too() {
    for line in ["log-level \\q --json", "plugd/1 \\q --json", "plugd/2 status --json"] {
        let (reader, command) = parse(line.as_bytes());
        assert!(reader.wants_json && command.is_err(), "{line}");
    }
    assert!(!parse(b"plugd/2 status").0.wants_json);
}

#[test]
fn little_of_a_long_word_is_repeated() {
    let error = parse(&[b'\xff'; 4000]).1.unwrap_err();
    assert_eq!(error, format!("there is no command '{}...'", "\\xff".repeat(100)));
    assert!(parse(&[b'x'; 100]).1.unwrap_err().ends_with("x'"));
}

#[test]
fn what_is_wrong_is_told() {
    for (line, expected) in [
        ("", "the command is missing"),
        ("STATUS", "there is no command 'STATUS'"),
        ("\\x1b[1m", "there is no command '\\x1b[1m'"),
        ("status --yaml", "unexpected '--yaml'"),
        ("status --json x", "unexpected 'x'"),
        ("pause now", "unexpected 'now'"),
        ("settle 5", "unexpected '5'"),
        ("settle --removed", "unexpected '--removed'"),
        ("settle --timeout", "--timeout '': expected a number of seconds"),
        ("settle --timeout=-1", "--timeout '-1': expected"),
        ("settle --timeouts", "unexpected '--timeouts'"),
        ("log-level loud", "expected error, warning, info, debug or trace, but not 'loud'"),
        ("wait", "expected a DEVPATH"),
        ("wait /", "expected a DEVPATH"),
        ("wait /dev/", "expected a DEVPATH"),
        ("wait /sys/", "expected a DEVPATH"),
        ("wait /dev/../etc/passwd", "expected a DEVPATH"),
        ("wait /devices/./x", "expected a DEVPATH"),
        ("wait x", "expected a DEVPATH"),
        ("wait =x", "expected a DEVPATH"),
        ("wait /dev/a /dev/b", "expected a DEVPATH"),
        ("wait A=1 /dev/b", "expected a DEVPATH"),
        ("wait -x A=1", "unexpected '-x'"),
        ("wait A=\\", "after a \\ must follow"),
        ("wait A=\\x1", "after a \\ must follow"),
        ("wait A=\\xgg", "after a \\ must follow"),
    ] {
        let error = read(line).unwrap_err();
        assert!(error.starts_with(expected), "{line}: {error}");
    }
    let (reader, command) = parse(b"plugd/2 status");
    assert_eq!(reader, PROGRAM);
    assert_eq!(command, Err("the version of this protocol is plugd/1".into()));
}

#[test]
fn what_is_looked_for_in_each_event_is_bounded() {
    let line = |count: usize| {
        let fields: Vec<String> = (0..count).map(|n| format!("A={n} A=0")).collect();
        format!("wait {}", fields.join(" "))
    };
    let expected: Vec<Vec<u8>> = [0, 1].map(|n| format!("A={n}").into()).into();
    assert_eq!(read(&line(2)), Ok(wait(Want::Present(Device::Fields(expected)), 120)));
    assert!(read(&line(16)).is_ok());
    assert_eq!(read(&line(17)), Err("at most 16 variables tell a device".into()));
}

#[test]
fn only_some_commands_change_something() {
    for (line, changes) in [
        ("status", false),
        ("settle", false),
        ("wait A=1", false),
        ("log-level", false),
        ("log-level info", true),
        ("pause", true),
        ("resume", true),
        ("reload", true),
        ("rescan", true),
        ("stop", true),
        ("update", true),
    ] {
        assert_eq!(read(line).unwrap().changes_something(), changes, "{line}");
    }
}

#[test]
fn replies_suit_their_reader() {
    for (reply, person, program) in [
        (Reply::ok(""), "ok\n", "plugd/1 ok 0\n"),
        (Reply::ok("a"), "a\n", "plugd/1 ok 2\na\n"),
        (Reply::ok("a\nb\n"), "a\nb\n", "plugd/1 ok 4\na\nb\n"),
        (Reply::no("é"), "error: no: é\n", "plugd/1 no 3\né\n"),
    ] {
        assert_eq!(reply.to_bytes(Reader::PERSON), person.as_bytes());
        let bytes = reply.to_bytes(PROGRAM);
        assert_eq!(bytes, program.as_bytes());
        let head = bytes.iter().position(|&b| b == b'\n').unwrap();
        let expected = (reply.outcome, bytes.len() - head - 1);
        assert_eq!(Reply::parse_head(&bytes[..head]), Some(expected));
    }
    for wrong in ["", "plugd/1", "plugd/1 ok", "plugd/1 ok -1", "plugd/1 yes 0", "plugd/1 ok 0 0"] {
        assert_eq!(Reply::parse_head(wrong.as_bytes()), None, "{wrong}");
    }
}

proptest! {
    #[test]
    fn any_words_survive_the_wire(
        words in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 1..5),
    ) {
        let line = request(&words);
        let line = line.strip_suffix(b"\n").unwrap();
        prop_assert!(line.iter().all(|b| b.is_ascii_graphic() || *b == b' '));
        let sent: Vec<_> = line.split(|&b| b == b' ').skip(1).map(unescape).collect();
        prop_assert_eq!(sent, words.into_iter().map(Some).collect::<Vec<_>>());
    }

    #[test]
    fn no_line_is_too_strange(line: Vec<u8>) {
        let _ = parse(&line);
    }
}

#[test]
fn replies_are_objects_where_that_is_wanted() {
    let no = r#"{"outcome":"no","text":"timed \"out\"\u000alate"}"#;
    for (line, reply, expected) in [
        ("settle --json", Reply::ok(""), "{\"outcome\":\"ok\",\"text\":\"\"}\n".to_owned()),
        ("--json settle", Reply::no("timed \"out\"\nlate\n"), format!("{no}\n")),
        ("status --json", Reply::ok("{\"state\":\"idle\"}\n"), "{\"state\":\"idle\"}\n".into()),
        ("status --json", Reply::no("timed \"out\"\nlate"), format!("{no}\n")),
        ("status", Reply::no("late"), "error: no: late\n".into()),
    ] {
        let (person, command) = parse(line.as_bytes());
        assert!(command.is_ok(), "{line}: {command:?}");
        let bytes = reply.to_bytes(person);
        assert_eq!(String::from_utf8(bytes).unwrap(), expected, "{line}");
        if person.wants_json {
            let (program, _) = parse(format!("plugd/1 {line}").as_bytes());
            let head = format!("plugd/1 {} {}\n", reply.outcome.name(), expected.len());
            let bytes = reply.to_bytes(program);
            assert_eq!(String::from_utf8(bytes).unwrap(), head + &expected, "{line}");
        }
    }
    assert!(parse(b"wait --timeout --json").1.is_err());
    assert!(parse(b"status --json --openmetrics").1.is_err());
}
