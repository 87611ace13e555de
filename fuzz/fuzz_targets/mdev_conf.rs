//! Any file of rules, and any event: what is wrong is told where it is, a rule
//! read again is the same, the automata find the rules that match, and no plan
//! leads out of /dev.
//!
//! The input is the file, a NUL, and the fields of the event.
//! `cargo +nightly fuzz run mdev_conf -- -dict=fuzz/mdev_conf.dict` finds more,
//! sooner.
#![no_main]

use std::ffi::CStr;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use plugd::account::Accounts;
use plugd::environment::Base;
use plugd::plan::{Access, Link, MakeNode, Node, Step};
use plugd::rules::ere::Scratch;
use plugd::rules::matcher::Matcher;
use plugd::rules::parse::{Error, Source, parse};
use plugd::rules::rule::{Device, Rule};
use plugd::rules::{Engine, NoSysfs, Settings};
use plugd::uevent::{Header, Uevent};

/// The search for groups takes polynomial time: larger ones would only be slow.
const LARGEST: usize = 512;

static ACCOUNTS: LazyLock<Accounts> =
    LazyLock::new(|| Accounts::parse(b"root:x:0:0:::\nu:x:7:8:::\n", b"root:x:0:\ndisk:x:6:\n"));

fuzz_target!(|input: &[u8]| {
    if input.len() > LARGEST {
        return;
    }
    let nul = input.iter().position(|&b| b == 0).unwrap_or(input.len());
    let (text, fields) = (&input[..nul], input.get(nul + 1..).unwrap_or_default());
    let rules = match parse(&[Source { name: "f", text }], &ACCOUNTS) {
        Ok(rules) => rules,
        Err(errors) => {
            assert!(!errors.is_empty());
            errors.iter().for_each(|error| check_error(error, text));
            return;
        }
    };
    rules.iter().for_each(check_again);
    let datagram = [fields, b"\0"].concat();
    let Ok(event) = Uevent::parse(&datagram, Header::Optional) else { return };
    check_matches(&rules, &event);
    let settings = Settings::new(Base::new([]), None);
    // All together they may be too large.
    if let Ok(mut engine) = Engine::new(rules, settings) {
        check_plan(&mut engine, &event);
    }
});

/// It names a line of the file, and a byte of that.
fn check_error(error: &Error, text: &[u8]) {
    let line = text.split(|&b| b == b'\n').nth(error.line - 1).expect("a line of the file");
    // Of a very long line it shows a part.
    assert!(*line == *error.text || line.len() > 500, "{error:?}");
    assert!((1..=line.len() + 1).contains(&error.column), "{error:?}");
    let shown = error.to_string();
    assert_eq!(shown.lines().count(), 3, "{shown}");
    assert!(shown.lines().last().is_some_and(|last| last.trim_start() == "^"), "{shown}");
}

/// A rule's own text is that rule.
fn check_again(rule: &Rule) {
    let sources = [Source { name: "f", text: &rule.origin.text }];
    let again = parse(&sources, &ACCOUNTS).expect("it was taken before");
    let [again] = &again[..] else { panic!("{rule:?} became {again:?}") };
    assert_eq!(again.goes_on, rule.goes_on);
    assert_eq!(format!("{:?}", again.conditions), format!("{:?}", rule.conditions));
    assert_eq!(format!("{:?}", again.device), format!("{:?}", rule.device));
    assert_eq!(again.access, rule.access);
    assert_eq!((&again.place, &again.command), (&rule.place, &rule.command));
    let Access { owner, group, mode } = rule.access;
    assert!(owner != u32::MAX && group != u32::MAX && mode <= 0o7777);
}

/// All rules at once match as each does by itself.
fn check_matches(rules: &[Rule], event: &Uevent<'_>) {
    let name = event.first(b"DEVNAME").unwrap_or_default().to_bytes();
    let number = |key: &[u8]| std::str::from_utf8(event.first(key)?.to_bytes()).ok()?.parse().ok();
    let numbers: Option<(u32, u32)> = number(b"MAJOR").zip(number(b"MINOR"));
    let Ok(mut matcher) = Matcher::new(rules) else { return };
    // What is left of one event must not show in the next.
    for _ in 0..2 {
        matcher.begin();
        for field in event.fields() {
            matcher.variable(field.key(), || field.value().to_bytes());
        }
        matcher.name(name);
        if let Some((major, minor)) = numbers {
            matcher.numbers(major, minor);
        }
        let mut found = Vec::new();
        while let Some(index) = matcher.next(found.last().map_or(0, |last| last + 1)) {
            found.push(index);
        }
        let mut scratch = Scratch::default();
        let mut matches = |rule: &Rule| {
            let mut conditions = rule.all_conditions();
            let hold = conditions.all(|condition| {
                let value = event.first(&condition.variable);
                value.is_some_and(|value| {
                    condition.ere.captures_within(value.to_bytes(), &mut scratch).is_some()
                })
            });
            hold && match &rule.device {
                Device::Name(ere) => ere.captures_whole(name, &mut scratch).is_some(),
                Device::Numbers(wanted) => numbers.is_some_and(|(major, minor)| {
                    wanted.major == major && wanted.minor.contains(&minor)
                }),
                Device::Variable(_) => true,
            }
        };
        let expected: Vec<usize> = (0..rules.len()).filter(|&i| matches(&rules[i])).collect();
        assert_eq!(found, expected);
    }
}

/// Steps are of the event's action and device, and stay below /dev; planned
/// again, they are the same.
fn check_plan(engine: &mut Engine, event: &Uevent<'_>) {
    let texts = |engine: &mut Engine| -> Vec<String> {
        engine.plan(event, &mut NoSysfs).steps().map(|step| step.to_string()).collect()
    };
    assert_eq!(texts(engine), texts(engine));
    let explained = engine.explain(event, &mut NoSysfs);
    let some_match = explained.iter().any(|verdict| verdict.reason.is_match());
    let action = event.first(b"ACTION").unwrap_or_default().to_bytes();
    for step in engine.plan(event, &mut NoSysfs).steps() {
        assert!(some_match || matches!(step, Step::LoadFirmware(_)), "{step}");
        match step {
            Step::MakeNode(MakeNode { node, .. }) => {
                assert_eq!(action, b"add");
                check_node(&node, event);
            }
            Step::RemoveNode(node) => {
                assert_eq!(action, b"remove");
                check_node(&node, event);
            }
            Step::MakeLink(link) => {
                assert_eq!(action, b"add");
                check_link(&link);
            }
            Step::RemoveLink(link) => {
                assert_eq!(action, b"remove");
                check_link(&link);
            }
            Step::LoadFirmware(_) => assert_eq!(action, b"add"),
            Step::Run(run) => {
                let own = [run.program.argv[0].to_bytes(), run.program.argv[1].to_bytes()];
                assert!(own == [b"/bin/sh", &b"-c"[..]] || own == [b"execlineb", &b"-Pc"[..]]);
                assert_eq!(run.argv().count(), 3);
            }
            Step::Refuse(_) => {}
        }
    }
}

fn check_node(node: &Node<'_>, event: &Uevent<'_>) {
    check_path(node.path);
    for (key, number) in [(b"MAJOR", node.device.major), (b"MINOR", node.device.minor)] {
        let value = event.first(key).expect("a device has numbers").to_bytes();
        assert_eq!(std::str::from_utf8(value).unwrap().parse(), Ok(number));
    }
}

/// From the directory that it is in, the link leads to a file below /dev.
fn check_link(link: &Link<'_>) {
    check_path(link.path);
    let path = link.path.to_bytes().split(|&b| b == b'/').filter(|part| !part.is_empty());
    let mut rest = link.target.to_bytes();
    for _ in 1..path.count() {
        rest = rest.strip_prefix(b"../").expect("as many steps up as directories down");
    }
    assert!(!rest.starts_with(b"/") && !rest.is_empty());
    assert!(rest.split(|&b| b == b'/').all(|part| part != b".." && part != b"."));
}

fn check_path(path: &CStr) {
    let path = path.to_bytes();
    assert!(!path.is_empty() && !path.starts_with(b"/") && !path.ends_with(b"/"));
    assert!(path.split(|&b| b == b'/').all(|part| part != b"." && part != b".."));
}
