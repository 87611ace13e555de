//! What a machine is made of: Debian's kernel, and programs of Debian's
//! packages. They are fetched by apt-get, without root, and kept below cargo's
//! target directory.

use std::collections::{BTreeSet, HashMap};
use std::env::consts::ARCH;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};

use crate::common::{program, static_binary, target_directory};

/// The programs that are needed for it.
const TOOLS: [&str; 7] =
    ["qemu-system-x86_64", "apt-get", "apt-cache", "dpkg-deb", "tar", "xz", "depmod"];

/// The package that depends on the newest kernel. The one for clouds has no USB.
const KERNEL: &str = "linux-image-amd64";

/// The modules that machines get, with those that they depend on.
const MODULES: [&str; 13] = [
    "evdev",
    "ftdi_sio",
    "hid_generic",
    "scsi_debug",
    "sd_mod",
    "test_firmware",
    "usb_storage",
    "usbhid",
    "virtio_blk",
    "virtio_net",
    "virtio_pci",
    "virtio_scsi",
    "xhci_pci",
];

/// All that is in a package but its documentation.
const ALL: &[&str] = &["."];

/// What machines are put together from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// busybox, and blkid for links to disks: in all of them.
    Base,
    S6,
    Runit,
    Openrc,
}

impl Part {
    const ALL: [Self; 4] = [Self::Base, Self::S6, Self::Runit, Self::Openrc];

    /// The packages that it is made of, and what is taken from each.
    fn packages(self) -> &'static [(&'static str, &'static [&'static str])] {
        const LIBC: &[&str] = &[
            "./lib64",
            "./lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
            "./lib/x86_64-linux-gnu/libc.so.6",
        ];
        match self {
            Self::Base => &[
                ("busybox-static", &["./bin/busybox"]),
                ("libblkid1", ALL),
                ("libc6", LIBC),
                ("util-linux", &["./sbin/blkid"]),
            ],
            Self::S6 => &[
                ("execline", ALL),
                ("libexecline2.9", ALL),
                ("libs6-2.11", ALL),
                ("libskarnet2.13", ALL),
                ("s6", ALL),
            ],
            Self::Runit => &[("runit", &["./sbin", "./usr/bin"])],
            Self::Openrc => &[
                ("dpkg", &["./sbin/start-stop-daemon"]),
                ("libaudit1", &["./lib"]),
                ("libcap-ng0", ALL),
                ("libeinfo1", ALL),
                ("libpam0g", ALL),
                ("libpcre2-8-0", ALL),
                ("librc1", ALL),
                ("libselinux1", ALL),
                ("openrc", ALL),
            ],
        }
    }
}

/// What is at hand.
#[derive(Debug)]
pub(crate) struct Assets {
    /// The kernel, as an ELF file: it starts at once, while a bzImage takes its
    /// time to unpack itself.
    pub(crate) kernel: PathBuf,
    /// The directory with the modules, as `lib/modules/VERSION`.
    pub(crate) modules: PathBuf,
    /// The static plugd.
    pub(crate) plugd: PathBuf,
    cache: PathBuf,
}

impl Assets {
    /// All of it, fetched if need be; or why that cannot be had.
    pub(crate) fn get() -> Result<&'static Self, &'static str> {
        static ASSETS: OnceLock<Result<Assets, String>> = OnceLock::new();
        ASSETS.get_or_init(prepare).as_ref().map_err(String::as_str)
    }

    /// The directory with the files of a part.
    pub(crate) fn part(&self, part: Part) -> PathBuf {
        directory(&self.cache, part)
    }
}

fn directory(cache: &Path, part: Part) -> PathBuf {
    cache.join(format!("{part:?}"))
}

fn prepare() -> Result<Assets, String> {
    if let Some(tool) = TOOLS.into_iter().find(|tool| program(tool).is_none()) {
        return Err(format!("there is no {tool}"));
    }
    if ARCH != "x86_64" {
        return Err(format!("the machines are x86_64's, and the static binary is {ARCH}'s"));
    }
    let plugd = static_binary()?;
    let cache = target_directory().join("vm-cache");
    fill(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
    let (kernel, modules) = (cache.join("vmlinux"), cache.join("modules"));
    Ok(Assets { kernel, modules, plugd, cache })
}

/// Sees to it that the cache has all that is listed here.
fn fill(cache: &Path) -> io::Result<()> {
    fs::create_dir_all(cache)?;
    // Another test process may be at it.
    let lock = File::create(cache.join("lock"))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let recipe = format!("{KERNEL} {MODULES:?} {:?}", Part::ALL.map(Part::packages));
    let label = cache.join("made-by");
    if fs::read_to_string(&label).is_ok_and(|made_by| made_by == recipe) {
        return Ok(());
    }
    for directory in fs::read_dir(cache)?.flatten().filter(|entry| entry.path().is_dir()) {
        fs::remove_dir_all(directory.path())?;
    }
    let packages = cache.join("packages");
    fs::create_dir(&packages)?;
    let kernel = newest_kernel()?;
    let names = Part::ALL.into_iter().flat_map(Part::packages).map(|(name, _)| *name);
    let mut download = Command::new("apt-get");
    run(download.current_dir(&packages).args(["-qq", "download", &kernel]).args(names))?;
    let files = package_files(&packages)?;
    let file = |name: &str| files.get(name).ok_or_else(|| io::Error::other(name.to_owned()));
    for part in Part::ALL {
        let directory = directory(cache, part);
        fs::create_dir(&directory)?;
        for (name, paths) in part.packages() {
            unpack(file(name)?, paths, &directory)?;
        }
    }
    let whole = cache.join("kernel");
    fs::create_dir(&whole)?;
    unpack(file(&kernel)?, &["./boot", "./lib/modules"], &whole)?;
    extract_kernel(&whole.join("boot"), &cache.join("vmlinux"))?;
    pick_modules(&whole, &cache.join("modules"))?;
    fs::remove_dir_all(&whole)?;
    fs::remove_dir_all(&packages)?;
    fs::write(label, recipe)
}

/// The package of the newest kernel: what the one without a version depends on.
fn newest_kernel() -> io::Result<String> {
    let answer = run(Command::new("apt-cache").args(["depends", "--important", KERNEL]))?;
    let mut words = answer.split_whitespace();
    let kernel = words.find(|word| word.starts_with("linux-image-") && *word != KERNEL);
    kernel.map(str::to_owned).ok_or_else(|| io::Error::other(format!("apt knows no {KERNEL}")))
}

/// The packages in a directory, by name.
fn package_files(directory: &Path) -> io::Result<HashMap<String, PathBuf>> {
    let mut files = HashMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if let Some((name, _version)) = entry.file_name().to_string_lossy().split_once('_') {
            files.insert(name.to_owned(), entry.path());
        }
    }
    Ok(files)
}

/// Unpacks what is at these paths in a package.
fn unpack(package: &Path, paths: &[&str], to: &Path) -> io::Result<()> {
    let mut reader = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()?;
    let archive = reader.stdout.take().map_or_else(Stdio::null, Stdio::from);
    let mut tar = Command::new("tar");
    tar.args(["-x", "--no-same-owner", "--exclude=./usr/share", "-C"]).arg(to).args(paths);
    let unpacked = tar.stdin(archive).status()?;
    reader.wait()?;
    if unpacked.success() { Ok(()) } else { Err(io::Error::other(format!("{tar:?}: {unpacked}"))) }
}

/// Takes the kernel out of its bzImage, which tells where it is
/// (Documentation/x86/boot.rst: setup_sects, payload_offset, payload_length).
fn extract_kernel(boot: &Path, to: &Path) -> io::Result<()> {
    let mut files = fs::read_dir(boot)?.flatten().map(|entry| entry.path());
    let image = files.find(|path| path.to_string_lossy().contains("/vmlinuz-"));
    let image = fs::read(image.ok_or(io::ErrorKind::NotFound)?)?;
    let number = |at: usize| {
        let bytes = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    let payload = || {
        let start = (usize::from(*image.get(0x1f1)?) + 1) * 512 + number(0x248)?;
        image.get(start..start + number(0x24c)?)
    };
    let payload = payload().ok_or(io::ErrorKind::InvalidData)?;
    let mut xz = Command::new("xz")
        .args(["--decompress", "--stdout", "--single-stream"])
        .stdin(Stdio::piped())
        .stdout(File::create(to)?)
        .spawn()?;
    // It need not read what comes after, which is the size.
    let _ = xz.stdin.take().map(|mut stdin| stdin.write_all(payload));
    match xz.wait()? {
        status if status.success() => Ok(()),
        status => Err(io::Error::other(format!("xz: {status}"))),
    }
}

/// Copies the modules that machines get from one directory with `lib/modules`
/// to another.
fn pick_modules(from: &Path, to: &Path) -> io::Result<()> {
    let versions = from.join("lib/modules");
    let version = fs::read_dir(&versions)?.next().ok_or(io::ErrorKind::NotFound)??.file_name();
    let depmod = program("depmod").unwrap_or_default();
    let index = |root: &Path| run(Command::new(&depmod).arg("-b").arg(root).arg(&version));
    index(from)?;
    let (source, target) = (versions.join(&version), to.join("lib/modules").join(&version));
    let dependencies = fs::read_to_string(source.join("modules.dep"))?;
    let lists = ["modules.builtin", "modules.builtin.modinfo", "modules.order"];
    for file in closure(&dependencies)?.into_iter().chain(lists) {
        let copy = target.join(file);
        fs::create_dir_all(copy.parent().unwrap_or(&target))?;
        fs::copy(source.join(file), copy)?;
    }
    index(to).map(drop)
}

/// The files of the modules that machines get, from modules.dep: lines
/// `FILE: FILE FILE...`, each with all that the first one needs.
fn closure(dependencies: &str) -> io::Result<BTreeSet<&str>> {
    let mut files = BTreeSet::new();
    for name in MODULES {
        let is_it = |file: &str| {
            let file = file.rsplit('/').next().unwrap_or(file);
            file.split('.').next().is_some_and(|stem| stem.replace('-', "_") == name)
        };
        let mut lines = dependencies.lines().filter_map(|line| line.split_once(':'));
        let (file, needed) = lines
            .find(|(file, _)| is_it(file))
            .ok_or_else(|| io::Error::other(format!("the kernel has no module {name}")))?;
        files.extend(std::iter::once(file).chain(needed.split_whitespace()));
    }
    Ok(files)
}

/// Runs a command, and returns what it prints.
fn run(command: &mut Command) -> io::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{command:?}: {}: {}", output.status, why.trim())))
}
