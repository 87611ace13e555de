//! Without a supervisor: what does not depend on one, and what is so without
//! plugd at all.

use std::time::{Duration, Instant};

use crate::devices::{self, Device, Fact, USB_STORAGE};
use crate::image::Image;
use crate::machine::Machine;
use crate::scenario;

/// On a /dev that is nobody's: every node is plugd's.
#[test]
fn tmpfs() {
    scenario("tmpfs on /dev", |assets| {
        let image = Image::new(assets, "init-inittab").contrib("busybox/inittab", "etc/inittab");
        let mut machine = Machine::boot(assets, image, "dev=tmpfs");
        machine.eventually("plugd status --quiet");
        machine.must("plugd settle");
        machine.eventually(&devices::there_at_the_start());
        for device in devices::ALL {
            machine.see_come(device);
            assert_eq!(machine.must(WITHOUT_NODE), "");
            machine.see_go(device);
        }
    });
}

/// Prints the devices that have no node with their numbers. Those under other
/// names are left out.
const WITHOUT_NODE: &str = "for uevent in /sys/dev/char/*/uevent /sys/dev/block/*/uevent; do
        [ -e $uevent ] || continue
        DEVNAME= MAJOR= MINOR=
        . $uevent
        case $DEVNAME in hidraw*|ttyUSB*) continue ;; esac
        numbers=$(printf %x:%x $MAJOR $MINOR)
        [ \"$(stat -c %t:%T /dev/$DEVNAME)\" = $numbers ] || echo $DEVNAME
    done";

/// Firmware is found where only plugd looks; what is not there is refused at
/// once. Left alone, the kernel waits for a minute.
#[test]
fn firmware() {
    scenario("firmware", |assets| {
        let image = Image::new(assets, "init-idle")
            .contrib("busybox/S10plugd", "etc/init.d/S10plugd")
            .text("etc/default/plugd", 0o644, "PLUGD_OPTIONS='--firmware /lib/ours'\n")
            .text("lib/ours/vm/blob", 0o644, "a blob");
        let mut machine = Machine::boot(assets, image, "");
        machine.must("/etc/init.d/S10plugd start");
        machine.must(
            "modprobe test_firmware
            echo 1 >/proc/sys/kernel/firmware_config/force_sysfs_fallback",
        );
        let request =
            |name: &str| format!("printf {name} >/sys/class/misc/test_firmware/trigger_request");
        machine.must(&request("vm/blob"));
        assert_eq!(machine.must("cat /dev/test_firmware"), "a blob");
        let start = Instant::now();
        assert!(!machine.holds(&request("vm/absent")));
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        machine.must("/etc/init.d/S10plugd stop; ! pidof plugd");
    });
}

/// Nobody but plugd does what the checks ask for: without it they fail, though
/// the kernel does all that it does.
#[test]
fn nobody() {
    scenario("nobody", |assets| {
        let image = Image::new(assets, "init-idle");
        let mut machine = Machine::boot(assets, image, "");
        assert!(!machine.holds(&devices::there_at_the_start()));
        machine.must("modprobe xhci_pci");
        machine.plug(&USB_STORAGE);
        machine.eventually(&format!("[ -d {} ]", USB_STORAGE.directory));
        assert!(!machine.holds(&Fact::Module("usb_storage").test()));
        machine.unplug(&USB_STORAGE);

        // Whatever a driver does is not plugd's work either.
        for driver in devices::ALL.into_iter().flat_map(Device::drivers) {
            machine.must(&format!("modprobe {driver}"));
        }
        for device in devices::ALL {
            machine.plug(device);
            machine.eventually(&format!("[ -d {} ]", device.directory));
        }
        machine.eventually(
            "cd /dev && [ -e sda ] && [ -e sdb ] && [ -e vda ] && [ -e ttyUSB0 ] && [ -e hidraw0 ]",
        );
        for device in devices::ALL {
            for fact in device.facts {
                let holds = machine.holds(&fact.test());
                assert_eq!(holds, matches!(fact, Fact::Module(_)), "{fact:?}");
            }
        }
        for device in devices::ALL {
            machine.unplug(device);
        }
        for device in devices::ALL {
            assert!(!machine.holds(&device.has_gone()), "{device:?}");
        }
    });
}
