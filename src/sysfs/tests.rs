use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use crate::beneath::BadName;
use crate::netlink::{DATAGRAM_MAX, Received, Source};
use crate::testing;
use crate::uevent::{Header, Uevent};

/// A tree that looks like a sysfs.
struct Tree {
    tmp: TempDir,
}

impl Tree {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        for directory in ["devices", "class", "bus"] {
            fs::create_dir(tmp.path().join(directory)).unwrap();
        }
        Self { tmp }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    /// A directory of a device, and a link to it in `class/x` or `bus/x/devices`.
    fn device(&self, path: &str, listed_in: &str, uevent: &[u8]) {
        fs::create_dir_all(self.at(path)).unwrap();
        fs::write(self.at(path).join("uevent"), uevent).unwrap();
        let ups = "../".repeat(listed_in.split('/').count());
        self.link(listed_in, path.rsplit('/').next().unwrap(), &format!("{ups}{path}"));
    }

    fn link(&self, listed_in: &str, name: &str, target: &str) {
        fs::create_dir_all(self.at(listed_in)).unwrap();
        symlink(target, self.at(listed_in).join(name)).unwrap();
    }

    fn sys(&self) -> Sysfs {
        Sysfs::open(self.tmp.path()).unwrap()
    }

    fn scan(&self) -> Vec<Result<String, String>> {
        all(self.sys().scan().unwrap())
    }
}

fn all(mut scan: Scan) -> Vec<Result<String, String>> {
    let mut found = Vec::new();
    while let Some(event) = scan.next() {
        found.push(
            event.map(|event| event.escape_ascii().to_string()).map_err(|error| error.to_string()),
        );
    }
    found
}

#[test]
fn nobody_is_waited_for_who_might_write() {
    let tree = Tree::new();
    tree.device("devices/x", "class/x", b"");
    fs::remove_file(tree.at("devices/x/uevent")).unwrap();
    fs::create_dir(tree.at("kernel")).unwrap();
    let fifo = FileType::Fifo;
    for file in ["devices/x/uevent", "kernel/uevent_seqnum"] {
        mknodat(CWD, tree.at(file), fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        assert_eq!(
            tree.scan(),
            ["add@/devices/x\\x00ACTION=add\\x00DEVPATH=/devices/x\\x00SUBSYSTEM=x\\x00"]
                .map(|event| Ok(event.to_owned()))
        );
        assert_eq!(tree.sys().last_event(), None);
        assert!(tree.sys().trigger(b"/devices/x", b"add").is_err());
        tell.send(()).unwrap();
    });
    told.recv_timeout(Duration::from_secs(20)).unwrap();
}

#[test]
fn a_device_is_read_back_as_the_event_that_the_kernel_would_send() {
    let tree = Tree::new();
    tree.device(
        "devices/pci0/block/sda",
        "class/block",
        b"MAJOR=8\nMINOR=0\nDEVNAME=sda\nDEVTYPE=disk\nDISKSEQ=1\n",
    );
    tree.device("devices/system/memory/memory0", "bus/memory/devices", b"");
    assert_eq!(
        tree.scan(),
        [
            Ok(r"add@/devices/pci0/block/sda\x00ACTION=add\x00DEVPATH=/devices/pci0/block/sda\x00SUBSYSTEM=block\x00MAJOR=8\x00MINOR=0\x00DEVNAME=sda\x00DEVTYPE=disk\x00DISKSEQ=1\x00".into()),
            Ok(r"add@/devices/system/memory/memory0\x00ACTION=add\x00DEVPATH=/devices/system/memory/memory0\x00SUBSYSTEM=memory\x00".into()),
        ]
    );
}

fn devpaths(found: &[Result<String, String>]) -> Vec<&str> {
    let events = found.iter().map(|event| event.as_ref().unwrap());
    events.map(|event| &event["add@".len()..event.find(r"\x00").unwrap()]).collect()
}

#[test]
fn parents_come_before_their_children_and_each_device_once() {
    let tree = Tree::new();
    tree.device("devices/a/b/c/d", "class/z", b"");
    tree.device("devices/a/b", "class/y", b"");
    tree.device("devices/a-b", "class/y", b"");
    tree.device("devices/a/b/c", "bus/x/devices", b"");
    tree.device("devices/a", "class/x", b"");
    // As i2c adapters are, for old programs.
    tree.link("class/old", "c", "../../devices/a/b/c");
    let found = tree.scan();
    assert_eq!(
        devpaths(&found),
        ["/devices/a", "/devices/a-b", "/devices/a/b", "/devices/a/b/c", "/devices/a/b/c/d"]
    );
    assert!(found[3].as_ref().unwrap().contains("SUBSYSTEM=x"));
}

/// Else it would be taken for another one at the next scan.
#[test]
fn a_device_of_two_classes_is_of_the_same_one_each_time() {
    for classes in [["a", "z"], ["z", "a"]] {
        let tree = Tree::new();
        for class in classes {
            for n in 0..100 {
                tree.device(&format!("devices/{n:02}"), &format!("class/{class}"), b"");
            }
        }
        for _ in 0..20 {
            let listing = tree.sys().list().unwrap();
            assert_eq!(listing.len(), 100);
            assert!((0..100).all(|index| listing.subsystem(index) == b"a"), "{classes:?}");
        }
    }
}

/// Very many devices are not found in one go, for which all else would have to wait.
#[test]
fn many_devices_are_found_some_at_a_time() {
    let tree = Tree::new();
    for n in 0..1000 {
        let listed_in = if n % 10 == 0 { "bus/x/devices" } else { "class/y" };
        tree.link(listed_in, &format!("x{n}"), &format!("../../devices/x{n}"));
    }
    let (sys, mut found) = (tree.sys(), vec![0]);
    let mut search = Search::new(&sys).unwrap();
    while search.go_on() {
        found.push(search.found_here());
    }
    assert!(found.windows(2).all(|pair| pair[1] - pair[0] < 100), "{found:?}");
    assert_eq!(search.finish().len(), 1000);
    assert_eq!(sys.list().unwrap().len(), 1000);
}

/// A tree of many devices, of which some are not there, or not to be read; and its scan.
fn large() -> (Tree, Scan) {
    let tree = Tree::new();
    for n in 0..300 {
        let text = if n % 7 == 0 { "A=\0" } else { "A=before" };
        tree.device(&format!("devices/{n:03}"), "class/c", text.as_bytes());
        if n % 11 == 0 {
            fs::remove_dir_all(tree.at(&format!("devices/{n:03}"))).unwrap();
        }
    }
    let scan = Scan::new(tree.sys(), tree.sys().list().unwrap());
    (tree, scan)
}

/// What is read of these devices.
fn read(scan: &mut Scan, indices: impl Iterator<Item = usize>) -> Vec<String> {
    let mut event = Vec::new();
    let mut read = |index| {
        let read = scan.read(index, "add", &mut event).map_err(|failed| failed.to_string());
        format!("{read:?} {}", event.escape_ascii())
    };
    indices.map(&mut read).collect()
}

#[test]
fn what_is_read_ahead_is_what_is_read_one_by_one() {
    let (_tree, mut scan) = large();
    for step in [1, 3, 70] {
        let one_by_one = read(&mut scan, (0..300).step_by(step));
        scan.read_ahead();
        assert_eq!(read(&mut scan, (0..300).step_by(step)), one_by_one);
        scan.read_no_more_ahead();
    }
    let told = read(&mut scan, 76..79);
    assert!(told[0].contains("SUBSYSTEM=c") && told[0].contains("A=before"), "{told:?}");
    assert_eq!(told[1], "Ok(None) ");
    assert!(told[2].contains("A=before"), "{told:?}");
    let cannot = "Err(\"cannot read device /devices/007: Bad message\") ";
    assert_eq!(read(&mut scan, 7..8), [cannot]);
}

#[test]
fn what_is_asked_for_late_or_once_more_is_read_again() {
    let (tree, mut scan) = large();
    scan.read_ahead();
    let path = |n| tree.at(&format!("devices/{n:03}/uevent"));
    assert!(read(&mut scan, 1..2)[0].contains("A=before"));
    fs::write(path(1), "A=after").unwrap();
    assert!(read(&mut scan, 1..2)[0].contains("A=after"));
    if let Some(ahead) = &mut scan.ahead {
        ahead.fresh_for = Duration::ZERO;
    }
    for n in [2, 3, 100, 298] {
        fs::write(path(n), "A=after").unwrap();
        assert!(read(&mut scan, n..n + 1)[0].contains("A=after"), "{n}");
    }
}

/// From as many as it takes for a thread, and pieces of all sizes, asked for slowly and
/// quickly, to the end or not.
#[test]
fn any_number_of_devices_is_read_ahead() {
    let tree = Tree::new();
    for count in 1..=150 {
        let name = format!("{:03}", count - 1);
        tree.device(&format!("devices/{name}"), "class/c", format!("A={count}").as_bytes());
        // Where something begins, or ends.
        if !matches!(count, 1 | 31..=34 | 39..=41 | 63..=65 | 71..=73 | 135..=137 | 150) {
            continue;
        }
        let mut scan = tree.sys().scan().unwrap();
        let one_by_one = read(&mut Scan::new(tree.sys(), tree.sys().list().unwrap()), 0..count);
        for step in [1, 7, 8, 9, 65] {
            for end in [count, count / 2] {
                scan.read_ahead();
                if let Some(ahead) = &mut scan.ahead {
                    ahead.fresh_for = Duration::MAX;
                }
                let indices = (0..end).step_by(step);
                for index in indices {
                    assert_eq!(read(&mut scan, index..=index), one_by_one[index..=index]);
                    if index % 35 == 34
                        && let Some(ahead) = &scan.ahead
                    {
                        let deadline = Instant::now() + Duration::from_secs(60);
                        while !ahead.has_read_all_it_may() {
                            assert!(Instant::now() < deadline);
                            thread::yield_now();
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn one_processor_reads_one_by_one() {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let (_tree, mut scan) = large();
    let all = sched_getaffinity(None).unwrap();
    scan.read_ahead();
    assert_eq!(scan.ahead.is_some(), all.count() > 1);
    let expected = read(&mut scan, 0..300);
    let mut one = CpuSet::new();
    one.set((0..CpuSet::MAX_CPU).find(|&cpu| all.is_set(cpu)).unwrap());
    // Of this thread, which libtest does not use for another test.
    sched_setaffinity(None, &one).unwrap();
    scan.read_ahead();
    assert!(scan.ahead.is_none());
    assert_eq!(read(&mut scan, 0..300), expected);
    assert_eq!(scan.sys().list().unwrap().len(), 300);
    sched_setaffinity(None, &all).unwrap();
}

#[test]
fn what_is_no_device_is_passed_over() {
    let tree = Tree::new();
    tree.device("devices/good", "class/c", b"");
    // No device, gone, absolute, a way out, a loop.
    fs::create_dir(tree.at("devices/plain")).unwrap();
    tree.link("class/c", "plain", "../../devices/plain");
    tree.link("class/c", "gone", "../../devices/gone");
    tree.link("class/c", "absolute", "/etc");
    tree.link("class/c", "out", "../../devices/../../etc");
    tree.link("class/c", "out2", "../../../../../../etc");
    tree.link("class/c", "loop", "loop");
    tree.link("class/c", "itself", "../c");
    tree.link("bus/b", "devices", "../../class/c");
    symlink("..", tree.at("devices/good/up")).unwrap();
    fs::write(tree.at("class/c/bonding_masters"), "").unwrap();
    fs::write(tree.at("class/file"), "").unwrap();
    fs::create_dir_all(tree.at("class/empty/directory")).unwrap();
    assert_eq!(devpaths(&tree.scan()), ["/devices/good"]);
}

#[test]
fn what_cannot_be_read_is_told_and_the_rest_goes_on() {
    let tree = Tree::new();
    tree.device("devices/a", "class/c", b"A=1\n");
    tree.device("devices/b", "class/c", b"");
    fs::remove_file(tree.at("devices/b/uevent")).unwrap();
    fs::create_dir(tree.at("devices/b/uevent")).unwrap();
    tree.device("devices/c", "class/c", b"A=1\0B=2\n");
    tree.device("devices/d", "class/c", &b"x".repeat(FILE_MAX + 4097));
    // What is read after a file that was refused has nothing of it.
    tree.device("devices/e", "class/c", b"");
    fs::create_dir(tree.at("devices/real")).unwrap();
    symlink("real", tree.at("devices/f")).unwrap();
    tree.link("class/c", "f", "../../devices/f");
    let found = tree.scan();
    assert_eq!(
        found[1..4],
        [
            Err("cannot read device /devices/b: Is a directory".into()),
            Err("cannot read device /devices/c: Bad message".into()),
            Err("cannot read device /devices/d: File too large".into()),
        ]
    );
    assert!(found[0].as_ref().unwrap().ends_with(r"A=1\x00"));
    assert!(found[4].as_ref().unwrap().ends_with(r"SUBSYSTEM=c\x00"));
    assert!(found[5].as_ref().unwrap_err().contains("/devices/f"), "{:?}", found[5]);
    assert_eq!(found.len(), 6);
}

#[test]
fn a_device_that_vanishes_is_no_error() {
    let tree = Tree::new();
    for name in ["a", "b", "c"] {
        tree.device(&format!("devices/{name}"), "class/c", b"");
    }
    let sys = tree.sys();
    let mut scan = sys.scan().unwrap();
    assert!(scan.next().unwrap().unwrap().starts_with(b"add@/devices/a\0"));
    fs::remove_dir_all(tree.at("devices/b")).unwrap();
    assert_eq!(devpaths(&all(scan)), ["/devices/c"]);
}

#[test]
fn deep_trees_and_odd_names_are_survived() {
    let tree = Tree::new();
    let deep = format!("devices{}", "/d".repeat(900));
    tree.device(&deep, "class/deep", b"");
    tree.device("devices/a\nb=c!d \u{e9}", "class/o\ndd", b"");
    let found = tree.scan();
    assert_eq!(devpaths(&found), [r"/devices/a\nb=c!d \xc3\xa9", &format!("/{deep}")]);
    assert!(found[0].as_ref().unwrap().contains(r"\x00SUBSYSTEM=o\ndd\x00"));
}

#[test]
fn a_tree_that_is_no_sysfs_is_told() {
    let tmp = tempfile::tempdir().unwrap();
    let sys = Sysfs::open(tmp.path()).unwrap();
    let error = sys.scan().unwrap_err();
    assert_eq!(error.to_string(), "cannot list devices in /class: No such file or directory");
    fs::create_dir(tmp.path().join("class")).unwrap();
    assert!(sys.scan().unwrap().next().is_none());
    fs::write(tmp.path().join("bus"), "").unwrap();
    assert_eq!(
        all(sys.scan().unwrap()),
        [Err("cannot list devices in /bus: Not a directory".into())]
    );
}

#[test]
fn attributes_are_read_and_triggers_written() {
    let tree = Tree::new();
    tree.device("devices/a", "class/c", b"");
    fs::write(tree.at("devices/a/dev"), "8:0\n").unwrap();
    fs::write(tree.at("secret"), "secret").unwrap();
    symlink("../../secret", tree.at("devices/a/link")).unwrap();
    let sys = tree.sys();
    let mut contents = b"before".to_vec();
    sys.read(b"/devices/a", "dev", &mut contents).unwrap();
    assert_eq!(contents, b"before8:0\n");
    for (devpath, attribute, why) in [
        (&b"/devices/a"[..], "link", Errno::LOOP.into()),
        (b"/devices/b", "dev", Errno::NOENT.into()),
        (b"/devices/a/../..", "secret", Why::Name(BadName::DotDot)),
        (b"//devices/a", "dev", Why::Name(BadName::Absolute)),
    ] {
        assert_eq!(sys.read(devpath, attribute, &mut contents), Err(why));
        assert_eq!(contents, b"before8:0\n");
    }
    sys.trigger(b"/devices/a", b"add 0000 A=1").unwrap();
    assert_eq!(fs::read(tree.at("devices/a/uevent")).unwrap(), b"add 0000 A=1");
    let error = sys.trigger(b"/devices/b", b"add").unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot trigger an event by /devices/b/uevent: No such file or directory"
    );
}

const UUID: &str = "3f8c1a52-90be-4d77-8e21-5b6a0c9d4e13";

/// What the kernel sends for a device when it is asked to, without what only a
/// synthetic event has; `None` if it sends nothing or may not be asked.
fn kernels_event(sys: &Sysfs, listener: &mut Source, devpath: &[u8]) -> Option<Vec<Vec<u8>>> {
    sys.trigger(devpath, format!("add {UUID}").as_bytes()).ok()?;
    let mut buffer = vec![0; DATAGRAM_MAX];
    let mut ours = None;
    loop {
        match listener.receive(&mut buffer) {
            Received::Datagram(size) => {
                let event = Uevent::parse(&buffer[..size], Header::Required).unwrap();
                let uuid = event.first(b"SYNTH_UUID").map(|uuid| uuid.to_bytes());
                if uuid == Some(UUID.as_bytes()) {
                    assert_eq!(event.first(b"DEVPATH").unwrap().to_bytes(), devpath);
                    let own = |key: &[u8]| key != b"SYNTH_UUID" && key != b"SEQNUM";
                    let fields = event.fields().filter(|field| own(field.key()));
                    ours = Some(fields.map(|field| field.whole().to_bytes().to_vec()).collect());
                }
            }
            // It was sent before the write to the file returned.
            Received::Empty => return ours,
            other => panic!("{other:?}"),
        }
    }
}

/// All devices, by DEVPATH.
fn scanned(sys: &Sysfs) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut devices = BTreeMap::new();
    let mut scan = sys.scan().unwrap();
    while let Some(event) = scan.next() {
        let event = Uevent::parse(event.unwrap(), Header::Required).unwrap();
        let fields = event.fields().map(|field| field.whole().to_bytes().to_vec()).collect();
        let devpath = event.first(b"DEVPATH").unwrap().to_bytes().to_vec();
        assert_eq!(devices.insert(devpath, fields), None);
    }
    devices
}

/// All directories that have a `uevent`, and whether they have a `subsystem`.
fn walked(directory: &Path, found: &mut BTreeMap<Vec<u8>, bool>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let entries: Vec<_> = entries.filter_map(Result::ok).collect();
    if entries.iter().any(|entry| entry.file_name() == "uevent") {
        let devpath = directory.strip_prefix("/sys").unwrap().as_os_str().as_bytes();
        let linked = entries.iter().any(|entry| entry.file_name() == "subsystem");
        found.insert([b"/", devpath].concat(), linked);
    }
    for entry in entries {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walked(
                &directory.join(std::ffi::OsString::from_vec(entry.file_name().into_vec())),
                found,
            );
        }
    }
}

/// Compares scan, walk and kernel, of the devices that are there all the time;
/// how many the kernel could be asked about.
fn compare_with_the_kernel() -> usize {
    let sys = Sysfs::open(Path::new("/sys")).unwrap();
    let (mut listener, _) = Source::open_kernel(16 << 20).unwrap();
    let mut asked = 0;
    // A battery's charge may change between one look and the other.
    let mut differences = Vec::new();
    for _ in 0..3 {
        asked = 0;
        differences.clear();
        let before = scanned(&sys);
        let mut walk = BTreeMap::new();
        walked(Path::new("/sys/devices"), &mut walk);
        let mut kernel = BTreeMap::new();
        for devpath in walk.keys() {
            if let Some(fields) = kernels_event(&sys, &mut listener, devpath) {
                asked += 1;
                kernel.insert(devpath.clone(), fields);
            }
        }
        let after = scanned(&sys);
        for (devpath, linked) in &walk {
            let name = devpath.escape_ascii();
            match (before.get(devpath), after.get(devpath), kernel.get(devpath)) {
                (Some(scanned), Some(_), Some(kernel)) if scanned != kernel => {
                    differences.push(format!("{name}: {scanned:?} but {kernel:?}"));
                }
                (None, None, Some(_)) => differences.push(format!("{name} was not found")),
                (None, None, None) if *linked => differences.push(format!("{name} was not found")),
                (Some(_), Some(_), _) if !linked => differences.push(format!("{name}: a device?")),
                _ => {}
            }
        }
        let gone =
            |devpath: &&Vec<u8>| after.contains_key(*devpath) && !walk.contains_key(*devpath);
        let missing = before.keys().filter(gone);
        differences.extend(missing.map(|devpath| format!("{}: where?", devpath.escape_ascii())));
        if differences.is_empty() {
            break;
        }
    }
    assert!(differences.is_empty(), "{differences:#?}");
    asked
}

/// Has the kernel announce every device of this machine again, as
/// `udevadm trigger --action=add` does.
#[test]
fn every_device_of_this_machine_reads_as_the_kernel_announces_it() {
    if !rustix::process::geteuid().is_root() {
        let name = "every_device_of_this_machine_reads_as_the_kernel_announces_it";
        return testing::skip("root", name, "only root can have all devices announced");
    }
    let asked = compare_with_the_kernel();
    assert!(asked >= 10, "only {asked} devices");
}

#[test]
fn a_network_interface_reads_as_the_kernel_announces_it() {
    testing::inside_with_sysfs(|| {
        // Others than lo, where the kernel has them.
        for kind in ["dummy", "bridge", "veth"] {
            let _ = std::process::Command::new("ip").args(["link", "add", "type", kind]).output();
        }
        assert!(compare_with_the_kernel() >= 1);
    });
}
