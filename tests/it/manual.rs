//! The manual pages: clean, complete, and with examples that work.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use plugd::account::Accounts;
use plugd::environment::Base;
use plugd::rules::parse::{Source, parse};
use plugd::rules::{Engine, NoSysfs, Settings};
use plugd::uevent::{Header, Uevent};

use crate::completions::{commands, options};
use crate::harness::daemon::Daemon;
use crate::harness::{eventually, inject, ns};
use crate::listen::{Names, have};

/// A page, and what its examples print; `DEVICE` stands for the device that comes then.
struct Page {
    file: &'static str,
    text: &'static str,
    examples: &'static [&'static str],
}

const PAGES: [Page; 3] = [
    Page {
        file: "man/netlink-datagram-socket-listen.1",
        text: include_str!("../../man/netlink-datagram-socket-listen.1"),
        examples: &[
            "handled add DEVICE",
            "handled add DEVICE",
            "handled add DEVICE",
            "DEVPATH=DEVICE",
            "2 sockets: kobject-uevent:links",
        ],
    },
    Page {
        file: "man/plug-and-play-event-handler.1",
        text: include_str!("../../man/plug-and-play-event-handler.1"),
        examples: &["add DEVICE", "handled add DEVICE", "handled add DEVICE"],
    },
    Page {
        file: "man/plugd.8",
        text: include_str!("../../man/plugd.8"),
        examples: &["add DEVICE", "hotplug net: add DEVICE"],
    },
];

/// The literal displays among the examples of a page, as the reader sees them.
pub(crate) fn examples(page: &str) -> Vec<String> {
    let (_, section) = page.split_once("\n.Sh EXAMPLES\n").unwrap();
    let section = section.split("\n.Sh ").next().unwrap();
    let displays = section.split(".Bd -literal -offset indent\n").skip(1);
    displays.map(|rest| rest.split(".Ed").next().unwrap().replace("\\e", "\\")).collect()
}

#[test]
fn the_pages_are_clean() {
    if !have("the manual pages", "mandoc") {
        return;
    }
    let pages = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/man")).unwrap();
    for page in pages {
        let lint = Command::new("mandoc")
            .args(["-T", "lint", "-W", "warning"])
            .arg(page.unwrap().path())
            .output()
            .unwrap();
        let found = String::from_utf8_lossy(&lint.stdout);
        assert!(lint.status.success() && found.is_empty(), "{found}");
    }
}

/// A page of the manual without its examples, which are of other programs, too.
fn page(file: &str) -> Option<String> {
    let text = fs::read_to_string(format!("{}/man/{file}", env!("CARGO_MANIFEST_DIR"))).ok()?;
    text.split("\n.Sh EXAMPLES\n").next().map(ToOwned::to_owned)
}

/// The page that tells of a command.
fn page_of(command: &str) -> String {
    let control = "plugd-control.7";
    let own = ["1", "8"].map(|section| format!("{command}.{section}"));
    if let Some(own) = own.into_iter().find(|file| page(file).is_some()) {
        own
    } else if page(control).unwrap().contains(&format!("\n.It Cm {command}\n")) {
        control.into()
    } else {
        "plugd.8".into()
    }
}

/// The options on a page, as they are typed: `Fl qv` is -q and -v.
fn told(page: &str) -> BTreeSet<String> {
    let words: Vec<&str> = page.split_whitespace().collect();
    let after = words.windows(2).filter(|pair| matches!(pair[0], "Fl" | ".Fl"));
    let mut told = BTreeSet::new();
    for word in after.map(|pair| pair[1]) {
        match word.strip_prefix('-') {
            Some("") => (),
            Some(long) => drop(told.insert(format!("--{long}"))),
            None => told.extend(word.chars().map(|short| format!("-{short}"))),
        }
    }
    told
}

#[test]
fn the_pages_tell_of_the_options_that_there_are() {
    let mut all = BTreeSet::new();
    for command in commands() {
        let (file, real) = (page_of(&command), options(&command));
        assert!(real.len() >= 4, "{command}: {real:?}");
        let text = page(&file).unwrap();
        let named = file.starts_with(&command) || text.contains(&format!("Cm {command}\n"));
        assert!(named, "{command} in {file}");
        let told = told(&text);
        let missing: Vec<_> = real.difference(&told).collect();
        assert!(missing.is_empty(), "{command} in {file}: {missing:?}");
        all.extend(real);
    }
    for entry in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/man")).unwrap() {
        let file = entry.unwrap().file_name().into_string().unwrap();
        let told = told(&page(&file).unwrap());
        let others: Vec<_> = told.difference(&all).collect();
        assert!(others.is_empty(), "{file}: {others:?}");
    }
}

/// What the examples of mdev.conf(5) make of an event each.
const RULES: [(&str, &[&str]); 5] = [
    (
        "ACTION=add DEVPATH=/block/loop0 SUBSYSTEM=block DEVNAME=loop0 MAJOR=7 MINOR=0",
        &["make node loop/0, block 7:0, owner 0:6, mode 0660", "make link loop0 to loop/0"],
    ),
    (
        "ACTION=remove DEVPATH=/class/mem/null SUBSYSTEM=mem DEVNAME=null MAJOR=1 MINOR=3",
        &[
            "run /bin/sh -c echo $ACTION $MDEV >>/run/devices with MDEV=null",
            "remove node null, character 1:3",
            "remove node null, character 1:3",
        ],
    ),
    (
        "ACTION=add DEVPATH=/pci SUBSYSTEM=pci MODALIAS=pci:v0000",
        &["run /bin/sh -c modprobe -q -b \\\"$MODALIAS\\\" with MDEV=pci"],
    ),
    (
        "ACTION=add DEVPATH=/card/c SUBSYSTEM=sound DEVNAME=snd/controlC0 MAJOR=116 MINOR=2",
        &[
            "make node snd/controlC0, character 116:2, owner 0:29, mode 0660",
            "run /bin/sh -c alsactl restore with MDEV=snd/controlC0",
        ],
    ),
    (
        "ACTION=change DEVPATH=/block/sr0 SUBSYSTEM=block DEVNAME=sr0 DISK_MEDIA_CHANGE=1",
        &["run /bin/sh -c mount-it $MDEV with MDEV=sr0"],
    ),
];

#[test]
fn the_examples_of_rules_work() {
    let group = b"root:x:0:\ndisk:x:6:\naudio:x:29:\ncdrom:x:24:\n";
    let accounts = Accounts::parse(b"root:x:0:0:::\n", group);
    let examples = examples(include_str!("../../man/mdev.conf.5"));
    assert_eq!(examples.len(), RULES.len());
    for (example, (fields, expected)) in examples.iter().zip(RULES) {
        let sources = [Source { name: "example", text: example.as_bytes() }];
        let rules = parse(&sources, &accounts)
            .unwrap_or_else(|mistakes| panic!("{example}{}", mistakes[0]));
        let mut engine = Engine::new(rules, Settings::new(Base::new([]), None)).unwrap();
        let datagram = fields.replace(' ', "\0") + "\0";
        let event = Uevent::parse(datagram.as_bytes(), Header::Optional).unwrap();
        let plan = engine.plan(&event, &mut NoSysfs);
        let steps: Vec<String> = plan.steps().map(|step| step.to_string()).collect();
        assert_eq!(steps, expected, "{example}");
    }
}

#[test]
fn the_examples_work() {
    ns::inside_as_root(|| {
        let names = Names::new();
        for (name, text) in [
            ("on-device-event", "echo handled $ACTION $DEVPATH"),
            ("hotplug", "echo hotplug $1: $ACTION $DEVPATH"),
        ] {
            let file = names.directory().join(name);
            fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        }
        for page in &PAGES {
            let examples = examples(page.text);
            assert_eq!(examples.len(), page.examples.len(), "{}", page.file);
            for (example, expected) in examples.iter().zip(page.examples) {
                let tools = ["setpriv", "s6-setuidgid", "chpst", "fdmove"];
                let mut wanted = tools.iter().filter(|tool| example.contains(*tool));
                if wanted.all(|tool| have("an example of a manual page", tool)) {
                    try_example(&names, example, expected);
                }
            }
        }
    });
}

fn try_example(names: &Names, example: &str, expected: &str) {
    let directory = names.directory().to_str().unwrap();
    let here = example
        .replace("/usr/local/bin/", &format!("{directory}/"))
        .replace("/sbin/hotplug", &format!("{directory}/hotplug"));
    assert!(here.contains(directory) || !here.contains("on-device"), "{here}");
    let script = format!("exec >&2\nexec {here}");
    let daemon: Daemon = names.program("sh").args(["-c", &script]).launch();
    if expected.contains("DEVICE") {
        eventually(example, || inject::listeners().contains(&daemon.pid()).then_some(()));
        let device = format!("br{}", daemon.pid());
        inject::real_device(&device);
        let path = format!("/devices/virtual/net/{device}");
        daemon.wait_for_log(&expected.replace("DEVICE", &path));
    } else {
        daemon.wait_for_log(expected);
    }
}
