use super::*;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags, makedev, mknodat, open, renameat_with};
use rustix::process::{geteuid, getpid};
use tempfile::TempDir;

use super::directories::{DIRECTORIES_MAX, DIRECTORY_MODE};
use super::special::MODE_BITS;
use crate::beneath::BadName;
use crate::plan::Kind;
use crate::testing;

/// What any user may make, in the place of a device node.
const FIFO: Special = Special { file_type: FileType::Fifo, device: 0 };

/// Owner and group differ from those of new files, where that is allowed.
fn access(mode: u32) -> Access {
    if geteuid().is_root() {
        Access { owner: 1, group: 2, mode }
    } else {
        let (owner, group) = (geteuid().as_raw(), rustix::process::getegid().as_raw());
        Access { owner, group, mode }
    }
}

/// Ends a thread however the test ends.
struct SetWhenDropped<'a>(&'a AtomicBool);

impl Drop for SetWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct World {
    tmp: TempDir,
    dev: DevRoot,
}

impl World {
    fn new() -> Self {
        Self::with(tempfile::tempdir().unwrap(), Beneath::new)
    }

    fn with(tmp: TempDir, beneath: fn(OwnedFd) -> Beneath) -> Self {
        let root = tmp.path().join("dev");
        fs::create_dir(&root).unwrap();
        let root = open(root, LOOK_UP | OFlags::CLOEXEC, Mode::empty()).unwrap();
        Self { tmp, dev: DevRoot::with(beneath(root)) }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.tmp.path().join("dev").join(name)
    }

    fn make(&mut self, name: &str, mode: u32) -> Result<Made, Why> {
        self.dev.make_special(name.as_bytes(), FIFO, access(mode))
    }

    fn remove(&mut self, name: &str) -> Result<Removed, Why> {
        self.dev.remove_special(name.as_bytes(), FIFO)
    }

    fn link(&mut self, name: &str, target: &str) -> Result<Made, Why> {
        self.dev.make_link_to(name.as_bytes(), target.as_bytes())
    }

    #[track_caller]
    fn assert_fifo(&self, name: &str, mode: u32) {
        let found = fs::symlink_metadata(self.at(name)).unwrap();
        let access = access(mode);
        assert!(found.file_type().is_fifo(), "{name}: {found:?}");
        assert_eq!(
            (found.uid(), found.gid(), format!("{:o}", found.mode() & MODE_BITS)),
            (access.owner, access.group, format!("{mode:o}"))
        );
    }

    /// All names below the root, sorted.
    fn tree(&self) -> Vec<String> {
        fn list(directory: &Path, prefix: &str, into: &mut Vec<String>) {
            for entry in fs::read_dir(directory).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
                into.push(name.clone());
                if entry.file_type().unwrap().is_dir() {
                    list(&entry.path(), &format!("{name}/"), into);
                }
            }
        }
        let mut names = Vec::new();
        list(&self.at(""), "", &mut names);
        names.sort();
        names
    }
}

#[test]
fn a_node_is_made_once_and_then_adjusted() {
    let mut world = World::new();
    assert_eq!(world.make("a", 0o640), Ok(Made::Created));
    world.assert_fifo("a", 0o640);
    let inode = fs::metadata(world.at("a")).unwrap().ino();
    assert_eq!(world.make("a", 0o640), Ok(Made::Unchanged));
    for mode in [0o666, 0o600, 0, 0o4755, 0o777] {
        assert_eq!(world.make("a", mode), Ok(Made::Adjusted), "{mode:o}");
        world.assert_fifo("a", mode);
    }
    assert_eq!(fs::metadata(world.at("a")).unwrap().ino(), inode, "it was not remade");
    assert_eq!(world.tree(), ["a"]);
}

#[test]
fn whatever_else_has_the_name_is_replaced() {
    let mut world = World::new();
    let victim = world.tmp.path().join("victim");
    fs::write(&victim, "victim").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
    let owner = fs::metadata(&victim).unwrap().uid();
    fs::write(world.at("file"), "text").unwrap();
    symlink(&victim, world.at("link")).unwrap();
    symlink("nowhere", world.at("dangling")).unwrap();
    for name in ["file", "link", "dangling"] {
        assert_eq!(world.make(name, 0o620), Ok(Made::Replaced), "{name}");
        world.assert_fifo(name, 0o620);
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "victim");
    let victim = fs::metadata(&victim).unwrap();
    assert_eq!((victim.uid(), victim.mode() & MODE_BITS), (owner, 0o600));
    assert_eq!(world.tree(), ["dangling", "file", "link"], "no temporary name is left");
}

#[test]
fn a_directory_in_the_way_stays() {
    let mut world = World::new();
    fs::create_dir(world.at("d")).unwrap();
    assert_eq!(world.make("d", 0o600), Err(Why::System(Errno::ISDIR)));
    assert_eq!(world.link("d", "x"), Err(Why::System(Errno::ISDIR)));
    assert_eq!(world.remove("d"), Ok(Removed::NotOurs));
    assert_eq!(world.tree(), ["d"], "no temporary name is left");
}

#[test]
fn a_temporary_name_that_is_taken_is_left_alone() {
    let mut world = World::new();
    let taken = format!(".plugd.{}.0", getpid().as_raw_nonzero());
    fs::write(world.at(&taken), "kept").unwrap();
    fs::write(world.at("a"), "").unwrap();
    assert_eq!(world.make("a", 0o600), Ok(Made::Replaced));
    assert_eq!(world.link("a", "b"), Ok(Made::Replaced));
    assert_eq!(fs::read_to_string(world.at(&taken)).unwrap(), "kept");
    assert_eq!(world.tree(), [&taken[..], "a"]);
}

#[test]
fn what_was_left_under_a_temporary_name_is_removed() {
    let world = World::new();
    let other_name = [".plugd", ".plugd.1x.0", "plugd.1.0", ".plugd.a"];
    for name in [".plugd.1.0", ".plugd.4194304.31"].iter().chain(&other_name) {
        symlink("x", world.at(name)).unwrap();
    }
    fs::write(world.at(".plugd.2.0"), "").unwrap();
    fs::create_dir(world.at(".plugd.3.0")).unwrap();
    fs::create_dir_all(world.at("a/b")).unwrap();
    symlink("x", world.at("a/b/.plugd.1.0")).unwrap();
    // Anybody could have made it there.
    fs::create_dir(world.at("open")).unwrap();
    fs::set_permissions(world.at("open"), fs::Permissions::from_mode(0o1777)).unwrap();
    symlink("x", world.at("open/.plugd.1.0")).unwrap();
    symlink(world.at("open"), world.at("link")).unwrap();
    DevRoot::open(&world.at("")).unwrap();
    let kept = [".plugd", ".plugd.1x.0", ".plugd.2.0", ".plugd.3.0", ".plugd.a", "a", "a/b"];
    assert_eq!(world.tree()[..7], kept);
    assert_eq!(world.tree()[7..], ["link", "open", "open/.plugd.1.0", "plugd.1.0"]);
}

/// Not as often as plugd may be started while another one makes a link: it gives up then.
#[test]
fn what_takes_a_temporary_name_away_is_no_obstacle() {
    const STARTS: u32 = ATTEMPTS / 2;
    let mut world = World::new();
    let (done, links) = (AtomicBool::new(false), AtomicU64::new(0));
    let dev = world.at("");
    thread::scope(|scope| {
        let _end = SetWhenDropped(&done);
        scope.spawn(|| {
            let (mut link, mut starts) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                let now = links.load(Ordering::Relaxed);
                if std::mem::replace(&mut link, now) != now {
                    starts = 0;
                }
                if starts == STARTS {
                    thread::yield_now();
                    continue;
                }
                starts += 1;
                DevRoot::open(&dev).unwrap();
            }
        });
        for target in ["x", "y"].iter().cycle().take(2000) {
            world.link("link", target).unwrap();
            links.fetch_add(1, Ordering::Relaxed);
        }
    });
    assert_eq!(world.tree(), ["link"]);
}

#[test]
fn links_are_made_replaced_and_left_alone() {
    let mut world = World::new();
    assert_eq!(world.link("a/b/link", "../../node"), Ok(Made::Created));
    assert_eq!(world.link("a/b/link", "../../node"), Ok(Made::Unchanged));
    assert_eq!(world.make("node", 0o600), Ok(Made::Created));
    assert!(fs::metadata(world.at("a/b/link")).unwrap().file_type().is_fifo(), "it leads there");
    assert_eq!(world.link("a/b/link", "../../other"), Ok(Made::Replaced));
    assert_eq!(fs::read_link(world.at("a/b/link")).unwrap(), Path::new("../../other"));
    assert_eq!(world.link("node", "elsewhere"), Ok(Made::Replaced));
    assert_eq!(world.link("empty", ""), Err(Why::System(Errno::NOENT)));
    assert_eq!(world.tree(), ["a", "a/b", "a/b/link", "node"]);
}

#[test]
fn only_what_is_still_ours_is_removed() {
    let mut world = World::new();
    fs::write(world.at("file"), "").unwrap();
    symlink("node", world.at("link")).unwrap();
    let link = |path, target| Link { path, target };
    assert_eq!(world.remove("file"), Ok(Removed::NotOurs));
    assert_eq!(world.remove("link"), Ok(Removed::NotOurs));
    assert_eq!(world.dev.remove_link(&link(c"file", c"node")), Ok(Removed::NotOurs));
    assert_eq!(world.dev.remove_link(&link(c"link", c"nod")), Ok(Removed::NotOurs));
    assert_eq!(world.dev.remove_link(&link(c"link", c"node2")), Ok(Removed::NotOurs));
    assert_eq!(world.tree(), ["file", "link"]);
    assert_eq!(world.dev.remove_link(&link(c"link", c"node")), Ok(Removed::Removed));
    assert_eq!(world.dev.remove_link(&link(c"link", c"node")), Ok(Removed::Absent));
    assert_eq!(world.remove("none"), Ok(Removed::Absent));
    assert_eq!(world.remove("none/below/none"), Ok(Removed::Absent));
    let device =
        Node { path: c"file", kind: Kind::Character, device: Device { major: 1, minor: 3 } };
    assert_eq!(world.dev.remove_node(&device), Ok(Removed::NotOurs));
    assert_eq!(world.tree(), ["file"]);
}

#[test]
fn directories_that_we_made_go_when_they_are_empty() {
    let mut world = World::new();
    fs::create_dir(world.at("theirs")).unwrap();
    for name in ["theirs/a/b/one", "theirs/a/two", "x/y", "z//q//r"] {
        assert_eq!(world.make(name, 0o600), Ok(Made::Created));
    }
    let mode = fs::metadata(world.at("theirs/a/b")).unwrap().mode();
    assert_eq!(mode & 0o777, DIRECTORY_MODE);
    assert_eq!(world.remove("theirs/a/b/one"), Ok(Removed::Removed));
    assert_eq!(
        world.tree(),
        ["theirs", "theirs/a", "theirs/a/two", "x", "x/y", "z", "z/q", "z/q/r"]
    );
    assert_eq!(world.remove("theirs/a/two"), Ok(Removed::Removed));
    assert_eq!(world.remove("z//q//r"), Ok(Removed::Removed));
    assert_eq!(world.tree(), ["theirs", "x", "x/y"]);
    // Somebody else put another one there. It is not ours; that which was
    // moved away keeps its inode number busy.
    fs::remove_file(world.at("x/y")).unwrap();
    fs::rename(world.at("x"), world.at("moved")).unwrap();
    fs::create_dir(world.at("x")).unwrap();
    assert_eq!(world.make("x/y", 0o600), Ok(Made::Created));
    assert_eq!(world.remove("x/y"), Ok(Removed::Removed));
    assert_eq!(world.tree(), ["moved", "theirs", "x"]);
}

#[test]
fn a_node_that_was_removed_already_still_takes_its_directory_along() {
    let mut world = World::new();
    world.make("a/b", 0o600).unwrap();
    fs::remove_file(world.at("a/b")).unwrap();
    assert_eq!(world.remove("a/b"), Ok(Removed::Absent));
    assert_eq!(world.tree(), [""; 0]);
    assert!(world.dev.made.by_path.is_empty());
}

#[test]
fn directories_that_were_removed_already_still_take_theirs_along() {
    let mut world = World::new();
    for name in ["sub/deep/er/x", "sub/deep/y", "other/a/x"] {
        world.make(name, 0o600).unwrap();
    }
    fs::remove_dir_all(world.at("sub/deep")).unwrap();
    assert_eq!(world.remove("sub/deep/er/x"), Ok(Removed::Absent));
    assert_eq!(world.tree(), ["other", "other/a", "other/a/x"]);
    // One that is not ours has taken the place of the lowest.
    fs::remove_dir_all(world.at("other/a")).unwrap();
    fs::write(world.at("other/a"), "").unwrap();
    world.remove("other/a/x").unwrap_err();
    fs::remove_file(world.at("other/a")).unwrap();
    assert_eq!(world.remove("other/a/x"), Ok(Removed::Absent));
    assert_eq!(world.tree(), [""; 0]);
    assert!(world.dev.made.by_path.is_empty());
}

/// An inode number may be given again, as ext4 does at once; and who changes our
/// directory has taken it over.
#[test]
fn a_directory_that_only_has_the_inode_number_of_ours_stays() {
    let mut world = World::new();
    let again = |world: &mut World, change: &dyn Fn(&Path)| {
        world.make("a/x", 0o600).unwrap();
        fs::remove_dir_all(world.at("a")).unwrap();
        fs::create_dir(world.at("a")).unwrap();
        fs::set_permissions(world.at("a"), fs::Permissions::from_mode(DIRECTORY_MODE)).unwrap();
        change(&world.at("a"));
        let inode = fs::metadata(world.at("a")).unwrap().ino();
        world.dev.made.by_path.get_mut(&b"a"[..]).unwrap().inode = inode;
        assert_eq!(world.remove("a/x"), Ok(Removed::Absent));
        assert!(world.dev.made.by_path.is_empty());
        let stays = world.at("a").exists();
        let _ = fs::remove_dir(world.at("a"));
        stays
    };
    world.make("a/x", 0o600).unwrap();
    if world.dev.made.by_path[&b"a"[..]].born.is_some() {
        assert!(again(&mut world, &|_| {}));
    } else {
        assert!(!again(&mut world, &|_| {}), "nothing tells it apart");
    }
    assert!(again(&mut world, &|path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }));
    if geteuid().is_root() {
        assert!(again(&mut world, &|path| {
            std::os::unix::fs::chown(path, Some(1), None).unwrap();
        }));
    }
}

#[test]
fn no_more_directories_are_remembered_than_allowed() {
    let mut world = World::new();
    world.make("a/b", 0o600).unwrap();
    let identity = world.dev.made.by_path[&b"a"[..]];
    // Of all these but one nothing is there any more.
    for number in 1..DIRECTORIES_MAX {
        world.dev.made.by_path.insert(format!("gone{number}").as_bytes().into(), identity);
    }
    world.make("c/d", 0o600).unwrap();
    let paths: Vec<_> = world.dev.made.by_path.keys().cloned().collect();
    assert_eq!(paths, [b"a"[..].into(), b"c"[..].into()]);
    // And now they are.
    for number in 2..DIRECTORIES_MAX {
        world.make(&format!("there{number}/x"), 0o600).unwrap();
    }
    world.make("e/f", 0o600).unwrap();
    assert_eq!(world.dev.made.by_path.len(), DIRECTORIES_MAX);
    world.remove("e/f").unwrap();
    world.remove("a/b").unwrap();
    assert!(world.at("e").exists() && !world.at("a").exists());
}

#[test]
fn bad_names_are_refused() {
    let mut world = World::new();
    let cases = [
        ("", BadName::Empty),
        ("/tmp/x", BadName::Absolute),
        ("..", BadName::DotDot),
        ("../victim", BadName::DotDot),
        ("a/../../victim", BadName::DotDot),
        (".", BadName::Dot),
        ("a/./b", BadName::Dot),
        ("a/", BadName::Directory),
        ("a\0b", BadName::Nul),
    ];
    fs::write(world.tmp.path().join("victim"), "").unwrap();
    for (name, expected) in cases {
        assert_eq!(world.make(name, 0o666), Err(Why::Name(expected)), "{name:?}");
        assert_eq!(world.link(name, "x"), Err(Why::Name(expected)), "{name:?}");
        assert_eq!(world.remove(name), Err(Why::Name(expected)), "{name:?}");
    }
    assert_eq!(world.tree(), [""; 0]);
    let path = c"../sda";
    let node = Node { path, kind: Kind::Block, device: Device { major: 8, minor: 0 } };
    let error = world.dev.make_node(&MakeNode { node, access: access(0o600) }).unwrap_err();
    assert_eq!(error.to_string(), "cannot make device node ../sda: its name has a component ..");
    let error = world.dev.remove_node(&node).unwrap_err();
    assert_eq!(error.to_string(), "cannot remove device node ../sda: its name has a component ..");
    assert!(world.tmp.path().join("victim").exists());
}

#[test]
fn odd_names_are_only_names() {
    let mut world = World::new();
    let long = "n".repeat(255);
    for name in ["a\nb", " ", "-rf", "...", "é", "*", "a/ /b", &long] {
        assert_eq!(world.make(name, 0o600), Ok(Made::Created), "{name:?}");
        world.assert_fifo(name, 0o600);
        assert_eq!(world.remove(name), Ok(Removed::Removed), "{name:?}");
    }
    assert_eq!(world.make(&"n".repeat(256), 0o600), Err(Why::System(Errno::NAMETOOLONG)));
    let name = CString::new(b"\xff\xfe/\x01".to_vec()).unwrap();
    assert_eq!(world.dev.make_special(name.as_bytes(), FIFO, access(0o600)), Ok(Made::Created));
    assert_eq!(world.dev.remove_special(name.as_bytes(), FIFO), Ok(Removed::Removed));
    assert_eq!(world.tree(), [""; 0]);
}

#[test]
fn no_link_is_followed_on_the_way() {
    for beneath in [Beneath::new, Beneath::walking] {
        let mut world = World::with(tempfile::tempdir().unwrap(), beneath);
        let outside = world.tmp.path().join("outside");
        fs::create_dir(&outside).unwrap();
        symlink(&outside, world.at("out")).unwrap();
        fs::create_dir(world.at("real")).unwrap();
        symlink("real", world.at("in")).unwrap();
        for name in ["out/a", "out/a/b", "in/a", "in/a/b"] {
            for result in [world.make(name, 0o600), world.link(name, "x")] {
                let Err(Why::System(Errno::LOOP | Errno::NOTDIR)) = result else {
                    panic!("{name}: {result:?}");
                };
            }
            assert!(world.remove(name).is_err(), "{name}");
        }
        assert_eq!(world.tree(), ["in", "out", "real"]);
        assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
    }
}

#[test]
fn user_id_minus_one_is_refused() {
    let mut world = World::new();
    for (owner, group) in [(u32::MAX, 0), (0, u32::MAX)] {
        let made = world.dev.make_special(b"a", FIFO, Access { owner, group, mode: 0o666 });
        assert_eq!(made, Err(Why::System(Errno::INVAL)));
        assert_eq!(fs::metadata(world.at("a")).unwrap().mode() & MODE_BITS, 0);
    }
}

#[test]
fn the_file_mode_creation_mask_takes_nothing_away() {
    testing::inside_with_umask(|| {
        let mut world = World::new();
        fs::write(world.at("probe"), "").unwrap();
        assert_eq!(fs::metadata(world.at("probe")).unwrap().mode() & 0o777, 0o600);
        world.make("a/b/node", 0o666).unwrap();
        world.assert_fifo("a/b/node", 0o666);
        for name in ["a", "a/b"] {
            let mode = fs::metadata(world.at(name)).unwrap().mode();
            assert_eq!(mode & MODE_BITS, DIRECTORY_MODE, "{name}");
        }
    });
}

#[test]
fn no_glance_finds_a_node_with_more_permissions_than_asked_for() {
    const ROUNDS: u32 = 2000;
    let mut world = World::new();
    let path = world.at("node");
    let (done, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    let new_owner = access(0);
    thread::scope(|scope| {
        let _end = SetWhenDropped(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // stat(2) is no snapshot: only what two glances agree on was really there.
                let glances = [(); 2].map(|()| fs::symlink_metadata(&path));
                let [Ok(found), Ok(again)] = glances else { continue };
                let key = |m: &fs::Metadata| (m.ino(), m.mode(), m.uid(), m.gid(), m.ctime_nsec());
                if key(&found) != key(&again) {
                    continue;
                }
                seen.fetch_add(1, Ordering::Relaxed);
                let mode = found.mode() & MODE_BITS;
                if (found.uid(), found.gid()) == (new_owner.owner, new_owner.group) {
                    assert_eq!(mode & !0o660, 0, "{mode:o}");
                } else {
                    // Between the first narrowing and chown it is still the old owner's.
                    assert!(mode == 0 || mode == 0o640 || mode == 0o646, "{mode:o}");
                }
            }
        });
        for round in 0..ROUNDS {
            if round % 2 == 0 {
                world.make("node", 0o660).unwrap();
            } else {
                // As the kernel might have made it.
                let me = Access {
                    owner: geteuid().as_raw(),
                    group: rustix::process::getegid().as_raw(),
                    mode: if geteuid().is_root() { 0o646 } else { 0o640 },
                };
                world.dev.make_special(b"node", FIFO, me).unwrap();
                world.make("node", 0o660).unwrap();
            }
            world.remove("node").unwrap();
        }
        // On a busy machine the other thread may not have had a turn yet.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while seen.load(Ordering::Relaxed) == 0 && std::time::Instant::now() < deadline {
            world.make("node", 0o660).unwrap();
            thread::yield_now();
        }
    });
    assert!(seen.load(Ordering::Relaxed) > 0);
}

/// While nodes and links are made and removed in `d/e`, another thread swaps
/// `d` for a link that leads outside, and the names in it for links as well.
#[test]
fn nothing_outside_is_touched_while_somebody_tampers() {
    for beneath in [Beneath::new, Beneath::walking] {
        tampered_with(World::with(tempfile::tempdir().unwrap(), beneath));
    }
}

fn tampered_with(mut world: World) {
    const ROUNDS: u32 = 3000;
    let outside = world.tmp.path().join("outside");
    fs::create_dir_all(outside.join("e")).unwrap();
    let victims = ["e/fifo", "e/link", "e/other"].map(|name| outside.join(name));
    let mode = Mode::from_raw_mode(0o604);
    mknodat(CWD, &victims[0], FileType::Fifo, mode, 0).unwrap();
    symlink("other", &victims[1]).unwrap();
    fs::write(&victims[2], "other").unwrap();
    let look = || {
        let mut names: Vec<_> =
            fs::read_dir(outside.join("e")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        let paths = victims.iter().cloned().chain([outside.clone(), outside.join("e")]);
        let found = paths.map(|path| {
            let found = fs::symlink_metadata(path).unwrap();
            let access = (found.mode(), found.uid(), found.gid());
            (found.ino(), access, found.ctime(), found.ctime_nsec())
        });
        (names, found.collect::<Vec<_>>())
    };
    let before = look();

    fs::create_dir_all(world.at("d/e")).unwrap();
    symlink(&outside, world.at("swap")).unwrap();
    let [d, swap] = ["d", "swap"].map(|name| world.at(name));
    let [fifo, trap] = ["d/e/fifo", "trap"].map(|name| world.at(name));
    let (done, swaps) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut well, mut ill) = (0, 0);
    thread::scope(|scope| {
        let _end = SetWhenDropped(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                renameat_with(CWD, &d, CWD, &swap, RenameFlags::EXCHANGE).unwrap();
                swaps.fetch_add(1, Ordering::Relaxed);
                // Sometimes d is a link to outside now, and this fails: no test of ours.
                if !fs::symlink_metadata(&d).unwrap().is_symlink() {
                    let _ = symlink(&victims[2], &trap);
                    let _ = fs::rename(&trap, &fifo);
                }
            }
        });
        let mut round = 0;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while round < ROUNDS || swaps.load(Ordering::Relaxed) < 100 || well == 0 || ill == 0 {
            assert!(
                std::time::Instant::now() < deadline,
                "{well} well, {ill} ill, {swaps:?} swaps"
            );
            round += 1;
            let results = [
                world.make("d/e/fifo", 0o600 | (round % 8)).map(drop),
                world.link("d/e/link", if round % 2 == 0 { "x" } else { "y" }).map(drop),
                world.make("d/e/f/g", 0o600).map(drop),
                world.remove("d/e/f/g").map(drop),
                world.remove("d/e/fifo").map(drop),
                world
                    .dev
                    .remove_link(&Link { path: c"d/e/link", target: c"other" })
                    .map(drop)
                    .map_err(|f| f.why),
            ];
            for result in results {
                match result {
                    Ok(()) => well += 1,
                    Err(Why::System(Errno::LOOP | Errno::NOTDIR) | Why::KeepsChanging) => ill += 1,
                    Err(why) => panic!("{why:?}"),
                }
            }
        }
    });
    assert_eq!(look(), before);
    assert_eq!(fs::read_to_string(&victims[2]).unwrap(), "other");
}

#[test]
fn a_file_system_is_on_a_device_or_on_none() {
    assert_eq!(device_of(Path::new("/proc")), Ok(None));
    assert_eq!(device_of(Path::new("/nonexistent")), Err(Errno::NOENT));
    let root = fs::metadata("/").unwrap().dev();
    let device = device_of(Path::new("/")).unwrap();
    assert_eq!(device.map(|d| makedev(d.major, d.minor)), (major(root) != 0).then_some(root));
}

#[test]
fn device_nodes_are_made_and_removed() {
    testing::inside_with_tmpfs(|| {
        let mut world = World::with(tempfile::tempdir_in("/mnt").unwrap(), Beneath::new);
        let node = |path, kind, major, minor| Node { path, kind, device: Device { major, minor } };
        let null = node(c"sub/null", Kind::Character, 1, 3);
        let make = |node, mode| MakeNode { node, access: Access { owner: 7, group: 8, mode } };
        assert_eq!(world.dev.make_node(&make(null, 0o662)), Ok(Made::Created));
        let found = fs::metadata(world.at("sub/null")).unwrap();
        assert!(found.file_type().is_char_device());
        assert_eq!(
            (found.rdev(), found.uid(), found.gid(), found.mode() & MODE_BITS),
            (makedev(1, 3), 7, 8, 0o662)
        );
        fs::write(world.at("sub/null"), "it is the real one").unwrap();
        assert_eq!(world.dev.make_node(&make(null, 0o662)), Ok(Made::Unchanged));

        // Other numbers, then another type.
        let zero = node(c"sub/null", Kind::Character, 1, 5);
        let block = node(c"sub/null", Kind::Block, 1, 5);
        let large = node(c"sub/null", Kind::Block, 4095, (1 << 20) - 1);
        for other in [zero, block, large, null] {
            assert_eq!(world.dev.remove_node(&other), Ok(Removed::NotOurs));
            assert_eq!(world.dev.make_node(&make(other, 0o600)), Ok(Made::Replaced), "{other:?}");
            let found = fs::metadata(world.at("sub/null")).unwrap();
            assert_eq!(found.rdev(), makedev(other.device.major, other.device.minor));
            assert_eq!(found.file_type().is_block_device(), other.kind == Kind::Block);
            assert_eq!((found.uid(), found.gid(), found.mode() & MODE_BITS), (7, 8, 0o600));
        }
        assert_eq!(world.tree(), ["sub", "sub/null"]);
        assert_eq!(world.dev.remove_node(&null), Ok(Removed::Removed));
        assert_eq!(world.tree(), [""; 0]);
    });
}

#[test]
fn the_name_is_never_free_while_a_node_is_replaced() {
    testing::inside_with_tmpfs(|| {
        let mut world = World::with(tempfile::tempdir_in("/mnt").unwrap(), Beneath::new);
        let path = world.at("node");
        let make = |minor| MakeNode {
            node: Node { path: c"node", kind: Kind::Character, device: Device { major: 1, minor } },
            access: Access { owner: 1, group: 2, mode: 0o640 },
        };
        world.dev.make_node(&make(3)).unwrap();
        let (done, seen) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            let _end = SetWhenDropped(&done);
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let found = fs::metadata(&path).unwrap();
                    let access = (found.uid(), found.gid(), found.mode() & MODE_BITS);
                    assert_eq!(access, (1, 2, 0o640));
                    seen.fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut minor = 3;
            while minor < 3000 || seen.load(Ordering::Relaxed) < 100 {
                minor += 1;
                assert_eq!(world.dev.make_node(&make(minor)), Ok(Made::Replaced));
            }
        });
    });
}
