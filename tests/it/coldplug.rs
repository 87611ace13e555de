//! `plugd coldplug`: what the kernel refuses. What it does not is in `missed`.

use std::fs;
use std::os::unix::fs::symlink;

use crate::harness::daemon::Plugd;

#[test]
fn what_the_kernel_refuses_is_left_out_and_told() {
    let sys = tempfile::tempdir().unwrap();
    let class = sys.path().join("class/x");
    fs::create_dir_all(&class).unwrap();
    for name in ["agrees", "gone", "refuses"] {
        let device = sys.path().join("devices").join(name);
        fs::create_dir_all(&device).unwrap();
        symlink("../../class/x", device.join("subsystem")).unwrap();
        symlink(format!("../../devices/{name}"), class.join(name)).unwrap();
    }
    let agrees = sys.path().join("devices/agrees/uevent");
    fs::write(&agrees, "").unwrap();
    fs::create_dir(sys.path().join("devices/refuses/uevent")).unwrap();
    let coldplug = || {
        let plugd = Plugd::new().args(["coldplug", "--control", "none", "--sys"]);
        plugd.args([sys.path()]).finish()
    };
    let refusal = "cannot trigger an event by /devices/refuses/uevent: Is a directory\n";

    let said = coldplug();
    assert_eq!(said.code, Some(0), "{said:?}");
    let told = format!("1 devices are left out; the first one: {refusal}");
    assert!(said.stderr.contains(&told), "{said:?}");
    assert!(said.stderr.ends_with("had the kernel tell of 1 devices\n"), "{said:?}");
    assert_eq!(fs::read(&agrees).unwrap(), b"add");

    // Nothing was done.
    fs::remove_file(&agrees).unwrap();
    let said = coldplug();
    assert_eq!((said.code, said.stderr), (Some(111), format!("plugd: fatal: {refusal}")));
}
