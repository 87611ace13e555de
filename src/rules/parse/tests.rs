use proptest::prelude::*;

use super::doubts::ARGUMENT_MAX;
use super::mode::LARGEST_MODE;
use super::*;
use crate::plan::{Access, Interpreter};
use crate::rules::ere::Ere;
use crate::rules::rule::{Device, Numbers, Part, Path, Place, When};

fn accounts() -> Accounts {
    Accounts::parse(
        b"root:x:0:0::/:\nlp:x:4:7::/:\nprinter:x:4:6::/:\n",
        b"root:x:0:\ndisk:x:6:\nlp:x:7:\n",
    )
}

fn read(text: &str) -> Result<Vec<Rule>, Vec<Error>> {
    parse(&[Source { name: "f", text: text.as_bytes() }], &accounts())
}

/// The one rule of a text.
fn rule(text: &str) -> Rule {
    let mut rules = read(text).unwrap_or_else(|errors| panic!("{}", errors[0]));
    assert_eq!(rules.len(), 1, "{text}");
    rules.remove(0)
}

/// `LINE:COLUMN message` of each error.
fn errors(text: &str) -> Vec<String> {
    let errors = read(text).expect_err(text);
    errors.iter().map(|e| format!("{}:{} {}", e.line, e.column, e.message)).collect()
}

fn literal(text: &str) -> Part {
    Part::Literal(text.as_bytes().into())
}

#[test]
fn a_rule_has_a_device_an_owner_and_a_mode() {
    let rule = rule("  sd[a-z]\troot:disk   0640  ");
    assert_eq!(rule.origin.to_string(), "f:1");
    assert!(matches!(&rule.device, Device::Name(ere) if *ere == Ere::parse(b"sd[a-z]").unwrap()));
    assert_eq!(rule.access, Access { owner: 0, group: 6, mode: 0o640 });
    assert_eq!((rule.goes_on, rule.place, rule.command), (false, Place::Own, None));
    assert!(rule.conditions.is_empty());
}

#[test]
fn lines_without_rules_are_skipped() {
    let text = "\n# a 0:0 1\n \t\r\n   # b\\\na 0:0 1\r\n#";
    let rule = rule(text);
    assert_eq!(rule.origin.line, 5);
    assert_eq!(&*rule.origin.text, b"a 0:0 1\r");
    assert!(read("").unwrap().is_empty());
}

#[test]
fn a_comment_may_begin_behind_an_empty_line_that_is_continued() {
    assert_eq!(rule("\\\n# a 0:0 1\n \\\n\t\\\n #b \\\n0:0 1\nc 0:0 1").origin.line, 7);
    let rule = rule("\\\na 0:0 1 # x");
    assert_eq!((rule.origin.line, &*rule.origin.text), (1, &b"a 0:0 1 # x"[..]));
}

#[test]
fn the_device_is_a_name_a_variable_or_numbers() {
    let numbers = |text: &str| match rule(text).device {
        Device::Numbers(Numbers { major, minor }) => (major, minor),
        other => panic!("{other:?}"),
    };
    assert_eq!(numbers("@8,3 0:0 1"), (8, 3..=3));
    assert_eq!(numbers("-@8,0-15 0:0 1"), (8, 0..=15));
    assert_eq!(numbers("@0,9-4294967295 0:0 1"), (0, 9..=u32::MAX));
    assert_eq!(numbers("A=b;@8,3 0:0 1"), (8, 3..=3));
    let variable = |text: &str| match rule(text).device {
        Device::Variable(condition) => (condition.variable, condition.text),
        other => panic!("{other:?}"),
    };
    let expected: (Box<[u8]>, Box<[u8]>) = ((*b"MODALIAS").into(), (*b"a=b;$c").into());
    assert_eq!(variable("$MODALIAS=a=b;$c 0:0 1"), expected);
    assert_eq!(variable("X=y;$MODALIAS=a=b;$c 0:0 1"), expected);
}

#[test]
fn conditions_come_first() {
    let conditions = |text: &str| {
        let conditions = rule(text).conditions.into_iter().map(|condition| {
            let shown = |bytes: &[u8]| bytes.escape_ascii().to_string();
            format!("{}~{}", shown(&condition.variable), shown(&condition.text))
        });
        conditions.collect::<Vec<_>>()
    };
    assert_eq!(conditions("A=b;C=d=e;f 0:0 1"), ["A~b", "C~d=e"]);
    assert_eq!(conditions("-A=;f 0:0 1"), ["A~"]);
    assert_eq!(conditions("A.B=c; 0:0 1"), ["A.B~c"]);
    assert_eq!(conditions("A=b;$C=d 0:0 1"), ["A~b"]);
    // No semicolon: all of it is the name of a device.
    assert!(conditions("A=b 0:0 1").is_empty());
    assert_eq!(rule("A=b;$C=d 0:0 1").all_conditions().count(), 2);
}

#[test]
fn minus_goes_on() {
    assert!(rule("-a 0:0 1").goes_on);
    let rule = rule("--a 0:0 1");
    assert!(matches!(rule.device, Device::Name(ere) if ere == Ere::parse(b"-a").unwrap()));
}

#[test]
fn owners_are_names_or_numbers() {
    let owner = |text: &str| {
        let access = rule(&format!("a {text} 1")).access;
        (access.owner, access.group)
    };
    assert_eq!(owner("lp:disk"), (4, 6));
    assert_eq!(owner("12:lp"), (12, 7));
    assert_eq!(owner("4294967294:007"), (4_294_967_294, 7));
    // The primary group, by name or number; without one, the same number.
    assert_eq!(owner("lp"), (4, 7));
    assert_eq!(owner("printer"), (4, 6));
    assert_eq!(owner("4"), (4, 7));
    assert_eq!(owner("44"), (44, 44));
}

#[test]
fn modes_are_octal_or_symbolic() {
    let mode = |text: &str| rule(&format!("a 0:0 {text}")).access.mode;
    for (text, expected) in [
        ("0", 0),
        ("660", 0o660),
        ("007777", 0o7777),
        ("u=rw,g=r", 0o640),
        ("a=r", 0o444),
        ("+r", 0o664),
        ("=", 0),
        ("go-rw", 0o600),
        ("o=u", 0o666),
        ("u+x-w,o=g", 0o566),
        ("ug+s,+t", 0o7660),
        ("a+X", 0o660),
        ("u+x,a+X", 0o771),
    ] {
        assert_eq!(mode(text), expected, "{text}");
    }
}

#[test]
fn a_node_can_be_moved_linked_or_left() {
    let place = |text: &str| rule(&format!("a 0:0 1 {text}")).place;
    let path = |text: &str, parts: &[Part]| Path {
        text: text.as_bytes().into(),
        parts: Some(parts.into()),
    };
    assert_eq!(place("=x"), Place::Moved(path("x", &[literal("x")])));
    assert_eq!(place(">d/ @c"), Place::Linked(path("d/", &[literal("d/")])));
    assert_eq!(place("!"), Place::Nowhere);
    assert_eq!(place("! @c"), Place::Nowhere);
    assert_eq!(place("!@c"), Place::Nowhere);
    assert_eq!(place("!# c"), Place::Nowhere);
    assert_eq!(place("!x"), Place::Nowhere);
    assert_eq!(place("# =x"), Place::Own);
    assert_eq!(place("=x#y"), place("=x"));
    assert_eq!(
        place("=a%1%%b%23"),
        Place::Moved(path(
            "a%1%%b%23",
            &[literal("a"), Part::Group(1), literal("%b"), Part::Group(2), literal("3")]
        ))
    );
    for text in ["a%", "a%x"] {
        let bad = Path { text: text.as_bytes().into(), parts: None };
        assert_eq!(place(&format!("={text}")), Place::Moved(bad));
    }
}

#[test]
fn commands_are_the_rest_of_the_line() {
    let command = |text: &str| rule(&format!("a 0:0 1{text}\nb 0:0 1\n").replace("\nb 0:0 1", ""));
    let command = |text: &str| {
        let command = command(text).command.unwrap();
        let text = command.text.escape_ascii().to_string();
        (command.when, command.interpreter, text)
    };
    let expected = |when, interpreter, text: &str| (when, interpreter, text.to_owned());
    use Interpreter::{Execlineb, Shell};
    assert_eq!(command(" @a $b #c  "), expected(When::Add, Shell, "a $b #c  "));
    assert_eq!(command(" $a"), expected(When::Remove, Shell, "a"));
    assert_eq!(command(" * a"), expected(When::Always, Shell, " a"));
    assert_eq!(command(" +a\r"), expected(When::Add, Execlineb, "a\\r"));
    assert_eq!(command(" -a"), expected(When::Remove, Execlineb, "a"));
    assert_eq!(command(" &a"), expected(When::Always, Execlineb, "a"));
    assert_eq!(command(" =x &a"), expected(When::Always, Execlineb, "a"));
    assert_eq!(command(" !@a"), expected(When::Add, Shell, "a"));
    assert_eq!(command(" @"), expected(When::Add, Shell, ""));
}

#[test]
fn a_backslash_continues_a_line() {
    let text =
        "a \\\n 0:0 1 @x \\\ny\\\n\\z\nb 0:0 1 # c \\\nc 0:0 1 =x#\\\n#\\\nd 0:0 1 @#\\\ne\\";
    let rules = read(text).unwrap();
    let shown: Vec<_> = rules
        .iter()
        .map(|rule| {
            let command = rule.command.as_ref().map_or(&[][..], |command| &command.text);
            (rule.origin.line, command.escape_ascii().to_string())
        })
        .collect();
    let expected = [(1, "x y\\\\z"), (5, ""), (6, ""), (8, "#e\\\\")];
    assert_eq!(shown, expected.map(|(line, text)| (line, text.to_owned())));
}

#[test]
fn files_are_read_in_order() {
    let sources = [("a", "x 0:0 1"), ("b", ""), ("c", "y 0:0 1\nz 0:0 1")];
    let sources = sources.map(|(name, text)| Source { name, text: text.as_bytes() });
    let rules = parse(&sources, &accounts()).unwrap();
    let origins: Vec<_> = rules.iter().map(|rule| rule.origin.to_string()).collect();
    assert_eq!(origins, ["a:1", "c:1", "c:2"]);
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let text = "SLEEP=10\nok 0:0 600\na[ gpsd:0 0888 oops\n- 0:0 1\n\n@8 :x 9\n";
    assert_eq!(
        errors(text),
        [
            "1:9 expected user:group and a mode after the device",
            "3:2 expected a ] to close this [",
            "3:4 expected a user of this machine, or a number: there is no \"gpsd\"",
            "3:12 expected an octal digit, or a blank after the mode",
            "3:16 expected =path, >path, ! or a command after one of @ $ * + - &",
            "4:2 expected a regular expression for the device's name",
            "6:3 expected @major,minor or @major,minor-minor",
            "6:4 expected the name or number of a user",
            "6:5 expected a group of this machine, or a number: there is no \"x\"",
            "6:7 expected an octal digit, or a blank after the mode",
        ]
    );
}

#[test]
fn each_error_has_its_place() {
    for (text, expected) in [
        ("a", "1:2 expected user:group and a mode after the device"),
        ("a 0:0", "1:6 expected a mode after the owner"),
        ("a 0:0 \\\n  ", "2:3 expected a mode after the owner"),
        ("a 0:0 \\\n 8", "2:2 expected an octal digit, or a blank after the mode"),
        ("a 0:0 1x", "1:8 expected an octal digit, or a blank after the mode"),
        ("a 0:0 10000", "1:7 expected a mode of at most 7777"),
        ("a 0:0 77777777777777777777", "1:7 expected a mode of at most 7777"),
        (
            "a 0:4294967296 1",
            "1:5 expected a group of this machine, or a number: there is no \"4294967296\"",
        ),
        (
            "a 0:4294967295 1",
            "1:5 expected a group of this machine, or a number: there is no \"4294967295\"",
        ),
        ("a 0: 1", "1:5 expected the name or number of a group"),
        ("a 0:0 1 =", "1:10 expected a path in /dev right here"),
        ("a 0:0 1 = x", "1:10 expected a path in /dev right here"),
        ("a 0:0 1 =x y", "1:12 expected a command after one of @ $ * + - &"),
        ("a 0:0 1 ! /x", "1:11 expected a command after one of @ $ * + - &"),
        ("@8,x 0:0 1", "1:4 expected a minor number, up to 4294967295"),
        ("@8,1-x 0:0 1", "1:6 expected a minor number, up to 4294967295"),
        ("@8,1x 0:0 1", "1:5 expected a minor number, up to 4294967295"),
        ("@-8,1 0:0 1", "1:2 expected a major number, up to 4294967295"),
        ("@4294967296,1 0:0 1", "1:2 expected a major number, up to 4294967295"),
        ("$A 0:0 1", "1:3 expected = and a regular expression after $name"),
        ("$A= 0:0 1", "1:4 expected a regular expression after ="),
        ("$=a 0:0 1", "1:2 expected the name of a variable before ="),
        ("=a 0:0 1", "1:1 expected the name of a variable before ="),
        ("=a;b 0:0 1", "1:1 expected the name of a variable before ="),
        ("A=b(;c 0:0 1", "1:4 expected a ) to close this ("),
        ("A=b;$C=d( 0:0 1", "1:9 expected a ) to close this ("),
        ("(a)\\1 0:0 1", "1:4 back-references (\\1) are not supported"),
        ("a\0b 0:0 1", "1:2 expected text, not a NUL byte"),
    ] {
        assert_eq!(errors(text)[0], expected, "{text}");
    }
}

#[test]
fn an_error_shows_the_line_and_points_at_the_byte() {
    let show = |text: &str| read(text).unwrap_err()[0].to_string();
    assert_eq!(
        show("\n\tsda 0:x 660"),
        "f:2:8: expected a group of this machine, or a number: there is no \"x\"\n    \
         \u{20}sda 0:x 660\n           ^"
    );
    assert_eq!(
        show("\u{e9}\"\\\\ 0:0 9"),
        "f:1:11: expected an octal digit, or a blank after the mode\n    \
         \\xc3\\xa9\"\\\\ 0:0 9\n                    ^"
    );
    // A backslash and a t are no tab.
    assert!(show("a\\tb 0:0 9").ends_with("\n    a\\tb 0:0 9\n     ^"));
    assert_eq!(show("a"), "f:1:2: expected user:group and a mode after the device\n    a\n     ^");
}

#[test]
fn what_can_never_work_is_doubted() {
    let doubts = |text: &str| -> Vec<String> {
        let mut doubts = Vec::new();
        parse_and_doubt(&[Source { name: "f", text: text.as_bytes() }], &accounts(), &mut doubts)
            .unwrap();
        let place = |doubt: Error| format!("{}:{}: {}", doubt.line, doubt.column, doubt.message);
        doubts.into_iter().map(place).collect()
    };
    let cases = [
        ("a 0:0 1 =/abs", "1:10: a path that begins with / "),
        ("a 0:0 1 >../up", "1:10: a path that has . or .. "),
        ("a 0:0 1 =b/../up", "1:12: a path that has . or .. "),
        ("a 0:0 1 =b/./c", "1:12: a path that has . or .. "),
        ("a 0:0 1 =b/%q", "1:12: a path with no digit or % "),
        ("a 0:0 1 =b%", "1:11: a path with no digit or % "),
        ("\n(a)(b) \\\n 0:0 1 >b/%%%2/%7", "3:16: there is no group 7 "),
        ("$A=(.) 0:0 1 =%2", "1:15: there is no group 2 "),
        ("@1,2 0:0 1 =%0", "1:13: there is no group 0 "),
        ("[(]a\\([^](][[:digit:](](.) 0:0 1 =%2", "1:35: there is no group 2 "),
        ("@8,5-2 0:0 1", "1:1: no device has such numbers"),
        ("A=b;@4096,0 0:0 1", "1:5: no device has such numbers"),
        ("-@4095,1048576-1048577 0:0 1", "1:2: no device has such numbers"),
        ("A=b; 0:0 1", "1:5: no name is empty: "),
        ("A=b 0:0 1", "1:1: this is taken for a name, as there is no ; "),
        ("a 0:0 1 *x y\r\nb 0:0 1\r", "1:9: the carriage return "),
        ("ACTION=bind;a 0:0 1 ! @x", "1:23: this command is for add only"),
        ("$ACTION=^change$ 0:0 1 -x", "1:24: this command is for remove only"),
        ("ACTION=add;a 0:0 1 >b", "1:20: the condition on ACTION keeps "),
        ("ACTION=^add$;a 0:0 1 =b @x", "1:22: the condition on ACTION keeps "),
    ];
    for (text, expected) in cases {
        let found = doubts(text);
        assert!(found.len() == 1 && found[0].starts_with(expected), "{text}: {found:?}");
    }
    // It is a rule's command that is too long, not its line.
    let longest = "x".repeat(ARGUMENT_MAX - 1);
    let found = doubts(&format!("a 0:0 1 =b \\\n @c\na 0:0 1 $x{longest}"));
    assert!(found.len() == 1 && found[0].starts_with("3:9: too long to be run: "), "{found:?}");
    assert_eq!(doubts(&format!("a 0:0 1 =b *{longest}")), [""; 0]);
    for text in [
        "@4095,1048575-9999999 0:0 1",
        "$A=b=c 0:0 1\r\na 0:0 1 =b\r",
        "a 0:0 1 =b/ @x",
        "(a)(b) 0:0 1 =%0/%1%2/.../.%%/..a",
        "$A=(.) 0:0 1 =%1",
        "ACTION=;a 0:0 1 =b @x",
        "ACTION=add|remove;a 0:0 1 =b $x",
        "ACTION=add;a 0:0 1 @x",
        "ACTION=add;a 0:0 1 ! @x",
        "ACTION=change;a 0:0 1 >b *x",
        "XACTION=b;a 0:0 1 =b @x",
    ] {
        assert_eq!(doubts(text), [""; 0], "{text}");
    }
}

#[test]
fn size_does_not_matter() {
    let long = "x".repeat(100_000);
    assert_eq!(rule(&format!("a 0:0 1 @{long}")).command.unwrap().text.len(), long.len());
    let many = "a 0:0 1 @x \\\n y\n".repeat(20_000);
    assert_eq!(read(&many).unwrap().len(), 20_000);
    let continued = "a \\\n".repeat(100_000);
    assert_eq!(errors(&continued).len(), 3);
    let comments = "a 0:0 1 # \\\n".repeat(20_000);
    assert_eq!(read(&comments).unwrap().len(), 20_000);
}

/// What there is of mistakes takes no more memory than rules, and no more time.
#[test]
fn very_many_mistakes_are_told_as_far_as_it_helps() {
    for text in ["=;".repeat(20_000), "x\n".repeat(20_000), "=;\\\n".repeat(20_000)] {
        let found = errors(&text);
        assert_eq!(found.len(), MISTAKES_MAX + 1);
        assert!(found[MISTAKES_MAX].ends_with("and what comes is not told"), "{:?}", found.last());
    }
    // Another file's are told all the same.
    let many = Source { name: "many", text: &b"x\n".repeat(2 * MISTAKES_MAX) };
    let few = Source { name: "few", text: b"( 0:0 660\n" };
    let found = parse(&[many, few], &accounts()).unwrap_err();
    assert_eq!(&*found[MISTAKES_MAX + 1].file, "few");
    let mut found = Vec::new();
    let text = "a 0:0 1 =/b\n".repeat(2 * MISTAKES_MAX);
    let sources = [Source { name: "f", text: text.as_bytes() }];
    assert!(parse_and_doubt(&sources, &accounts(), &mut found).is_ok());
    assert_eq!(found.len(), MISTAKES_MAX + 1);
}

#[test]
fn of_a_long_line_the_part_is_shown_that_matters() {
    let shown = |before: usize, after: usize| {
        let line = format!("{}( 0:0 1 @{}", "a=b;".repeat(before), "x".repeat(after));
        let told = read(&line).unwrap_err()[0].to_string();
        let lines: Vec<String> = told.lines().map(Into::into).collect();
        assert_eq!(&lines[1][lines[2].len() - 1..][..7], "( 0:0 1");
        assert!(lines[0].starts_with(&format!("f:1:{}: ", 4 * before + 1)), "{told}");
        lines[1].trim_start().to_owned()
    };
    assert_eq!(shown(1, 10), format!("a=b;( 0:0 1 @{}", "x".repeat(10)));
    let cut = shown(50_000, 100_000);
    assert!(cut.starts_with("...") && cut.ends_with("xxx...") && cut.len() == 1006, "{cut}");
    assert!(shown(50_000, 1).ends_with("( 0:0 1 @x"));
    assert!(shown(0, 1000).starts_with("( 0:0 1 @xxx"));
}

proptest! {
    #[test]
    fn no_text_is_too_much(text: Vec<u8>) {
        check(&text)?;
    }

    #[test]
    fn nothing_of_the_syntax_is_too_much(
        words in prop::collection::vec(
            prop_oneof![
                "[-$@=>!;#%&*+:,\\\\ \t\r\n\0]{1,3}",
                "[a-c0-9]{1,3}",
                Just("A=b;".to_owned()),
                Just(" 0:0 660 ".to_owned()),
                Just("a 0:0 660\n".to_owned()),
                Just("\\\n".to_owned()),
                Just("=x%1".to_owned()),
            ],
            0..20,
        )
    ) {
        check(words.concat().as_bytes())?;
    }
}

/// Whatever is reported is in the text, and whatever is read is of it.
fn check(text: &[u8]) -> Result<(), TestCaseError> {
    let lines: Vec<&[u8]> = text.split(|&b| b == b'\n').collect();
    match parse(&[Source { name: "f", text }], &accounts()) {
        Ok(rules) => {
            for rule in rules {
                prop_assert!((1..=lines.len()).contains(&rule.origin.line));
                prop_assert!(rule.access.mode <= LARGEST_MODE);
            }
        }
        Err(errors) => {
            prop_assert!(!errors.is_empty());
            for error in errors {
                prop_assert!((1..=lines.len()).contains(&error.line));
                prop_assert_eq!(&*error.text, lines[error.line - 1]);
                prop_assert!((1..=error.text.len() + 1).contains(&error.column));
                prop_assert_eq!(error.to_string().lines().count(), 3);
            }
        }
    }
    Ok(())
}
