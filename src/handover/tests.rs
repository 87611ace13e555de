//! What is written is read back, and nonsense is refused.

use proptest::prelude::*;

use super::*;
use crate::machine::{Retry, Stage, Stop};

fn time() -> impl Strategy<Value = Time> {
    any::<u64>().prop_map(Duration::from_nanos)
}

fn state() -> impl Strategy<Value = State> {
    let stop = prop_oneof![Just(Stop::No), Just(Stop::Finish), Just(Stop::Now)];
    let stage = prop_oneof![
        proptest::option::of(time()).prop_map(Stage::Free),
        time().prop_map(Stage::Terminated),
        time().prop_map(Stage::Killed),
    ];
    prop_oneof![
        Just(State::Reading),
        (stop, stage).prop_map(|(stop, stage)| State::Running { stop, stage }),
        (time(), proptest::option::of(time()), time()).prop_map(|(pause, missing_since, until)| {
            State::Retrying { retry: Retry { pause, missing_since }, until }
        }),
    ]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..50)
}

prop_compose! {
    fn client()(
        fd in 0..i32::MAX,
        (input, output) in (bytes(), bytes()),
        (last_words, asked_for_update) in any::<(bool, bool)>(),
        until in proptest::option::of(time()),
    ) -> Client {
        Client { fd, input, output, last_words, asked_for_update, until }
    }
}

prop_compose! {
    fn in_hand()(
        (source, steps_done, failed) in any::<(Option<usize>, usize, bool)>(),
        datagram in bytes(),
        step in any::<String>(),
        since in time(),
    ) -> InHand {
        InHand { source, datagram, steps_done, step, failed, since }
    }
}

prop_compose! {
    fn handover()(
        (state, started, paused, rules_of_files)
            in (state(), time(), any::<bool>(), any::<Option<Vec<(String, Vec<u8>)>>>()),
        (counts, dropped, stale, scans, replayed)
            in any::<([u64; 6], [u64; 3], u64, u64, [u64; 3])>(),
        sources in prop::collection::vec(0..i32::MAX, 0..3),
        file in proptest::option::of(bytes()),
        (event, child) in (in_hand(), any::<(i32, i32)>()),
        clients in prop::collection::vec(client(), 0..3),
        listener in any::<Option<(i32, Option<(u64, u64)>)>>(),
        (output, open_files, log_level)
            in any::<(Option<(i32, Vec<u8>)>, Option<(u64, u64)>, Option<bool>)>(),
        (state_file, inventory, last, held_back)
            in any::<(Option<i32>, Option<i32>, Option<u64>, Option<(usize, Vec<u8>)>)>(),
        (recovery, drops) in (time(), any::<u64>()),
        unfinished in proptest::option::of((prop_oneof![
            Just(Cause::Coldplug), Just(Cause::Restart), Just(Cause::Overrun),
            Just(Cause::Rescan),
        ], any::<bool>())),
        trust in 0..3,
    ) -> Handover {
        let [received, handled, failed, timed_out, retried, overruns] = counts;
        Handover {
            version: "0.1.0-x".into(),
            file,
            started,
            state,
            paused,
            counters: Counters {
                received, handled, failed, timed_out, retried, overruns, dropped, stale,
                scans, replayed, recovery,
            },
            sources,
            event: (state != State::Reading).then_some(event),
            child: matches!(state, State::Running { .. }).then_some(child),
            listener: listener.map(|(fd, file)| Listener { fd, file }),
            clients,
            log_level: log_level.map(|_| "debug".into()),
            rules_of_files,
            open_files,
            output,
            state_file,
            inventory,
            trust: match trust {
                0 => Trust::Unscanned,
                1 => Trust::Lossy,
                _ => Trust::Scanned { last },
            },
            drops,
            unfinished,
            held_back,
        }
    }
}

proptest! {
    #[test]
    fn what_was_handed_over_is_read_back(handover in handover()) {
        let text = handover.to_text();
        prop_assert_eq!(Handover::parse(&text), Ok(handover.clone()));
        // What a newer one may add does no harm.
        let text = text + "colour blue\n\nshape\n";
        prop_assert_eq!(Handover::parse(&text), Ok(handover));
    }

    #[test]
    fn no_text_is_too_strange(text in "(plugd-handover 1\n)?(client|event|running|source| |=|-|7|f|\n){0,40}") {
        let _ = Handover::parse(&text);
    }
}

#[test]
fn nonsense_is_named() {
    let error = |text: &str| Handover::parse(text).unwrap_err().0;
    assert_eq!(error(""), "it does not begin with plugd-handover 1");
    assert_eq!(error("plugd-handover 2\n"), "it does not begin with plugd-handover 1");
    let with = |line: &str| error(&format!("{MAGIC}\n{line}\n"));
    for line in [
        "source",
        "source x",
        "event 1 0 0 0 =0",
        "event 1 0 0 0 =00",
        "event 1 0 0 0 = =ff",
        "child 3",
        "running no free",
        "running no killed -",
    ] {
        assert_eq!(with(line), format!("'{line}'"));
    }
    for line in ["running no killed 5", "child 3 4", "event 0 0 0 0 = ="] {
        assert_eq!(with(line), "state, event and child do not go together");
    }
}

#[test]
fn only_what_is_meant_for_us_counts() {
    for (value, expected) in
        [("42:7", Some(7)), ("41:7", None), ("42", None), ("42:", None), ("42:x", None)]
    {
        assert_eq!(descriptor(value, 42), expected, "{value}");
    }
}
