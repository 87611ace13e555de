use super::*;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::{Mode, open};

use crate::beneath::LOOK_UP;
use crate::uevent::{Header, Uevent};

/// Makes a device, or another one, whose file says this.
fn device(root: &Path, path: &str, text: &str) {
    let directory = root.join(path);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("uevent"), text).unwrap();
}

/// What is read of a device with that path.
fn read(reader: &mut Reader, sys: &Sysfs, path: &str) -> Option<String> {
    let mut event = Vec::new();
    let device = (path.as_bytes(), &b"s"[..]);
    let found = reader.read(sys, device, b"add", &mut event).unwrap();
    assert_eq!(found.is_some(), !event.is_empty());
    let event = found.map(|_| event.escape_ascii().to_string())?;
    let begin = format!(r"add@{path}\x00ACTION=add\x00DEVPATH={path}\x00SUBSYSTEM=s\x00");
    Some(event.strip_prefix(&begin).unwrap().trim_end_matches(r"\x00").to_owned())
}

#[test]
fn devices_beside_each_other_are_read_as_any() {
    let tmp = tempfile::tempdir().unwrap();
    let paths = ["/d/a", "/d/b", "/d//c", "/d/c/x", "/d/c/y", "/d/c/z", "/d/e", "/d/f", "/g", "/h"];
    for path in paths {
        device(tmp.path(), &path[1..], &format!("P={path}\n"));
    }
    let root = || open(tmp.path(), LOOK_UP, Mode::empty()).unwrap();
    for below in [Beneath::new(root()), Beneath::walking(root())] {
        let (sys, mut reader) = (Sysfs { below: below.into() }, Reader::default());
        for path in paths {
            assert_eq!(read(&mut reader, &sys, path), Some(format!("P={path}")));
        }
        assert_eq!(read(&mut reader, &sys, "/i"), None);
    }
}

#[test]
fn a_directory_that_is_another_one_by_now_is_looked_up_again() {
    let tmp = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        device(tmp.path(), &format!("d/{name}"), "X=1\n");
    }
    let (sys, mut reader) = (Sysfs::open(tmp.path()).unwrap(), Reader::default());
    let mut read = |path| read(&mut reader, &sys, path);
    for path in ["/d/a", "/d/b", "/d/c"] {
        assert_eq!(read(path), Some("X=1".into()));
    }
    fs::remove_dir_all(tmp.path().join("d")).unwrap();
    assert_eq!(read("/d/a"), None);
    device(tmp.path(), "d/a", "X=2\n");
    device(tmp.path(), "d/b", "X=2\n");
    assert_eq!(["/d/a", "/d/b", "/d/c"].map(read), [Some("X=2".into()), Some("X=2".into()), None]);
}

#[test]
fn a_directory_that_was_renamed_is_another_one_once_an_event_is_taken() {
    let tmp = tempfile::tempdir().unwrap();
    let (sys, mut reader) = (Sysfs::open(tmp.path()).unwrap(), Reader::default());
    for path in ["/d/a", "/d/b"] {
        device(tmp.path(), &path[1..], "X=1\n");
        assert_eq!(read(&mut reader, &sys, path), Some("X=1".into()));
    }
    fs::rename(tmp.path().join("d"), tmp.path().join("e")).unwrap();
    device(tmp.path(), "d/a", "X=2\n");
    reader.forget_directory();
    assert_eq!(read(&mut reader, &sys, "/d/a"), Some("X=2".into()));
}

#[test]
fn a_name_is_nothing_but_a_name() {
    let of = |subsystem: &[u8], text: &str| {
        let mut event = Vec::new();
        append_variables(text.as_bytes(), subsystem, &mut event);
        event.escape_ascii().to_string()
    };
    for key in ["IFINDEX", "DISKSEQ", "INTERFACE", "SYNTH_UUID", "PLUGD_REPLAY", "DEVPATH_OLD"] {
        let text = format!("HID_NAME=x\n{key}=1\n");
        assert_eq!(of(b"hid", &text), format!("HID_NAME=x\\n{key}=1\\x00"));
    }
    assert_eq!(of(b"net", "INTERFACE=lo\nIFINDEX=1\n"), r"INTERFACE=lo\x00IFINDEX=1\x00");
    assert_eq!(of(b"usb", "PRODUCT=1/2\nINTERFACE=3/1\n"), r"PRODUCT=1/2\x00INTERFACE=3/1\x00");
    assert_eq!(of(b"block", "DISKSEQ=7\nPARTN=1\n"), r"DISKSEQ=7\x00PARTN=1\x00");
}

fn variables(text: &[u8]) -> String {
    let mut event = Vec::new();
    append_variables(text, b"hid", &mut event);
    event.escape_ascii().to_string()
}

#[test]
fn values_with_newlines_are_put_together_again() {
    assert_eq!(variables(b"MODALIAS=cpu:type:x86\n\n"), r"MODALIAS=cpu:type:x86\n\x00");
    assert_eq!(
        variables(b"A=1\nwith more\nand more\nB=2\n"),
        r"A=1\nwith more\nand more\x00B=2\x00"
    );
    assert_eq!(variables(b"no variable\nA=1"), r"A=1\x00");
    assert_eq!(variables(b"\n"), "");
    assert_eq!(variables(b""), "");
}

#[test]
fn a_value_cannot_set_what_the_driver_core_sets() {
    assert_eq!(
        variables(b"DRIVER=hid\nHID_NAME=Evil\nMAJOR=1\nMINOR=1\nDEVNAME=x\nHID_ID=3\n"),
        r"DRIVER=hid\x00HID_NAME=Evil\nMAJOR=1\nMINOR=1\nDEVNAME=x\x00HID_ID=3\x00"
    );
    assert_eq!(
        variables(b"HID_NAME=Evil\nSUBSYSTEM=block\n"),
        r"HID_NAME=Evil\nSUBSYSTEM=block\x00"
    );
    assert_eq!(
        variables(b"MAJOR=8\nMINOR=0\nDEVNAME=sda\nDEVMODE=0666\nDEVTYPE=disk\nX=1\n"),
        r"MAJOR=8\x00MINOR=0\x00DEVNAME=sda\x00DEVMODE=0666\x00DEVTYPE=disk\x00X=1\x00"
    );
}

proptest! {
    #[test]
    fn whatever_a_file_holds_a_uevent_comes_of_it(text in prop::collection::vec(1u8..=255, 0..200)) {
        let mut event = b"add@/x\0".to_vec();
        append_variables(&text, b"hid", &mut event);
        let event = Uevent::parse(&event, Header::Required);
        prop_assert!(event.is_ok(), "{:?}", event);
    }

    #[test]
    fn variables_of_one_line_stay_as_they_are(
        fields in prop::collection::vec(("[A-Z]{1,4}[0-9]", "[ -~]{0,20}"), 0..20),
    ) {
        let text: String = fields.iter().map(|(k, v)| format!("{k}={v}\n")).collect();
        let mut event = b"add@/x\0".to_vec();
        append_variables(text.as_bytes(), b"hid", &mut event);
        let event = Uevent::parse(&event, Header::Required).unwrap();
        let read: Vec<_> = event.fields().map(|f| f.whole().to_str().unwrap().to_owned()).collect();
        let written: Vec<_> = fields.iter().map(|(k, v)| format!("{k}={v}")).collect();
        prop_assert_eq!(read, written);
    }
}
