//! What the commands that act by rules have in common: where files are, and
//! the engine made from them.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf, absolute};

use crate::account::Accounts;
use crate::child;
use crate::devnode::{DevRoot, device_of};
use crate::engine::{Engine, Hands, Ruled};
use crate::environment::{Base, DEFAULT_PATH};
use crate::error::Fatal;
use crate::handover::Handover;
use crate::r#loop;
use crate::rule_files;
use crate::rules::parse::{self, Source};
use crate::rules::rule::Rule;
use crate::rules::{self, Settings};
use crate::sysfs::Sysfs;

/// Where the files are that rules are read from, look at and act on.
#[derive(Debug, Clone)]
pub(super) struct Files {
    /// The rules; `.d` after it is the directory of more.
    pub(super) conf: PathBuf,
    pub(super) dev: PathBuf,
    pub(super) sys: PathBuf,
    pub(super) firmware: PathBuf,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            conf: rule_files::DEFAULT.into(),
            dev: "/dev".into(),
            sys: "/sys".into(),
            firmware: "/lib/firmware".into(),
        }
    }
}

impl Files {
    /// Whether they are the same from any working directory.
    pub(super) fn are_absolute(&self) -> bool {
        let Self { conf, dev, sys, firmware } = self;
        [conf, dev, sys, firmware].into_iter().all(|path| path.is_absolute())
    }

    /// The same files, for another working directory.
    ///
    /// # Errors
    /// Those of getcwd(2).
    pub(super) fn absolute(&self) -> io::Result<Self> {
        Ok(Self {
            conf: absolute(&self.conf)?,
            dev: absolute(&self.dev)?,
            sys: absolute(&self.sys)?,
            firmware: absolute(&self.firmware)?,
        })
    }
}

/// Reads the rules and opens the roots. With no file of rules, nodes are made
/// as root's with mode 0660, and nothing else is done, unless the plugd before
/// this one, which left `handover`, had files. The files have to be absolute, as the
/// rules are read again from another working directory.
pub(super) fn engine(
    files: &Files,
    dry_run: bool,
    clean_environment: bool,
    handover: Option<&Handover>,
) -> Result<Engine, Fatal> {
    let sysfs = open_sysfs(&files.sys)?;
    let had_files = handover.is_some_and(|handover| handover.rules_of_files.is_some());
    let (rules, has_files) = match (read_anew(files, clean_environment, had_files), handover) {
        // It is late to go back, and there are events to be acted on.
        (Err(error), Some(handover)) if !r#loop::is_rehearsal() => {
            error.to_string().lines().for_each(|line| log::error!("{line}"));
            log::error!("the rules of the plugd before this one stay in force");
            let found = handover.rules_of_files.as_deref().map(parse_again).transpose()?;
            (make(found, files, clean_environment)?, had_files)
        }
        (result, _) => result?,
    };
    let files = files.clone();
    let hands = if dry_run {
        Hands::DryRun
    } else {
        let dev = DevRoot::open(&files.dev).map_err(|e| cannot_open(&files.dev, e))?;
        let sys = open_sysfs(&files.sys)?;
        Hands::Files { dev, sys, firmware: files.firmware.clone() }
    };
    let reload = move |had_files: bool| {
        read_anew(&files, clean_environment, had_files).map_err(|fatal| fatal.to_string())
    };
    let reload = Box::new(reload);
    Ok(Engine::Rules(Box::new(Ruled { rules, has_files, reload, sysfs, hands })))
}

/// Reads the rules, and tells whether there are files of them; it is a mistake if
/// there are none any more.
fn read_anew(
    files: &Files,
    clean_environment: bool,
    had_files: bool,
) -> Result<(rules::Engine, bool), Fatal> {
    let found = load(&files.conf)?;
    let has_files = found.is_some();
    if had_files && !has_files {
        return Err(Fatal::Configuration(are_gone(&files.conf)));
    }
    Ok((make(found, files, clean_environment)?, has_files))
}

/// Takes rules that were in force.
fn parse_again(files: &[(String, Vec<u8>)]) -> Result<Vec<Rule>, Fatal> {
    let sources: Vec<_> = files.iter().map(|(name, text)| Source { name, text }).collect();
    let rules = parse::parse(&sources, &accounts()?);
    rules.map_err(|mistakes| rule_files::Error { unread: Vec::new(), mistakes }.into())
}

/// The users and groups of this machine.
fn accounts() -> Result<Accounts, Fatal> {
    Accounts::load(Path::new("/etc/passwd"), Path::new("/etc/group"))
        .map_err(|e| Fatal::system("read /etc/passwd and /etc/group", e))
}

/// Somebody replaces it just now, or the file system is gone that it was on.
fn are_gone(conf: &Path) -> String {
    format!("there is no {} any more", shown(conf))
}

/// Opens a sysfs.
pub(super) fn open_sysfs(path: &Path) -> Result<Sysfs, Fatal> {
    Sysfs::open(path).map_err(|e| cannot_open(path, e))
}

fn cannot_open(path: &Path, error: impl Into<std::io::Error>) -> Fatal {
    Fatal::system(format_args!("open {}", shown(path)), error)
}

fn shown(path: &Path) -> impl fmt::Display {
    path.as_os_str().as_encoded_bytes().escape_ascii()
}

/// Reads the rules.
pub(super) fn read(files: &Files, clean_environment: bool) -> Result<rules::Engine, Fatal> {
    make(load(&files.conf)?, files, clean_environment)
}

/// Reads the files of rules, if there are any, and warns of what is right in them
/// and likely not meant so.
pub(super) fn load(conf: &Path) -> Result<Option<Vec<Rule>>, Fatal> {
    let mut doubts = Vec::new();
    let found = rule_files::load(conf, &accounts()?, &mut doubts)?;
    for doubt in doubts {
        doubt.to_string().lines().for_each(|line| log::warn!("{line}"));
    }
    Ok(found)
}

/// Makes an engine of the rules that were found.
fn make(
    found: Option<Vec<Rule>>,
    files: &Files,
    clean_environment: bool,
) -> Result<rules::Engine, Fatal> {
    if found.is_none() {
        let path = shown(&files.conf);
        log::warn!("there is no {path}: nodes are made as root's with mode 0660, nothing else");
    }
    let path = std::env::var_os("PATH");
    let path = path.as_deref().unwrap_or(OsStr::new(DEFAULT_PATH));
    // Its commands run in another working directory.
    let execlineb = child::find_program(OsStr::new("execlineb"), path);
    let execlineb = execlineb.and_then(|path| child::absolute(&path)).ok();
    let mut settings = Settings::new(environment(clean_environment), execlineb);
    let shell = &mut settings.shell;
    shell.was_found = child::find_program(OsStr::from_bytes(shell.path.to_bytes()), path).is_ok();
    settings.root_device = device_of(Path::new("/")).unwrap_or_default();
    rules::Engine::new(found.unwrap_or_default(), settings)
        .map_err(|too_large| Fatal::Configuration(too_large.to_string()))
}

/// The environment that an event's variables come over.
pub(super) fn environment(clean: bool) -> Base {
    if clean { Base::new([]) } else { Base::new(std::env::vars_os()) }
}
