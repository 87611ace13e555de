//! A machine's first file system: what all have, and what one has besides.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::assets::{Assets, Part};
use crate::cpio::Archive;

/// The names of plugd that chains and scripts call it by.
const LINKS: [&str; 3] =
    ["daemon-control", "netlink-datagram-socket-listen", "plug-and-play-event-handler"];

/// The project's own directory.
fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A file of the project.
fn read(path: &str) -> Vec<u8> {
    fs::read(project(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A file system being put together, in a directory that is the machine's.
pub(crate) struct Image {
    pub(crate) dir: TempDir,
    archive: Archive<BufWriter<File>>,
}

impl Image {
    /// With plugd, the modules, busybox, and the agent. Its init is `guest/INIT`.
    pub(crate) fn new(assets: &Assets, init: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(Self::file(dir.path())).unwrap();
        let mut image = Self { dir, archive: Archive::new(BufWriter::new(file)) };
        image.archive.tree("", &assets.modules).unwrap();
        let plugd = fs::read(&assets.plugd).unwrap();
        let mut image = image
            .part(assets, Part::Base)
            .text("sbin/plugd", 0o755, plugd)
            .guest(init, "init")
            .guest("agent", "lib/vm/agent")
            .guest("prelude", "lib/vm/prelude")
            .guest("hotplug", "etc/hotplug")
            .guest("group", "etc/group")
            .guest("passwd", "etc/passwd")
            .guest("nsswitch.conf", "etc/nsswitch.conf")
            .contrib("mdev/disk-links", "etc/mdev/disk-links")
            .text(
                "etc/mdev.conf",
                0o644,
                [read("tests/vm/guest/mdev.conf"), read("contrib/mdev.conf")].concat(),
            );
        for name in LINKS {
            image.archive.link(&format!("sbin/{name}"), "plugd").unwrap();
        }
        image
    }

    /// Where it is, in the machine's directory.
    pub(crate) fn file(dir: &Path) -> PathBuf {
        dir.join("initrd")
    }

    /// All of a part.
    pub(crate) fn part(mut self, assets: &Assets, part: Part) -> Self {
        self.archive.tree("", &assets.part(part)).unwrap();
        self
    }

    /// A file or directory of contrib/, as it is.
    pub(crate) fn contrib(mut self, from: &str, to: &str) -> Self {
        let path = project("contrib").join(from);
        if !path.is_dir() {
            return self.text(to, 0o755, read(&format!("contrib/{from}")));
        }
        self.parents(&format!("{to}/"));
        self.archive.tree(&format!("{to}/"), &path).unwrap();
        self
    }

    /// A file of guest/, as a program.
    pub(crate) fn guest(self, from: &str, to: &str) -> Self {
        self.text(to, 0o755, read(&format!("tests/vm/guest/{from}")))
    }

    /// A file with this in it.
    pub(crate) fn text(mut self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Self {
        self.parents(path);
        self.archive.file(path, mode, content.as_ref()).unwrap();
        self
    }

    /// A symbolic link.
    pub(crate) fn link(mut self, path: &str, to: &str) -> Self {
        self.parents(path);
        self.archive.link(path, to).unwrap();
        self
    }

    /// Ends it, and hands over the machine's directory.
    pub(crate) fn finish(self) -> TempDir {
        self.archive.finish().unwrap();
        self.dir
    }

    fn parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            self.archive.directory(&path[..end]).unwrap();
        }
    }
}
