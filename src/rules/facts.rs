//! What an event says, or sysfs where it does not, that rules and plans are about.

use std::ffi::CStr;

use super::Sysfs;
use crate::account::number;
use crate::plan::{Device, Kind};
use crate::uevent::{Field, Uevent, device_name};

/// What happened to the device, as far as nodes are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Action {
    Add,
    Remove,
    #[default]
    Other,
}

/// What an event says that rules and plans are about.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) action: Action,
    pub(super) kind: Kind,
    /// Of `add` and `remove` only: rules for numbers match no other.
    pub(super) device: Option<Device>,
    pub(super) name: Vec<u8>,
    pub(super) wants_firmware: bool,
    /// A file of sysfs.
    file: Vec<u8>,
}

impl Default for Facts {
    fn default() -> Self {
        let (action, device, name, wants_firmware, file) = Default::default();
        Self { action, kind: Kind::Character, device, name, wants_firmware, file }
    }
}

impl Facts {
    /// Reads the event; each of its fields is also shown to `see`. `false` if
    /// there is nothing to do for it.
    pub(super) fn learn<'e>(
        &mut self,
        event: &Uevent<'e>,
        sysfs: &mut impl Sysfs,
        mut see: impl FnMut(Field<'e>),
    ) -> bool {
        // Of equal keys the first counts.
        let [mut action, mut devpath, mut subsystem, mut name, mut firmware] = [None; 5];
        let [mut major, mut minor] = [None; 2];
        for field in event.fields() {
            let slot = match field.key() {
                b"ACTION" => Some(&mut action),
                b"DEVPATH" => Some(&mut devpath),
                b"SUBSYSTEM" => Some(&mut subsystem),
                b"DEVNAME" => Some(&mut name),
                b"FIRMWARE" => Some(&mut firmware),
                b"MAJOR" => Some(&mut major),
                b"MINOR" => Some(&mut minor),
                _ => None,
            };
            if let Some(slot) = slot {
                slot.get_or_insert_with(|| field.value());
            }
            see(field);
        }
        let (Some(action), Some(devpath)) = (action, devpath) else { return false };
        self.action = match action.to_bytes() {
            b"add" => Action::Add,
            b"remove" => Action::Remove,
            _ => Action::Other,
        };
        self.wants_firmware = firmware.is_some();
        if self.action != Action::Add && self.wants_firmware {
            return false;
        }
        self.device = match self.action {
            Action::Other => None,
            Action::Remove => device(major, minor),
            Action::Add => device(major, minor).or_else(|| self.look_up_device(devpath, sysfs)),
        };
        // As its peers have it: any subsystem that begins so is one of blocks.
        let is_block = self.device.is_some()
            && (subsystem.is_some_and(|s| s.to_bytes().starts_with(b"block"))
                || devpath.to_bytes().windows(7).any(|part| part == b"/block/"));
        self.kind = if is_block { Kind::Block } else { Kind::Character };
        self.name.clear();
        match name {
            Some(name) => self.name.extend_from_slice(name.to_bytes()),
            None => self.look_up_name(devpath, sysfs),
        }
        true
    }

    fn look_up_device(&mut self, devpath: &CStr, sysfs: &mut impl Sysfs) -> Option<Device> {
        self.file.clear();
        sysfs.read(devpath, "dev", &mut self.file);
        let line = self.file.strip_suffix(b"\n")?;
        let colon = line.iter().position(|&b| b == b':')?;
        numbers(&line[..colon], &line[colon + 1..])
    }

    fn look_up_name(&mut self, devpath: &CStr, sysfs: &mut impl Sysfs) {
        self.file.clear();
        sysfs.read(devpath, "uevent", &mut self.file);
        let name = device_name(&self.file);
        let last = || devpath.to_bytes().split(|&b| b == b'/').rfind(|part| !part.is_empty());
        self.name.extend_from_slice(name.or_else(last).unwrap_or_default());
    }
}

fn device(major: Option<&CStr>, minor: Option<&CStr>) -> Option<Device> {
    numbers(major?.to_bytes(), minor?.to_bytes())
}

/// Linux has 12 bits for the major number and 20 for the minor.
fn numbers(major: &[u8], minor: &[u8]) -> Option<Device> {
    let major = number(major).filter(|&major| major < 1 << 12)?;
    let minor = number(minor).filter(|&minor| minor < 1 << 20)?;
    Some(Device { major, minor })
}
