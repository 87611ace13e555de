//! What is intended to differ from others, and whether it does.

use std::cell::RefCell;
use std::collections::BTreeSet;

use plugd::rules::ere::Ere;

/// What is intended to differ from mdevd, or from busybox: in which test,
/// where, and how, in the words of mdev.conf(5).
const DIFFERENCES: &[(&str, &str, &str)] = &[
    ("plan", "remove", "what was made for a device is removed with it; mdevd removes nothing"),
    ("plan", "unsafe name", "a name that leads out of /dev, or is no name, is refused"),
    ("plan", "link target", "a link leads to its node also where its own name has a /"),
    ("plan", "8191 bytes", "nothing is cut; mdevd ignores what comes after 8191 bytes"),
    ("plan", "summary", "an event whose first line has no @/ is acted on like any other"),
    (
        "plan",
        "63 variables",
        "an event may have any number of variables; mdevd drops one of more than 63",
    ),
    ("real", "another node", "what has the name of a node and is another, or a file, is replaced"),
    ("real", "a directory", "what has the name of a node and is a directory is left alone"),
    ("real", "link target", "a link leads to its node also where its own name has a /"),
    (
        "real",
        "protected variable",
        "variables that could subvert a command are not passed on to it",
    ),
    ("check", "boxlinux-no-final-newline", "the last line needs no newline"),
    ("check", "ylfs", "the last line needs no newline"),
    ("check", "oe-iris", "a user without a group has its primary group"),
    ("check", "xokey", "a user without a group has its primary group"),
    ("check", "composite-9k", "nothing is cut; mdevd ignores what comes after 8191 bytes"),
    // Taken and meant as by busybox, which mdevd refuses or takes otherwise.
    ("as busybox", "owner-no-colon", "a user without a group has its primary group"),
    ("as busybox", "mode-symbolic", "a mode may be symbolic"),
    ("as busybox", "move-gt", "a path may have any character but blanks and #"),
    ("as busybox", "move-semicolon", "a path may have any character but blanks and #"),
    ("as busybox", "move-star", "a path may have any character but blanks and #"),
    ("as busybox", "nocreate-path", "what is glued to ! and begins no command means nothing"),
    ("as busybox", "cmd-empty", "a command may be empty"),
    (
        "as busybox",
        "cont-double",
        "of two - at the beginning, the second is part of the regular expression",
    ),
    (
        "as busybox",
        "regex-semicolon",
        "a regular expression for the name may have any character but blanks",
    ),
    (
        "as busybox",
        "regex-hash",
        "a regular expression for the name may have any character but blanks",
    ),
    (
        "as busybox",
        "regex-gt",
        "a regular expression for the name may have any character but blanks",
    ),
    ("as busybox", "majmin-env", "VAR=re;@major,minor is a condition and device numbers"),
    ("as busybox", "denv-env-before", "VAR=re;$VAR=re is a condition and a variable"),
    (
        "as busybox",
        "denv-env-after",
        "a regular expression after $VAR= may have any character but blanks",
    ),
    (
        "as busybox",
        "denv-double-equals",
        "a regular expression after $VAR= may have any character but blanks",
    ),
    ("as busybox", "denv-link-capture", "%N of a rule with $VAR=re is from that variable"),
    ("as busybox", "env-empty-re", "an empty regular expression matches if the variable is there"),
    ("as busybox", "env-no-semicolon", "VAR=re without ; is a regular expression for the name"),
    (
        "as busybox",
        "env-semicolon-last",
        "an empty regular expression after conditions matches no device's name",
    ),
    // Refused, which mdevd takes.
    ("refused", "mode-overflow", "a mode above 7777 is an error: mknod fails with it"),
    ("refused", "regex-backref", "back-references are an error"),
    // Commands for which mdevd has no device numbers, nor has busybox.
    ("on remove", "majmin-cmd-remove", "@major,minor matches remove as well as add"),
    ("on remove", "majmin-cmd-any", "@major,minor matches remove as well as add"),
    // What we remove, and busybox does not, or the reverse.
    ("unlink", "move-slash-only", "a name that leads out of /dev, or is no name, is refused"),
    ("unlink", "move-dotdot", "a name that leads out of /dev, or is no name, is refused"),
    (
        "unlink",
        "move-percent-end",
        "as with mdevd, a % in a path needs a digit or another % after it",
    ),
    (
        "unlink",
        "move-percent-letter",
        "as with mdevd, a % in a path needs a digit or another % after it",
    ),
    ("unlink", "move-percent-unset", "as with mdevd, a group that took no part is empty"),
    ("unlink", "move-percent-optional-last", "as with mdevd, a group that took no part is empty"),
    ("unlink", "move-hash-command", "as with mdevd, a comment may come after a path"),
    ("unlink", "nocreate-then-others", "as with mdevd, ! is of its rule only"),
    // The same, with real files.
    ("removed", "two ACTIONs", "as with mdevd, the first of equal variables counts"),
    ("removed twice", "edge", "as with mdevd, $VAR=re may match anywhere in the value"),
    ("removed twice", "finix", "as with mdevd, + - & run commands with execlineb"),
    ("removed twice", "spectrum-host", "as with mdevd, + - & run commands with execlineb"),
    ("unlink", "majmin-cont", "@major,minor matches remove as well as add"),
    // Nothing in the corpus shows these, but the test below, tests/it/check.rs and src/rule_files.rs.
    ("beyond", "escape", "an escape that C libraries take differently is an error"),
    (
        "beyond",
        "counts",
        "an expression of more than 10000 characters, counts written out, is an error",
    ),
    ("beyond", "together", "expressions that are too large, all together, are an error"),
    ("beyond", "a link", "a link that leads nowhere is an error, and not as if there were no file"),
    // Nor these, but tests/it/rules and src/rules.
    ("link", "", "a symbolic link on the way to a node is not followed, and the node not made"),
    ("lines", "", "a line that ends in a backslash goes on in the next one"),
    ("lines", "", "as with mdevd, a comment ends with its line, also after a backslash"),
    ("lines", "", "as with mdevd, a command keeps the blanks at its end"),
    ("lines", "", "as with mdevd, a command may be glued to !"),
    ("variables", "", "as with mdevd, conditions are about the variables of the event only"),
    ("numbers", "", "a node is removed only for an event that has its device numbers"),
    ("umask", "", "commands have the umask of the daemon; mdevd and busybox set it to 0"),
];

#[test]
fn what_both_take_and_we_refuse() {
    for expression in [r"\d+", r"sd\n", r"[0-9]+\t", "(a{100}){101}"] {
        assert!(Ere::parse(expression.as_bytes()).is_err(), "{expression}");
    }
    for expression in [r"sd\.", r"\$x", "(a{100}){90}"] {
        assert!(Ere::parse(expression.as_bytes()).is_ok(), "{expression}");
    }
}

/// The intended differences that a test has met.
#[derive(Default)]
pub(crate) struct Met(RefCell<Vec<(&'static str, &'static str)>>);

impl Met {
    /// Whether it is intended that they differ there.
    pub(crate) fn is_intended(&self, test: &str, place: &str) -> bool {
        let known = DIFFERENCES.iter().find(|(t, p, _)| (*t, *p) == (test, place));
        self.0.borrow_mut().extend(known.map(|(t, p, _)| (*t, *p)));
        known.is_some()
    }

    pub(crate) fn differs(&self, test: &str, place: &str) {
        assert!(self.is_intended(test, place), "not intended: {test} {place}");
    }

    /// None of those of these tests must be there in vain.
    pub(crate) fn check(&self, tests: &[&str]) {
        let met = self.0.borrow();
        let mine = DIFFERENCES.iter().filter(|(t, _, _)| tests.contains(t));
        let unmet: Vec<_> = mine.filter(|(t, p, _)| !met.contains(&(*t, *p))).collect();
        assert!(unmet.is_empty(), "not met: {unmet:?}");
    }
}

#[test]
fn the_manual_page_tells_every_difference() {
    let page = include_str!("../../man/mdev.conf.5");
    let (_, section) = page.split_once("\n.Sh DIFFERENCES\n").unwrap();
    let (section, _) = section.split_once("\n.Sh ").unwrap();
    let items = section.split("\n.It\n").skip(1).map(|item| {
        let text = item.split("\n.").next().unwrap().replace('\n', " ");
        text.strip_suffix('.').unwrap().to_lowercase()
    });
    let told: BTreeSet<String> = items.collect();
    let intended: BTreeSet<String> =
        DIFFERENCES.iter().map(|(_, _, how)| how.to_lowercase()).collect();
    assert_eq!(told, intended);
}
