//! Many disks at once, and a receive buffer that is much too small for them:
//! the kernel drops events, and yet in the end everything is right.

use std::fs;
use std::io::Write;

use crate::assets::Assets;
use crate::image::Image;
use crate::machine::Machine;
use crate::scenario;

/// Has 256 disks come, in the background. Each has some seven devices.
const BEGIN: &str = "(modprobe scsi_debug num_tgts=4 max_luns=64 && : >/run/all) &";

/// Whether the kernel has told of them all: loading the driver includes that.
const ALL: &str = "[ -e /run/all ] && [ $(ls -d /sys/block/sd* | wc -l) = 256 ]";

/// Prints which of these disks and their bsg devices have no node with the right
/// numbers, owner and mode, and which nodes have no device.
const WRONG: &str = "
    for sys in /sys/class/block/sd* /sys/class/bsg/*; do
        [ -e $sys ] || continue
        . $sys/uevent
        case $DEVNAME in bsg/*) mode=660 ;; *) mode=640 ;; esac
        printf '/dev/%s root:disk %s %x:%x\\n' $DEVNAME $mode $MAJOR $MINOR
    done | sort >/run/wanted
    find /dev -type b -name 'sd*' -o -type c -path '/dev/bsg/*' >/run/nodes
    xargs -r stat -c '%n %U:%G %a %t:%T' </run/nodes | sort >/run/found
    diff /run/wanted /run/found | grep '^[+-]/'";

/// How many nodes there are, as counted for [`WRONG`].
const NODES: &str = "wc -l </run/found";

fn boot(assets: &Assets, arguments: &str) -> Machine {
    let options = "PLUGD_OPTIONS='--coldplug --receive-buffer-size 64K'\n";
    let image = Image::new(assets, "init-script")
        .contrib("busybox/rcS.plugd", "etc/init.d/rcS.plugd")
        .text("etc/default/plugd", 0o644, options)
        .guest("mdev-storm.conf", "etc/mdev.conf");
    let mut machine = Machine::boot(assets, image, arguments);
    machine.eventually("[ -e /run/booted ]");
    machine.must("modprobe sd_mod");
    machine
}

/// All disks are there and have their nodes, though events were dropped; then
/// they go, and none is left. Whoever waits for plugd to settle need not wait
/// longer.
fn see_come_and_go(machine: &mut Machine) {
    machine.eventually(ALL);
    machine.must("plugd settle");
    assert_eq!(machine.run(WRONG).text, "");
    assert_eq!(machine.must(NODES), "512");
    let metrics = machine.must("plugd status --openmetrics");
    let overruns = metrics.lines().find_map(|line| line.strip_prefix("plugd_overruns_total "));
    assert_ne!(overruns.unwrap(), "0", "that was no storm");
    machine.must("rmmod scsi_debug && plugd settle");
    assert_eq!(machine.run(WRONG).text, "");
    assert_eq!(machine.must(NODES), "0");
}

#[test]
fn storm() {
    scenario("storm", |assets| {
        let mut machine = boot(assets, "");
        machine.must(BEGIN);
        see_come_and_go(&mut machine);
    });
}

/// On a /dev where every node is plugd's, which becomes another version of
/// itself again and again meanwhile.
#[test]
fn update() {
    scenario("updates in a storm", |assets| {
        let mut machine = boot(assets, "dev=tmpfs");
        let pid = machine.must("pidof plugd");
        machine.must(BEGIN);
        let mut rounds = 0;
        while !machine.holds("[ -e /run/all ]") {
            machine.must(&format!("pid={pid}; {UPDATES}"));
            rounds += 1;
        }
        assert_ne!(rounds, 0, "the storm was over before it began");
        machine.must("grep 'updated from version' /run/plugd.log");
        assert_eq!(machine.must("pidof plugd"), pid);
        see_come_and_go(&mut machine);
    });
}

/// Updates plugd by the signal, then by the command. On a machine that has more to do
/// than it can, the new plugd may answer too late, and the old one goes on; the signal
/// is answered in the log either way.
const UPDATES: &str = "
    renew() { cp /sbin/plugd /sbin/new && mv /sbin/new /sbin/plugd; }
    answers() { grep -c -e 'updated from version' -e 'not updated' /run/plugd.log; }
    before=$(answers)
    renew && kill -USR2 $pid || exit
    until [ $(answers) -gt $before ]; do sleep 0.1; done
    renew || exit
    plugd update --timeout 60 || true";

/// The same with skarnet's mdevd, which does not make up for what was dropped:
/// so it is a storm, and the check finds what is wrong.
#[test]
#[ignore = "a comparison: name mdevd, which may need no library but libc, in PLUGD_VM_MDEVD"]
fn mdevd() {
    scenario("storm with mdevd", |assets| {
        let mdevd = fs::read(std::env::var_os("PLUGD_VM_MDEVD").unwrap()).unwrap();
        let image = Image::new(assets, "init-idle")
            .text("sbin/mdevd", 0o755, mdevd)
            .guest("mdev-storm.conf", "etc/mdev.conf");
        let mut machine = Machine::boot(assets, image, "");
        machine.must("modprobe sd_mod; mdevd -b 65536 2>/run/plugd.log &");
        machine.eventually(MDEVD_IS_IDLE);
        machine.must(BEGIN);
        machine.eventually(ALL);
        machine.eventually(MDEVD_IS_IDLE);
        let wrong = machine.run(WRONG).text;
        let found = wrong.lines().filter(|line| line.starts_with('+')).count();
        let told = format!("vm: mdevd: {found} of 512 nodes are wrong\n");
        std::io::stderr().write_all(told.as_bytes()).unwrap();
        assert_ne!(found, 0, "{wrong}");
    });
}

/// Nothing waits for it, nor for anybody else who listens to the kernel's events:
/// protocol 15, group 1, by the columns of /proc/net/netlink.
const MDEVD_IS_IDLE: &str = "awk '$2 == 15 && $4 == \"00000001\" { listens = 1; waits += $5 }
    END { exit !(listens && !waits) }' /proc/net/netlink";
