//! What a daemon does about the devices that are there already and those that it
//! missed, as the command line says; and the file in which it keeps what it knows.

use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf, absolute};

use crate::control::Address;
use crate::error::{Fatal, reason};
use crate::handover::Handover;
use crate::inventory::{self, Inventory, Trust, Unusable, World};
use crate::r#loop::{Settings, Start};
use crate::recovery::{Cause, Changes};
use crate::state_file::{self, StateFile, Store};
use crate::sys;

/// The directory of state files that nobody chose.
const DIRECTORY: &str = "/run/plugd";

/// What their names end in.
const SUFFIX: &str = ".state";

/// No name of a file is longer, in bytes (limits.h).
const NAME_MAX: usize = 255;

/// What [`Changes::parse`] reads.
pub(super) const CHANGES: &str = "yes, no, or names of subsystems with commas between them";

/// How the devices that are there at the start are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coldplug {
    /// By reading /sys.
    Scan,
    /// By asking the kernel to tell of them.
    Kernel,
}

/// Where a daemon keeps what it knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// In a file below /run, if there is a coldplug.
    Default,
    /// In no file.
    None,
    /// Here. What it tells is compared at the start.
    File(PathBuf),
}

/// What the command line says of it.
#[derive(Debug)]
pub(super) struct RecoveryOptions {
    pub(super) coldplug: Option<Coldplug>,
    pub(super) state: State,
    pub(super) changes: Changes,
}

impl Default for RecoveryOptions {
    fn default() -> Self {
        Self { coldplug: None, state: State::Default, changes: Changes::All }
    }
}

impl RecoveryOptions {
    /// Opens the state file, or takes over what the plugd before this one knew,
    /// and decides what to do at the start. `actor` is what acts on devices. What
    /// fails is told, and the daemon does without.
    ///
    /// # Errors
    /// Those of getcwd(2).
    pub(super) fn settings(
        &self,
        sys: &Path,
        control: Option<&Address>,
        actor: &[u8],
        judges: bool,
        dry_run: bool,
        handover: Option<&Handover>,
    ) -> Result<Settings, Fatal> {
        let world = World { boot: state_file::boot(), engine: inventory::hash(actor) };
        let fresh = |coldplug| match coldplug {
            None => Start::Nothing,
            Some(Coldplug::Scan) => Start::Scan(Cause::Coldplug),
            Some(Coldplug::Kernel) => Start::Trigger,
        };
        let (store, known) = match handover {
            Some(handover) => (taken_over(handover), true),
            None => (self.open(control).map(Store::File), false),
        };
        // What a state file does not tell has to be found.
        let has_scanned = handover.is_some_and(|handover| handover.trust != Trust::Unscanned);
        let coldplug = match self.state {
            State::Default | State::None if !has_scanned => self.coldplug,
            _ => Some(self.coldplug.unwrap_or(Coldplug::Scan)),
        };
        let loaded = store.map(|store| Inventory::load(store, world));
        let (inventory, start) = match loaded {
            None => (Inventory::new(Store::Memory(Vec::new()), world), fresh(coldplug)),
            Some(Ok(inventory)) if known => (inventory, Start::Resume),
            Some(Ok(inventory)) => {
                log::info!("{} devices are known from before", inventory.len());
                (inventory, Start::Scan(Cause::Restart))
            }
            Some(Err((why, store))) => {
                if !matches!(why, Unusable::Empty) {
                    log::warn!("what is known of devices is not used: {why}");
                }
                // What somebody has really done is not for a dry run to forget.
                let keeps = dry_run && matches!(why, Unusable::Engine);
                let store = if keeps { Store::Memory(Vec::new()) } else { store };
                (Inventory::new(store, world), fresh(coldplug))
            }
        };
        let sys = absolute(sys).map_err(|e| Fatal::system("find the working directory", e))?;
        Ok(Settings { sys, inventory, start, changes: self.changes.clone(), judges })
    }

    /// Opens the state file, if there is to be one.
    fn open(&self, control: Option<&Address>) -> Option<StateFile> {
        let path = match (&self.state, self.coldplug) {
            (State::None, _) | (State::Default, None) => return None,
            (State::File(path), _) => path.clone(),
            (State::Default, Some(_)) => {
                let path = default_path(control);
                state_file::make_directory(&path);
                path
            }
        };
        let shown = path.as_os_str().as_bytes().escape_ascii();
        match StateFile::open(&path) {
            Ok(file) => Some(file),
            Err(error) => {
                log::warn!(
                    "no state is kept in {shown}: {}; after a restart all devices are acted on",
                    reason(&error)
                );
                None
            }
        }
    }
}

/// A file for each daemon, as it has a control socket of its own. A path, which begins
/// with `/`, has `!` for each of them, as sysfs has in names; an abstract name has none.
/// What is too long for the name of a file when it is written so that it can be read is in
/// hexadecimal digits, which always fit, after what the other way never begins with.
fn default_path(control: Option<&Address>) -> PathBuf {
    let (name, kind, slash) = match control {
        None => (b"plugd".to_vec(), "\\a", "\\x2f"),
        Some(Address::Abstract(name)) => (name.clone(), "\\a", "\\x2f"),
        Some(Address::Path(path)) => {
            let path = absolute(path).unwrap_or_else(|_| path.clone());
            (path.into_os_string().into_vec(), "\\p", "!")
        }
    };
    let text: String = name.escape_ascii().map(char::from).collect();
    let mut text = text.replace('!', "\\x21").replace('/', slash);
    if text.len() + SUFFIX.len() > NAME_MAX {
        text = name.iter().fold(kind.to_owned(), |text, byte| format!("{text}{byte:02x}"));
    }
    Path::new(DIRECTORY).join(text + SUFFIX)
}

/// What the plugd before this one knew.
fn taken_over(handover: &Handover) -> Option<Store> {
    let read = |fd| -> io::Result<Store> {
        let mut file = std::fs::File::from(sys::adopt(fd)?);
        let mut bytes = Vec::new();
        io::Seek::rewind(&mut file)?;
        io::Read::read_to_end(&mut file, &mut bytes)?;
        Ok(Store::Memory(bytes))
    };
    let store = match (handover.state_file, handover.inventory) {
        (Some(fd), _) => sys::adopt(fd).and_then(StateFile::adopt).map(Store::File),
        (None, Some(fd)) => read(fd),
        (None, None) => return None,
    };
    store.map_err(|e| log::warn!("what is known of devices is lost: {}", reason(&e))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_control_sockets_have_the_same_file() {
        let name = |control: &str| {
            let path = default_path(Address::parse(control.as_ref()).as_ref());
            let name = path.strip_prefix("/run/plugd").unwrap();
            assert_eq!(name.components().count(), 1, "{name:?}");
            name.to_str().unwrap().to_owned()
        };
        assert_eq!(name("@plugd"), "plugd.state");
        assert_eq!(name("/run/a/ctl"), "!run!a!ctl.state");
        let controls = [
            "/run/a/ctl",
            "/run/b/ctl",
            "/run/a!ctl",
            "/run/a-ctl",
            "@/run/a/ctl",
            "@!run!a!ctl",
            "@a/b",
            "@a-b",
            "@a!b",
            "@ctl",
            "ctl",
            "@a\\x2fb",
            "@a\nb",
        ];
        // As long as they can be, and so long that it just fits, or just does not.
        let long = ["é", "ß", "\n"].map(|c| c.repeat(107 / c.len()));
        let long = long.iter().flat_map(|name| [format!("@{name}"), format!("/{name}")]);
        let long = long.map(|control| control.chars().take(107).collect::<String>());
        let long = long.chain((60..=64).map(|count| format!("@{}", "\x01".repeat(count))));
        let controls: Vec<String> =
            controls.into_iter().map(ToOwned::to_owned).chain(long).collect();
        let names = controls.iter().map(|control| name(control));
        let names: std::collections::HashSet<_> = names.collect();
        assert_eq!(names.len(), controls.len(), "{names:?}");
        assert!(names.iter().all(|name| name.len() <= NAME_MAX), "{names:?}");
        assert!(names.contains(&format!("{}.state", "\\x01".repeat(62))));
        assert!(names.contains(&format!("\\a{}.state", "01".repeat(63))));
    }
}
