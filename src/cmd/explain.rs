//! `plugd explain`: what the rules make of a device.

use std::ffi::OsStr;
use std::fs::canonicalize;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use lexopt::Arg::{Long, Short, Value};

use crate::error::Fatal;
use crate::logging;
use crate::rules::Engine;
use crate::rules::explain::Verdict;
use crate::sysfs::Sysfs;
use crate::uevent::{Header, Uevent};

use super::rules::{self, Files};
use super::{Command, Request, quoted};

pub(super) const COMMAND: Command = Command {
    name: "explain",
    alias: None,
    peer: false,
    summary: "Tells which rules match a device, why the others do not, and what would be done.",
    usage: "plugd explain [OPTIONS] DEVPATH|DEVNAME",
    help: HELP,
    main,
};

const HELP: &str = "\
The device is named by its path in sysfs, as events have it (DEVPATH) or with
/sys before it, links included; or by its name (DEVNAME), with or without /dev
before it; or if it has no name in /dev, by the last part of its path. If there
are more of that name, all are explained. Nothing is done.

Options:
      --action ACTION  for this event [add]
      --conf FILE      the rules; FILE.d/*.conf come after them [/etc/mdev.conf]
      --sys DIR        where sysfs is [/sys]
  -h, --help           print this
  -V, --version        print the version

Exit codes: 0 done, 2 there is a mistake in the rules, 100 wrong usage, 111 there
is no such device, or a system call failed.

Examples:
      plugd explain sda
      plugd explain --action remove /dev/bus/usb/001/002
      plugd explain /sys/class/net/eth0
";

fn main(mut parser: lexopt::Parser, log_name: &'static str) -> Result<Request, Fatal> {
    let (mut files, mut action, mut device) = (Files::default(), "add".to_owned(), None);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("action") => {
                action = super::options::value(&mut parser, "--action", "a word", |text| {
                    let is_word =
                        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric());
                    is_word.then(|| text.to_owned())
                })?;
            }
            Long("conf") => files.conf = parser.value()?.into(),
            Long("sys") => files.sys = parser.value()?.into(),
            Short('h') | Long("help") => return Ok(Request::Help),
            Short('V') | Long("version") => return Ok(Request::Version),
            Value(operand) if device.is_none() => device = Some(operand),
            argument => return Err(argument.unexpected().into()),
        }
    }
    let device = device.ok_or_else(|| Fatal::Usage("the device is missing".into()))?;
    logging::start(log_name, -1);
    let mut engine = rules::read(&files, false)?;
    let mut sysfs = rules::open_sysfs(&files.sys)?;
    let wanted = Wanted::new(&device, &files.sys);
    let events = wanted.find(&sysfs)?;
    if events.is_empty() {
        let cannot = format_args!("find device {}", quoted(&device)).to_string();
        return Err(Fatal::system(cannot, rustix::io::Errno::NODEV));
    }
    let mut text = Vec::new();
    for event in events {
        let event = with_action(&event, action.as_bytes());
        explain(&event, &mut engine, &mut sysfs, &mut text)
            .map_err(|e| Fatal::system("explain", e))?;
    }
    io::stdout().write_all(&text).map_err(|e| Fatal::system("print", e))?;
    Ok(Request::Done)
}

/// What device is meant.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Path(Vec<u8>),
    Name(Vec<u8>),
}

impl Wanted {
    /// What `text` names; `sys` is where sysfs is.
    fn new(text: &OsStr, sys: &Path) -> Self {
        let bytes = text.as_bytes();
        if let Some(name) = bytes.strip_prefix(b"/dev/") {
            return Self::Name(name.to_vec());
        }
        match bytes.first() {
            Some(b'/') => Self::Path(below(Path::new(text), sys).unwrap_or(bytes.to_vec())),
            _ => Self::Name(bytes.to_vec()),
        }
    }

    /// The `add` events of all devices that are meant.
    fn find(&self, sysfs: &Sysfs) -> Result<Vec<Vec<u8>>, Fatal> {
        let mut scan = sysfs.scan()?;
        let mut found = Vec::new();
        while let Some(device) = scan.next() {
            let Ok(bytes) = device else { continue };
            let Ok(event) = Uevent::parse(bytes, Header::Required) else { continue };
            let value = |key: &[u8]| event.last(key).map(|value| value.to_bytes());
            let devpath = value(b"DEVPATH").unwrap_or_default();
            let is_meant = match self {
                Self::Path(path) => path == devpath,
                Self::Name(name) => {
                    let last = devpath.rsplit(|&b| b == b'/').next();
                    value(b"DEVNAME").or(last) == Some(&name[..])
                }
            };
            if is_meant {
                found.push(bytes.to_vec());
            }
        }
        Ok(found)
    }
}

/// The path of a device that is below `sys`, as events have it.
fn below(path: &Path, sys: &Path) -> Option<Vec<u8>> {
    let path = canonicalize(path).ok()?;
    let rest = path.strip_prefix(canonicalize(sys).ok()?).ok()?;
    Some([b"/", rest.as_os_str().as_bytes()].concat())
}

/// An `add` event of a scan as another action's.
fn with_action(event: &[u8], action: &[u8]) -> Vec<u8> {
    const FIELD: &[u8] = b"\0ACTION=add\0";
    let field = event.windows(FIELD.len()).position(|bytes| bytes == FIELD).unwrap_or_default();
    let path = &event[b"add".len()..field];
    let rest = &event[field + FIELD.len() - 1..];
    [action, path, b"\0ACTION=", action, rest].concat()
}

fn explain(
    bytes: &[u8],
    engine: &mut Engine,
    sysfs: &mut Sysfs,
    text: &mut Vec<u8>,
) -> io::Result<()> {
    let Ok(event) = Uevent::parse(bytes, Header::Required) else { return Ok(()) };
    writeln!(text, "event:")?;
    for field in event.fields() {
        writeln!(text, "  {}", field.whole().to_bytes().escape_ascii())?;
    }
    writeln!(text, "rules:")?;
    for Verdict { rule, reason } in engine.explain(&event, sysfs) {
        writeln!(text, "  {}: {}", rule.origin, rule.origin.text.escape_ascii())?;
        writeln!(text, "      {reason}")?;
    }
    writeln!(text, "what is done:")?;
    let plan = engine.plan(&event, sysfs);
    if plan.is_empty() {
        writeln!(text, "  nothing")?;
    }
    plan.steps().try_for_each(|step| writeln!(text, "  {step}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_action() {
        let add = b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0A=add\0";
        let remove = b"remove@/devices/x\0ACTION=remove\0DEVPATH=/devices/x\0A=add\0";
        assert_eq!(with_action(add, b"remove"), remove);
    }

    #[test]
    fn devices_are_named_in_any_way() {
        let directory = tempfile::tempdir().unwrap();
        let sys = directory.path().join("sys");
        std::fs::create_dir_all(sys.join("devices/a/b")).unwrap();
        std::fs::create_dir_all(sys.join("class/c")).unwrap();
        std::os::unix::fs::symlink("../../devices/a/b", sys.join("class/c/b")).unwrap();
        let wanted = |text: &OsStr| Wanted::new(text, &sys);
        let path = Wanted::Path(b"/devices/a/b".to_vec());
        assert_eq!(wanted("/devices/a/b".as_ref()), path);
        assert_eq!(wanted(sys.join("class/c/b").as_ref()), path);
        assert_eq!(wanted("/dev/input/x".as_ref()), Wanted::Name(b"input/x".to_vec()));
        assert_eq!(wanted("input/x".as_ref()), Wanted::Name(b"input/x".to_vec()));
    }
}
