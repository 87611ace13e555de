//! QEMU's machine protocol: lines of JSON on a socket
//! (https://www.qemu.org/docs/master/interop/qmp-spec.html).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::PATIENCE;
use crate::common::eventually;

/// A connection to a machine's monitor.
pub(crate) struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    /// What happened while something else was waited for.
    events: Vec<Value>,
}

impl Qmp {
    /// Connects to the socket that QEMU is about to make.
    pub(crate) fn connect(socket: &Path) -> Self {
        let writer = eventually("QEMU's monitor is there", || UnixStream::connect(socket).ok());
        writer.set_read_timeout(Some(PATIENCE)).unwrap();
        let reader = BufReader::new(writer.try_clone().unwrap());
        let mut qmp = Self { reader, writer, events: Vec::new() };
        let greeting = qmp.read();
        assert!(greeting.get("QMP").is_some(), "{greeting}");
        qmp.execute("qmp_capabilities", &json!({}));
        qmp
    }

    /// Plugs a device in, described as on QEMU's command line.
    pub(crate) fn plug(&mut self, device: &str) {
        self.human(&format!("device_add {device}"));
    }

    /// Unplugs the device with this id, and waits until the machine has let go
    /// of it.
    pub(crate) fn unplug(&mut self, id: &str) {
        self.human(&format!("device_del {id}"));
        let is_it = |event: &Value| {
            event["event"] == "DEVICE_DELETED" && event["data"]["device"] == json!(id)
        };
        loop {
            if let Some(index) = self.events.iter().position(is_it) {
                self.events.remove(index);
                return;
            }
            let event = self.read();
            self.events.push(event);
        }
    }

    /// Gives a command as a person would. It says nothing if all is well.
    fn human(&mut self, line: &str) {
        let said = self.execute("human-monitor-command", &json!({ "command-line": line }));
        assert_eq!(said, "", "{line}");
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.writer.write_all(line.as_bytes()).unwrap();
        loop {
            let mut message = self.read();
            if message.get("event").is_some() {
                self.events.push(message);
                continue;
            }
            assert!(message.get("return").is_some(), "{command}: {message}");
            return message["return"].take();
        }
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).expect("QEMU says something in time");
        assert!(!line.is_empty(), "QEMU has gone");
        serde_json::from_str(&line).unwrap()
    }
}
