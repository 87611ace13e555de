//! The rules engine against a corpus of real rule files, events and regular
//! expressions, and what mdevd, busybox mdev and two C libraries do with them.
//!
//! The corpus is no part of the project: it is looked for at `PLUGD_CORPUS`, or
//! beside the project. Every difference that is intended is an entry of
//! [`differences`], and nothing else may differ.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod differences;
mod expressions;
#[path = "../it/harness/mod.rs"]
#[allow(dead_code, reason = "tests/it uses the rest of it")]
mod harness;
mod real;

use std::collections::{BTreeSet, HashMap};
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::{env, fs};

use plugd::account::Accounts;
use plugd::environment::Base;
use plugd::plan::{Device, Kind, Link, MakeNode, Node, Step};
use plugd::rules::ere::Ere;
use plugd::rules::parse::{Error, Source, parse};
use plugd::rules::rule::Rule;
use plugd::rules::{Engine, Settings, Sysfs};
use plugd::uevent::{Header, Uevent};

use self::differences::Met;

/// The corpus; `None`, said loudly, if it is not there.
fn corpus() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/corpus");
    let path = env::var_os("PLUGD_CORPUS").map_or(beside, PathBuf::from);
    if path.join("expect").is_dir() {
        return Some(path);
    }
    let why = format!("it is not at {}; PLUGD_CORPUS tells where it is", path.display());
    harness::skip("corpus", "real files of rules", &why);
    None
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// `\n`, `\t`, `\r`, `\\` and `\xHH`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let (mut bytes, mut rest) = (Vec::new(), text);
    loop {
        rest = match rest {
            [] => return bytes,
            [b'\\', b'x', high, low, rest @ ..] => {
                let hex = String::from_utf8_lossy(&[*high, *low]).into_owned();
                bytes.push(u8::from_str_radix(&hex, 16).unwrap());
                rest
            }
            [b'\\', byte, rest @ ..] => {
                bytes.push(match byte {
                    b'n' => b'\n',
                    b't' => b'\t',
                    b'r' => b'\r',
                    b'\\' => b'\\',
                    _ => panic!("escape in {}", text.escape_ascii()),
                });
                rest
            }
            [byte, rest @ ..] => {
                bytes.push(*byte);
                rest
            }
        }
    }
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    bytes.split(|&b| b == b'\n')
}

fn columns(line: &[u8]) -> Vec<Vec<u8>> {
    line.split(|&b| b == b'\t').map(unescape).collect()
}

/// Files of sysfs that the events of a stream refer to.
#[derive(Default)]
struct Tree(HashMap<Vec<u8>, [Vec<u8>; 2]>);

impl Tree {
    fn of_stream(corpus: &Path, stream: &str) -> Self {
        let path = corpus.join(format!("streams/{stream}.sys.tsv"));
        let table = if path.exists() { read(&path) } else { Vec::new() };
        let rows = lines(&table).filter(|line| !line.is_empty()).map(|line| {
            let [devpath, dev, uevent] = <[Vec<u8>; 3]>::try_from(columns(line)).unwrap();
            (devpath, [dev, uevent])
        });
        Self(rows.collect())
    }
}

impl Sysfs for Tree {
    fn read(&mut self, devpath: &CStr, attribute: &str, contents: &mut Vec<u8>) {
        let index = match attribute {
            "dev" => 0,
            "uevent" => 1,
            _ => panic!("{attribute}"),
        };
        if let Some(files) = self.0.get(devpath.to_bytes()) {
            contents.extend_from_slice(&files[index]);
        }
    }
}

/// The events of a stream.
fn events(stream: &[u8]) -> Vec<&[u8]> {
    let mut events = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let end = rest.windows(2).position(|pair| pair == b"\0\0").unwrap() + 1;
        events.push(&rest[..end]);
        rest = &rest[end + 1..];
    }
    events
}

fn accounts(corpus: &Path) -> Accounts {
    let file = |name: &str| corpus.join("accounts").join(name);
    Accounts::load(&file("passwd"), &file("group")).unwrap()
}

fn rules(corpus: &Path, text: &[u8]) -> Result<Vec<Rule>, Vec<Error>> {
    parse(&[Source { name: "conf", text }], &accounts(corpus))
}

fn engine(rules: Vec<Rule>) -> Engine {
    Engine::new(rules, Settings::new(Base::new([]), None)).unwrap()
}

/// As the corpus has it: `\xHH` for the backslash and all but printable ASCII.
fn shown(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|&byte| match byte {
            b'\\' | 0..0x20 | 0x7f.. => format!("\\x{byte:02x}"),
            byte => char::from(byte).to_string(),
        })
        .collect()
}

/// The lines of the corpus for a step.
fn step_lines(step: Step<'_>, event: &Uevent<'_>, lines: &mut Vec<String>) {
    let directories = |path: &[u8], lines: &mut Vec<String>| {
        let slashes = (0..path.len()).filter(|&at| path[at] == b'/');
        slashes.for_each(|at| lines.push(format!("mkdir {}", shown(&path[..at]))));
    };
    match step {
        Step::MakeNode(MakeNode { node, access }) => {
            let path = node.path.to_bytes();
            directories(path, lines);
            let kind = if node.kind == Kind::Block { 'b' } else { 'c' };
            let Device { major, minor } = node.device;
            let path = shown(path);
            lines.push(format!("mknod {kind} {major} {minor} {path}"));
            lines.push(format!("chmod {:o} {path}", access.mode));
            if (access.owner, access.group) != (0, 0) {
                lines.push(format!("chown {}:{} {path}", access.owner, access.group));
            }
        }
        Step::MakeLink(link) => {
            let path = link.path.to_bytes();
            directories(path, lines);
            lines.push(format!("symlink {} <- {}", shown(link.target.to_bytes()), shown(path)));
        }
        Step::Run(run) => {
            let argv: Vec<&CStr> = run.argv().collect();
            let (name, command) = match argv[..] {
                [name, option, command] if name == c"/bin/sh" && option == c"-c" => ("sh", command),
                [name, option, command] if name == c"execlineb" && option == c"-Pc" => {
                    ("execlineb", command)
                }
                _ => panic!("{argv:?}"),
            };
            let mdev = run.mdev.map_or("MDEV-unset".into(), |mdev| shown(mdev.to_bytes()));
            lines.push(format!("spawn {name} {mdev} {}", shown(command.to_bytes())));
        }
        Step::RemoveLink(Link { path, .. }) | Step::RemoveNode(Node { path, .. }) => {
            lines.push(format!("unlink {}", shown(path.to_bytes())));
        }
        Step::LoadFirmware(name) => lines.push(format!(
            "firmware /lib/firmware/{} to /sys{}/data",
            shown(name.to_bytes()),
            shown(event.first(b"DEVPATH").unwrap().to_bytes())
        )),
        Step::Refuse(refuse) => lines.push(format!("refuse {}", shown(refuse.name.to_bytes()))),
    }
}

/// What is planned for each event of a stream; `None` for one that is invalid.
fn plans(engine: &mut Engine, stream: &[u8], tree: &mut Tree) -> Vec<Option<Vec<String>>> {
    let plan = |datagram| {
        let event = Uevent::parse(datagram, Header::Required).ok()?;
        let mut lines = Vec::new();
        for step in engine.plan(&event, tree).steps() {
            step_lines(step, &event, &mut lines);
        }
        Some(lines)
    };
    events(stream).into_iter().map(plan).collect()
}

/// The lines of a result, by the number of the event.
fn by_event<'t>(lines: impl Iterator<Item = &'t str>) -> HashMap<usize, Vec<String>> {
    let mut events: HashMap<usize, Vec<String>> = HashMap::new();
    let mut current = None;
    for line in lines.take_while(|line| !line.starts_with("end ")) {
        if let Some(event) = line.strip_prefix("event ") {
            let number = event.split(' ').next().unwrap().parse().unwrap();
            current = Some(events.entry(number).or_default());
        } else if let Some(lines) = current.as_mut().filter(|_| !line.starts_with('#')) {
            lines.push(line.to_owned());
        }
    }
    events
}

/// Whether a line is about a name, or a directory on the way to it.
fn is_about(line: &str, name: &str) -> bool {
    let mdev = format!(" MDEV={name} ");
    let directory = line.strip_prefix("mkdir ");
    line.ends_with(&format!(" {name}"))
        || line.contains(&mdev)
        || directory.is_some_and(|directory| name.starts_with(&format!("{directory}/")))
}

/// Compares our plans with those of mdevd. What we remove is not in hers.
fn compare(
    met: &Met,
    ours: &[Option<Vec<String>>],
    expected: &HashMap<usize, Vec<String>>,
    context: &str,
) {
    for (number, ours) in ours.iter().enumerate() {
        let expected = expected.get(&number).map_or(&[][..], Vec::as_slice);
        let context = format!("{context}, event {number}");
        let Some(ours) = ours else {
            assert!(expected.contains(&"ignored".into()), "{context}: we ignore it");
            continue;
        };
        if expected.contains(&"ignored".into()) {
            let many = expected.iter().any(|line| line.ends_with("too many variables"));
            met.differs("plan", if many { "63 variables" } else { "summary" });
            continue;
        }
        let mut ours: Vec<&str> = ours.iter().map(String::as_str).collect();
        if ours.iter().any(|line| line.starts_with("unlink ")) {
            met.differs("plan", "remove");
            ours.retain(|line| !line.starts_with("unlink "));
        }
        let mut expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        expected.retain(|line| !line.starts_with("message "));
        // A rule with 0:0 says it once more for a node that was given to somebody.
        for lines in [&mut ours, &mut expected] {
            let mut told = BTreeSet::new();
            lines.retain(|line| !line.starts_with("chown ") || told.insert(*line));
        }
        let refused = ours.iter().filter_map(|line| line.strip_prefix("refuse "));
        for name in refused.collect::<Vec<_>>() {
            met.differs("plan", "unsafe name");
            expected.retain(|line| !is_about(line, name));
        }
        ours.retain(|line| !line.starts_with("refuse "));
        let mut ours: Vec<String> = ours.into_iter().map(str::to_owned).collect();
        for line in ours.iter_mut().filter(|line| line.starts_with("symlink ../")) {
            met.differs("plan", "link target");
            let (target, path) = line["symlink ".len()..].split_once(" <- ").unwrap();
            let up = "../".repeat(path.matches('/').count());
            *line = format!("symlink {} <- {path}", target.strip_prefix(&up).unwrap());
        }
        assert_eq!(ours, expected, "{context}");
    }
}

#[test]
fn files_are_taken_or_refused_as_by_mdevd() {
    let Some(corpus) = corpus() else { return };
    let met = Met::default();
    for line in lines(&read(&corpus.join("expect/check.tsv"))).skip(1) {
        let [name, code, ..] = &columns(line)[..] else { panic!() };
        let name = std::str::from_utf8(name).unwrap();
        let result = rules(&corpus, &read(&corpus.join(format!("conf/{name}.conf"))));
        let taken = code == b"0";
        if taken != result.is_ok() {
            assert!(!taken, "{name}: {}", result.unwrap_err()[0]);
            met.differs("check", name);
        }
    }
    met.check(&["check"]);
}

#[test]
fn plans_are_those_of_mdevd() {
    let Some(corpus) = corpus() else { return };
    let (mut compared, met) = (0, Met::default());
    for entry in fs::read_dir(corpus.join("expect/mdevd-dry")).unwrap() {
        let path = entry.unwrap().path();
        let (conf, stream) = path.file_stem().unwrap().to_str().unwrap().split_once("--").unwrap();
        let mut text = read(&corpus.join(format!("conf/{conf}.conf")));
        if text.len() > 8191 {
            met.differs("plan", "8191 bytes");
            text.truncate(8191);
        }
        let mut engine = engine(rules(&corpus, &text).unwrap());
        let datagrams = read(&corpus.join(format!("streams/{stream}.stream")));
        let mut tree = Tree::of_stream(&corpus, stream);
        let ours = plans(&mut engine, &datagrams, &mut tree);
        let expected = String::from_utf8(read(&path)).unwrap();
        compare(&met, &ours, &by_event(expected.lines()), &format!("{conf} on {stream}"));
        compared += 1;
    }
    met.check(&["plan"]);
    assert!(compared > 100, "{compared}");
}

#[test]
fn what_is_removed_is_what_busybox_removes() {
    let Some(corpus) = corpus() else { return };
    let (mut compared, mut wrong, met) = (0, Vec::new(), Met::default());
    for entry in fs::read_dir(corpus.join("expect/busybox-real")).unwrap() {
        let path = entry.unwrap().path();
        let (conf, stream) = path.file_stem().unwrap().to_str().unwrap().split_once("--").unwrap();
        let Ok(rules) = rules(&corpus, &read(&corpus.join(format!("conf/{conf}.conf")))) else {
            continue;
        };
        let mut engine = engine(rules);
        let datagrams = read(&corpus.join(format!("streams/{stream}.stream")));
        let mut tree = Tree::of_stream(&corpus, stream);
        let ours = plans(&mut engine, &datagrams, &mut tree);
        let expected = String::from_utf8(read(&path)).unwrap();
        let expected = by_event(expected.lines());
        for ((number, lines), datagram) in ours.iter().enumerate().zip(events(&datagrams)) {
            let Ok(event) = Uevent::parse(datagram, Header::Required) else { continue };
            // Busybox removes what has no device numbers, and is not ours.
            if event.first(b"MAJOR").is_none() {
                continue;
            }
            let unlinked = |lines: Option<&Vec<String>>| -> Vec<String> {
                let lines = lines.into_iter().flatten();
                lines.filter(|line| line.starts_with("unlink ")).cloned().collect()
            };
            let (mine, theirs) = (unlinked(lines.as_ref()), unlinked(expected.get(&number)));
            compared += usize::from(!mine.is_empty());
            if mine == theirs {
                continue;
            }
            let (mut once, mut theirs_once) = (mine.clone(), theirs.clone());
            once.dedup();
            theirs_once.dedup();
            let actions = event.fields().filter(|field| field.key() == b"ACTION").count();
            let intended = if once == theirs_once {
                met.is_intended("removed twice", conf)
            } else {
                actions > 1 && met.is_intended("removed", "two ACTIONs")
            };
            if !intended {
                wrong.push(format!("{conf}--{stream} {number}: {mine:?} {theirs:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {compared}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(compared > 10_000, "{compared}");
    met.check(&["removed", "removed twice"]);
}

#[test]
fn small_files_mean_what_they_mean_to_mdevd() {
    let Some(corpus) = corpus() else { return };
    let results = String::from_utf8(read(&corpus.join("syntax/expect.txt"))).unwrap();
    let probe = read(&corpus.join("streams/probe.stream"));
    let (mut wrong, met) = (Vec::new(), Met::default());
    for case in results.split("\n\n") {
        let case: Vec<&str> = case.lines().filter(|line| !line.starts_with('#')).collect();
        let (Some(name), Some(conf)) = (
            case.first().and_then(|line| line.strip_prefix("case ")),
            case.get(1).and_then(|line| line.strip_prefix("conf")),
        ) else {
            continue;
        };
        let conf = unescape(conf.strip_prefix(' ').unwrap_or(conf).as_bytes());
        let of = |peer: &str| by_event(case.iter().filter_map(|line| line.strip_prefix(peer)));
        let (mdevd, busybox) = (of("mdevd "), of("busybox "));
        let taken = case.contains(&"check exit 0");
        let is = |test| met.is_intended(test, name);

        let result = rules(&corpus, &conf);
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let Ok(rules) = result else {
                assert!(!taken || is("refused"), "refused: {}", result.unwrap_err()[0]);
                return;
            };
            assert!(taken || is("as busybox"), "taken");
            let mut ours = plans(&mut engine(rules), &probe, &mut Tree::default());
            if is("as busybox") {
                // Which does not tell of the directories it makes.
                let all = ours.iter_mut().flatten();
                all.for_each(|lines| lines.retain(|line| !line.starts_with("mkdir ")));
            }
            let is_unlink = |line: &&String| line.starts_with("unlink ");
            let mut expected = if is("as busybox") { busybox.clone() } else { mdevd };
            expected.values_mut().for_each(|lines| lines.retain(|line| !is_unlink(&line)));
            for (number, lines) in ours.iter().enumerate() {
                let lines = lines.as_ref().unwrap();
                let mut unlinked = busybox.get(&number).cloned().unwrap_or_default();
                unlinked.retain(|line| is_unlink(&line));
                let mine: Vec<_> = lines.iter().filter(is_unlink).cloned().collect();
                assert!(mine == unlinked || is("unlink"), "{number}: {mine:?}, not {unlinked:?}");
                if is("on remove") && !unlinked.is_empty() {
                    expected.insert(number, lines.clone());
                    expected.get_mut(&number).unwrap().retain(|line| !is_unlink(&line));
                }
            }
            compare(&met, &ours, &expected, "");
        }));
        if let Err(panic) = checked {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or(panic.downcast_ref::<&str>().map(|t| t.to_string()));
            wrong.push(format!("{name}: {}", text.unwrap_or_default()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    met.check(&["as busybox", "refused", "on remove", "unlink"]);
}
