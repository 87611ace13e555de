use proptest::prelude::*;

use super::*;
use crate::uevent::Header;

/// One device, as sysfs has it.
struct OneDevice {
    dev: &'static [u8],
    uevent: &'static [u8],
}

impl Sysfs for OneDevice {
    fn read(&mut self, devpath: &CStr, attribute: &str, contents: &mut Vec<u8>) {
        assert_eq!(devpath, c"/devices/x/last");
        contents.extend_from_slice(if attribute == "dev" { self.dev } else { self.uevent });
    }
}

fn rules(text: &str) -> Vec<Rule> {
    let accounts = Accounts::parse(b"", b"disk:x:6:\n");
    parse::parse(&[Source { name: "f", text: text.as_bytes() }], &accounts)
        .unwrap_or_else(|errors| panic!("{}", errors[0]))
}

fn engine(text: &str) -> Engine {
    Engine::new(rules(text), Settings::new(Base::new([]), None)).unwrap()
}

/// `KEY=VALUE KEY=VALUE ...` as a datagram.
fn datagram(fields: &str) -> Vec<u8> {
    let fields = fields.split(' ').filter(|field| !field.is_empty());
    fields.flat_map(|field| [field.as_bytes(), b"\0"].concat()).collect()
}

fn plan(engine: &mut Engine, fields: &str) -> Vec<String> {
    let datagram = datagram(fields);
    let event = Uevent::parse(&datagram, Header::Optional).unwrap();
    engine.plan(&event, &mut NoSysfs).steps().map(|step| step.to_string()).collect()
}

const SDA: &str = "DEVPATH=/devices/block/sda SUBSYSTEM=block MAJOR=8 MINOR=0 DEVNAME=sda";
const USB: &str = "DEVPATH=/devices/usb/1 SUBSYSTEM=usb MAJOR=189 MINOR=3 DEVNAME=bus/usb/001/004";

/// The plan of a file for `add` of a device.
fn added(text: &str, device: &str) -> Vec<String> {
    plan(&mut engine(text), &format!("ACTION=add {device}"))
}

fn removed(text: &str, device: &str) -> Vec<String> {
    plan(&mut engine(text), &format!("ACTION=remove {device}"))
}

#[test]
fn without_rules_there_are_nodes() {
    let made = ["make node sda, block 8:0, owner 0:0, mode 0660"];
    assert_eq!(added("", SDA), made);
    assert_eq!(removed("", SDA), ["remove node sda, block 8:0"]);
    for action in ["change", "bind", "unbind", "move", "online", "Add", ""] {
        assert!(plan(&mut engine(""), &format!("ACTION={action} {SDA}")).is_empty());
    }
    assert!(added("", "DEVPATH=/devices/net/eth0 SUBSYSTEM=net INTERFACE=eth0").is_empty());
}

#[test]
fn the_first_rule_that_matches_ends_it() {
    let text = "sdb 1:1 600\nsd 1:1 600\nsda 0:disk 640\nsd. 2:2 600\n";
    assert_eq!(added(text, SDA), ["make node sda, block 8:0, owner 0:6, mode 0640"]);
}

#[test]
fn a_rule_with_minus_does_not_end_it() {
    let text = "-sda 1:1 600 @one\n-.* 0:0 640 $two\n";
    assert_eq!(
        added(text, SDA),
        [
            "make node sda, block 8:0, owner 1:1, mode 0600",
            "run /bin/sh -c one with MDEV=sda",
            "make node sda, block 8:0, owner 1:1, mode 0640",
            "make node sda, block 8:0, owner 1:1, mode 0660",
        ]
    );
}

#[test]
fn root_takes_no_node_back() {
    let text = "-sda 0:6 600\n-sda 0:0 600 =x\n-sda 3:0 600\n-sda 0:0 640\n";
    assert_eq!(
        added(text, SDA),
        [
            "make node sda, block 8:0, owner 0:6, mode 0600",
            "make node x, block 8:0, owner 0:0, mode 0600",
            "make node sda, block 8:0, owner 3:0, mode 0600",
            "make node sda, block 8:0, owner 3:0, mode 0640",
            "make node sda, block 8:0, owner 3:0, mode 0660",
        ]
    );
}

#[test]
fn commands_are_run_for_their_actions() {
    let text = "-.* 0:0 1 ! @a\n-.* 0:0 1 ! $r\n-.* 0:0 1 ! *x\n\
                -.* 0:0 1 ! +ea\n-.* 0:0 1 ! -er\n-.* 0:0 1 ! &ex\n.* 0:0 1 !\n";
    let run =
        |interpreter: &str, command: &str| format!("run {interpreter} {command} with MDEV=sda");
    let (sh, el) = ("/bin/sh -c", "execlineb -Pc");
    assert_eq!(added(text, SDA), [run(sh, "a"), run(sh, "x"), run(el, "ea"), run(el, "ex")]);
    assert_eq!(removed(text, SDA), [run(sh, "r"), run(sh, "x"), run(el, "er"), run(el, "ex")]);
    let changed = plan(&mut engine(text), &format!("ACTION=bind {SDA}"));
    assert_eq!(changed, [run(sh, "x"), run(el, "ex")]);
}

#[test]
fn a_command_knows_the_event_and_its_node() {
    let mut engine = engine("sda 0:0 1 =x/ @c");
    let datagram = datagram(&format!("ACTION=add {SDA} MDEV=no A=b"));
    let event = Uevent::parse(&datagram, Header::Optional).unwrap();
    let plan = engine.plan(&event, &mut NoSysfs);
    let Some(crate::plan::Step::Run(run)) = plan.step(1) else { panic!("{plan:?}") };
    let variables = run.environment().variables;
    assert!(variables.contains(&c"MDEV=x/sda"));
    assert!(variables.contains(&c"A=b"));
    assert_eq!(variables.iter().filter(|v| v.to_bytes().starts_with(b"MDEV=")).count(), 1);
    assert_eq!(run.program.path.as_c_str(), c"/bin/sh");
}

#[test]
fn a_node_is_moved() {
    let node = |path: &str| vec![format!("make node {path}, block 8:0, owner 0:0, mode 0600")];
    for (rule, path) in [
        ("sda 0:0 600 =x", "x"),
        ("sda 0:0 600 =a/b/", "a/b/sda"),
        ("s(.)(.) 0:0 600 =%2-%1-%0-%%-%9", "a-d-sda-%-"),
        ("s(x)?(.*) 0:0 600 =%1%2/", "da/sda"),
        ("(s|sd)(da|a) 0:0 600 =%1-%2", "s-da"),
        ("$SUBSYSTEM=l(o)(.) 0:0 600 =%0/%2", "loc/c"),
        ("@8,0-15 0:0 600 =x%0%1", "x"),
    ] {
        assert_eq!(added(rule, SDA), node(path), "{rule}");
    }
    assert_eq!(removed("sda 0:0 600 =x", SDA), ["remove node x, block 8:0"]);
}

#[test]
fn a_link_leads_to_the_node() {
    assert_eq!(
        added("(.*)/(...)/(...) 0:0 600 >usb%3 @c", USB),
        [
            "make node usb004, character 189:3, owner 0:0, mode 0600",
            "make link bus/usb/001/004 to ../../../usb004",
            "run /bin/sh -c c with MDEV=usb004",
        ]
    );
    assert_eq!(
        removed("sda 0:0 600 >disks/ *c", SDA),
        [
            "run /bin/sh -c c with MDEV=disks/sda",
            "remove link sda to disks/sda",
            "remove node disks/sda, block 8:0",
        ]
    );
    // Not to itself.
    assert_eq!(added("sda 0:0 600 >%0", SDA), added("sda 0:0 600", SDA));
}

#[test]
fn the_root_device_has_a_link() {
    let mut engine = engine("");
    engine.settings.root_device = Some(Device { major: 8, minor: 0 });
    assert_eq!(plan(&mut engine, &format!("ACTION=add {SDA}"))[1..], ["make link root to sda"]);
    assert_eq!(
        plan(&mut engine, &format!("ACTION=remove {SDA}")),
        ["remove link root to sda", "remove node sda, block 8:0"]
    );
    assert_eq!(plan(&mut engine, &format!("ACTION=add {USB}")).len(), 1);
    // One with the same numbers that is no block device.
    let character = "DEVPATH=/x SUBSYSTEM=mem DEVNAME=x MAJOR=8 MINOR=0";
    let steps = plan(&mut engine, &format!("ACTION=add {character}"));
    assert_eq!(steps, ["make node x, character 8:0, owner 0:0, mode 0660"]);
    let steps = plan(&mut engine, &format!("ACTION=remove {character}"));
    assert_eq!(steps, ["remove node x, character 8:0"]);
}

#[test]
fn conditions_ask_for_variables() {
    let matched = |rule: &str, variables: &str| {
        let steps = added(&format!("{rule} 0:0 1 ! @yes"), &format!("{SDA} {variables}"));
        steps == ["run /bin/sh -c yes with MDEV=sda"]
    };
    assert!(matched("SUBSYSTEM=block;.*", ""));
    assert!(matched("SUBSYSTEM=lo;sda", ""));
    assert!(matched("$SUBSYSTEM=lo", ""));
    assert!(matched("SUBSYSTEM=^block$;A=b;.*", "A=abc"));
    assert!(matched("A=;.*", "A="));
    assert!(matched("$A=.*", "A="));
    assert!(matched("ACTION=add;.*", ""));
    assert!(matched("A=1;.*", "A=1 A=2"));
    assert!(matched("A=b;$C=d", "A=b C=d"));
    assert!(matched("A=b;@8,0", "A=b"));
    assert!(!matched("A=2;.*", "A=1 A=2"));
    assert!(!matched("A=;.*", "AA= B="));
    assert!(!matched("$A=.*", ""));
    assert!(!matched("SUBSYSTEM=^lock;.*", ""));
    assert!(!matched("SUBSYSTEM=block;sdb", ""));
    assert!(!matched("A=b;$C=d", "C=d"));
    assert!(!matched("A=b;@8,0", "A=c"));
    assert!(!matched("A=b;@8,1", "A=b"));
}

#[test]
fn device_numbers_match_add_and_remove() {
    let text = "@8,0-3 0:0 1 *yes";
    let run = "run /bin/sh -c yes with MDEV=sda".to_owned();
    assert!(added(text, SDA).contains(&run));
    assert!(removed(text, SDA).contains(&run));
    assert!(plan(&mut engine(text), &format!("ACTION=change {SDA}")).is_empty());
    assert!(!added("@8,1-3 0:0 1 *yes", SDA).contains(&run));
    assert!(!added("@9,0 0:0 1 *yes", SDA).contains(&run));
    assert!(!added("@8,3-0 0:0 1 *yes", SDA).contains(&run));
}

#[test]
fn numbers_are_those_of_linux() {
    let numbers = |major: &str, minor: &str| {
        let device = format!("DEVPATH=/x DEVNAME=x MAJOR={major} MINOR={minor}");
        !added("", &device).is_empty()
    };
    assert!(numbers("8", "0"));
    assert!(numbers("4095", "1048575"));
    for (major, minor) in [("4096", "0"), ("0", "1048576"), ("", "0"), ("8", ""), ("0x8", "0")] {
        assert!(!numbers(major, minor), "{major} {minor}");
    }
    assert!(added("", "DEVPATH=/x DEVNAME=x MAJOR=8").is_empty());
}

#[test]
fn block_devices_are_told_from_others() {
    let kind = |device: &str| {
        let steps = added("", &format!("{device} MAJOR=1 MINOR=2 DEVNAME=x"));
        steps[0].split(' ').nth(3).unwrap().to_owned()
    };
    assert_eq!(kind("DEVPATH=/devices/x SUBSYSTEM=block"), "block");
    assert_eq!(kind("DEVPATH=/block/x SUBSYSTEM=y"), "block");
    assert_eq!(kind("DEVPATH=/block"), "character");
    assert_eq!(kind("DEVPATH=/devices/x SUBSYSTEM=misc"), "character");
}

#[test]
fn rules_can_be_written_and_read_again() {
    let read = |files: &[(String, Vec<u8>)]| {
        let sources: Vec<_> = files.iter().map(|(name, text)| Source { name, text }).collect();
        let rules = parse::parse(&sources, &Accounts::default()).unwrap();
        Engine::new(rules, Settings::new(Base::new([]), None)).unwrap()
    };
    let origins =
        |engine: &Engine| engine.rules().iter().map(|rule| rule.origin.clone()).collect::<Vec<_>>();
    let first = "# b\n\na 0:0 1 @x \\\n# y \\\n z\n\nb 0:0 2 # \\\nc 0:0 3";
    let files = [("f".to_owned(), first.into()), ("g".to_owned(), b"\nd 0:0 4\n".into())];
    let engine = read(&files);
    let written = texts(engine.rules());
    assert_ne!(written, files);
    assert_eq!(origins(&read(&written)), origins(&engine));
    assert_eq!(texts(read(&written).rules()), written);
    assert_eq!(texts(read(&[]).rules()), []);
}

/// A line that was continued may look, in one piece, like one that is.
#[test]
fn lines_that_were_continued_are_written_so_that_they_are_read_again() {
    let again = |first: &str| {
        let second = "b 0:0 2";
        let sources = [first, second].map(|text| Source { name: "f", text: text.as_bytes() });
        let rules = parse::parse(&sources, &Accounts::default()).unwrap();
        let engine = Engine::new(rules, Settings::new(Base::new([]), None)).unwrap();
        let written = texts(engine.rules());
        let sources: Vec<_> = written.iter().map(|(name, text)| Source { name, text }).collect();
        let read = parse::parse(&sources, &Accounts::default()).unwrap();
        let origins = |rules: &[Rule]| rules.iter().map(|r| r.origin.clone()).collect::<Vec<_>>();
        let (_, of_files) = engine.rules().split_last().unwrap();
        assert_eq!(origins(&read), origins(of_files), "{first}");
    };
    for first in [
        "a 0:0 1 @x\\\\\n\na 0:0 3\n",
        "a 0:0 1 @x\\\\\n\n\n\na 0:0 3\n",
        "a 0:0 1 @x\\\\\\\n\na 0:0 3\n",
        "a 0:0 1 @x\\\\\n\n",
        "a 0:0 1 @x\\\\",
        "a 0:0 1 @x\\",
        "a 0:0 1 # x\\\\\na 0:0 3\n",
        " \\\n a 0:0 1 @x\\\\\n\na 0:0 3\n",
        // The other file has the same name, which is not UTF-8, perhaps.
        "\n\na 0:0 1\n",
    ] {
        again(first);
    }
}

#[test]
fn unsafe_names_are_refused() {
    let refused = |name: &str| format!("refuse name \"{name}\": {}", Why::Unsafe);
    for name in ["/abs", "../x", "a/../b", "..", ".", "a/./b", "a/", "a/.."] {
        let device = format!("DEVPATH=/x MAJOR=1 MINOR=2 DEVNAME={name}");
        assert_eq!(added("", &device), [refused(name)]);
        assert_eq!(removed("", &device), [refused(name)]);
        assert_eq!(added("-.* 0:0 1 ! @c\n.* 0:0 1 !", &device), [refused(name)]);
        // Where it is only the link that cannot be.
        let steps = added(".* 0:0 600 >x @c", &device);
        let expected = [
            "make node x, character 1:2, owner 0:0, mode 0600",
            &refused(name),
            "run /bin/sh -c c with MDEV=x",
        ];
        assert_eq!(steps, expected);
        assert!(plan(&mut engine(""), &format!("ACTION=change {device}")).is_empty());
    }
    assert_eq!(added("sda 0:0 1 =../%0", SDA), [refused("../sda")]);
    assert_eq!(added("sda 0:0 1 =/", SDA), [refused("/sda")]);
    assert_eq!(added("sda 0:0 1 =a//b", SDA), ["make node a//b, block 8:0, owner 0:0, mode 0001"]);
    for name in ["...", ".a", "a..b", "a/..b", "-", "a b"] {
        assert!(is_safe(name.as_bytes()), "{name}");
    }
}

#[test]
fn a_device_without_a_name_has_no_node() {
    let device = "DEVPATH=/x MAJOR=1 MINOR=2 DEVNAME=";
    assert!(added("", device).is_empty());
    assert_eq!(added(".* 0:0 1 @c", device), ["run /bin/sh -c c"]);
    assert_eq!(added(".* 0:0 1 =d/ @c", device), [format!("refuse name \"d/\": {}", Why::Unsafe)]);
}

#[test]
fn where_no_name_can_be_made_nothing_else_is_tried() {
    let refused = |name: &str, why: Why| [format!("refuse name \"{name}\": {why}")];
    let text = "-sda 0:0 1 =a%x @c\nsda 0:0 1";
    assert_eq!(added(text, SDA), refused("a%x", Why::BadPercent));
    let text = "-sda(x)? 0:0 1 =%1 @c\nsda 0:0 1";
    assert_eq!(added(text, SDA), refused("%1", Why::Empty));
    assert_eq!(plan(&mut engine(text), &format!("ACTION=change {SDA}")).len(), 1);
}

#[test]
fn firmware_does_not_wait_for_commands() {
    let device = "DEVPATH=/devices/f SUBSYSTEM=firmware FIRMWARE=a/b.bin";
    let text = ".* 0:0 1 *c";
    assert_eq!(added(text, device), ["load firmware a/b.bin", "run /bin/sh -c c with MDEV=f"]);
    assert!(removed(text, device).is_empty());
}

#[test]
fn an_event_without_action_or_path_is_nothing() {
    for fields in ["ACTION=add DEVNAME=x MAJOR=1 MINOR=2", "DEVPATH=/x DEVNAME=x"] {
        assert!(plan(&mut engine(".* 0:0 1 *c"), fields).is_empty());
    }
}

#[test]
fn sysfs_is_asked_for_what_is_missing() {
    let plan = |fields: &str, dev, uevent| {
        let datagram = datagram(fields);
        let event = Uevent::parse(&datagram, Header::Optional).unwrap();
        let mut engine = engine("");
        let plan = engine.plan(&event, &mut OneDevice { dev, uevent });
        plan.steps().map(|step| step.to_string()).collect::<Vec<_>>()
    };
    let node = |name: &str| [format!("make node {name}, character 1:3, owner 0:0, mode 0660")];
    let bare = "ACTION=add DEVPATH=/devices/x/last";
    assert_eq!(plan(bare, b"1:3\n", b"MAJOR=1\nDEVNAME=a/b\nX=y\n"), node("a/b"));
    assert_eq!(plan(bare, b"1:3\n", b"X=y\n"), node("last"));
    // It calls itself "x\nDEVNAME=mem".
    for forged in [&b"DEVTYPE=a\nNAME=x\nDEVNAME=mem\n"[..], b"x\nDEVNAME=mem\n"] {
        assert_eq!(plan(bare, b"1:3\n", forged), node("last"));
    }
    assert_eq!(plan(bare, b"1:3\n", b""), node("last"));
    for dev in [&b""[..], b"1:3", b"1\n", b":\n", b"1:3 \n"] {
        assert!(plan(bare, dev, b"").is_empty());
    }
    let remove = "ACTION=remove DEVPATH=/devices/x/last";
    assert!(plan(remove, b"1:3\n", b"DEVNAME=a\n").is_empty());
}

#[test]
fn it_can_be_explained() {
    let text = "sdb 0:0 1\nA=b;sda 0:0 1\nSUBSYSTEM=usb;sda 0:0 1\n@8,1 0:0 1\n\
                -sda 0:0 1\nsda 0:0 1\nsda 0:0 1\n";
    let mut engine = engine(text);
    let mut explain = |action: &str| {
        let datagram = datagram(&format!("ACTION={action} {SDA}"));
        let event = Uevent::parse(&datagram, Header::Optional).unwrap();
        let verdicts = engine.explain(&event, &mut NoSysfs);
        let texts = verdicts.iter().map(|v| format!("{}: {}", v.rule.origin, v.reason));
        texts.collect::<Vec<_>>()
    };
    assert_eq!(
        explain("add"),
        [
            "f:1: the device has another name",
            "f:2: the event has no A",
            "f:3: SUBSYSTEM does not match usb",
            "f:4: the device has other numbers",
            "f:5: matches",
            "f:6: matches",
            "f:7: not tried: f:6 ends it",
            "built-in:1: not tried: f:6 ends it",
        ]
    );
    assert!(explain("change")[3].starts_with("f:4: there are no device numbers"));
    assert!(explain("add FIRMWARE=x")[4].ends_with("matches"));
    assert!(explain("remove FIRMWARE=x")[4].contains("no rule is"));
}

fn random_rule() -> impl Strategy<Value = String> {
    let regex = prop_oneof!["[ab]{0,2}([.][*]|[.]|[$]|a[+])?", Just("(a|b)".to_owned())];
    let device = prop_oneof![
        4 => "[ab]([.][*]|[.]|a[+]|b[?])?",
        1 => Just("(a|b)*".to_owned()),
        1 => Just(".*".to_owned()),
        1 => ("[XYZ]", regex.clone()).prop_map(|(key, regex)| format!("${key}=b?{regex}")),
        1 => "@[12],[0-3](-[0-3])?",
    ];
    let conditions = prop::collection::vec(("[XYZ]", regex), 0..3);
    let place = prop_oneof![
        3 => Just(""),
        1 => Just("=c/"),
        1 => Just(">c%0%1"),
        1 => Just("!"),
        1 => Just("=%1"),
    ];
    (prop::bool::weighted(0.9), conditions, device, place, "([@$*]c)?").prop_map(
        |(goes_on, conditions, device, place, command)| {
            let minus = if goes_on { "-" } else { "" };
            let conditions = conditions.iter().map(|(key, regex)| format!("{key}={regex};"));
            let conditions: String = conditions.collect();
            format!("{minus}{conditions}{device} 0:0 600 {place} {command}")
        },
    )
}

proptest! {
    #[test]
    fn one_pass_finds_what_one_by_one_is_found(
        rules in prop::collection::vec(random_rule(), 0..150),
        events in prop::collection::vec(
            ("add|remove|change", "[ab/]{0,3}", "[12]", "[0-4]", "( [XYZ]=[ab]{0,3}){0,4}"),
            1..4,
        ),
    ) {
        let mut engine = engine(&rules.join("\n"));
        for (action, name, major, minor, variables) in events {
            let fields = format!(
                "ACTION={action} DEVPATH=/x DEVNAME={name} MAJOR={major} MINOR={minor}{variables}"
            );
            let datagram = datagram(&fields);
            let event = Uevent::parse(&datagram, Header::Optional).unwrap();
            let explained: Vec<usize> = engine
                .explain(&event, &mut NoSysfs)
                .iter()
                .enumerate()
                .filter(|(_, verdict)| verdict.reason.is_match())
                .map(|(index, _)| index)
                .collect();
            _ = engine.plan(&event, &mut NoSysfs).steps().count();
            let mut found = Vec::new();
            while let Some(index) = engine.matcher.next(found.last().map_or(0, |last| last + 1)) {
                found.push(index);
            }
            // Where the rules end it, one by one goes no further.
            prop_assert_eq!(&found[..explained.len()], explained);
        }
    }

    #[test]
    fn every_path_of_a_plan_is_safe(
        rules in prop::collection::vec(random_rule(), 0..5),
        name in "[a./]{0,6}",
        action in "add|remove",
    ) {
        let mut engine = engine(&rules.join("\n"));
        let datagram = datagram(&format!("ACTION={action} DEVPATH=/x DEVNAME={name} MAJOR=1 MINOR=2"));
        let event = Uevent::parse(&datagram, Header::Optional).unwrap();
        for step in engine.plan(&event, &mut NoSysfs).steps() {
            use crate::plan::Step;
            let path = match step {
                Step::MakeNode(made) => made.node.path,
                Step::RemoveNode(node) => node.path,
                Step::MakeLink(link) | Step::RemoveLink(link) => link.path,
                Step::Run(_) | Step::LoadFirmware(_) | Step::Refuse(_) => continue,
            };
            prop_assert!(is_safe(path.to_bytes()));
        }
    }
}
