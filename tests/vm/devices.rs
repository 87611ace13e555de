//! The devices that are plugged in, and what is to become of each.

use Fact::{Link, Module, Node, Told};

/// Something that is so when plugd has done its work. devtmpfs makes and removes
/// nodes by itself: owner, mode, links, other names, commands and drivers are
/// plugd's work.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fact {
    /// A driver is there.
    Module(&'static str),
    /// A node is there, of that kind, with that owner and mode.
    Node(&'static str, &'static str, &'static str, &'static str),
    /// A link in /dev leads to a node.
    Link(&'static str, &'static str),
    /// A command of a rule has run and printed this line.
    Told(&'static str),
}

impl Fact {
    /// A script that tells whether it is so, in the agent's words.
    pub(crate) fn test(&self) -> String {
        match self {
            Self::Module(name) => format!("module {name}"),
            Self::Node(name, kind, owner, mode) => format!("node {name} {kind} {owner} {mode}"),
            Self::Link(name, node) => format!("leads '{name}' {node}"),
            Self::Told(line) => format!("told '{line}'"),
        }
    }

    /// The name in /dev that is free when the device is gone: that of a node's
    /// directory, where it has one.
    fn name(&self) -> Option<&'static str> {
        match self {
            Self::Node(name, ..) => name.split('/').next(),
            Self::Link(name, _) => Some(name),
            Self::Module(_) | Self::Told(_) => None,
        }
    }
}

/// A device.
#[derive(Debug)]
pub(crate) struct Device {
    /// What QEMU is to plug in, each with an id, in order.
    pub(crate) parts: &'static [&'static str],
    /// What is so when it has come.
    pub(crate) facts: &'static [Fact],
    /// What the command of a rule prints when it goes.
    farewell: &'static str,
    /// The directory that the kernel makes for it, with or without a driver.
    pub(crate) directory: &'static str,
}

impl Device {
    /// The ids of its parts.
    pub(crate) fn ids(&self) -> impl DoubleEndedIterator<Item = &'static str> {
        let id = |part: &&'static str| part.split_once("id=").map_or("", |(_, rest)| rest);
        self.parts.iter().map(move |part| id(part).split(',').next().unwrap_or(""))
    }

    /// The drivers that it needs.
    pub(crate) fn drivers(&self) -> impl Iterator<Item = &'static str> {
        self.facts.iter().filter_map(|fact| match fact {
            Fact::Module(name) => Some(*name),
            Fact::Node(..) | Fact::Link(..) | Fact::Told(_) => None,
        })
    }

    /// A script that tells whether all is done that is to be done when it comes.
    pub(crate) fn has_come(&self) -> String {
        script(self.facts.iter().map(Fact::test))
    }

    /// A script that tells whether nothing is left of it, but its drivers.
    pub(crate) fn has_gone(&self) -> String {
        let names = self.facts.iter().filter_map(Fact::name).map(|name| format!("free '{name}'"));
        script(names.chain([format!("told '{}'", self.farewell)]))
    }
}

/// Succeeds if all these do, or prints the first that does not: asked again and again,
/// the others would keep the machine's one processor from plugd.
fn script(tests: impl Iterator<Item = String>) -> String {
    tests.map(|test| format!("{test} || {{ echo \"not: {test}\"; exit 1; }}\n")).collect()
}

/// All of them; they can be plugged in at once.
pub(crate) const ALL: [&Device; 6] =
    [&USB_STORAGE, &VIRTIO_BLK, &VIRTIO_NET, &USB_SERIAL, &USB_KBD, &VIRTIO_SCSI];

/// A stick.
pub(crate) const USB_STORAGE: Device = Device {
    parts: &["usb-storage,id=stick,bus=xhci.0,port=1,drive=disk0,serial=VM1"],
    facts: &[
        Module("usb_storage"),
        Module("sd_mod"),
        Node("sda", "block", "root:disk", "660"),
        Link("disk/by-id/usb-QEMU_QEMU_HARDDISK_VM1-0:0", "sda"),
        Link("disk/by-label/disk0", "sda"),
        Link("disk/by-path/pci-0000:00:05.0-usb-0:1:1.0-scsi-0:0:0:0", "sda"),
        Link("disk/by-uuid/756e6971-7565-2d75-7569-646469736b30", "sda"),
        Told("add block sda 8:0 disk"),
    ],
    farewell: "remove block sda 8:0 disk",
    directory: "/sys/bus/usb/devices/2-1",
};

/// A disk.
pub(crate) const VIRTIO_BLK: Device = Device {
    parts: &["virtio-blk-pci,id=blk,bus=pci.0,addr=8,drive=disk1,serial=VM2"],
    facts: &[
        Module("virtio_pci"),
        Module("virtio_blk"),
        Node("vda", "block", "root:disk", "660"),
        Link("disk/by-id/virtio-VM2", "vda"),
        Link("disk/by-label/disk1", "vda"),
        Link("disk/by-path/pci-0000:00:08.0", "vda"),
        Told("add block vda 254:0 disk"),
    ],
    farewell: "remove block vda 254:0 disk",
    directory: "/sys/bus/pci/devices/0000:00:08.0",
};

/// A network card, the second one.
pub(crate) const VIRTIO_NET: Device = Device {
    parts: &["virtio-net-pci,id=net,bus=pci.0,addr=9,netdev=net1,romfile="],
    facts: &[Module("virtio_net"), Told("add net eth1")],
    farewell: "remove net eth1",
    directory: "/sys/bus/pci/devices/0000:00:09.0",
};

/// A serial line.
pub(crate) const USB_SERIAL: Device = Device {
    parts: &["usb-serial,id=serial,bus=xhci.0,port=2,chardev=nowhere,always-plugged=true"],
    facts: &[
        Module("ftdi_sio"),
        Node("serial/usb0", "character", "root:dialout", "660"),
        Link("ttyUSB0", "serial/usb0"),
        Told("add tty serial/usb0"),
    ],
    farewell: "remove tty serial/usb0",
    directory: "/sys/bus/usb/devices/1-2",
};

/// A keyboard.
pub(crate) const USB_KBD: Device = Device {
    parts: &["usb-kbd,id=kbd,bus=xhci.0,port=3"],
    facts: &[
        Module("usbhid"),
        Module("hid_generic"),
        Node("hid/raw0", "character", "root:root", "600"),
        Told("add hidraw hid/raw0"),
    ],
    farewell: "remove hidraw hid/raw0",
    directory: "/sys/bus/usb/devices/1-3",
};

/// A disk at a controller of its own.
pub(crate) const VIRTIO_SCSI: Device = Device {
    parts: &[
        "virtio-scsi-pci,id=scsi,bus=pci.0,addr=7",
        "scsi-hd,id=hd,bus=scsi.0,drive=disk2,serial=VM3",
    ],
    facts: &[
        Module("virtio_pci"),
        Module("virtio_scsi"),
        Node("sda", "block", "root:disk", "660"),
        Link("disk/by-id/scsi-SQEMU_QEMU_HARDDISK_VM3", "sda"),
        Link("disk/by-label/disk2", "sda"),
        Link("disk/by-path/pci-0000:00:07.0-scsi-0:0:0:0", "sda"),
        Told("add block sda 8:0 disk"),
    ],
    farewell: "remove block sda 8:0 disk",
    directory: "/sys/bus/pci/devices/0000:00:07.0",
};

/// A script that tells whether what was there at the start is set up: what the
/// kernel made before plugd was there, and what is found by the drivers that
/// plugd loads.
pub(crate) fn there_at_the_start() -> String {
    let facts = [
        Module("xhci_pci"),
        Module("virtio_net"),
        Node("null", "character", "root:root", "666"),
        Node("kmsg", "character", "root:adm", "640"),
        Node("ttyS0", "character", "root:dialout", "660"),
        Told("add net eth0"),
    ];
    script(facts.iter().map(Fact::test))
}
