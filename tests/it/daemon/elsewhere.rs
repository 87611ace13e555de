//! It leaves the directory that it was started in.

use std::os::fd::AsFd;

use super::*;

/// A handler's name may be relative to where the daemon was started.
#[test]
fn the_handler_is_found_from_elsewhere() {
    let place = Place::new();
    let log = place.path("log");
    let (sender, receiver) = UnixDatagram::pair().unwrap();
    fs::write(place.path("handler"), "#!/bin/sh\necho did $ACTION >&2\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(place.path("handler"), mode).unwrap();
    let mut daemon = place.daemon(&["--fd", "3", "--log-file", log.to_str().unwrap()]);
    *daemon.last_mut().unwrap() = "./handler".into();
    let mut command = Command::new("sh");
    command.arg("-c").arg("exec \"$@\" 3<&0").arg("sh").args(&daemon);
    let stdin = receiver.as_fd().try_clone_to_owned().unwrap();
    let mut launcher =
        command.current_dir(place.path(".")).stdin(Stdio::from(stdin)).spawn().unwrap();
    assert!(launcher.wait().unwrap().success());
    sender.send(b"add@/x\0ACTION=add\0DEVPATH=/x\0").unwrap();
    eventually("it was run", || place.text("log").contains("did add\n").then_some(()));
}

/// So may the file of rules, which is read again on SIGHUP.
#[test]
fn rules_are_found_from_elsewhere() {
    let place = Place::new();
    fs::write(place.path("mdev.conf"), "null 0:0 0666\n").unwrap();
    fs::create_dir(place.path("dev")).unwrap();
    let log = place.path("log");
    let options = ["--conf", "mdev.conf", "--dev", "dev", "--log-file", log.to_str().unwrap()];
    let mut daemon = place.daemon(&options);
    daemon.pop();
    let mut command = Command::new(&daemon[0]);
    let finished = finish(command.args(&daemon[1..]).current_dir(place.path(".")));
    assert_eq!(finished.code, Some(0), "{finished:?}");
    fs::write(place.path("mdev.conf"), "null 0:0 wrong\n").unwrap();
    assert_eq!(place.act("--reload", &[]), 0);
    let told = format!("{}:1:", place.path("mdev.conf").display());
    eventually("the mistake is told", || place.text("log").contains(&told).then_some(()));
}

/// So may the control socket, and where the devices are that plugd is asked about.
#[test]
fn it_is_asked_from_elsewhere() {
    let place = Place::new();
    fs::write(place.path("mdev.conf"), "").unwrap();
    fs::create_dir(place.path("dev")).unwrap();
    fs::write(place.path("dev/node"), "").unwrap();
    // Is not the socket, though it is called like it and in the working directory.
    fs::write(place.path("dev/socket"), "precious").unwrap();
    let mut daemon = place.daemon(&["--control", "socket", "--conf", "mdev.conf", "--dev", "dev"]);
    daemon.pop();
    let mut command = Command::new(&daemon[0]);
    let finished = finish(command.args(&daemon[1..]).current_dir(place.path(".")));
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let socket = place.path("socket");
    let ask =
        |words: &[&str]| finish(Command::new(PLUGD).args(words).arg("--control").arg(&socket)).code;
    assert_eq!(ask(&["wait", "--timeout", "0", "/dev/node"]), Some(0));
    assert_eq!(ask(&["wait", "--timeout", "0", "/dev/socket/x"]), Some(1));
    assert_eq!(place.act("--stop", &[]), 0);
    assert!(!socket.exists(), "it was left behind");
    assert_eq!(place.text("dev/socket"), "precious");
}

/// The control socket is removed at the end, but nothing that is there instead.
#[test]
fn what_has_replaced_the_control_socket_stays() {
    let place = Place::new();
    let socket = place.path("socket");
    let daemon = place.daemon(&["--control", socket.to_str().unwrap()]);
    assert_eq!(launch(&daemon).0, Some(0));
    fs::rename(&socket, place.path("elsewhere")).unwrap();
    fs::write(&socket, "precious").unwrap();
    assert_eq!(place.act("--stop", &[]), 0);
    assert_eq!(place.text("socket"), "precious");
}
