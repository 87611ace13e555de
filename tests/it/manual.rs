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

use crate::harness::daemon::{Daemon, Plugd};
use crate::harness::{eventually, inject, ns};
use crate::listen::{Names, have};

/// A page, what prints the help for the same, and what its examples print;
/// `DEVICE` stands for the device that comes then.
struct Page {
    file: &'static str,
    text: &'static str,
    command: &'static str,
    examples: &'static [&'static str],
}

const PAGES: [Page; 3] = [
    Page {
        file: "man/netlink-datagram-socket-listen.1",
        text: include_str!("../../man/netlink-datagram-socket-listen.1"),
        command: "listen",
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
        command: "plug-and-play-event-handler",
        examples: &["add DEVICE", "handled add DEVICE", "handled add DEVICE"],
    },
    Page {
        file: "man/plugd.8",
        text: include_str!("../../man/plugd.8"),
        command: "run",
        examples: &["add DEVICE", "hotplug net: add DEVICE"],
    },
];

/// Its example is an init script, which acts on the machine.
const DAEMON_CONTROL: Page = Page {
    file: "man/daemon-control.8",
    text: include_str!("../../man/daemon-control.8"),
    command: "daemon-control",
    examples: &[],
};

fn pages() -> impl Iterator<Item = &'static Page> {
    PAGES.iter().chain([&DAEMON_CONTROL])
}

impl Page {
    fn before_examples(&self) -> &'static str {
        self.text.split_once("\n.Sh EXAMPLES\n").unwrap().0
    }

    /// The literal displays among its examples, as the reader sees them.
    fn examples(&self) -> Vec<String> {
        let (_, section) = self.text.split_once("\n.Sh EXAMPLES\n").unwrap();
        let section = section.split("\n.Sh ").next().unwrap();
        let displays = section.split(".Bd -literal -offset indent\n").skip(1);
        displays.map(|rest| rest.split(".Ed").next().unwrap().replace("\\e", "\\")).collect()
    }

    fn help(&self) -> String {
        let help = Plugd::new().args([self.command, "--help"]).finish().stdout;
        help.split_once("\nExamples:").unwrap().0.to_owned()
    }
}

/// The words after each `marker`, up to what is no part of an option's name.
fn options<'a>(text: &'a str, marker: &str) -> BTreeSet<&'a str> {
    let names = text.split(marker).skip(1).map(|rest| {
        let end = rest.find(|c: char| !(c.is_ascii_lowercase() || c == '-'));
        &rest[..end.unwrap_or(rest.len())]
    });
    names.filter(|name| !name.is_empty()).collect()
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

#[test]
fn the_pages_tell_of_the_options_that_there_are() {
    let help: Vec<String> = pages().map(Page::help).collect();
    let others = ["explain", "coldplug"].map(|c| Plugd::new().args([c, "--help"]).finish().stdout);
    let all = help.iter().chain(&others);
    let all: BTreeSet<&str> = all.flat_map(|help| options(help, "--")).collect();
    for (page, help) in pages().zip(&help) {
        let (told, real) = (options(page.before_examples(), "Fl -"), options(help, "--"));
        assert!(real.contains("version"), "{real:?}");
        assert_eq!(real.difference(&told).count(), 0, "{}: {real:?}, {told:?}", page.file);
        assert_eq!(told.difference(&all).count(), 0, "{}: {told:?}, {all:?}", page.file);
    }
}

#[test]
fn the_page_on_control_tells_of_all_that_can_be_said() {
    let page = include_str!("../../man/plugd-control.7");
    let told = options(page, "Fl -");
    for command in [
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
        assert!(page.contains(&format!("\n.It Cm {command}\n")), "{command}");
        let help = Plugd::new().args([command, "--help"]).finish().stdout;
        let real = options(&help, "--");
        assert_eq!(real.difference(&told).count(), 0, "{command}: {real:?}, {told:?}");
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
    let text = include_str!("../../man/mdev.conf.5");
    let page = Page { file: "man/mdev.conf.5", text, command: "", examples: &[] };
    let group = b"root:x:0:\ndisk:x:6:\naudio:x:29:\ncdrom:x:24:\n";
    let accounts = Accounts::parse(b"root:x:0:0:::\n", group);
    let examples = page.examples();
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
            let examples = page.examples();
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
