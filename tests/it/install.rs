//! `make install` and packages: what is installed runs by all its names, and goes
//! again.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::daemon::Plugd;
use crate::harness::{NAMES, ns};
use crate::listen::have;

const SOURCE: &str = env!("CARGO_MANIFEST_DIR");
const BINARY: &str = env!("CARGO_BIN_EXE_plugd");

/// Runs it where the source is, and returns what it printed.
fn run(program: &str, args: &[&str]) -> String {
    let mut command = Command::new(program);
    // A program with all its symbols takes long to compress.
    command.args(args).current_dir(SOURCE).env("DPKG_DEB_COMPRESSOR_TYPE", "none");
    // Where dpkg looks for programs that it wants; not everybody has that in PATH.
    command.env("PATH", std::env::var("PATH").unwrap() + ":/usr/sbin:/sbin");
    let run = command.output().unwrap();
    assert!(run.status.success(), "{program} {args:?}: {run:?}");
    String::from_utf8(run.stdout).unwrap()
}

fn make(target: &str, root: &Path, prefix: &str) {
    let root = format!("DESTDIR={}", root.display());
    let (binary, prefix) = (format!("BINARY={BINARY}"), format!("PREFIX={prefix}"));
    run("make", &["-s", target, &root, &prefix, &binary]);
}

/// All files and links below a directory, without its own path.
fn files(root: &Path) -> Vec<PathBuf> {
    let list = run("find", &[root.to_str().unwrap(), "!", "-type", "d", "-printf", "%P\\n"]);
    list.lines().map(Into::into).collect()
}

/// These names tell what they are.
fn names_work(directory: &Path, names: &[&str]) {
    for name in names {
        let told = |option: &str| {
            let told = Plugd::new().program(directory.join(name)).args([option]).finish();
            assert_eq!((told.code, &*told.stderr), (Some(0), ""), "{name} {option}");
            told.stdout
        };
        assert_eq!(told("--version"), format!("plugd {}\n", env!("CARGO_PKG_VERSION")));
        let own = name.strip_prefix("ucw-").unwrap_or(name);
        assert!(told("--help").contains(&format!("Usage: {own} ")), "{name}");
    }
}

/// What contrib/ is made of is there, as it is in the source.
fn contrib_is_there(directory: &Path) {
    let checked = Plugd::new().arg0("plugd").args(["check".into(), directory.join("mdev.conf")]);
    assert_eq!(checked.finish().code, Some(0));
    let services = ["s6", "s6-rc", "runit", "openrc", "busybox", "dinit", "mdev"];
    for name in services {
        let source = Path::new(SOURCE).join("contrib").join(name);
        for file in files(&source) {
            let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            let (from, to) = (source.join(&file), directory.join(name).join(&file));
            assert_eq!(fs::read(&from).unwrap(), fs::read(&to).unwrap(), "{file:?}");
            let expected = if mode(from) & 0o100 == 0 { 0o644 } else { 0o755 };
            assert_eq!(mode(to), expected, "{file:?}");
        }
    }
}

#[test]
fn make_install_and_uninstall() {
    if !have("make install", "make") {
        return;
    }
    for prefix in ["/usr/local", "/usr"] {
        let root = tempfile::tempdir().unwrap();
        let below = root.path().join(&prefix[1..]);
        make("install", root.path(), prefix);
        names_work(&below.join("sbin"), &NAMES);
        contrib_is_there(&below.join("share/plugd"));
        for page in fs::read_dir(Path::new(SOURCE).join("man")).unwrap() {
            let page = page.unwrap().file_name().into_string().unwrap();
            let section = page.rsplit('.').next().unwrap();
            assert!(below.join(format!("share/man/man{section}/{page}")).exists(), "{page}");
        }
        for name in NAMES {
            for file in [
                format!("bash-completion/completions/{name}"),
                format!("fish/vendor_completions.d/{name}.fish"),
            ] {
                assert!(below.join("share").join(&file).exists(), "{file}");
            }
        }
        assert!(below.join("share/zsh/site-functions/_plugd").exists());
        // Again, over what is there.
        make("install", root.path(), prefix);
        make("uninstall", root.path(), prefix);
        assert_eq!(files(root.path()), [""; 0].map(PathBuf::from));
        assert!(!below.join("share/plugd").exists() && !below.join("share/doc/plugd").exists());
    }
}

/// Directories with files of others, with modes of their own, and with blanks in their
/// names.
#[test]
fn what_is_not_of_plugd_stays_as_it_is() {
    if !have("make install", "make") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("a root");
    // All files and directories with their modes.
    let all = || {
        let format = ["-printf", "%P %y %#m\n"];
        let args = [&[root.to_str().unwrap(), "!", "-type", "l"], &format[..]].concat();
        let mut lines: Vec<String> = run("find", &args).lines().map(Into::into).collect();
        lines.sort();
        lines
    };
    // The tools of others, their documentation, and what is named as a part of contrib/.
    let directories = [
        "my sbin",
        "share/doc",
        "share/doc/bash",
        "share/s6",
        "share/man/man8",
        "share/bash-completion/completions",
        "share/fish/vendor_completions.d",
        "share/zsh/site-functions",
    ];
    for (directory, mode) in directories.iter().zip([0o700, 0o2770, 0o750].iter().cycle()) {
        let directory = root.join(directory);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("of another"), "").unwrap();
        fs::set_permissions(directory.join("of another"), PermissionsExt::from_mode(0o600))
            .unwrap();
        fs::set_permissions(&directory, PermissionsExt::from_mode(*mode)).unwrap();
    }
    let binary = place.path().join("a plugd");
    symlink(BINARY, &binary).unwrap();
    let make = |target: &str| {
        let settings = [
            format!("DESTDIR={}", root.display()),
            format!("BINARY={}", binary.display()),
            "PREFIX=".into(),
            "SBINDIR=/my sbin".into(),
            "DOCDIR=/share/doc".into(),
            "CONTRIBDIR=/share".into(),
        ];
        run("make", &settings.iter().map(|s| &**s).chain(["-s", target]).collect::<Vec<_>>());
    };
    let before = all();
    make("install");
    names_work(&root.join("my sbin"), &NAMES);
    contrib_is_there(&root.join("share"));
    let after = all();
    for line in &before {
        assert!(after.contains(line), "{line} in {after:?}");
    }
    make("uninstall");
    // Directories that are anybody's stay.
    let sections = ["1", "5", "7"].map(|section| format!("share/man/man{section} d 0755"));
    let left: Vec<String> = all().into_iter().filter(|line| !sections.contains(line)).collect();
    assert_eq!(left, before);
    // Nothing is there any more.
    make("uninstall");
}

#[test]
fn a_program_that_was_not_built_is_told() {
    if !have("make install", "make") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let made = Command::new("make")
        .args(["install", "BINARY=/nonexistent/plugd"])
        .arg(format!("DESTDIR={}", root.path().display()))
        .current_dir(SOURCE)
        .output()
        .unwrap();
    assert!(!made.status.success());
    assert!(String::from_utf8_lossy(&made.stderr).contains("there is no /nonexistent/plugd"));
    assert_eq!(files(root.path()), [""; 0].map(PathBuf::from));
}

#[test]
fn a_debian_package() {
    if !["make", "dpkg-deb", "dpkg", "readelf"].iter().all(|tool| have("a Debian package", tool)) {
        return;
    }
    ns::inside(|| {
        let place = tempfile::tempdir().unwrap();
        // It is made if it is not there, as target/ in a fresh clone.
        let directory = place.path().join("target");
        run("contrib/debian/build", &[BINARY, directory.to_str().unwrap()]);
        let package = fs::read_dir(directory).unwrap().next().unwrap().unwrap().path();
        let package = package.to_str().unwrap();
        assert!(package.contains(concat!("/plugd_", env!("CARGO_PKG_VERSION"), "_")), "{package}");
        // A machine on which nothing is installed yet.
        let root = place.path().join("root");
        fs::create_dir_all(root.join("var/lib/dpkg/info")).unwrap();
        fs::create_dir_all(root.join("var/lib/dpkg/updates")).unwrap();
        fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
        let root_option = format!("--root={}", root.display());
        let dpkg = |args: &[&str]| {
            run("dpkg", &[&[&*root_option, "--force-depends", "--force-not-root"], args].concat())
        };
        dpkg(&["--install", package]);
        names_work(&root.join("usr/sbin"), &NAMES[..5]);
        contrib_is_there(&root.join("usr/share/plugd"));
        let listed = dpkg(&["--listfiles", "plugd"]);
        assert!(listed.contains("/usr/share/man/man8/plugd.8.gz"), "{listed}");
        assert!(!listed.contains("mdevd"), "{listed}");
        dpkg(&["--purge", "plugd"]);
        assert!(!root.join("usr").exists());
    });
}

/// abuild is not to be had but on Alpine: this is the part of it that matters. Its
/// amove takes names only, no patterns, and fails for what is not there.
#[test]
fn an_alpine_package() {
    if !have("an Alpine package", "make") {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let (package, names) = (root.path().join("plugd"), root.path().join("plugd-mdevd"));
    let script = r#"set -eu
        CTARGET=a-target
        . contrib/alpine/APKBUILD
        for name in pkgrel pkgdesc url arch license makedepends source; do
            eval ": \"\${$name:?}\""
        done
        echo "$pkgver"
        default_prepare() { :; }
        cargo() { echo "cargo $*"; }
        prepare
        build
        make() { command make -s BINARY="$BINARY" "$@"; }
        pkgdir=$PACKAGE
        package
        cd "$PACKAGE"
        amove() {
            for file; do mkdir -p "$MDEVD/${file%/*}"; mv "$file" "$MDEVD/$file"; done
        }
        _mdevd"#;
    let made = Command::new("sh")
        .args(["-c", script])
        .current_dir(SOURCE)
        .envs([("BINARY", Path::new(BINARY)), ("PACKAGE", &package), ("MDEVD", &names)])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let version = env!("CARGO_PKG_VERSION");
    let told = format!(
        "{version}\ncargo fetch --target=a-target --locked\ncargo build --frozen --release\n"
    );
    assert_eq!(String::from_utf8_lossy(&made.stdout), told);
    names_work(&package.join("usr/sbin"), &NAMES[..5]);
    contrib_is_there(&package.join("usr/share/plugd"));
    let mut own: Vec<PathBuf> = files(&names);
    own.sort();
    let expected = ["", "-coldplug", "-netlink"].map(|name| format!("usr/sbin/mdevd{name}"));
    assert_eq!(own, expected.map(PathBuf::from));
    let script = fs::read(package.join("etc/init.d/plugd")).unwrap();
    assert!(script.starts_with(b"#!/sbin/openrc-run\n"));
    assert!(package.join("etc/conf.d/plugd").exists());
}
