//! contrib/completions: what they offer is what the program takes, as the shells
//! themselves say.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::process::Command;

use tempfile::TempDir;

use crate::harness::daemon::Plugd;
use crate::listen::have;

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/completions");

/// The names that plugd is called by, other than its own.
const NAMES: [&str; 7] = [
    "plug-and-play-event-handler",
    "netlink-datagram-socket-listen",
    "daemon-control",
    "ucw-daemon-control",
    "mdevd",
    "mdevd-netlink",
    "mdevd-coldplug",
];

/// The commands that `plugd --help` tells of.
fn commands() -> Vec<String> {
    let help = Plugd::new().args(["--help"]).finish().stdout;
    let lines = help.split("\nCommands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let of_two = |line: &str| line.starts_with("  ") && !line.starts_with("   ");
    lines
        .lines()
        .filter(|line| of_two(line))
        .map(|line| line.trim().split(',').next().unwrap().to_owned())
        .collect()
}

/// The options that the help of a command tells of.
fn options(command: &str) -> BTreeSet<String> {
    let help = Plugd::new().args([command, "--help"]).finish().stdout;
    let option = |word: &str| word.trim_end_matches(',').split('=').next().unwrap().to_owned();
    let lines = help.lines().filter(|line| line.starts_with("  ") && !line.starts_with("        "));
    lines
        .filter(|line| line.trim().starts_with('-'))
        .flat_map(|line| {
            line.split_whitespace().take_while(|word| word.starts_with('-')).map(option)
        })
        .collect()
}

/// A shell in which the program is to be found by all its names.
struct Shell {
    programs: TempDir,
    command: &'static [&'static str],
}

impl Shell {
    fn new(command: &'static [&'static str]) -> Self {
        let programs = tempfile::tempdir().unwrap();
        symlink(env!("CARGO_BIN_EXE_plugd"), programs.path().join("plugd")).unwrap();
        for name in NAMES {
            symlink("plugd", programs.path().join(name)).unwrap();
        }
        Self { programs, command }
    }

    /// The lines that it prints for this script with these arguments.
    fn lines(&self, script: &str, args: &[&str]) -> BTreeSet<String> {
        let path = std::env::var("PATH").unwrap();
        let home = self.programs.path();
        let run = Command::new(self.command[0])
            .args(&self.command[1..])
            .args(["-c", script])
            .args(args)
            .env("PATH", format!("{}:{path}", home.display()))
            .env("HOME", home)
            .env("COMPLETIONS", DIRECTORY)
            .output()
            .unwrap();
        let text = String::from_utf8(run.stdout).unwrap();
        assert!(run.stderr.is_empty(), "{script}: {}", String::from_utf8_lossy(&run.stderr));
        text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect()
    }

    /// What it offers is what there is; `complete` runs it for some words.
    fn offers_what_there_is(&self, complete: impl Fn(&[&str]) -> BTreeSet<String>) {
        let mut expected: BTreeSet<String> = commands().into_iter().collect();
        assert!(expected.contains("run") && expected.contains("daemon-control"), "{expected:?}");
        let mut offered = complete(&["plugd", ""]);
        for option in ["--help", "--version"] {
            offered.remove(option);
        }
        assert_eq!(offered, expected, "commands");
        expected.retain(|command| !NAMES.contains(&&**command));
        for command in &expected {
            assert_eq!(complete(&["plugd", command, "-"]), options(command), "{command}");
        }
        for name in NAMES {
            let command = if name.starts_with("ucw") { "daemon-control" } else { name };
            assert_eq!(complete(&[name, "-"]), options(command), "{name}");
        }
        let long: BTreeSet<String> =
            options("run").into_iter().filter(|option| option.starts_with("--re")).collect();
        assert!(long.len() >= 3);
        assert_eq!(complete(&["plugd", "run", "--timeout", "3", "--re"]), long);
    }
}

/// What is compared with is no mistake of this test's.
#[test]
fn the_program_takes_the_options_that_it_tells_of() {
    for command in commands() {
        let told = options(&command);
        assert!(told.contains("--help") && told.contains("-V"), "{command}: {told:?}");
        for option in told.iter().filter(|o| !["-h", "--help", "-V", "--version"].contains(&&***o))
        {
            // The first may be its value. Nothing is done: the second is one too many.
            let args = [&*command, option, "--nonsense", "--nonsense"];
            let said = Plugd::new().args(args).finish();
            assert!(said.code == Some(100) || said.code == Some(1), "{args:?}: {said:?}");
            assert!(!said.stderr.contains(&format!("no option {option}\n")), "{args:?}: {said:?}");
        }
    }
}

#[test]
fn bash() {
    if !have("completion for bash", "bash") {
        return;
    }
    let shell = Shell::new(&["bash", "--norc"]);
    let script = r#". "$COMPLETIONS/plugd.bash"
        COMP_WORDS=("$0" "$@") COMP_CWORD=$#
        complete -p "$0" >/dev/null || exit 1
        _plugd
        printf '%s\n' "${COMPREPLY[@]}""#;
    shell.offers_what_there_is(|words| shell.lines(script, words));
    // Values.
    let values = |words: &[&str]| shell.lines(&format!("cd /; {script}"), words);
    assert!(values(&["plugd", "run", "--dev", "/de"]).contains("/dev"));
    assert!(!values(&["plugd", "run", "--dev", "/etc/pass"]).contains("/etc/passwd"));
    assert!(values(&["plugd", "run", "--conf", "/etc/pass"]).contains("/etc/passwd"));
    assert_eq!(values(&["plugd", "run", "--timeout", ""]).len(), 0);
    assert!(values(&["plugd", "log-level", ""]).contains("debug"));
    assert!(values(&["plugd", "run", "bas"]).contains("bash"));
}

#[test]
fn zsh() {
    if !have("completion for zsh", "zsh") {
        return;
    }
    let shell = Shell::new(&["zsh", "-f"]);
    // What its completion system hands to the function, and takes from it.
    let script = r#"
        _describe() { local -a got=("${(@P)2}"); print -l -- ${(M)${got%%:*}:#$words[CURRENT]*} }
        _files() { print -- files "$@" }
        compdef() { }
        . "$COMPLETIONS/_plugd"
        words=("$0" "$@") CURRENT=$(($# + 1)) _plugd; :"#;
    shell.offers_what_there_is(|words| shell.lines(script, words));
    let values = |words: &[&str]| shell.lines(script, words);
    assert_eq!(values(&["plugd", "run", "--dev", ""]), BTreeSet::from(["files -/".into()]));
    assert_eq!(values(&["plugd", "run", "--conf", ""]), BTreeSet::from(["files".into()]));
    assert!(values(&["plugd", "log-level", ""]).contains("debug"));
    // As the completion system loads it.
    let loaded = r#"fpath=("$COMPLETIONS" $fpath); autoload -Uz compinit
        compinit -u -D; print -- $_comps[plugd] $_comps[mdevd] $_comps[daemon-control]"#;
    assert_eq!(shell.lines(loaded, &[]), BTreeSet::from(["_plugd _plugd _plugd".into()]));
}

#[test]
fn fish() {
    if !have("completion for fish", "fish") {
        return;
    }
    let shell = Shell::new(&["fish", "--no-config"]);
    let complete = |words: &[&str]| {
        let script = format!("source $COMPLETIONS/plugd.fish; complete -C '{}'", words.join(" "));
        let lines = shell.lines(&script, &[]);
        lines.iter().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
    };
    shell.offers_what_there_is(complete);
}
