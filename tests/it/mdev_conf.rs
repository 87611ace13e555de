//! contrib/mdev.conf, and the script for its links to disks.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use plugd::account::Accounts;
use plugd::rules::parse::{Source, parse};
use tempfile::TempDir;

use crate::harness::daemon::Plugd;
use crate::harness::inject::uevent;
use crate::listen::have;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/mdev.conf");
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/mdev/disk-links");

/// The groups that both a fresh Alpine (alpine-baselayout-data) and a fresh Debian
/// (base-passwd) have, as far as devices are concerned.
const GROUPS: [&str; 12] = [
    "root", "adm", "audio", "cdrom", "dialout", "disk", "floppy", "kmem", "lp", "tape", "tty",
    "video",
];

#[test]
fn there_is_nothing_wrong_with_it() {
    let checked = Plugd::new().args(["check", FILE]).finish();
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let dir = tempfile::tempdir().unwrap();
    let (passwd, group) = (dir.path().join("passwd"), dir.path().join("group"));
    fs::write(&passwd, "root:x:0:0::/:/bin/sh\n").unwrap();
    fs::write(&group, GROUPS.map(|name| format!("{name}:x:7:\n")).concat()).unwrap();
    let accounts = Accounts::load(&passwd, &group).unwrap();
    let source = Source { name: "mdev.conf", text: &fs::read(FILE).unwrap() };
    if let Err(errors) = parse(&[source], &accounts) {
        panic!("{errors:?}");
    }
}

/// What is done for an event with these fields.
fn dry_run(fields: &[&str]) -> String {
    let mut events = tempfile::tempfile().unwrap();
    events.write_all(&[&uevent("add", "/devices/x", fields)[..], b"\0"].concat()).unwrap();
    events.rewind().unwrap();
    let mdevd = Plugd::new().arg0("mdevd").args(["-n", "-d", "/tmp", "-f", FILE]);
    let told = mdevd.stdin(events).finish();
    assert_eq!(told.code, Some(0), "{told:?}");
    told.stdout
}

#[test]
fn devices_get_what_they_should() {
    let node = |name: &str, group: u32, mode: u32| {
        let told = dry_run(&["MAJOR=8", "MINOR=1", &format!("DEVNAME={name}")]);
        let expected = format!("make node {name}, character 8:1, owner 0:{group}, mode {mode:04o}");
        assert!(told.contains(&expected), "no {expected} in {told}");
        told
    };
    // Debian's and Alpine's numbers: tty 5, disk 6, dialout 20.
    for name in ["null", "zero", "urandom", "fuse", "net/tun"] {
        node(name, 0, 0o666);
    }
    for name in ["hidraw0", "uinput", "watchdog", "console", "mapper/control"] {
        node(name, if name == "console" { 5 } else { 0 }, 0o600);
    }
    node("tty", 5, 0o666);
    node("ptmx", 5, 0o666);
    node("tty7", 5, 0o620);
    for name in ["ttyS0", "ttyUSB0", "ttyACM1", "ttyAMA0", "rfcomm0"] {
        node(name, 20, 0o660);
    }
    for name in ["sda", "sdab12", "vda1", "nvme0n1", "nvme0n1p2", "mmcblk0p1", "dm-3", "loop0p1"] {
        let told = node(name, 6, 0o660);
        assert!(told.contains("disk-links"), "{told}");
    }
    for name in ["mmcblk0boot0", "ram0", "zram0", "mtd0ro", "loop-control"] {
        let told = node(name, 6, 0o660);
        assert!(!told.contains("disk-links"), "{told}");
    }
    for name in ["nvme0", "input/event0", "rtc0", "anything"] {
        node(name, 0, 0o660);
    }
    // A module for a device without a node, and one with a node.
    for fields in [&["MODALIAS=usb:v1"][..], &["MODALIAS=usb:v1", "MAJOR=8", "MINOR=1"]] {
        let told = dry_run(fields);
        assert!(told.contains("modprobe -qb"), "{told}");
        let nodes = told.matches("make node").count();
        assert_eq!(nodes, usize::from(fields.len() > 1), "{told}");
    }
}

/// Prints as busybox's does, which takes all arguments for names of devices; not
/// every busybox has it.
const BUSYBOX_BLKID: &str = r#"#!/bin/sh
PATH=${PATH#*:}
for device; do
    [ -e "$device" ] || continue
    label=$(blkid -p -o value -s LABEL "$device")
    printf '%s:%s UUID="%s" TYPE="ext2"\n' "$device" "${label:+ LABEL=\"$label\"}" \
        "$(blkid -p -o value -s UUID "$device")"
done
"#;

/// A /dev, a /sys, and programs.
struct Disks {
    dir: TempDir,
    shell: &'static [&'static str],
}

const SERIAL: &str = "Serial/..\u{20}x";
const USB: &str = "/devices/pci0000:00/0000:00:05.0/usb2/2-1/2-1:1.0/host2/target2:0:0/2:0:0:0";

impl Disks {
    /// With this shell, and with blkid of util-linux or of busybox.
    fn new(shell: &'static [&'static str], busybox_blkid: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["dev", "sys", "bin"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        if busybox_blkid {
            let program = dir.path().join("bin/blkid");
            fs::write(&program, BUSYBOX_BLKID).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { dir, shell }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of the /sys, with this in it.
    fn attribute(&self, path: &str, text: &str) {
        let file = self.path(&format!("sys{path}"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    /// A file instead of a device, with an ext2 file system.
    fn format(&self, name: &str, label: &str, uuid: &str) {
        let file = self.path(&format!("dev/{name}"));
        File::create(&file).unwrap().set_len(256 << 10).unwrap();
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args(["-q", "-F", "-t", "ext2", "-L", label, "-U", uuid]).arg(file);
        let made = mke2fs.output().unwrap();
        assert!(made.status.success(), "{made:?}");
    }

    fn act(&self, action: &str, name: &str, devpath: &str) {
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}:/sbin:/usr/sbin", self.path("bin").display());
        let run = Command::new(self.shell[0])
            .args(&self.shell[1..])
            .arg(SCRIPT)
            .arg(self.path("sys"))
            .current_dir(self.path("dev"))
            .env_clear()
            .env("PATH", path)
            .envs([("ACTION", action), ("MDEV", name), ("DEVPATH", devpath)])
            .output()
            .unwrap();
        assert!(run.status.success() && run.stderr.is_empty(), "{action} {name}: {run:?}");
    }

    /// All links, as `by-x/name -> target`.
    fn links(&self) -> Vec<String> {
        let find = Command::new("find")
            .args([".", "-type", "l", "-printf", "%P -> %l\n"])
            .current_dir(self.path("dev"))
            .output()
            .unwrap();
        let mut links: Vec<String> =
            String::from_utf8(find.stdout).unwrap().lines().map(Into::into).collect();
        links.sort();
        links
    }
}

const UUIDS: [&str; 2] =
    ["11111111-2222-3333-4444-555555555555", "66666666-2222-3333-4444-555555555555"];

fn links_come_and_go(disks: &Disks) {
    let path = format!("{USB}/block/sda");
    disks.attribute(&format!("{path}/sda1/partition"), "1\n");
    disks.attribute(&format!("{path}/device/vendor"), "QEMU    \n");
    disks.attribute(&format!("{path}/device/model"), "QEMU HARDDISK   \n");
    let usb = USB.split("/2-1:1.0").next().unwrap();
    disks.attribute(&format!("{usb}/serial"), &format!("{SERIAL}\n"));
    disks.format("sda1", "../../\"x $y;`z", UUIDS[0]);
    disks.act("add", "sda1", &format!("{path}/sda1"));
    let uuid = |n: usize, name| format!("disk/by-uuid/{} -> ../../{name}", UUIDS[n]);
    let of_sda1 = [
        "disk/by-id/usb-QEMU_QEMU_HARDDISK_Serial_.._x-0:0-part1 -> ../../sda1".to_owned(),
        "disk/by-label/..\\x2f..\\x2f\\x22x\\x20\\x24y\\x3b\\x60z -> ../../sda1".to_owned(),
        "disk/by-path/pci-0000:00:05.0-usb-0:1:1.0-scsi-0:0:0:0-part1 -> ../../sda1".to_owned(),
        uuid(0, "sda1"),
    ];
    assert_eq!(disks.links(), of_sda1);

    // Another one has the same label: it has the link when the first one is gone.
    disks.format("vda", "../../\"x $y;`z", UUIDS[1]);
    let virtio = "/devices/pci0000:00/0000:00:06.0/virtio3/block/vda";
    disks.attribute(&format!("{virtio}/serial"), "abc\n");
    disks.act("add", "vda", virtio);
    assert!(disks.links().contains(&of_sda1[1]));
    disks.act("remove", "sda1", &format!("{path}/sda1"));
    let label = "disk/by-label/..\\x2f..\\x2f\\x22x\\x20\\x24y\\x3b\\x60z -> ../../vda".to_owned();
    let others = [
        "disk/by-id/virtio-abc -> ../../vda".to_owned(),
        label,
        "disk/by-path/pci-0000:00:06.0 -> ../../vda".to_owned(),
        uuid(1, "vda"),
    ];
    assert_eq!(disks.links(), others);

    // It is formatted anew: the old names are gone.
    disks.format("vda", "..", UUIDS[0]);
    disks.act("change", "vda", virtio);
    assert_eq!(disks.links(), [others[0].clone(), others[2].clone(), uuid(0, "vda")]);
    // Nothing is cut off, and so nobody's name is taken.
    disks.format("vda", "root=", UUIDS[0]);
    disks.act("change", "vda", virtio);
    assert!(disks.links().contains(&"disk/by-label/root= -> ../../vda".to_owned()));
    disks.format("vda", "gr\u{fc}n", UUIDS[0]);
    disks.act("change", "vda", virtio);
    assert!(disks.links().contains(&"disk/by-label/gr\u{fc}n -> ../../vda".to_owned()));
    disks.act("remove", "vda", virtio);
    assert_eq!(disks.links(), [""; 0]);
    assert_eq!(fs::read_dir(disks.path("dev/disk/.links")).unwrap().count(), 0);
}

/// Copies of a disk claim the same names: whoever comes or goes, the names are there,
/// and nobody takes them from who has them.
fn links_that_several_claim(disks: &Disks) {
    disks.format("sda1", "root", UUIDS[0]);
    let act = |action: &str, name: &str| {
        if action == "add" && name != "sda1" {
            fs::copy(disks.path("dev/sda1"), disks.path(&format!("dev/{name}"))).unwrap();
        }
        disks.act(action, name, &format!("/devices/virtual/block/{name}"));
    };
    let are_to = |name: &str| {
        let label = format!("disk/by-label/root -> ../../{name}");
        assert_eq!(
            disks.links(),
            [label, format!("disk/by-uuid/{} -> ../../{name}", UUIDS[0])],
            "with {:?}",
            disks.shell
        );
    };
    act("add", "sda1");
    // The copy comes and goes.
    act("add", "sdb1");
    are_to("sda1");
    act("change", "sdb1");
    are_to("sda1");
    act("remove", "sdb1");
    are_to("sda1");
    // The original goes and comes.
    act("add", "sdb1");
    act("remove", "sda1");
    are_to("sdb1");
    act("add", "sda1");
    act("change", "sda1");
    are_to("sdb1");

    // Of those that are there, the one that has claimed them longest.
    act("add", "sdc1");
    act("add", "sdd1");
    act("add", "sde1");
    for (name, seconds) in [("sda1", 30), ("sdc1", 20), ("sdd1", 10), ("sde1", 30)] {
        let list = File::options().write(true).open(disks.path(&format!("dev/disk/.links/{name}")));
        list.unwrap().set_modified(UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    }
    fs::remove_file(disks.path("dev/sdd1")).unwrap();
    act("change", "sdc1");
    act("remove", "sdb1");
    are_to("sdc1");
    act("remove", "sdd1");
    act("remove", "sde1");

    // An array goes before what it is made of, and not before another one.
    act("add", "md0");
    are_to("md0");
    act("add", "dm-0");
    act("add", "sdb1");
    are_to("md0");
    act("remove", "md0");
    are_to("dm-0");
    act("remove", "dm-0");
    are_to("sdc1");

    // Formatted anew, it gives them away.
    disks.format("sdc1", "other", UUIDS[1]);
    disks.act("change", "sdc1", "/devices/virtual/block/sdc1");
    let other = |link: &String| !link.ends_with("/sdc1");
    let left: Vec<String> = disks.links().into_iter().filter(other).collect();
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|link| link.ends_with(" -> ../../sda1")), "{left:?}");
    act("remove", "sdc1");
    are_to("sda1");
    // It goes without an event.
    fs::rename(disks.path("dev/sda1"), disks.path("dev/gone")).unwrap();
    act("change", "sdb1");
    are_to("sdb1");
    act("remove", "sdb1");
    assert_eq!(disks.links(), [""; 0]);
}

/// Acts with every shell and every blkid that there are here.
fn with_all_shells(act: impl Fn(&Disks)) {
    for (shell, busybox_blkid) in [
        (&["dash"][..], false),
        (&["dash"], true),
        (&["bash", "--posix"], false),
        (&["busybox", "sh"], false),
        (&["busybox", "sh"], true),
    ] {
        let tools = [shell[0], "blkid", "mke2fs", "busybox"];
        if tools.iter().all(|tool| have("links to disks", tool)) {
            act(&Disks::new(shell, busybox_blkid));
        }
    }
}

#[test]
fn links_to_disks() {
    with_all_shells(links_come_and_go);
}

#[test]
fn links_to_copies_of_disks() {
    with_all_shells(links_that_several_claim);
}

/// Names of other kinds of disks, as udev has them.
#[test]
fn names_of_disks() {
    let disks = Disks::new(&["sh"], false);
    for (name, path, attributes, expected) in [
        (
            "nvme0n1",
            "/devices/pci0000:00/0000:00:03.0/nvme/nvme0/nvme0n1",
            &[
                ("wwid", "eui.0025385b71b1a2b3\n"),
                ("nsid", "1\n"),
                ("device/model", "ACME SSD 1  \n"),
                ("device/serial", "S1  \n"),
            ][..],
            &[
                "by-id/nvme-ACME_SSD_1_S1",
                "by-id/nvme-eui.0025385b71b1a2b3",
                "by-path/pci-0000:00:03.0-nvme-1",
            ][..],
        ),
        (
            "mmcblk0",
            "/devices/platform/soc/fe340000.mmc/mmc_host/mmc0/mmc0:aaaa/block/mmcblk0",
            &[("device/name", "SC16G\n"), ("device/serial", "0x1234\n")],
            &["by-id/mmc-SC16G_0x1234", "by-path/platform-fe340000.mmc"],
        ),
        (
            "sdb",
            "/devices/pci0000:00/0000:00:1f.2/ata2/host7/target7:0:0/7:0:0:0/block/sdb",
            &[
                ("device/vendor", "ATA     \n"),
                ("device/model", "QEMU HARDDISK   \n"),
                ("device/wwid", "naa.5000c500a1b2c3d4\n"),
                ("device/vpd_pg80", "\0\u{1}\0\u{8}QM00005 \n"),
            ],
            &[
                "by-id/ata-QEMU_HARDDISK_QM00005",
                "by-id/wwn-0x5000c500a1b2c3d4",
                "by-path/pci-0000:00:1f.2-ata-2.0",
            ],
        ),
        (
            "sdc",
            "/devices/pci0000:00/0000:00:04.0/virtio1/host9/target9:0:1/9:0:1:2/block/sdc",
            &[("device/vendor", "QEMU\n"), ("device/vpd_pg80", "\0\u{1}\0\u{2}ab")],
            &["by-id/scsi-SQEMU__ab", "by-path/pci-0000:00:04.0-scsi-0:0:1:2"],
        ),
    ] {
        fs::write(disks.path(&format!("dev/{name}")), "").unwrap();
        for (attribute, text) in attributes {
            disks.attribute(&format!("{path}/{attribute}"), text);
        }
        if let Some((before, _)) = path.split_once("/host") {
            disks.attribute(&format!("{before}/ata_port/ata2/port_no"), "2\n");
        }
        disks.act("add", name, path);
        let links: Vec<String> =
            expected.iter().map(|link| format!("disk/{link} -> ../../{name}")).collect();
        assert_eq!(disks.links(), links);
        disks.act("remove", name, path);
    }
}
