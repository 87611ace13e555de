//! Chains of real programs, with plugd at their end.

use super::*;

#[test]
fn the_handler_works_from_it() {
    ns::inside(|| {
        let names = Names::new();
        for (bridge, chain) in [
            format!("kobject-uevent 1 {HANDLER}"),
            format!("--receive-buffer-size 1M --raw 15 group:1 {HANDLER} -v"),
            "kobject-uevent 1 plugd run --fd 3 --".to_owned(),
            format!("--systemd-compatibility kobject-uevent 1 {HANDLER}"),
            "--systemd-compatibility kobject-uevent 1 plugd run".to_owned(),
        ]
        .iter()
        .enumerate()
        {
            let script = "env | grep -cE '^(LISTEN|UPSTART)' >&2; ls -l /proc/self/fd >&2; \
                          echo told of $ACTION $DEVPATH >&2";
            let mut daemon = names.listen(chain).sh(script).start();
            Injector::new().event("add", "/devices/x", &[]);
            daemon.wait_for_log("told of add /devices/x");
            assert_eq!(daemon.logged("socket:[").len(), 0, "{:?}", daemon.log());
            assert!(daemon.log().contains(&"0".to_owned()), "{:?}", daemon.log());
            let bridge = format!("br{bridge}");
            inject::real_device(&bridge);
            daemon.wait_for_log(&format!("told of add /devices/virtual/net/{bridge}"));
            daemon.signal(rustix::process::Signal::TERM);
            assert_eq!(daemon.wait_exit().code(), Some(0), "{chain}");
        }
    });
}

#[test]
fn the_handler_serves_all_sockets_of_a_chain() {
    ns::inside(|| {
        let names = Names::new();
        let one = "--systemd-compatibility kobject-uevent 1";
        let plugd = names.listen(&format!("{one} {LISTEN} {one} {HANDLER}"));
        // A second at once would see the directory of the first.
        let alone = "mkdir $TMP/busy || echo two at once >&2; echo $N >>$TMP/out; rmdir $TMP/busy";
        let daemon = plugd.sh(alone).start();
        let injector = Injector::new();
        (1..=20).for_each(|n| injector.event("add", "/devices/x", &[&format!("N={n}")]));
        // Each socket has each event; they are served in turn.
        let lines = daemon.wait_for_lines("out", 40);
        let expected: Vec<String> = (2..=41).map(|n| (n / 2).to_string()).collect();
        assert_eq!(lines, expected);
        assert_eq!(daemon.logged("two at once").len(), 0);
    });
}

/// Opened by root, used by somebody without privileges.
#[test]
fn a_chain_can_give_up_its_privileges() {
    ns::inside_as_root(|| {
        let names = Names::new();
        let user = "daemon";
        let chains = [
            ("s6-setuidgid", format!("s6-setuidgid {user}")),
            ("setpriv", format!("setpriv --reuid {user} --regid {user} --clear-groups")),
            ("chpst", format!("chpst -u {user}")),
        ];
        for (i, (tool, change)) in chains.into_iter().enumerate() {
            if !have("a chain that changes user", tool) {
                continue;
            }
            let size = 2 * inject::unprivileged_room();
            let options = format!("-v --receive-buffer-size {size} kobject-uevent 1");
            let script = format!("{TELL}; id -un >&2; grep CapEff /proc/self/status >&2");
            let daemon = names.listen(&format!("{options} {change} {HANDLER}")).sh(&script).start();
            let got = format!("receive buffer: {} bytes", 2 * size);
            daemon.wait_for_log(&got);
            assert_ne!(daemon.status("Uid").split_whitespace().next(), Some("0"));
            assert_eq!(daemon.status("CapEff"), "0000000000000000");
            Injector::new().event("add", "/devices/x", &[]);
            daemon.wait_for_log("told of add /devices/x");
            daemon.wait_for_log("CapEff:\t0000000000000000");
            daemon.wait_for_log(user);
            let bridge = format!("br{i}");
            inject::real_device(&bridge);
            daemon.wait_for_log(&format!("told of add /devices/virtual/net/{bridge}"));
        }
    });
}
