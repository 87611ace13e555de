//! contrib/completions: what they offer is what the program takes, as the shells
//! themselves say.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use tempfile::TempDir;

use crate::harness::daemon::Plugd;
use crate::harness::{NAMES, programs};
use crate::listen::have;

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/completions");

/// The commands that `plugd --help` tells of.
pub(crate) fn commands() -> Vec<String> {
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
pub(crate) fn options(command: &str) -> BTreeSet<String> {
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
        Self { programs: programs(), command }
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

    /// Files and directories whose names are to be quoted, in ~/names.
    fn names(&self) {
        let names = self.programs.path().join("names");
        fs::create_dir_all(names.join("my dir/sub $1")).unwrap();
        fs::write(names.join("my dir/f 1.conf"), "").unwrap();
        fs::write(names.join("it's a file"), "").unwrap();
    }

    /// Names that are typed at a terminal are completed to what they are. With these
    /// options it reads ~/.zshrc, in which is `load`. There is no plugd in it after that.
    fn completes_names(&self, options: &str, load: &str) {
        if !have("completion at a terminal", "script") {
            return;
        }
        self.names();
        let home = self.programs.path();
        // What is typed is run, whatever the shell has made of it, and may be as root:
        // so by a program that only writes it down.
        let stand_in = format!(
            r#"#!/bin/sh
            case $1:$2 in
            --help: | *:--help) exec {} "$@" ;;
            esac
            printf '<%s>' "$@" >>~/typed
            echo >>~/typed
            "#,
            env!("CARGO_BIN_EXE_plugd")
        );
        for name in NAMES {
            fs::remove_file(home.join(name)).unwrap();
        }
        fs::write(home.join("plugd"), stand_in).unwrap();
        fs::set_permissions(home.join("plugd"), PermissionsExt::from_mode(0o755)).unwrap();
        // Where zsh looks for it.
        fs::write(home.join(".zshrc"), format!("{load}\ncd ~/names")).unwrap();
        let mut lines = tempfile::tempfile().unwrap();
        let lines_and_words = [
            // A slash comes after a directory, and no blank.
            ("run --dev my\ts\tx", "<run><--dev><my dir/sub $1/x>"),
            ("run --conf my\tf\t", "<run><--conf><my dir/f 1.conf>"),
            ("run --conf \"my\tf\t", "<run><--conf><my dir/f 1.conf>"),
            ("run --conf 'my dir/f\t", "<run><--conf><my dir/f 1.conf>"),
            ("run --conf my\\ dir/f\t", "<run><--conf><my dir/f 1.conf>"),
            ("check it\t-q", "<check><it's a file><-q>"),
            ("check it\\'s\\ \t-q", "<check><it's a file><-q>"),
            ("run my\ts\tx", "<run><my dir/sub $1/x>"),
            // Words are as they were.
            ("log-l\tdeb\t-q", "<log-level><debug><-q>"),
        ];
        let typed: String =
            lines_and_words.iter().map(|(line, _)| format!("plugd {line}\n")).collect();
        writeln!(lines, "{typed}exit").unwrap();
        lines.rewind().unwrap();
        let command = format!("{} {options}", self.command.join(" "));
        let path = std::env::var("PATH").unwrap();
        let run = Command::new("timeout")
            .args(["60", "script", "-qec", &command, "/dev/null"])
            .stdin(lines)
            .env("PATH", format!("{}:{path}", home.display()))
            .envs([("HOME", home), ("ZDOTDIR", home)])
            .envs([("COMPLETIONS", DIRECTORY), ("TERM", "dumb"), ("INPUTRC", "/dev/null")])
            .env("SHELL", "/bin/sh")
            .output()
            .unwrap();
        let typed = fs::read_to_string(home.join("typed")).unwrap_or_default();
        let expected: Vec<&str> = lines_and_words.iter().map(|(_, words)| *words).collect();
        let shown = String::from_utf8_lossy(&run.stdout);
        assert_eq!(typed.lines().collect::<Vec<_>>(), expected, "{shown}");
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
        for name in &NAMES[1..] {
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
    // Not to be had but where bash itself calls the function.
    let script = r#". "$COMPLETIONS/plugd.bash"
        compopt() { :; }
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

    let shell = Shell::new(&["bash", "--noprofile"]);
    shell.completes_names("--rcfile ~/.zshrc -i", r#". "$COMPLETIONS/plugd.bash""#);
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

    let shell = Shell::new(&["zsh", "-d"]);
    let load = r#"fpath=("$COMPLETIONS" $fpath); autoload -Uz compinit; compinit -u -D"#;
    shell.completes_names("-i", load);
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
    shell.names();
    let complete = |line: &str| {
        let script = "cd ~/names; source $COMPLETIONS/plugd.fish; complete --escape -C $argv[1]";
        shell.lines(script, &[&format!("plugd run {line}")])
    };
    for (line, expected) in [
        ("--dev my", r"my\ dir/"),
        (r"--dev my\ dir/s", r"my\ dir/sub\ \$1/"),
        ("--conf \"my dir/f", "\"my dir/f 1.conf\""),
        ("--conf it", r"it\'s\ a\ file"),
    ] {
        assert_eq!(complete(line), BTreeSet::from([expected.into()]), "{line}");
    }
}
