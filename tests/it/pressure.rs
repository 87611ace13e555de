//! The queue waits in the kernel, costs nothing there, and may overrun.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use rustix::net::SocketType;

use crate::harness::daemon::Plugd;
use crate::harness::inject::{Injector, NetlinkSocket, uevent};
use crate::harness::{ns, skip, unix};

const HOLD: &str = "echo $N >>$TMP/out; [ -n \"$HOLD\" ] && read x <$TMP/gate; :";

#[test]
fn while_a_child_runs_events_wait_in_the_kernel_and_wake_nobody() {
    ns::inside(|| {
        let (daemon, injector) = (Plugd::run(&["--"]).sh(HOLD).start(), Injector::new());
        daemon.fifo("gate");
        injector.event("add", "/devices/x", &["N=0", "HOLD=1"]);
        daemon.wait_for_lines("out", 1);
        assert_eq!(daemon.queued(), 0);

        let before = daemon.sleeps();
        let mut queued = 0;
        for n in 1..=100 {
            injector.event("add", "/devices/x", &[&format!("N={n}")]);
            let grown = daemon.queued();
            assert!(grown > queued, "{n}: {grown}");
            queued = grown;
        }
        assert_eq!(daemon.sleeps(), before);
        assert_eq!(daemon.queued(), queued);

        daemon.release("gate");
        let lines = daemon.wait_for_lines("out", 101);
        assert!(lines.into_iter().eq((0..=100).map(|n| n.to_string())));
        daemon.wait_for_counters("handled 101, failed 0");
        assert_eq!(daemon.queued(), 0);
    });
}

#[test]
fn after_an_overrun_what_is_queued_is_handled() {
    const SENT: usize = 300;
    ns::inside(|| {
        // No device is there, so nothing is made up for.
        let sys = tempfile::tempdir().unwrap();
        std::fs::create_dir(sys.path().join("class")).unwrap();
        let daemon = Plugd::run(&["--receive-buffer-size", "16K", "--sys"])
            .args([sys.path().as_os_str(), "--".as_ref()])
            .sh(HOLD)
            .start();
        let injector = Injector::new();
        daemon.fifo("gate");
        let mut drops = 0;
        for round in 1..=2 {
            let before = daemon.lines("out").len();
            injector.event("add", "/devices/x", &["N=first", "HOLD=1"]);
            daemon.wait_for_lines("out", before + 1);
            for n in 0..SENT {
                injector.event("add", "/devices/x", &[&format!("N={n}")]);
            }
            let all_drops = NetlinkSocket::find(daemon.netlink().1).unwrap().drops;
            let queued = SENT - usize::try_from(all_drops - drops).unwrap();
            drops = all_drops;
            assert!((1..SENT).contains(&queued), "{queued}");

            daemon.release("gate");
            let lines = daemon.wait_for_lines("out", before + 1 + queued);
            let expected: Vec<String> = (0..queued).map(|n| n.to_string()).collect();
            assert_eq!(lines[before + 1..], expected);
            daemon.wait_for_counters(&format!("overruns {round},"));
            // An event after that is handled as ever.
            injector.event("add", "/devices/x", &["N=last"]);
            assert_eq!(daemon.wait_for_lines("out", lines.len() + 1).last().unwrap(), "last");
            let warnings = daemon.wait_for_logs("plugd: warning: overrun", round);
            assert_eq!(warnings.len(), round);
            assert!(warnings[round - 1].contains(&format!("({round} so far)")), "{warnings:?}");
        }
    });
}

#[test]
fn memory_does_not_grow_with_the_number_of_events() {
    const BATCH: usize = 5000;
    const TIME: Duration = Duration::from_secs(30);
    ns::alone(|| {
        let dir = tempfile::tempdir().unwrap();
        let mut program = dir.path().join("tiny");
        match tiny_program() {
            Some(image) => {
                std::fs::write(&program, image).unwrap();
                std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
            }
            None => program = "true".into(),
        }
        let (sender, receiver) = unix::pair(SocketType::SEQPACKET);
        let daemon = Plugd::reading(receiver).args([program]).start();
        let memory = || {
            let memory = daemon.status("RssAnon");
            memory.strip_suffix(" kB").unwrap().trim().parse::<u32>().unwrap()
        };
        let (begun, mut early, mut handled) = (Instant::now(), None, 0);
        while handled < 100_000 && (begun.elapsed() < TIME || handled < 2 * BATCH) {
            for n in handled..handled + BATCH {
                let device = format!("/devices/{n}");
                unix::send(&sender, &uevent("add", &device, &["MODALIAS=platform:x", "A B=c"]));
            }
            handled += BATCH;
            daemon.wait_for_counters(&format!("handled {handled}, failed 0"));
            early.get_or_insert_with(memory);
        }
        let (early, late) = (early.unwrap(), memory());
        assert!(late <= early + 64, "{early} KiB have become {late} after {handled} events");
        if handled < 100_000 {
            skip("speed", "100000 events", &format!("{handled} took {:?}", begun.elapsed()));
        }
    });
}

/// A static program that does nothing, some 50 times faster to start than a
/// shell: `exit(0)` in an ELF file, where we know the machine's language.
fn tiny_program() -> Option<Vec<u8>> {
    if !cfg!(target_arch = "x86_64") {
        return None;
    }
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    // mov eax, SYS_exit; xor edi, edi; syscall
    let code = [0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];
    let size = HEADERS + 9;
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let halves = |image: &mut Vec<u8>, values: &[u16]| {
        image.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    };
    // Type EXEC, machine x86-64, version 1; entry, program headers, no sections.
    halves(&mut image, &[2, 62, 1, 0]);
    image.extend([BASE + HEADERS, 64, 0].iter().flat_map(|value| value.to_le_bytes()));
    halves(&mut image, &[0, 0, 64, 56, 1, 0, 0, 0]);
    // One segment: load, readable and executable, all of the file at BASE.
    halves(&mut image, &[1, 0, 5, 0]);
    let segment = [0, BASE, BASE, size, size, 0x1000];
    image.extend(segment.iter().flat_map(|value| value.to_le_bytes()));
    image.extend(code);
    Some(image)
}
