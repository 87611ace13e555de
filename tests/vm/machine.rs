//! A machine: QEMU, the line to the agent in it, and what is plugged in.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::PATIENCE;
use crate::agent::{Agent, Output};
use crate::assets::Assets;
use crate::devices::Device;
use crate::image::Image;
use crate::qmp::Qmp;

/// The names of disks that devices may be made of.
const DISKS: [&str; 3] = ["disk0", "disk1", "disk2"];

/// Without the check of its timer the kernel does not give up where QEMU gets too
/// little of the processor.
const KERNEL_ARGUMENTS: &str =
    "console=ttyS0 quiet loglevel=1 panic=-1 no_timer_check usb-storage.delay_use=0";

/// What is asked when something has failed.
const REPORT: &str = "plugd status
    tail -n 50 /run/plugd.log /run/log/*/current
    tail -n 50 /run/told /run/handled
    ls -lR /dev
    lsmod
    ps -o pid,ppid,args
    dmesg | tail -n 20";

/// A machine at work.
pub(crate) struct Machine {
    agent: Agent,
    qmp: Qmp,
    _power: Power,
    dir: TempDir,
}

/// QEMU, which is ended when this is dropped.
struct Power(Child);

impl Drop for Power {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine {
    /// Switches it on, with more arguments for its kernel, and waits until its
    /// agent listens.
    pub(crate) fn boot(assets: &Assets, image: Image, arguments: &str) -> Self {
        let dir = image.finish();
        for name in DISKS {
            fs::write(dir.path().join(name), disk(name)).unwrap();
        }
        let mut power = Power(qemu(assets, dir.path(), arguments).spawn().unwrap());
        let (line, replies) = (power.0.stdin.take().unwrap(), power.0.stdout.take().unwrap());
        let qmp = Qmp::connect(&dir.path().join("monitor"));
        let mut machine = Self { agent: Agent::new(line, replies), qmp, _power: power, dir };
        if let Err(why) = machine.agent.wait_until_ready() {
            panic!("{why}; the console:\n{}", machine.console());
        }
        machine
    }

    /// Runs a script in it, whatever comes of it.
    #[track_caller]
    pub(crate) fn run(&mut self, script: &str) -> Output {
        self.agent.run(script).unwrap_or_else(|why| panic!("{why}; {}", self.console()))
    }

    /// Runs a script that has to succeed, and returns what it prints.
    #[track_caller]
    pub(crate) fn must(&mut self, script: &str) -> String {
        let Output { text, code } = self.run(script);
        assert_eq!(code, 0, "{script}\n{text}\n{}", self.report());
        text
    }

    /// Whether a script succeeds.
    #[track_caller]
    pub(crate) fn holds(&mut self, script: &str) -> bool {
        self.run(script).code == 0
    }

    /// Runs a script again and again until it succeeds, and returns what it prints.
    #[track_caller]
    pub(crate) fn eventually(&mut self, script: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Output { text, code } = self.run(script);
            if code == 0 {
                return text;
            }
            assert!(Instant::now() < deadline, "still not: {script}\n{text}\n{}", self.report());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Plugs a device in.
    pub(crate) fn plug(&mut self, device: &Device) {
        self.must("rm -f /run/told");
        device.parts.iter().for_each(|part| self.qmp.plug(part));
    }

    /// Unplugs it, the last part first.
    pub(crate) fn unplug(&mut self, device: &Device) {
        device.ids().rev().for_each(|id| self.qmp.unplug(id));
    }

    /// Plugs a device in, and waits until all is done that is to be done then.
    #[track_caller]
    pub(crate) fn see_come(&mut self, device: &Device) {
        self.plug(device);
        self.eventually(&device.has_come());
    }

    /// Unplugs it, and waits until nothing is left.
    #[track_caller]
    pub(crate) fn see_go(&mut self, device: &Device) {
        self.unplug(device);
        self.eventually(&device.has_gone());
    }

    /// What may explain why something failed.
    fn report(&mut self) -> String {
        let answer = self.agent.run(REPORT).map_or_else(|why| why, |output| output.text);
        format!("{answer}\nthe console:\n{}", self.console())
    }

    /// What the kernel and the supervisor said, and QEMU itself.
    fn console(&self) -> String {
        let bytes = ["console", "complaints"].map(|name| fs::read(self.dir.path().join(name)));
        String::from_utf8_lossy(&bytes.map(Result::unwrap_or_default).concat()).into_owned()
    }
}

/// A disk with a swap area on it, which has a label and a UUID like a file
/// system, and is easily made (linux/swap.h, union swap_header).
fn disk(label: &str) -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    let mut put = |at: usize, bytes: &[u8]| disk[at..at + bytes.len()].copy_from_slice(bytes);
    put(1024, &1_u32.to_le_bytes());
    put(1028, &255_u32.to_le_bytes());
    put(1036, format!("unique-uuid{label}").as_bytes());
    put(1052, label.as_bytes());
    put(4086, b"SWAPSPACE2");
    disk
}

/// QEMU, about to be started. Its standard input and output is the machine's
/// second serial line.
fn qemu(assets: &Assets, dir: &Path, arguments: &str) -> Command {
    let accelerator = std::env::var("PLUGD_VM_ACCEL");
    let accelerator = accelerator.as_deref().unwrap_or("tcg,thread=multi");
    let fixed = "-cpu max -machine pc -smp 1 -m 512 -nodefaults -no-user-config -display none \
        -no-reboot -serial file:console -chardev stdio,id=agent,signal=off -serial chardev:agent \
        -qmp unix:monitor,server=on,wait=off -device qemu-xhci,id=xhci,bus=pci.0,addr=5 \
        -device virtio-net-pci,netdev=net0,bus=pci.0,addr=6,romfile= -chardev null,id=nowhere \
        -netdev hubport,id=net0,hubid=0 -netdev hubport,id=net1,hubid=0";
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.current_dir(dir)
        .args(["-accel", accelerator, "-initrd"])
        .arg(Image::file(dir))
        .arg("-kernel")
        .arg(&assets.kernel)
        .arg("-append")
        .arg(format!("{KERNEL_ARGUMENTS} {arguments}"))
        .args(fixed.split_whitespace());
    for name in DISKS {
        let disk = format!("driver=raw,node-name={name},file.driver=file,file.filename={name}");
        qemu.args(["-blockdev", &disk]);
    }
    let complaints = fs::File::create(dir.join("complaints")).unwrap();
    qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(complaints);
    qemu
}
