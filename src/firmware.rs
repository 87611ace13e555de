//! Gives the kernel the firmware that a driver asks for.
//!
//! Where the kernel does not find a file by itself, it can ask for it with an
//! `add` event with FIRMWARE=name, and gives the device the files `loading`
//! and `data` (Documentation/driver-api/firmware/fallback-mechanisms.rst).
//! Until it is answered the driver waits, for 60 s by default; so it is
//! answered at once, whatever happens. Owns nothing.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat, open, openat};
use rustix::io::{Errno, read, retry_on_intr, write};

use crate::beneath::{BadName, Beneath, Why, check, strip_root};
use crate::error::reason;

/// How much is copied at a time, in bytes.
const CHUNK: usize = 16 * 1024;

/// Why the kernel did not get its firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// What went wrong.
    pub cause: Cause,
    /// Why the kernel could not be told, if so; then it waits.
    pub untold: Option<Why>,
}

/// What went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The name of the firmware is refused.
    BadName(BadName),
    /// The file cannot be read, or is no regular file (`EINVAL`).
    File(Errno),
    /// The device does not take it.
    Device(Why),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            Cause::BadName(name) => write!(f, "firmware refused: {name}")?,
            Cause::File(error) => write!(f, "cannot read firmware: {}", reason(&error.into()))?,
            Cause::Device(why) => write!(f, "cannot load firmware: {why}")?,
        }
        match self.untold {
            None => Ok(()),
            Some(why) => write!(f, "; the kernel cannot be told: {why}"),
        }
    }
}

impl std::error::Error for Failed {}

/// Copies the firmware `name` below the directory `base` to the device at
/// `devpath` in the sysfs `sys`, or tells the kernel that there is none. Returns how many bytes
/// it has.
///
/// `base` is opened now, as it may not have been mounted before. Links in it
/// are followed, wherever they lead: they are the administrator's, and the
/// kernel itself follows them; only the name came with the event.
///
/// # Errors
/// Says what went wrong; the kernel was told then, or [`Failed::untold`] says why not.
pub fn load(sys: &Beneath, devpath: &[u8], base: &Path, name: &[u8]) -> Result<usize, Failed> {
    let device = match Device::open(sys, devpath) {
        Ok(device) => device,
        Err(why) => return Err(Failed { cause: Cause::Device(why), untold: Some(why) }),
    };
    device.load(base, name).map_err(|cause| {
        let untold = device.say(b"-1").err().map(Why::from);
        Failed { cause, untold }
    })
}

/// A device that waits for its firmware.
struct Device<'a> {
    sys: &'a Beneath,
    directory: &'a [u8],
    loading: OwnedFd,
}

impl<'a> Device<'a> {
    fn open(sys: &'a Beneath, devpath: &'a [u8]) -> Result<Self, Why> {
        let directory = strip_root(devpath)?;
        let loading = sys.open(&[directory, b"/loading"].concat(), OFlags::WRONLY)?;
        Ok(Self { sys, directory, loading })
    }

    fn say(&self, what: &[u8]) -> Result<(), Errno> {
        retry_on_intr(|| write(&self.loading, what)).map(drop)
    }

    fn load(&self, base: &Path, name: &[u8]) -> Result<usize, Cause> {
        check(name).map_err(Cause::BadName)?;
        let file = open_file(base, name).map_err(Cause::File)?;
        let device = |error: Errno| Cause::Device(error.into());
        self.say(b"1").map_err(device)?;
        let data = [self.directory, b"/data"].concat();
        let data = self.sys.open(&data, OFlags::WRONLY).map_err(device)?;
        let mut buffer = [0; CHUNK];
        let mut size = 0;
        loop {
            let count = retry_on_intr(|| read(&file, &mut buffer)).map_err(Cause::File)?;
            let mut rest = &buffer[..count];
            if rest.is_empty() {
                break;
            }
            while !rest.is_empty() {
                // The kernel takes a page at a time.
                match retry_on_intr(|| write(&data, rest)).map_err(device)? {
                    0 => return Err(device(Errno::IO)),
                    written => rest = &rest[written..],
                }
            }
            size += count;
        }
        self.say(b"0").map_err(device)?;
        Ok(size)
    }
}

/// Does not wait, whatever kind of file it is.
fn open_file(base: &Path, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CLOEXEC | OFlags::NONBLOCK;
    let base = open(base, flags | OFlags::DIRECTORY | OFlags::PATH, Mode::empty())?;
    let file = openat(base, name, flags | OFlags::RDONLY | OFlags::NOCTTY, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::{CWD, mknodat};
    use tempfile::TempDir;

    const DEVPATH: &[u8] = b"/devices/virtual/firmware/fw!x";

    struct World {
        tmp: TempDir,
        sys: Beneath,
    }

    impl World {
        fn new() -> Self {
            let tmp = tempfile::tempdir().unwrap();
            let sys = tmp.path().join("sys");
            let device = sys.join("devices/virtual/firmware/fw!x");
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("loading"), "").unwrap();
            fs::write(device.join("data"), "").unwrap();
            fs::create_dir_all(tmp.path().join("fw/vendor")).unwrap();
            fs::write(tmp.path().join("secret"), "secret").unwrap();
            let sys = Beneath::open_root(&sys).unwrap();
            Self { tmp, sys }
        }

        fn load(&self, name: &[u8]) -> Result<usize, Failed> {
            load(&self.sys, DEVPATH, &self.tmp.path().join("fw"), name)
        }

        fn file(&self, name: &str) -> std::path::PathBuf {
            self.tmp.path().join("fw").join(name)
        }

        /// What was written to `loading`, one after the other, and to `data`.
        fn told(&self) -> (String, Vec<u8>) {
            let device = self.tmp.path().join("sys/devices/virtual/firmware/fw!x");
            let read = |name| fs::read(device.join(name)).unwrap();
            (String::from_utf8(read("loading")).unwrap(), read("data"))
        }

        #[track_caller]
        fn assert_refused(&self, name: &[u8], cause: Cause) {
            let failed = Failed { cause, untold: None };
            assert_eq!(self.load(name), Err(failed), "{}", name.escape_ascii());
            assert_eq!(self.told(), ("-1".into(), Vec::new()));
        }
    }

    #[test]
    fn firmware_is_copied_between_1_and_0() {
        for size in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 7] {
            let world = World::new();
            let firmware: Vec<u8> = (0..=250).cycle().take(size).collect();
            fs::write(world.file("vendor/chip.bin"), &firmware).unwrap();
            assert_eq!(world.load(b"vendor/chip.bin"), Ok(size));
            assert_eq!(world.told(), ("10".into(), firmware));
        }
    }

    #[test]
    fn links_of_the_administrator_are_followed() {
        let world = World::new();
        fs::write(world.file("real"), "x").unwrap();
        symlink(world.file("real"), world.file("link")).unwrap();
        assert_eq!(world.load(b"link"), Ok(1));
        assert_eq!(world.told(), ("10".into(), b"x".to_vec()));
    }

    #[test]
    fn a_missing_file_is_told_at_once() {
        World::new().assert_refused(b"none", Cause::File(Errno::NOENT));
        let world = World::new();
        fs::remove_dir_all(world.file("")).unwrap();
        world.assert_refused(b"none", Cause::File(Errno::NOENT));
    }

    #[test]
    fn what_is_no_regular_file_is_not_waited_for() {
        let world = World::new();
        let mode = Mode::from_raw_mode(0o600);
        mknodat(CWD, world.file("fifo"), FileType::Fifo, mode, 0).unwrap();
        world.assert_refused(b"fifo", Cause::File(Errno::INVAL));
        World::new().assert_refused(b"vendor", Cause::File(Errno::INVAL));
    }

    #[test]
    fn bad_names_are_refused() {
        for (name, why) in [
            (&b"../secret"[..], BadName::DotDot),
            (b"vendor/../../secret", BadName::DotDot),
            (b"/etc/passwd", BadName::Absolute),
            (b"", BadName::Empty),
            (b"./vendor", BadName::Dot),
            (b"a\0b", BadName::Nul),
        ] {
            World::new().assert_refused(name, Cause::BadName(why));
        }
    }

    #[test]
    fn a_file_that_may_not_be_read_is_missing_too() {
        let world = World::new();
        fs::write(world.file("mine"), "x").unwrap();
        fs::set_permissions(world.file("mine"), fs::Permissions::from_mode(0o0)).unwrap();
        if rustix::process::geteuid().is_root() {
            assert_eq!(world.load(b"mine"), Ok(1));
        } else {
            world.assert_refused(b"mine", Cause::File(Errno::ACCESS));
        }
    }

    #[test]
    fn a_device_without_data_gets_a_refusal() {
        let world = World::new();
        fs::write(world.file("fw"), "x").unwrap();
        fs::remove_file(world.tmp.path().join("sys/devices/virtual/firmware/fw!x/data")).unwrap();
        let failed = Failed { cause: Cause::Device(Errno::NOENT.into()), untold: None };
        assert_eq!(world.load(b"fw"), Err(failed));
        let loading = world.tmp.path().join("sys/devices/virtual/firmware/fw!x/loading");
        assert_eq!(fs::read_to_string(loading).unwrap(), "1-1");
    }

    #[test]
    fn a_device_that_is_gone_or_outside_cannot_be_told() {
        let world = World::new();
        let base = world.file("");
        let gone = load(&world.sys, b"/devices/gone", &base, b"x").unwrap_err();
        assert_eq!(gone.cause, Cause::Device(Errno::NOENT.into()));
        assert!(gone.untold.is_some());
        assert_eq!(
            gone.to_string(),
            "cannot load firmware: No such file or directory; \
             the kernel cannot be told: No such file or directory"
        );
        let outside = load(&world.sys, b"/../fw", &base, b"x").unwrap_err();
        assert_eq!(outside.cause, Cause::Device(BadName::DotDot.into()));
    }
}
