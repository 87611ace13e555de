//! The daemon at work, against what mdevd has left behind (`expect/mdevd-real`):
//! the commands run, their environments, and the tree of nodes at the end.
//!
//! Events are sent to the kernel, which broadcasts them as its own. All files
//! of rules that have results for the same events hear them at once, each with
//! a daemon and a /dev of its own. Recorders are in the place of /bin/sh and
//! execlineb.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use rustix::net::{RecvFlags, recv};
use rustix::process::Signal;

use super::*;
use crate::harness::daemon::{Daemon, Plugd};
use crate::harness::inject::{Injector, socket};
use crate::harness::{eventually, ns};

/// Where all files of the test are, in a mount namespace of its own.
const PLACE: &str = "/mnt/place";

/// Ends the events of a stream. It has no ACTION, so nothing is done for it,
/// but it is passed on like any other.
const LAST: &[u8] = b"last@/last\0LAST=1\0";

/// Variables of the recorders' environment that no event can set.
const PROTECTED: [&[u8]; 2] = [b"HOME", b"PATH"];

fn place(name: &str) -> PathBuf {
    Path::new(PLACE).join(name)
}

/// Puts recorders and the accounts of the corpus where the real ones are.
fn arrange(corpus: &Path) {
    fs::create_dir(PLACE).unwrap();
    ns::mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs", PLACE]);
    for directory in ["bin", "sys", "dev", "conf"] {
        fs::create_dir(place(directory)).unwrap();
    }
    fs::copy("/bin/sh", place("shell")).unwrap();
    let record = "printf '%s\\0' $# \"$0\" \"$@\"; /bin/cat /proc/$$/environ; printf '\\0'";
    let script = format!("#!{PLACE}/shell\n{{ {record}; }} >>\"$LOG\"\n");
    for name in ["sh", "bin/execlineb"] {
        fs::write(place(name), &script).unwrap();
        fs::set_permissions(place(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (ours, theirs) in [
        (place("sh"), "/bin/sh"),
        (corpus.join("accounts/passwd"), "/etc/passwd"),
        (corpus.join("accounts/group"), "/etc/group"),
    ] {
        ns::mount(&["--bind".as_ref(), ours.as_path(), theirs.as_ref()]);
    }
}

/// Events that were sent, and the numbers that the kernel gave them.
struct Sent<'e> {
    events: Vec<&'e [u8]>,
    numbers: HashMap<u64, usize>,
}

/// Has the kernel send events as its own.
fn send(events: Vec<&[u8]>) -> Sent<'_> {
    let (listener, injector) = (socket(1), Injector::new());
    let mut buffer = vec![0; 8192];
    let mut numbers = HashMap::new();
    for (index, &event) in events.iter().chain(&[LAST]).enumerate() {
        let own = event.windows(8).rposition(|field| field == b"\0SEQNUM=").map(|end| end + 1);
        let event = &event[..own.unwrap_or(event.len())];
        injector.send(event).unwrap();
        let (length, _) = recv(&listener, &mut buffer[..], RecvFlags::DONTWAIT).unwrap();
        let number = buffer[..length].strip_prefix(event).unwrap();
        let number = number.strip_prefix(b"SEQNUM=").unwrap().strip_suffix(b"\0").unwrap();
        numbers.insert(str::from_utf8(number).unwrap().parse().unwrap(), index);
    }
    Sent { events, numbers }
}

/// A result, and the daemon that shall come to the same.
struct Case {
    conf: String,
    expected: String,
    rules: Vec<u8>,
    daemon: Daemon,
}

impl Case {
    fn start(corpus: &Path, met: &Met, conf: &str, expected: String) -> Self {
        let mut rules = read(&corpus.join(format!("conf/{conf}.conf")));
        if rules.len() > 8191 {
            met.differs("plan", "8191 bytes");
            rules.truncate(8191);
        }
        let [file, dev, log, done] = Self::files(conf);
        fs::write(&file, &rules).unwrap();
        fs::create_dir(&dev).unwrap();
        fs::write(&log, "").unwrap();
        let done = fs::File::create(done).unwrap();
        let mdevd = Plugd::new().arg0("mdevd").args(["-o", "9"]).fd(done, 9);
        let options = [("-f", file), ("-d", dev), ("-s", place("sys"))];
        let mdevd = options
            .into_iter()
            .fold(mdevd, |mdevd, (option, path)| mdevd.args([option.as_ref(), path.as_os_str()]));
        let mdevd = mdevd.env("PATH", place("bin")).env("LOG", log);
        Self { conf: conf.into(), expected, rules, daemon: mdevd.start() }
    }

    /// Its rules, its /dev, what the recorders write, and what was acted on.
    fn files(conf: &str) -> [PathBuf; 4] {
        ["conf/", "dev/", "log.", "done."].map(|prefix| format!("{PLACE}/{prefix}{conf}").into())
    }

    /// Waits until all events have been acted on.
    fn end(&mut self) {
        let [_, _, _, done] = Self::files(&self.conf);
        let is_whole = |done: &[u8]| done.windows(8).any(|field| field == b"\0LAST=1\0");
        let mut seen = 0;
        while !is_whole(&read(&done)) {
            seen = eventually(&format!("{} goes on", self.conf), || {
                Some(read(&done).len()).filter(|&length| length > seen)
            });
        }
        self.daemon.signal(Signal::TERM);
        assert_eq!(self.daemon.wait_exit().code(), Some(0), "{}", self.conf);
    }

    /// What mdevd and this daemon have done is the same.
    fn check(&self, corpus: &Path, met: &Met, sent: &Sent<'_>, context: &str) {
        let expected = by_event(self.expected.lines());
        let mut commands = self.commands(met, sent);
        let mut engine = engine(rules(corpus, &self.rules).unwrap());
        let (mut model, mut ours) = (Model::default(), Vec::new());
        for (number, &datagram) in sent.events.iter().enumerate() {
            let Ok(event) = Uevent::parse(datagram, Header::Required) else {
                ours.push(None);
                continue;
            };
            let ignored =
                expected.get(&number).is_some_and(|lines| lines.contains(&"ignored".into()));
            let mut lines = Vec::new();
            for step in engine.plan(&event, &mut Tree::default()).steps() {
                model.take(&step, ignored);
                if matches!(step, Step::Refuse(_)) {
                    step_lines(step, &event, &mut lines);
                }
            }
            lines.extend(commands.remove(&number).into_iter().flatten());
            ours.push(Some(lines));
        }
        assert!(commands.is_empty(), "{context}: {commands:?}");
        compare(met, &ours, &expected, context);
        let [_, dev, ..] = Self::files(&self.conf);
        let found = tree(&dev);
        assert_eq!(found, model.tree(), "{context}");
        model.compare(met, &found, expected_tree(&self.expected), context);
    }

    /// The lines of the corpus for the commands that were run, by the number
    /// of the event.
    fn commands(&self, met: &Met, sent: &Sent<'_>) -> HashMap<usize, Vec<String>> {
        let [_, _, log, _] = Self::files(&self.conf);
        let log = read(&log);
        let mut fields = log.split(|&byte| byte == 0);
        let mut lines: HashMap<usize, Vec<String>> = HashMap::new();
        loop {
            let count = str::from_utf8(fields.next().unwrap()).unwrap();
            if count.is_empty() {
                assert_eq!(fields.next(), None);
                return lines;
            }
            let argv: Vec<&[u8]> =
                fields.by_ref().take(1 + count.parse::<usize>().unwrap()).collect();
            let environment = fields.by_ref().take_while(|field| !field.is_empty());
            let environment = Variables::of(environment);
            let execlineb = place("bin/execlineb");
            let interpreter = match argv[..] {
                [b"/bin/sh", b"-c", _] => "sh",
                [program, b"-Pc", _] if program == execlineb.as_os_str().as_bytes() => "execlineb",
                _ => panic!("{argv:?}"),
            };
            let number = str::from_utf8(environment.0[&b"SEQNUM"[..]]).unwrap();
            let number = sent.numbers[&number.parse().unwrap()];
            self.check_environment(met, &environment, sent.events[number]);
            let mdev = environment.0.get(&b"MDEV"[..]);
            let mdev = mdev.map_or("MDEV-unset".into(), |node| format!("MDEV={}", shown(node)));
            let command = shown(argv[2]);
            lines.entry(number).or_default().push(format!("spawn {interpreter} {mdev} {command}"));
        }
    }

    /// It is the daemon's own, with the variables of the event over it, but
    /// for those that the kernel and the rules have set.
    fn check_environment(&self, met: &Met, ours: &Variables<'_>, event: &[u8]) {
        let [_, _, log, _] = Self::files(&self.conf);
        let (path, home, file) = (place("bin"), PathBuf::from("/"), self.daemon.path("x"));
        let tmp = file.parent().unwrap();
        let mut expected = Variables::default();
        for (key, value) in [("PATH", &*path), ("LOG", &*log), ("TMP", tmp), ("HOME", &*home)] {
            let value = value.as_os_str().as_bytes();
            expected.0.insert(key.as_bytes(), value);
        }
        let own = expected.0.clone();
        let fields = event.split(|&byte| byte == 0).skip(1).filter(|field| !field.is_empty());
        expected.0.extend(Variables::of(fields).0);
        for key in PROTECTED {
            if expected.0[key] != own[key] {
                met.differs("real", "protected variable");
                expected.0.insert(key, own[key]);
            }
        }
        let mut ours = ours.0.clone();
        for key in [&b"SEQNUM"[..], b"MDEV"] {
            ours.remove(key);
            expected.0.remove(key);
        }
        assert!(ours == expected.0, "{}: {}", self.conf, event.escape_ascii());
    }
}

/// Variables of an environment or an event; the last of equal keys counts.
#[derive(Default)]
struct Variables<'a>(BTreeMap<&'a [u8], &'a [u8]>);

impl<'a> Variables<'a> {
    fn of(fields: impl Iterator<Item = &'a [u8]>) -> Self {
        let split = |field: &'a [u8]| {
            let equals = field.iter().position(|&byte| byte == b'=').unwrap();
            (&field[..equals], &field[equals + 1..])
        };
        Self(fields.map(split).collect())
    }
}

/// What is below a directory: what is at each path, as the corpus has it.
fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = shown(path.strip_prefix(root).unwrap().as_os_str().as_bytes());
            let status = fs::symlink_metadata(&path).unwrap();
            let kind = status.file_type();
            if kind.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                found.insert(name, format!("link -> {}", shown(target.as_os_str().as_bytes())));
                continue;
            }
            let (uid, gid, mode) = (status.uid(), status.gid(), status.mode() & 0o7777);
            let access = format!("{mode:04o} {uid} {gid}");
            let device = status.rdev();
            let device = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
            let what = match () {
                () if kind.is_dir() => format!("dir {access}"),
                () if kind.is_char_device() => format!("char {access} {device}"),
                () if kind.is_block_device() => format!("block {access} {device}"),
                () => format!("file {access}"),
            };
            found.insert(name, what);
            if kind.is_dir() {
                directories.push(path);
            }
        }
    }
    found
}

/// The tree of a result.
fn expected_tree(result: &str) -> BTreeMap<String, String> {
    let entry = |line: &str| {
        let (kind, rest) = line.split_once(' ').unwrap();
        if kind == "link" {
            let (path, target) = rest.split_once(" -> ").unwrap();
            return (path.into(), format!("link -> {target}"));
        }
        let count = if matches!(kind, "char" | "block") { 4 } else { 3 };
        let at = rest.rmatch_indices(' ').nth(count - 1).unwrap().0;
        (rest[..at].into(), format!("{kind}{}", &rest[at..]))
    };
    let (_, lines) = result.split_once("\ntree\n").unwrap_or_default();
    lines.lines().map(entry).collect()
}

/// What the plans make of an empty /dev.
#[derive(Default)]
struct Model {
    /// Nodes and links, as the corpus has them.
    files: BTreeMap<String, String>,
    /// Those that were once there and are removed.
    removed: BTreeSet<String>,
    /// Those that took the place of another.
    replaced: BTreeSet<String>,
    /// Those that are where a directory is, which stays.
    blocked: BTreeSet<String>,
    /// Those made for events that mdevd ignores.
    ignored: BTreeSet<String>,
    /// Names that are none.
    refused: BTreeSet<String>,
}

impl Model {
    fn take(&mut self, step: &Step<'_>, ignored: bool) {
        let name = |path: &CStr| shown(path.to_bytes());
        let word = |kind| if kind == Kind::Block { "block" } else { "char" };
        match *step {
            Step::MakeNode(MakeNode { node, access }) => {
                let (word, device) = (word(node.kind), node.device);
                let (mode, owner, group) = (access.mode, access.owner, access.group);
                let what = format!("{word} {mode:04o} {owner} {group} {device}");
                self.make(name(node.path), what, ignored);
            }
            Step::MakeLink(link) => {
                self.make(name(link.path), format!("link -> {}", name(link.target)), ignored);
            }
            Step::RemoveNode(node) => {
                let (word, device) = (word(node.kind), format!(" {}", node.device));
                self.remove(&name(node.path), |what| {
                    what.starts_with(word) && what.ends_with(&device)
                });
            }
            Step::RemoveLink(link) => {
                let link_there = format!("link -> {}", name(link.target));
                self.remove(&name(link.path), |what| what == link_there);
            }
            Step::Refuse(refuse) => {
                self.refused.insert(name(refuse.name));
            }
            Step::Run(_) | Step::LoadFirmware(_) => {}
        }
    }

    fn make(&mut self, path: String, what: String, ignored: bool) {
        let below = format!("{path}/");
        if self.files.keys().any(|file| file.starts_with(&below)) {
            self.blocked.insert(path);
            return;
        }
        let device = |what: &str| what.rsplit(' ').next().map(str::to_owned);
        if self.files.get(&path).is_some_and(|before| device(before) != device(&what)) {
            self.replaced.insert(path.clone());
        }
        self.removed.remove(&path);
        if ignored {
            self.ignored.insert(path.clone());
        }
        self.files.insert(path, what);
    }

    fn remove(&mut self, path: &str, is_ours: impl Fn(&str) -> bool) {
        if self.files.get(path).is_some_and(|what| is_ours(what)) {
            self.files.remove(path);
            self.removed.insert(path.into());
        }
    }

    /// With all directories.
    fn tree(&self) -> BTreeMap<String, String> {
        let mut tree = self.files.clone();
        for path in self.files.keys() {
            for (end, _) in path.match_indices('/') {
                tree.insert(path[..end].into(), "dir 0755 0 0".into());
            }
        }
        tree
    }

    /// Whether a path is one of these, or of a directory that some of them are in.
    fn is_among(path: &str, paths: &BTreeSet<String>) -> bool {
        let below = format!("{path}/");
        paths.contains(path) || paths.iter().any(|other| other.starts_with(&below))
    }

    /// Compares what was found with the tree of mdevd.
    fn compare(
        &self,
        met: &Met,
        found: &BTreeMap<String, String>,
        theirs: BTreeMap<String, String>,
        context: &str,
    ) {
        for (path, theirs) in &theirs {
            let Some(ours) = found.get(path) else {
                if Self::is_among(path, &self.removed) {
                    met.differs("plan", "remove");
                } else {
                    assert!(Self::is_among(path, &self.refused), "{context}: no {path}: {theirs}");
                    met.differs("plan", "unsafe name");
                }
                continue;
            };
            if ours == theirs {
                continue;
            }
            let lost_target = || {
                let up = format!("link -> {}", "../".repeat(path.matches('/').count()));
                Some(format!("link -> {}", ours.strip_prefix(&up)?))
            };
            let place = if lost_target().as_ref() == Some(theirs) {
                "link target"
            } else if self.blocked.contains(path) {
                "a directory"
            } else {
                let but_numbers =
                    |what: &str| what.rsplit_once(' ').map(|(rest, _)| rest.to_owned());
                let same = but_numbers(ours) == but_numbers(theirs);
                let is_intended = same && self.replaced.contains(path);
                assert!(is_intended, "{context}: {path}: {ours}, not {theirs}");
                "another node"
            };
            met.differs("real", place);
        }
        for (path, ours) in found.iter().filter(|(path, _)| !theirs.contains_key(*path)) {
            assert!(Self::is_among(path, &self.ignored), "{context}: {path}: {ours}");
        }
    }
}

#[test]
fn the_daemon_does_what_mdevd_does() {
    let Some(corpus) = corpus() else { return };
    ns::inside_as_root_apart(|| {
        let corpus = fs::canonicalize(&corpus).unwrap();
        let met = Met::default();
        arrange(&corpus);
        let mut results: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        for entry in fs::read_dir(corpus.join("expect/mdevd-real")).unwrap() {
            let path = entry.unwrap().path();
            let (conf, stream) =
                path.file_stem().unwrap().to_str().unwrap().split_once("--").unwrap();
            let text = String::from_utf8(read(&path)).unwrap();
            results.entry(stream.into()).or_default().push((conf.into(), text));
        }
        let mut compared = 0;
        for (stream, results) in results {
            let datagrams = read(&corpus.join(format!("streams/{stream}.stream")));
            let start = |(conf, expected): (String, _)| Case::start(&corpus, &met, &conf, expected);
            let mut cases: Vec<Case> = results.into_iter().map(start).collect();
            let sent = send(events(&datagrams));
            for case in &mut cases {
                case.end();
                let context = format!("{} on {stream}", case.conf);
                case.check(&corpus, &met, &sent, &context);
                fs::remove_dir_all(&Case::files(&case.conf)[1]).unwrap();
                compared += 1;
            }
        }
        assert!(compared > 100, "{compared}");
        met.check(&["real"]);
    });
}
