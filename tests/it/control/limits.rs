//! How much there may be of something, and who may how much.

use super::*;

/// A client that takes no more than a megabyte would take it for no answer.
#[test]
fn a_reload_tells_of_the_first_mistakes_only() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("mdev.conf");
    std::fs::write(&conf, "x 0:0 600 !\n").unwrap();
    let (events, receiver) = unix::pair(SocketType::SEQPACKET);
    let address = format!("@plugd-test-{}-{}", std::process::id(), unique());
    let plugd = Plugd::new().args(["run", "--fd", "3", "--control", &address, "--dev"]);
    let plugd = plugd.args([dir.path()]).args(["--conf"]).args([&conf]).fd(receiver, 3);
    let host = Host { daemon: plugd.start(), events, address };
    host.wait_until_it_listens();

    std::fs::write(&conf, "( 0:0 600\n".repeat(40_000)).unwrap();
    let said = host.say(&["reload"]);
    assert_eq!(said.code, Some(1), "{:.1000}", said.stderr);
    let place = |line: u32| format!("mdev.conf:{line}:");
    assert!(said.stderr.contains(&place(100)), "{:.1000}", said.stderr);
    assert!(!said.stderr.contains(&place(101)));
    assert!(said.stderr.ends_with("\nand 39900 more\n"));
    host.daemon.wait_for_log("and 39900 more");
    host.daemon.wait_for_log("the rules in force stay in force");
    assert!(host.daemon.log().len() < 400);

    // A single line of two megabytes.
    std::fs::write(&conf, format!("( 0:0 600 {}\n", "x".repeat(2 << 20))).unwrap();
    let said = host.say(&["reload"]);
    assert_eq!(said.code, Some(1), "{:.1000}", said.stderr);
    assert!(said.stderr.contains(&place(1)), "{:.1000}", said.stderr);
}
