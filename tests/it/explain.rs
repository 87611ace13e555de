//! `plugd explain`.

use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use crate::harness::daemon::{Finished, Plugd};

const RULES: &str = "\
SUBSYSTEM=block;.* 0:0 600
-null 0:0 666 *echo $MDEV
$NOTHING=x 0:0 600
@1,5 0:0 600
n(.*) 0:0 660 =mem/%1
.* 0:0 600
";

/// A sysfs with a device, and rules.
fn world() -> TempDir {
    let world = tempfile::tempdir().unwrap();
    let device = world.path().join("sys/devices/null");
    fs::create_dir_all(&device).unwrap();
    fs::create_dir_all(world.path().join("sys/class/mem")).unwrap();
    fs::write(device.join("uevent"), "MAJOR=1\nMINOR=3\nDEVNAME=null\n").unwrap();
    symlink("../../devices/null", world.path().join("sys/class/mem/null")).unwrap();
    fs::write(world.path().join("rules"), RULES).unwrap();
    world
}

fn explain(world: &TempDir, arguments: &[&str]) -> Finished {
    let path = |name: &str| world.path().join(name).into_os_string();
    let plugd = Plugd::new().args(["explain".into(), "--sys".into(), path("sys")]);
    plugd.args(["--conf".into(), path("rules")]).args(arguments).finish()
}

#[test]
fn each_rule_is_accounted_for() {
    let world = world();
    let Finished { code, stdout, stderr } = explain(&world, &["/dev/null"]);
    assert_eq!((code, &*stderr), (Some(0), ""));
    let rules = world.path().join("rules");
    let expected = format!(
        "event:
  ACTION=add
  DEVPATH=/devices/null
  SUBSYSTEM=mem
  MAJOR=1
  MINOR=3
  DEVNAME=null
rules:
  {0}:1: SUBSYSTEM=block;.* 0:0 600
      SUBSYSTEM does not match block
  {0}:2: -null 0:0 666 *echo $MDEV
      matches
  {0}:3: $NOTHING=x 0:0 600
      the event has no NOTHING
  {0}:4: @1,5 0:0 600
      the device has other numbers
  {0}:5: n(.*) 0:0 660 =mem/%1
      matches
  {0}:6: .* 0:0 600
      not tried: {0}:5 ends it
  built-in:1: .* 0:0 660
      not tried: {0}:5 ends it
what is done:
  make node null, character 1:3, owner 0:0, mode 0666
  run /bin/sh -c echo $MDEV with MDEV=null
  make node mem/ull, character 1:3, owner 0:0, mode 0660
",
        rules.display()
    );
    assert_eq!(stdout, expected);
}

#[test]
fn devices_can_be_named_in_any_way() {
    let world = world();
    let expected = explain(&world, &["/dev/null"]);
    let class = world.path().join("sys/class/mem/null");
    for name in ["null", "/devices/null", class.to_str().unwrap()] {
        assert_eq!(explain(&world, &[name]).stdout, expected.stdout, "{name}");
    }
    let removed = explain(&world, &["--action", "remove", "null"]);
    assert!(removed.stdout.contains("\n  ACTION=remove\n"), "{removed:?}");
    assert!(removed.stdout.ends_with("  remove node mem/ull, character 1:3\n"), "{removed:?}");
}

#[test]
fn what_is_wrong_is_told() {
    let world = world();
    let absent = explain(&world, &["absent"]);
    assert_eq!(absent.code, Some(111));
    assert_eq!(absent.stderr, "plugd: fatal: cannot find device 'absent': No such device\n");
    for wrong in [&[][..], &["a", "b"], &["--action", "", "null"], &["--action", "a b", "null"]] {
        assert_eq!(explain(&world, wrong).code, Some(100), "{wrong:?}");
    }
    fs::write(world.path().join("rules"), "a 0:0 9\n").unwrap();
    let finished = explain(&world, &["null"]);
    assert_eq!(finished.code, Some(2), "{finished:?}");
    assert!(finished.stderr.contains("rules:1:7: "), "{finished:?}");
}
