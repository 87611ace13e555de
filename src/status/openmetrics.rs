//! A status as OpenMetrics text.

use std::fmt::{self, Write as _};
use std::time::Duration;

use crate::counters::{Counters, Dropped};
use crate::units::Seconds;

use super::{STATES, Status};

impl Status<'_> {
    /// OpenMetrics text (version 1.0.0), which ends in `# EOF`.
    pub fn openmetrics(&self) -> String {
        let mut metrics = Metrics(String::new());
        metrics.family("plugd_build", "info", "", "The version of plugd.");
        metrics.sample("plugd_build_info", &[("version", self.version)], 1);
        metrics.family("plugd_engine", "info", "", "What decides what is done for an event.");
        let labels = [("kind", self.engine.kind), ("file", &*self.file())];
        metrics.sample("plugd_engine_info", &labels, 1);

        metrics.family("plugd_state", "stateset", "", "What plugd is doing.");
        for state in STATES {
            let on = u64::from(state == self.state());
            metrics.sample("plugd_state", &[("plugd_state", state)], on);
        }
        metrics.family("plugd_uptime_seconds", "gauge", "seconds", "Time since plugd was started.");
        metrics.sample("plugd_uptime_seconds", &[], Seconds(self.uptime));
        metrics.family(
            "plugd_event_age_seconds",
            "gauge",
            "seconds",
            "Time since the event in hand was read, 0 if there is none.",
        );
        let age = self.in_hand().map_or(Duration::ZERO, |event| event.since);
        metrics.sample("plugd_event_age_seconds", &[], Seconds(age));

        metrics.family("plugd_queue_bytes", "gauge", "bytes", "What waits in the kernel.");
        metrics.sample("plugd_queue_bytes", &[], self.queue.bytes);
        let help = "How much may wait in the kernel.";
        metrics.family("plugd_queue_limit_bytes", "gauge", "bytes", help);
        metrics.sample("plugd_queue_limit_bytes", &[], self.queue.limit);

        let Counters { received, handled, failed, timed_out, retried, overruns, dropped, .. } =
            self.counters;
        let Counters { stale, scans, replayed: [removed, added, changed], recovery, .. } =
            self.counters;
        metrics.family("plugd_devices", "gauge", "", "Devices that are known.");
        metrics.sample("plugd_devices", &[], self.devices);
        let help = "How long it took last to look for all devices and act on what was missed.";
        metrics.family("plugd_recovery_seconds", "gauge", "seconds", help);
        metrics.sample("plugd_recovery_seconds", &[], Seconds(recovery));
        let mut counter = |name: &str, help: &str, value| {
            metrics.family(name, "counter", "", help);
            metrics.sample(&format!("{name}_total"), &[], value);
        };
        counter("plugd_events_received", "Events read.", received);
        counter("plugd_events_handled", "Events acted on with success.", handled);
        counter("plugd_events_failed", "Events acted on without success.", failed);
        counter("plugd_events_timed_out", "Events whose program took too long.", timed_out);
        counter("plugd_retries", "Attempts to start a program that were repeated.", retried);
        counter("plugd_events_stale", "Events left out, overtaken by a scan.", stale);
        counter("plugd_scans", "Times that all devices were looked for.", scans);
        counter("plugd_overruns", "Overruns of the kernel's receive buffer.", overruns);
        counter(
            "plugd_kernel_drops",
            "Datagrams that the kernel dropped for want of room.",
            self.queue.drops,
        );
        let help = "Events made up for what was missed, by their action.";
        metrics.family("plugd_events_replayed", "counter", "", help);
        for (action, count) in [("remove", removed), ("add", added), ("change", changed)] {
            metrics.sample("plugd_events_replayed_total", &[("action", action)], count);
        }
        let help = "Datagrams that were read and are no events, by what is wrong with them.";
        metrics.family("plugd_datagrams_dropped", "counter", "", help);
        for (kind, count) in Dropped::ALL.iter().zip(dropped) {
            let labels = [("kind", &*kind.to_string())];
            metrics.sample("plugd_datagrams_dropped_total", &labels, count);
        }
        metrics.0 + "# EOF\n"
    }
}

struct Metrics(String);

impl Metrics {
    fn family(&mut self, name: &str, kind: &str, unit: &str, help: &str) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}");
        if !unit.is_empty() {
            let _ = writeln!(self.0, "# UNIT {name} {unit}");
        }
        let _ = writeln!(self.0, "# HELP {name} {help}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl fmt::Display) {
        self.0.push_str(name);
        for (i, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let _ = write!(self.0, "{}{label}=\"{value}\"", if i == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use openmetrics_parser::openmetrics::parse_openmetrics;

    use super::super::tests::running;

    #[test]
    fn a_parser_reads_the_metrics() {
        running(|status| {
            let text = status.openmetrics();
            let parsed = parse_openmetrics(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
            let value = |family: &str, label: &str| {
                let family = &parsed.families[family];
                let sample = family.iter_samples().find(|sample| {
                    let set = sample.get_labelset().unwrap();
                    label.is_empty() || set.iter().any(|(_, value)| value == label)
                });
                format!("{:?}", sample.unwrap().value)
            };
            assert!(value("plugd_events_received", "").contains('9'));
            assert!(value("plugd_datagrams_dropped", "truncated").contains("11"));
            assert!(value("plugd_event_age_seconds", "").contains("2.3"));
            assert_eq!(value("plugd_state", "running"), "StateSet(Int(1))");
            assert_eq!(value("plugd_state", "idle"), "StateSet(Int(0))");
            assert!(value("plugd_engine", "/bin/\"\\\n\\xffé").contains("Info"));
        });
    }
}
