//! The same play under each supervisor, by the service of contrib/ for it.

use crate::assets::{Assets, Part};
use crate::devices::{self, USB_STORAGE, VIRTIO_BLK, VIRTIO_NET};
use crate::image::Image;
use crate::machine::Machine;
use crate::scenario;

/// How the services of a supervisor are dealt with: scripts.
struct Services {
    /// Succeeds when plugd is ready, as far as the supervisor can tell.
    is_ready: &'static str,
    stop: &'static str,
    start: &'static str,
    /// The same for the variant with a handler program, in a chain.
    start_handler: &'static str,
    stop_handler: &'static str,
    /// Where the logs of both are.
    logs: &'static str,
}

#[test]
fn s6() {
    scenario("s6", |assets| {
        let image = Image::new(assets, "init-s6")
            .part(assets, Part::S6)
            .contrib("s6", "etc/s6")
            .text("etc/s6/plugd-handler/conf", 0o644, "PLUGD_USER=nobody\n")
            .text("etc/s6/plugd-handler/down", 0o644, "");
        let services = Services {
            is_ready: "s6-svwait -U -t 60000 /run/service/plugd",
            stop: "s6-svc -d -wD -T 60000 /run/service/plugd",
            start: "s6-svc -u -wU -T 60000 /run/service/plugd",
            start_handler: "s6-svc -u -wU -T 60000 /run/service/plugd-handler",
            stop_handler: "s6-svc -d -wD -T 60000 /run/service/plugd-handler",
            logs: "/run/log/*/current",
        };
        play(assets, image, &services);
    });
}

#[test]
fn runit() {
    scenario("runit", |assets| {
        let image = Image::new(assets, "init-runit")
            .part(assets, Part::Runit)
            .guest("runit/1", "etc/runit/1")
            .guest("runit/2", "etc/runit/2")
            .guest("runit/3", "etc/runit/3")
            .contrib("runit", "etc/sv")
            .text("etc/sv/plugd-handler/conf", 0o644, "PLUGD_USER=nobody\n")
            .text("etc/sv/plugd-handler/down", 0o644, "")
            .link("etc/service/plugd", "/etc/sv/plugd")
            .link("etc/service/plugd-handler", "/etc/sv/plugd-handler");
        let services = Services {
            is_ready: "sv -w 60 start /etc/service/plugd",
            stop: "sv -w 60 stop /etc/service/plugd",
            start: "sv -w 60 start /etc/service/plugd",
            start_handler: "sv -w 60 start /etc/service/plugd-handler",
            stop_handler: "sv -w 60 stop /etc/service/plugd-handler",
            logs: "/run/log/*/current",
        };
        play(assets, image, &services);
    });
}

#[test]
fn openrc() {
    scenario("openrc", |assets| {
        let image = Image::new(assets, "init-inittab")
            .part(assets, Part::Openrc)
            .guest("inittab-openrc", "etc/inittab")
            .contrib("openrc/plugd.initd", "etc/init.d/plugd")
            .contrib("openrc/plugd.confd", "etc/conf.d/plugd")
            .link("etc/init.d/plugd-handler", "plugd")
            .contrib("openrc/plugd-forking.initd", "etc/init.d/plugd-forking")
            .text("etc/conf.d/plugd-handler", 0o644, "plugd_handler=/etc/hotplug\n")
            .text("etc/insserv.conf", 0o644, "")
            .link("etc/runlevels/sysinit/plugd", "/etc/init.d/plugd");
        let services = Services {
            is_ready: "rc-service plugd status",
            stop: "rc-service plugd stop",
            start: "rc-service plugd start",
            start_handler: "rc-service plugd-handler start",
            stop_handler: "rc-service plugd-handler stop",
            logs: "/run/plugd.log",
        };
        let mut machine = play(assets, image, &services);
        machine.must("rc-service plugd-forking start");
        machine.see_come(&USB_STORAGE);
        machine.see_go(&USB_STORAGE);
        stop(&mut machine, "rc-service plugd-forking stop", &services);
    });
}

#[test]
fn busybox() {
    scenario("busybox", |assets| {
        let image = Image::new(assets, "init-script")
            .contrib("busybox/rcS.plugd", "etc/init.d/rcS.plugd")
            .text("etc/default/plugd", 0o644, "");
        let services = Services {
            is_ready: "[ -e /run/booted ]",
            stop: "plugd stop",
            start: ". /etc/init.d/rcS.plugd",
            start_handler: "echo PLUGD_HANDLER=/etc/hotplug >/etc/default/plugd
                . /etc/init.d/rcS.plugd",
            stop_handler: "plugd stop",
            logs: "/run/plugd.log",
        };
        play(assets, image, &services);
    });
}

/// The play; the machine that it leaves has no plugd running.
fn play(assets: &Assets, image: Image, services: &Services) -> Machine {
    let mut machine = Machine::boot(assets, image, "");
    machine.eventually(services.is_ready);
    machine.must("plugd settle");
    machine.eventually(&devices::there_at_the_start());
    for device in devices::ALL {
        machine.see_come(device);
        machine.see_go(device);
    }
    is_started_anew(&mut machine, services);
    catches_up(&mut machine, services);
    runs_a_handler(&mut machine, services);
    machine
}

/// plugd is killed, comes back by itself, and knows what it has acted on.
fn is_started_anew(machine: &mut Machine, services: &Services) {
    is_respawned(machine);
    machine.eventually(services.is_ready);
    machine.must(&format!("grep 'devices are known from before' {}", services.logs));
    machine.see_come(&USB_STORAGE);
}

/// Whoever is named is asked, though it is neither root nor one's own user: a handler's
/// plugd is `nobody`.
const HERE: &str = "--control @plugd";

/// plugd is killed, and comes back by itself.
fn is_respawned(machine: &mut Machine) {
    let old = machine.must("pidof plugd");
    machine.must(&format!("kill -9 {old}"));
    machine.eventually(&format!("new=$(pidof plugd) && [ \"$new\" != '{old}' ]"));
    machine.eventually(&format!("plugd status --quiet {HERE}"));
}

/// A device that comes and one that goes while plugd is down.
fn catches_up(machine: &mut Machine, services: &Services) {
    stop(machine, services.stop, services);
    machine.plug(&VIRTIO_BLK);
    machine.unplug(&USB_STORAGE);
    machine.eventually(&format!("[ -b /dev/vda ] && ! [ -e {} ]", USB_STORAGE.directory));
    assert!(!machine.holds(&VIRTIO_BLK.has_come()), "who did that?");
    assert!(!machine.holds(&USB_STORAGE.has_gone()), "who did that?");
    machine.must(services.start);
    machine.must("plugd settle");
    machine.must(&VIRTIO_BLK.has_come());
    machine.must(&USB_STORAGE.has_gone());
    machine.see_go(&VIRTIO_BLK);
    stop(machine, services.stop, services);
}

/// netlink-datagram-socket-listen opens the socket, and goes on as plugd with a
/// handler, for which what the rules have acted on is new. Killed, it knows what
/// that has acted on.
fn runs_a_handler(machine: &mut Machine, services: &Services) {
    machine.must("rm -r /run/plugd; : >/run/handled; chmod 666 /run/handled");
    machine.must(services.start_handler);
    machine.eventually(&format!("plugd status --quiet {HERE}"));
    machine.must("tr '\\0' ' ' </proc/$(pidof plugd)/cmdline | grep -e '--fd 3 .*/etc/hotplug'");
    machine.must(&format!("plugd settle --timeout 60 {HERE}"));
    assert_eq!(machine.must("grep -cx 'add net eth0 :' /run/handled"), "1");
    is_respawned(machine);
    machine.must(&format!("plugd settle --timeout 60 {HERE}"));
    assert_eq!(machine.must("grep -cx 'add net eth0 :' /run/handled"), "1");
    for (device, name) in [(&USB_STORAGE, "block sda 8:0"), (&VIRTIO_NET, "net eth1 :")] {
        machine.plug(device);
        machine.eventually(&format!("grep -x 'add {name}' /run/handled"));
        machine.unplug(device);
        machine.eventually(&format!("grep -x 'remove {name}' /run/handled"));
    }
    stop(machine, services.stop_handler, services);
}

/// plugd stops, and says so.
fn stop(machine: &mut Machine, script: &str, services: &Services) {
    let count = format!("cat {} | grep -c 'info: stopped: '", services.logs);
    let before: u32 = machine.run(&count).text.parse().unwrap();
    machine.must(script);
    machine.eventually("! pidof plugd");
    machine.eventually(&format!("[ $({count}) = {} ]", before + 1));
}
